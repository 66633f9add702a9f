"""What a microVM asks of its provider, held against what that VMM can do.

A refusal names the providers that can. Nothing here talks to a VMM.
"""

import os
from pathlib import Path

from hypercore import paths, providers, vsock
from hypercore.errors import InvalidArgument, from_os_error
from hypercore.providers.base import Feature, Provider
from hypercore.spec import HardwareSpec


def require(provider: Provider, feature: Feature, what: str, *, hint: str = "") -> None:
    """Refuse unless `provider` has `feature`.

    Args:
        what: completes "provider NAME cannot …".
        hint: another way out than a provider that can.

    Raises:
        InvalidArgument: it has not.
    """
    if provider.features & feature:
        return
    able = [name for name in providers.NAMES if providers.load(name).features & feature]
    ways = [hint] if hint else []
    if able:
        ways.append("choose a provider that can: --provider " + " or ".join(able))
    raise InvalidArgument(f"provider {provider.name} cannot {what}", hint="; ".join(ways))


def check(provider: Provider, hardware: HardwareSpec, kernel_path: Path) -> None:
    """Refuse a machine that this VMM cannot make. Reads the head of the kernel.

    Raises:
        InvalidArgument: it cannot; names the key, and the providers that can.
    """
    if hardware.disk_limits.mib_per_s or hardware.disk_limits.ops_per_s:
        require(provider, Feature.DISK_LIMITS, "bound what disks take (vm.disk_…_per_s)")
    if hardware.balloon_mib:
        require(provider, Feature.BALLOON, "hold memory back (vm.balloon)")
    if not provider.features & Feature.BZIMAGE and is_bzimage(kernel_path):
        require(
            provider,
            Feature.BZIMAGE,
            f"boot a bzImage (hardware.kernel = {str(kernel_path)!r})",
            hint="give it the vmlinux that scripts/extract-vmlinux of the kernel's sources takes"
            " out of it",
        )


def check_sockets(files: paths.MicroVMPaths) -> None:
    """Refuse directories so deep that the VMM's sockets would have no room for their names.

    Raises:
        InvalidArgument: names the longest of them.
    """
    longest = files.vsock_listener(vsock.CONTROL_PORT)
    if (size := len(os.fsencode(longest))) > paths.MAX_SOCKET_PATH:
        raise InvalidArgument(
            f"the socket path {longest} has {size} bytes, more than {paths.MAX_SOCKET_PATH}",
            hint="choose a shorter run directory: HYPERCORE_RUN_DIR",
        )


def is_bzimage(path: Path) -> bool:
    """Whether it has the setup header of an x86 bzImage (arch/x86/boot.rst of the kernel)."""
    try:
        with path.open("rb") as file:
            file.seek(0x202)
            return file.read(4) == b"HdrS"
    except OSError as exc:
        raise from_os_error(exc, f"read the kernel {path}") from exc
