"""Guest assets: the kernel, the initrd and the drive that microVMs boot from.

`build` makes them, from pinned packages and the agent's sources, into a directory of their own
version; `current` finds those in use. Importing this costs nothing: the build's modules are loaded
by `build`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hypercore import paths
from hypercore.errors import NotFound

KERNEL, INITRD, DRIVE, MANIFEST = "vmlinux", "initrd", "agent.erofs", "manifest.json"


@dataclass(frozen=True, slots=True)
class GuestAssets:
    """What a microVM boots from unless its spec names its own."""

    version: str
    kernel_path: Path
    initrd_path: Path | None
    """None: the kernel has all drivers built in"""
    drive_path: Path


def current() -> GuestAssets:
    """The assets in use.

    Raises:
        NotFound: none have been built.
    """
    return _open(paths.guest_dir() / "current")


def build(progress: Callable[[str], None]) -> GuestAssets:
    """Build the assets if their inputs have changed, and put them in use.

    Needs root and, the first time, a package mirror. Takes a minute, or less than a second when
    nothing has changed. The same inputs give the same bytes.

    Args:
        progress: called with one line for each step.
    """
    from hypercore.guest.builder import build_assets

    return _open(build_assets(progress))


def initrd_for(kernel_path: Path) -> Path | None:
    """The initrd for a user's kernel that is a copy of ours; None for any other.

    Other kernels have their drivers built in, or come with an initrd of the user's.
    """
    from hypercore.guest import kernel

    try:
        assets = current()
    except NotFound:
        return None
    found = kernel.build_id(kernel_path)
    return assets.initrd_path if found and found == kernel.build_id(assets.kernel_path) else None


def check_kernel(path: Path, key: str = "hardware.kernel") -> None:
    """Raise InvalidArgument unless `path` looks like a kernel that a VMM can load."""
    from hypercore.guest import kernel

    kernel.check_kernel(path, key)


def check_drive(path: Path, key: str = "hardware.drive") -> None:
    """Raise InvalidArgument unless `path` is a drive with our agent."""
    from hypercore.guest import drive

    drive.check_drive(path, key)


def _open(directory: Path) -> GuestAssets:
    hint = "run `hypercore guest build`"
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
    except FileNotFoundError as exc:
        raise NotFound(f"no guest assets in {paths.guest_dir()}", hint=hint) from exc
    # The link may move while a VM boots: name the version itself.
    directory = paths.guest_dir() / manifest["version"]
    initrd = directory / INITRD if INITRD in manifest["files"] else None
    assets = GuestAssets(
        version=manifest["version"],
        kernel_path=directory / KERNEL,
        initrd_path=initrd,
        drive_path=directory / DRIVE,
    )
    for path in (assets.kernel_path, initrd, assets.drive_path):
        if path is not None and not path.exists():
            raise NotFound(f"guest asset {path} is missing", hint=hint)
    return assets
