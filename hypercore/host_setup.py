"""`hypercore setup`: what a host needs before its first spawn, step by step, each idempotent.

What exists already is used; what is missing goes into our own directories (paths.tools_dir(),
paths.guest_dir()). The one exception is named when it happens: programs of the distribution's own
packages, such as qemu, are installed with apt-get. No service, and nothing of another containerd
or docker, is touched.
"""

import asyncio
import os
import platform
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from hypercore import (
    apt_install,
    aptroot,
    demo_image,
    guest,
    network,
    paths,
    providers,
    vmm_release,
)
from hypercore.config import HostConfig
from hypercore.containerd import daemon, images, program
from hypercore.containerd.client import Client
from hypercore.errors import HypercoreError, NotFound, PermissionDenied, Unavailable
from hypercore.providers import base, qemu

CONTAINERD_SUITE = "trixie"
"""Debian's first with a containerd that has blockfile; runs on Debian 12 and Ubuntu 22.04 too."""
VSOCK_SUITE = "forky"
BUSYBOX_SUITE = "bookworm"
VSOCK_CRATE = "vhost-device-vsock@0.3.0"
"""Built by cargo where Debian's package does not run."""

Report = Callable[[str], None]

_QEMU_PACKAGES = {"x86_64": "qemu-system-x86", "aarch64": "qemu-system-arm"}
_SBIN = "/usr/sbin:/sbin"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check saw."""

    ready: bool
    text: str
    """what is there, or what is missing"""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing a host needs."""

    name: str
    check: Callable[[HostConfig], Awaitable[Finding]]
    """changes nothing"""
    apply: Callable[[HostConfig, Report], Awaitable[None]]
    """idempotent; afterwards `check` is content"""
    always: bool = False
    """apply even if `check` is content: it sees by itself, and quickly, what is out of date"""


@dataclass(frozen=True, slots=True)
class Wish:
    """A VMM that is to be there, beyond what a spawn needs."""

    provider: str
    url: str = ""
    """of its release; empty: the project's own"""
    sha256: str = ""
    """empty: the one that the project publishes"""


async def check(config: HostConfig, wish: Wish | None = None) -> list[tuple[str, Finding]]:
    """What every step finds, by its name. Changes nothing."""
    return [(step.name, await step.check(config)) for step in _steps(wish)]


async def apply(config: HostConfig, report: Report, wish: Wish | None = None) -> None:
    """Bring the host to where every check is content.

    Args:
        report: called with a line for each step, and with more while one takes time.

    Raises:
        PermissionDenied: not root.
        Unavailable: a step failed; what it needs and how to get it are in message and hint.
    """
    if os.geteuid() != 0:
        raise PermissionDenied("setting up the host needs root", hint="run as root")
    for step in _steps(wish):
        found = await step.check(config)
        if not found.ready or step.always:

            def step_report(line: str, name: str = step.name) -> None:
                report(f"{name}: {line}")

            await step.apply(config, step_report)
            found = await step.check(config)
        if not found.ready:
            raise Unavailable(f"{step.name}: {found.text}", hint="see the lines above")
        report(f"{step.name}: {found.text}")


def _steps(wish: Wish | None) -> tuple["Step", ...]:
    return STEPS if wish is None else (_vmm_step(wish), *STEPS)


# a VMM of its project's own release


def _vmm_step(wish: Wish) -> Step:
    provider = providers.load(wish.provider)

    async def check(config: HostConfig) -> Finding:
        try:
            version, binary = await asyncio.to_thread(_installed, provider, config)
        except Unavailable as exc:
            return Finding(False, str(exc))
        return Finding(True, f"{version} at {binary}")

    async def fetch(config: HostConfig, report: Report) -> None:
        if wish.provider == "qemu":
            await apt_install.install({_qemu_package(): "qemu"}, report)
            return
        if binary := config.binaries.get(wish.provider):
            raise Unavailable(
                f"[binaries] {wish.provider} = {str(binary)!r} will not do",
                hint=f"correct or remove the key in {paths.config_file()}",
            )
        await asyncio.to_thread(
            vmm_release.install,
            wish.provider,
            report,
            provider.version,
            url=wish.url,
            sha256=wish.sha256,
        )

    return Step(f"provider {wish.provider}", check, fetch)


def _installed(provider: base.Provider, config: HostConfig) -> tuple[str, Path]:
    name = provider.name
    programs = (f"qemu-system-{platform.machine()}",) if name == "qemu" else ()
    binary = base.require_binary(config, name, *programs, hint="")
    return provider.version(binary), binary


def _qemu_package() -> str:
    machine = platform.machine()
    if machine not in _QEMU_PACKAGES:
        raise Unavailable(f"no package of QEMU is known for {machine}")
    return _QEMU_PACKAGES[machine]


# programs of the distribution


def _missing_packages(config: HostConfig) -> dict[str, str]:
    """Package → what it is wanted for."""
    search = f"{os.environ.get('PATH', '')}:{_SBIN}"
    missing = {}
    if not all(shutil.which(name, path=search) for name in ("mke2fs", "debugfs")):
        missing["e2fsprogs"] = "mke2fs and debugfs"
    if not aptroot.KEYRING.exists():
        missing["debian-archive-keyring"] = "the keys of Debian's packages"
    machine = platform.machine()
    if machine in _QEMU_PACKAGES and not any(
        base.find_binary(config, name, *programs)
        for name, programs in (
            ("firecracker", ()),
            ("cloud-hypervisor", ()),
            ("qemu", (f"qemu-system-{machine}",)),
        )
    ):
        missing[_QEMU_PACKAGES[machine]] = f"qemu-system-{machine}"
    return missing


async def _check_programs(config: HostConfig) -> Finding:
    missing = _missing_packages(config)
    if missing:
        return Finding(False, "missing: " + ", ".join(missing.values()))
    return Finding(True, "a VMM, mke2fs and the keys of Debian's packages are here")


async def _install_programs(config: HostConfig, report: Report) -> None:
    await apt_install.install(_missing_packages(config), report)


# containerd


async def _check_containerd(config: HostConfig) -> Finding:
    try:
        binary = await asyncio.to_thread(program.find, config)
        version = await asyncio.to_thread(program.version, binary)
    except Unavailable as exc:
        return Finding(False, str(exc))
    if version[:2] < program.MINIMUM:
        return Finding(False, f"{binary} is version {'.'.join(map(str, version))}: too old")
    return Finding(True, f"{'.'.join(map(str, version))} at {binary}")


async def _fetch_containerd(config: HostConfig, report: Report) -> None:
    if binary := config.binaries.get("containerd"):
        raise Unavailable(
            f"[binaries] containerd = {str(binary)!r} cannot be used",
            hint=f"correct or remove the key in {paths.config_file()}",
        )
    into = paths.tools_dir() / "containerd" / CONTAINERD_SUITE
    await _fetch(["containerd"], CONTAINERD_SUITE, into, report)


# the VMM


async def _check_vmm(config: HostConfig) -> Finding:
    try:
        provider, probe = await asyncio.to_thread(providers.choose, config)
    except HypercoreError as exc:
        return Finding(False, str(exc))
    accelerator = f", {probe.accelerator}" if probe.accelerator else ""
    return Finding(True, f"{provider.name} {probe.version}{accelerator} at {probe.binary}")


async def _fetch_vsock_helper(config: HostConfig, report: Report) -> None:
    """The only part of a VMM that distributions lack."""
    name = "vhost-device-vsock"
    have = await asyncio.to_thread(base.find_binary, config, name)
    if have is not None or qemu.kernel_vsock_works():
        return
    into = paths.tools_dir() / name
    report("the kernel's vhost-vsock does not work here: QEMU needs vhost-device-vsock")
    try:
        await _fetch([name], VSOCK_SUITE, into, report)
    except Unavailable as exc:
        if shutil.which("cargo") is None:
            raise
        report(f"{exc}; building it with cargo")
    else:
        if await _runs(into / "usr" / "bin" / name):
            return
        await asyncio.to_thread(shutil.rmtree, into)
        if shutil.which("cargo") is None:
            raise Unavailable(f"Debian's {name} does not run on this host", hint="install cargo")
        report(f"Debian's {name} does not run on this host: building it with cargo")
    await _cargo_install(VSOCK_CRATE, into)


async def _runs(binary: Path) -> bool:
    child = await asyncio.create_subprocess_exec(
        binary,
        "--version",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    return await child.wait() == 0


async def _cargo_install(crate: str, into: Path) -> None:
    child = await asyncio.create_subprocess_exec(
        "cargo",
        "install",
        "--locked",
        "--quiet",
        f"--root={into}",
        crate,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, said = await child.communicate()
    finally:
        if child.returncode is None:
            child.terminate()
            await child.wait()
    if child.returncode != 0:
        lines = said.decode(errors="replace").strip().splitlines()
        raise Unavailable(f"cargo cannot install {crate}: {lines[-1] if lines else ''}")


# guest assets


async def _check_guest(config: HostConfig) -> Finding:
    try:
        assets = await asyncio.to_thread(guest.current)
    except NotFound as exc:
        return Finding(False, str(exc))
    return Finding(True, f"{assets.version} in {assets.kernel_path.parent}")


async def _build_guest(config: HostConfig, report: Report) -> None:
    await asyncio.to_thread(guest.build, report)


# network


async def _check_network(config: HostConfig) -> Finding:
    try:
        prepared = await asyncio.to_thread(network.is_prepared)
    except PermissionDenied as exc:
        return Finding(False, str(exc))
    if not prepared:
        return Finding(False, "the nftables table hypercore is not in place")
    return Finding(True, f"nftables table hypercore, addresses of {config.network_pool}")


async def _prepare_network(config: HostConfig, report: Report) -> None:
    await asyncio.to_thread(network.prepare_host, config)


# our containerd and the demo image


async def _check_service(config: HostConfig) -> Finding:
    state = daemon.status()
    if not state.serving:
        return Finding(False, "our containerd is not running")
    return Finding(True, f"serves {state.socket}, pid {state.pid}")


async def _start_service(config: HostConfig, report: Report) -> None:
    await daemon.start(config)


def _busybox_dir() -> Path:
    return paths.tools_dir() / "busybox"


async def _check_demo(config: HostConfig) -> Finding:
    try:
        async with Client(config.containerd_socket, config.namespace) as client:
            image = await images.get(client, demo_image.NAME)
    except HypercoreError as exc:
        return Finding(False, str(exc))
    if image is None or image.target is None:
        return Finding(False, f"{demo_image.NAME} is not here")
    return Finding(True, f"{demo_image.NAME}, {image.target.digest[:19]}")


async def _make_demo(config: HostConfig, report: Report) -> None:
    await _fetch(["busybox-static"], BUSYBOX_SUITE, _busybox_dir(), report)
    async with Client(config.containerd_socket, config.namespace) as client:
        if await demo_image.ensure(client, _busybox_dir() / "bin" / "busybox"):
            report(f"made {demo_image.NAME}")


async def _fetch(packages: list[str], suite: str, into: Path, report: Report) -> None:
    await asyncio.to_thread(aptroot.fetch, packages, suite=suite, into=into, progress=report)


STEPS = (
    Step("programs", _check_programs, _install_programs),
    Step("containerd", _check_containerd, _fetch_containerd),
    Step("VMM", _check_vmm, _fetch_vsock_helper),
    Step("guest assets", _check_guest, _build_guest, always=True),
    Step("network", _check_network, _prepare_network, always=True),
    Step("service", _check_service, _start_service),
    Step("demo image", _check_demo, _make_demo, always=True),
)
