"""What a host lacks, by name, with the way to mend it; and the mending of what we may mend.

`hypercore setup` installs; this looks wider, at the kernel, other firewalls and room on disks,
and it needs nothing of ours to run. A warning is about something that works, but worse.
"""

import asyncio
import os
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from hypercore import firewalls, host_setup, hostnet, network, nft, paths, providers, resolver
from hypercore.config import HostConfig
from hypercore.errors import HypercoreError, Unavailable
from hypercore.providers.qemu import kernel_vsock_works

LEAST_FREE_BYTES, ENOUGH_FREE_BYTES = 256 << 20, 2 << 30
_MODPROBE_TIMEOUT_S = 30

Mend = Callable[[], None]


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What one look found."""

    name: str
    level: Level
    text: str
    remedy: str = ""
    mend: Mend | None = None
    """does what the remedy says; may raise HypercoreError"""


async def examine(config: HostConfig) -> list[Diagnosis]:
    """Look at everything. Changes nothing."""
    looks: tuple[Callable[[], Diagnosis], ...] = (
        _tun,
        _nftables,
        lambda: _kvm(config),
        _vsock,
        lambda: _interface(config),
        _firewalls,
        _bridges,
        _resolver,
        lambda: _room("data directory", paths.data_dir()),
        lambda: _room("run directory", paths.run_dir()),
    )
    found = [await asyncio.to_thread(look) for look in looks]
    for name, finding in await host_setup.check(config):
        level = Level.OK if finding.ready else Level.MISSING
        remedy = "" if finding.ready else "hypercore setup"
        found.append(Diagnosis(name, level, finding.text, remedy))
    return found


async def mend(
    config: HostConfig,
    found: list[Diagnosis],
    report: Callable[[str], None],
    set_up: Callable[[HostConfig, Callable[[str], None]], Awaitable[None]] = host_setup.apply,
) -> None:
    """Mend what can be, telling each deed; what cannot be is left to the next examination."""
    for each in found:
        if each.mend is None:
            continue
        report(f"{each.name}: {each.remedy}")
        try:
            await asyncio.to_thread(each.mend)
        except HypercoreError as exc:
            report(f"{each.name}: not mended: {exc.message}")
    if any(each.remedy == "hypercore setup" for each in found):
        try:
            await set_up(config, report)
        except HypercoreError as exc:
            report(f"setup: {exc.message}" + (f" ({exc.hint})" if exc.hint else ""))


# -- the kernel --


def _tun() -> Diagnosis:
    name = "tun"
    if not os.path.exists(network.TUN):
        return _module(name, f"{network.TUN} does not exist", "tun")
    try:
        os.close(os.open(network.TUN, os.O_RDWR | os.O_CLOEXEC))
    except OSError as exc:
        text = f"{network.TUN} cannot be opened: {exc.strerror}"
        return _module(name, text, "tun")
    return Diagnosis(name, Level.OK, network.TUN)


def _nftables() -> Diagnosis:
    try:
        nft.chains()
    except OSError as exc:
        text = f"the kernel does not answer for nf_tables: {exc.strerror}"
        return _module("nf_tables", text, "nf_tables", "nft_masq", "nft_nat", "nft_reject_inet")
    return Diagnosis("nf_tables", Level.OK, "the kernel has it")


def _module(name: str, text: str, *modules: str) -> Diagnosis:
    return Diagnosis(
        name,
        Level.MISSING,
        text,
        "modprobe -a " + " ".join(modules),
        lambda: _modprobe(modules),
    )


def _modprobe(modules: tuple[str, ...]) -> None:
    path = shutil.which("modprobe", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if path is None:
        raise Unavailable("modprobe is not installed")
    done = subprocess.run(
        (path, "-a", *modules),
        capture_output=True,
        text=True,
        check=False,
        timeout=_MODPROBE_TIMEOUT_S,
    )
    if done.returncode != 0:
        raise Unavailable(f"modprobe: {done.stderr.strip()}")


def _kvm(config: HostConfig) -> Diagnosis:
    try:
        provider, probe = providers.choose(config)
    except HypercoreError as exc:
        return Diagnosis("kvm", Level.MISSING, exc.message, exc.hint or "hypercore setup")
    text = f"{provider.name} runs guests by {probe.accelerator or 'itself'}"
    if probe.accelerator == "kvm":
        return Diagnosis("kvm", Level.OK, text)
    return Diagnosis(
        "kvm",
        Level.WARNING,
        f"{text}, which is slow: KVM does not work here",
        "turn on virtualization in the firmware, or nested virtualization of the host above",
    )


def _vsock() -> Diagnosis:
    if kernel_vsock_works():
        return Diagnosis("vhost-vsock", Level.OK, "the kernel serves vsock")
    return Diagnosis(
        "vhost-vsock",
        Level.WARNING,
        "not in this kernel: provider qemu needs the helper vhost-device-vsock",
        "modprobe -a vhost_vsock",
    )


# -- the network --


def _interface(config: HostConfig) -> Diagnosis:
    name = hostnet.default_interface()
    if not name:
        return Diagnosis(
            "interface",
            Level.WARNING,
            "this host has no default route: without an interface named, microVMs get no network",
            "set interface in hac.toml",
        )
    try:
        network.check_pool(config)
    except HypercoreError as exc:
        return Diagnosis("addresses", Level.MISSING, exc.message, exc.hint)
    return Diagnosis("interface", Level.OK, f"{name}, addresses of {config.network_pool}")


def _firewalls() -> Diagnosis:
    try:
        closed = firewalls.closed()
    except OSError as exc:
        return Diagnosis("firewalls", Level.WARNING, f"cannot be seen: {exc.strerror}")
    if not closed:
        return Diagnosis("firewalls", Level.OK, "none drops what guests send")

    def mend() -> None:
        for each in closed:
            firewalls.open_for_taps(each)

    can_mend = all(each.commands for each in closed)
    return Diagnosis(
        "firewalls",
        Level.MISSING,
        "guests do not get out: dropped by " + ", ".join(map(str, closed)),
        "; ".join(each.remedy for each in closed),
        mend if can_mend else None,
    )


def _bridges() -> Diagnosis:
    if not (firewalls.bridged_frames_are_filtered() and firewalls.dropping()):
        return Diagnosis("bridges", Level.OK, "no firewall drops frames inside them")
    return Diagnosis(
        "bridges",
        Level.WARNING,
        "frames inside a bridge go through iptables (br_netfilter, as docker sets it): guests of"
        " mode bridge may be cut off",
        "iptables -I DOCKER-USER -m physdev --physdev-is-bridged -j ACCEPT, or"
        " sysctl net.bridge.bridge-nf-call-iptables=0",
    )


def _resolver() -> Diagnosis:
    found = resolver.discover(ipv4=True, ipv6=True)
    if found.servers:
        return Diagnosis("names", Level.OK, "guests ask " + ", ".join(found.servers))
    if found.loopback:
        return Diagnosis("names", Level.OK, f"guests of mode nat are led to {found.loopback}")
    return Diagnosis(
        "names",
        Level.WARNING,
        "/etc/resolv.conf names no DNS server that a guest can reach",
        'set dns = ["ADDRESS"] in [network] of hac.toml',
    )


# -- disks --


def _room(name: str, directory: Path) -> Diagnosis:
    there = directory
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    text = f"{free >> 20} MiB free in {directory}"
    if free >= ENOUGH_FREE_BYTES or (name == "run directory" and free >= LEAST_FREE_BYTES):
        return Diagnosis(name, Level.OK, text)
    level = Level.WARNING if free >= LEAST_FREE_BYTES else Level.MISSING
    return Diagnosis(name, level, text, "hypercore cleanup, and remove images no longer needed")
