"""The rootfs mounts containerd hands over → the disks of a microVM (DESIGN "Root disks").

Nothing is mounted on the host. A snapshot that may be written is the root itself; read-only ones
get a private disk over them, unless the container's root is read-only as well.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hypercore import block, copying
from hypercore.errors import InvalidArgument, from_os_error
from hypercore.paths import MicroVMPaths
from hypercore.proto.types_pb import Mount
from hypercore.shim import rootfs_dirs, rootfs_layers
from hypercore.spec import Disk, RootDisks

LOWER_SERIAL = "hcroot"
UPPER_SERIAL = "hcupper"
MAX_LAYER_DISKS = 8
"""VMMs have few places for disks (QEMU's microvm 24 for all devices); more are packed into one."""
MAX_LAYERS = 255
"""Linux gives a disk so many parts."""
_ALIGNMENT = 4096
_HINT = "use the blockfile snapshotter, for example `ctr run --snapshotter blockfile`"
_OPTIONS = frozenset({"loop", "ro", "rw", "noatime", "nodiratime", "relatime"})


def root_disks(
    mounts: Sequence[Mount], *, read_only: bool, paths: MicroVMPaths, upper_size_mib: int
) -> RootDisks:
    """The disks for `mounts`; makes the private one if it is needed and not there yet. Blocking.

    Raises:
        InvalidArgument: mounts a microVM cannot take, each named.
        ResourceExhausted: no space for the private disk.
    """
    if not mounts:
        raise InvalidArgument("the container has no rootfs mount", hint=_HINT)
    layers = rootfs_layers.parse(mounts)
    if layers is not None:
        if len(layers.lower) > MAX_LAYERS:
            raise InvalidArgument(
                f"rootfs of {len(layers.lower)} erofs layers: a microVM takes {MAX_LAYERS}",
                hint="use the blockfile snapshotter, or an image with fewer layers",
            )
        lower = tuple(
            _disk(mount, f"{LOWER_SERIAL}{number}", read_only=True)
            for number, mount in enumerate(layers.lower)
        )
        if len(lower) > MAX_LAYER_DISKS:
            lower = (_packed([disk.path for disk in lower], paths.layers),)
        if layers.upper is not None and "ro" not in layers.upper.options:
            upper = _disk(layers.upper, UPPER_SERIAL, read_only=False)
            return RootDisks(read_only=lower, writable=upper)
    elif len(mounts) == 1 and mounts[0].type == "ext4" and mounts[0].target in ("", "/"):
        if "ro" not in mounts[0].options:
            return RootDisks(writable=_disk(mounts[0], LOWER_SERIAL, read_only=False))
        lower = (_disk(mounts[0], LOWER_SERIAL, read_only=True),)
    elif (directories := rootfs_dirs.parse(mounts)) is not None:
        lower = (rootfs_dirs.disk(directories, paths.layers, LOWER_SERIAL),)
    else:
        shown = ", ".join(f"{m.type} {m.source}" for m in mounts)
        raise InvalidArgument(f"rootfs of mounts a microVM cannot take: {shown}", hint=_HINT)
    if read_only:
        return RootDisks(read_only=lower)
    return RootDisks(read_only=lower, writable=_private_upper(paths.upper, upper_size_mib))


def of_bundle(bundle: Path, config: Mapping[str, Any]) -> list[Mount]:
    """A client that hands no mounts over has put the root where config.json says."""
    root = Path((config.get("root") or {}).get("path") or "rootfs")
    where = bundle / root
    try:
        empty = not os.listdir(where)
    except OSError:
        empty = True  # root_disks says what is missing
    return [] if empty else [Mount(type="bind", source=str(where), options=["rbind"])]


def _disk(mount: Mount, serial: str, *, read_only: bool) -> Disk:
    unknown = set(mount.options) - _OPTIONS
    if unknown:
        names = ", ".join(sorted(unknown))
        raise InvalidArgument(f"rootfs {mount.source}: mount options {names} are not supported")
    source = Path(mount.source)
    if not source.is_absolute():
        raise InvalidArgument(f"rootfs {mount.source!r} is no absolute path")
    kind = block.check_root_disk(source)
    if kind != mount.type:
        raise InvalidArgument(f"rootfs {source} holds {kind}, not {mount.type}")
    return Disk(source, serial, read_only=read_only, fs_type=kind)


def _packed(layers: Sequence[Path], image: Path) -> Disk:
    """One disk with all layers in it, made anew."""
    parts: list[tuple[int, int]] = []
    offset = 0
    try:
        image.unlink(missing_ok=True)
        target = os.open(image, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(target, 0o644)  # for the VMM's user; the directory is closed to others
            for layer in layers:
                source = os.open(layer, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    size = copying.copy_into(source, target, offset, os.fstat(source).st_size)
                finally:
                    os.close(source)
                parts.append((offset, size // 512 * 512))
                offset += -(-size // _ALIGNMENT) * _ALIGNMENT
            os.ftruncate(target, offset)
        finally:
            os.close(target)
    except OSError as exc:
        raise from_os_error(exc, f"pack the layers of the root into {image}") from exc
    return Disk(image, LOWER_SERIAL, read_only=True, fs_type="erofs", parts=tuple(parts))


def _private_upper(path: Path, size_mib: int) -> Disk:
    if not os.path.lexists(path):
        try:
            block.create_upper(path, size_mib)
        except OSError as exc:
            raise from_os_error(exc, f"create {path}") from exc
    return Disk(path, UPPER_SERIAL, read_only=False)
