"""The rootfs mounts containerd hands over → the disks of a microVM (DESIGN "Root disks").

Nothing is mounted on the host. A snapshot that may be written is the root itself; a read-only one
gets a private disk over it, unless the container's root is read-only as well.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from hypercore import block
from hypercore.errors import InvalidArgument, from_os_error
from hypercore.paths import MicroVMPaths
from hypercore.proto.types_pb import Mount
from hypercore.spec import Disk, RootDisks

LOWER_SERIAL = "hcroot"
UPPER_SERIAL = "hcupper"
_HINT = "use the blockfile snapshotter, for example `ctr run --snapshotter blockfile`"


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
    if len(mounts) > 1 or mounts[0].type != "ext4" or mounts[0].target not in ("", "/"):
        shown = ", ".join(f"{m.type} {m.source}" for m in mounts)
        raise InvalidArgument(f"rootfs of mounts a microVM cannot take: {shown}", hint=_HINT)
    mount = mounts[0]
    unknown = set(mount.options) - {"loop", "ro", "rw", "noatime", "nodiratime", "relatime"}
    if unknown:
        names = ", ".join(sorted(unknown))
        raise InvalidArgument(f"rootfs {mount.source}: mount options {names} are not supported")
    source = Path(mount.source)
    if not source.is_absolute():
        raise InvalidArgument(f"rootfs {mount.source!r} is no absolute path")
    block.check_root_disk(source)
    if "ro" not in mount.options:
        return RootDisks(writable=Disk(source, LOWER_SERIAL, read_only=False))
    view = Disk(source, LOWER_SERIAL, read_only=True)
    if read_only:
        return RootDisks(read_only=(view,))
    if not os.path.lexists(paths.upper):
        try:
            block.create_upper(paths.upper, upper_size_mib)
        except OSError as exc:
            raise from_os_error(exc, f"create {paths.upper}") from exc
    return RootDisks(read_only=(view,), writable=Disk(paths.upper, UPPER_SERIAL, read_only=False))
