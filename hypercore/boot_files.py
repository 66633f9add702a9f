"""Which kernel, initrd and drive a microVM boots: the guest assets', or the user's own."""

import os
from dataclasses import dataclass
from pathlib import Path

from hypercore import _blockio
from hypercore.errors import from_os_error
from hypercore.spec import Disk, HardwareSpec

DRIVE_SERIAL = "hc-drive"
"""Apart from the serials of root disks, whoever numbers those."""


@dataclass(frozen=True, slots=True)
class BootFiles:
    kernel_path: Path
    initrd_path: Path | None
    drive: Disk

    def parameters(self) -> tuple[tuple[str, str | None], ...]:
        """Kernel parameters that lead to the drive, which is always the first disk."""
        found: list[tuple[str, str | None]] = [
            ("root", "/dev/vda"),
            ("rootfstype", self.drive.fs_type),
            ("ro", None),
        ]
        if self.initrd_path is None:
            found += [("rootwait", None), ("init", "/init")]
        return tuple(found)


def choose(hardware: HardwareSpec) -> BootFiles:
    """The files for this hardware, resolved, so that a new version of the assets cannot mix in.

    The assets' initrd holds modules of the assets' kernel: a user's kernel goes without it, unless
    it is a copy of that one.

    Raises:
        InvalidArgument: a user's file will not do; names its key and the way out.
        NotFound: there are no guest assets.
    """
    from hypercore import guest

    assets = None
    if hardware.kernel_path is None or hardware.drive_path is None:
        assets = guest.current()
    if hardware.kernel_path is not None:
        guest.check_kernel(hardware.kernel_path)
        kernel = hardware.kernel_path
        initrd = hardware.initrd_path or guest.initrd_for(kernel)
    else:
        assert assets is not None
        kernel = assets.kernel_path
        initrd = hardware.initrd_path or assets.initrd_path
    if hardware.drive_path is not None:
        guest.check_drive(hardware.drive_path)
        drive = hardware.drive_path
    else:
        assert assets is not None
        drive = assets.drive_path
    drive = drive.resolve()
    return BootFiles(
        kernel_path=kernel.resolve(),
        initrd_path=initrd.resolve() if initrd else None,
        drive=Disk(drive, DRIVE_SERIAL, read_only=True, fs_type=_filesystem(drive)),
    )


def _filesystem(path: Path) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _blockio.probe_image(fd)[0] or "erofs"
        finally:
            os.close(fd)
    except OSError as exc:
        raise from_os_error(exc, f"read the drive {path}") from exc
