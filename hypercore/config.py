"""Host configuration: /etc/hypercore/config.toml, then HYPERCORE_* variables, then flags.

What a workload asks for is hac.py's. Imports nothing heavy: the shim server loads it at start.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hypercore import paths
from hypercore.errors import InvalidArgument

BINARIES = (
    "containerd",
    "firecracker",
    "jailer",
    "cloud-hypervisor",
    "qemu",
    "vhost-device-vsock",
    "virtiofsd",
)
"""Programs whose path may be configured; others are looked up in PATH, then in our tools."""


@dataclass(frozen=True, slots=True)
class HostConfig:
    """How hypercore works on this host."""

    containerd_socket: Path = field(default_factory=paths.containerd_socket)
    namespace: str = paths.OWN_NAMESPACE
    """containerd namespace"""
    network_pool: str = "10.210.0.0/16"
    """private IPv4 network of which each microVM gets a /30"""
    uid_base: int = 1_900_000_000
    """the VMM of slot n runs as uid and gid `uid_base + n`; above all ranges systemd hands out"""
    upper_size_mib: int = 10240
    """size of a microVM's private writable disk; sparse"""
    log_limit_mib: int = 16
    """size of one segment of a stream's log"""
    log_segments: int = 4
    """segments kept per stream, the live one included"""
    vms_per_server: int = 0
    """microVMs that share one shim server; 0: all"""
    boot_timeout_s: int = 60
    """from the VMM's start to the agent's first call"""
    binaries: Mapping[str, Path] = field(default_factory=dict)
    """program name → path, for those not to be looked up"""


# HostConfig's numbers: field → (table and key in the file, least, most).
_NUMBERS = {
    "uid_base": ("vm", "uid_base", 1000, 2**31 - 2**20),
    "upper_size_mib": ("vm", "upper_size_mib", 16, 64 * 1024 * 1024),
    "boot_timeout_s": ("vm", "boot_timeout_s", 1, 3600),
    "log_limit_mib": ("logs", "limit_mib", 1, 1024 * 1024),
    "log_segments": ("logs", "segments", 1, 1000),
    "vms_per_server": ("shim", "vms_per_server", 0, 100_000),
}


def load(path: Path | None = None, environ: Mapping[str, str] | None = None) -> HostConfig:
    """The host's configuration from file and environment.

    Args:
        path: the file; None: paths.config_file(), which need not exist.
        environ: instead of os.environ.

    Raises:
        InvalidArgument: an unknown key, a wrong type or value, in the file or a variable.
        NotFound: `path` was given and does not exist.
    """
    environ = os.environ if environ is None else environ
    config = HostConfig()
    file = path or paths.config_file()
    if path is not None or file.exists():
        config = _from_file(config, file)
    return _from_environment(config, environ)


def _from_file(config: HostConfig, path: Path) -> HostConfig:
    from hypercore.tomlfile import load as load_toml

    document = load_toml(path)
    tables = {name: document.table(name) for name in ("containerd", "network", "vm", "logs")}
    tables["shim"] = document.table("shim")
    binaries = document.table("binaries")
    document.finish()

    socket = tables["containerd"].text("socket")
    namespace = tables["containerd"].text("namespace", config.namespace)
    pool = tables["network"].text("pool", config.network_pool)
    if problem := _namespace_problem(namespace):
        tables["containerd"].fail("namespace", problem)
    if problem := _pool_problem(pool):
        tables["network"].fail("pool", problem)
    numbers: dict[str, Any] = {
        name: tables[table].integer(key, getattr(config, name), least=least, most=most)
        for name, (table, key, least, most) in _NUMBERS.items()
    }
    programs = {name: binaries.path(name) for name in BINARIES}
    for table in (*tables.values(), binaries):
        table.finish()
    return replace(
        config,
        containerd_socket=Path(socket) if socket else config.containerd_socket,
        namespace=namespace,
        network_pool=pool,
        binaries={name: program for name, program in programs.items() if program},
        **numbers,
    )


def _from_environment(config: HostConfig, environ: Mapping[str, str]) -> HostConfig:
    def variable(name: str) -> str:
        return environ.get(f"HYPERCORE_{name.upper()}", "")

    def fail(name: str, problem: str) -> InvalidArgument:
        return InvalidArgument(f"HYPERCORE_{name.upper()}={variable(name)}: {problem}")

    if socket := variable("containerd_socket"):
        config = replace(config, containerd_socket=Path(socket))
    if namespace := variable("namespace"):
        if problem := _namespace_problem(namespace):
            raise fail("namespace", problem)
        config = replace(config, namespace=namespace)
    if pool := variable("network_pool"):
        if problem := _pool_problem(pool):
            raise fail("network_pool", problem)
        config = replace(config, network_pool=pool)
    numbers: dict[str, Any] = {}
    for name, (_table, _key, least, most) in _NUMBERS.items():
        if text := variable(name):
            if not text.isdecimal() or not least <= int(text) <= most:
                raise fail(name, f"must be a whole number, {least} to {most}")
            numbers[name] = int(text)
    return replace(config, **numbers) if numbers else config


def _namespace_problem(name: str) -> str:
    # containerd's own rule for identifiers (pkg/identifiers): at most 76 bytes.
    import re

    if len(name) <= 76 and re.fullmatch(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*", name):
        return ""
    return "must be letters, digits and single . _ - between them, at most 76"


def _pool_problem(pool: str) -> str:
    import ipaddress

    try:
        network = ipaddress.IPv4Network(pool)
    except ValueError:
        return 'must be an IPv4 network such as "10.210.0.0/16"'
    if not network.is_private:
        return "must be a private network (RFC 1918)"
    if not 8 <= network.prefixlen <= 24:
        return "must be a /8 to /24"
    return ""
