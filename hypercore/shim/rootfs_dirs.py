"""Rootfs mounts that are directories of the host → one read-only image of what they show.

What other snapshotters hand over: a bind mount of a directory, or an overlay of several. A microVM
shares no filesystem with its host, so it gets a copy, made at Create; what it writes goes to its
private disk and never to those directories.
"""

from collections.abc import Sequence
from pathlib import Path

from hypercore import erofs
from hypercore.errors import InvalidArgument, from_os_error
from hypercore.proto.types_pb import Mount
from hypercore.spec import Disk

MAX_BYTES = 16 << 30
_HARMLESS_PREFIXES = ("index=", "xino=", "nfs_export=", "redirect_dir=off", "metacopy=off")
_HARMLESS = frozenset(
    {"ro", "rw", "bind", "rbind", "noatime", "nodiratime", "relatime", "volatile", "private"}
    | {"rprivate", "slave", "rslave", "redirect_dir=nofollow"}
)


def parse(mounts: Sequence[Mount]) -> tuple[Path, ...] | None:
    """The directories, the topmost first; None when the mounts are something else.

    Raises:
        InvalidArgument: an overlay that a copy would not be; names the option.
    """
    if len(mounts) != 1 or mounts[0].target not in ("", "/"):
        return None
    mount = mounts[0]
    if mount.type == "overlay":
        return _overlay(mount)
    if mount.type == "bind" or "bind" in mount.options or "rbind" in mount.options:
        _refuse_unknown(mount.options, mount)
        return (_directory(mount.source, mount),)
    return None


def _overlay(mount: Mount) -> tuple[Path, ...]:
    lower: list[Path] = []
    upper: list[Path] = []
    for option in mount.options:
        name, _, value = option.partition("=")
        if name == "lowerdir":
            lower = [_directory(part, mount) for part in _split(value) if part]
        elif name == "upperdir":
            upper = [_directory(value, mount)]
        elif name != "workdir":
            _refuse_unknown([option], mount)
    if not lower and not upper:
        raise InvalidArgument("rootfs: an overlay without lowerdir")
    return (*upper, *lower)


def _split(text: str) -> list[str]:
    r"""Colons part the layers; one in a name is written `\:`."""
    parts = text.replace("\\:", "\0").split(":")
    return [part.replace("\0", ":") for part in parts]


def _directory(text: str, mount: Mount) -> Path:
    path = Path(text)
    if not path.is_absolute():
        raise InvalidArgument(f"rootfs {mount.type}: {text!r} is no absolute path")
    return path


def _refuse_unknown(options: Sequence[str], mount: Mount) -> None:
    for option in options:
        if option not in _HARMLESS and not option.startswith(_HARMLESS_PREFIXES):
            raise InvalidArgument(
                f"rootfs {mount.type}: the option {option} is not supported",
                hint="use the blockfile snapshotter: `ctr run --snapshotter blockfile`",
            )


def disk(directories: Sequence[Path], image: Path, serial: str) -> Disk:
    """The disk with a copy of the directories, made anew. Blocking.

    Raises:
        InvalidArgument: a directory is missing, or there is more than MAX_BYTES.
        ResourceExhausted: no space for the copy.
    """
    try:
        image.unlink(missing_ok=True)
        erofs.write_layers(image, directories, max_bytes=MAX_BYTES)
        # The directory is closed to others, and the VMM has another user than root.
        image.chmod(0o644)
    except InvalidArgument as exc:
        shown = ":".join(map(str, directories))
        raise InvalidArgument(f"rootfs {shown}: {exc.message}") from exc
    except OSError as exc:
        raise from_os_error(exc, f"make {image}") from exc
    return Disk(image, serial, read_only=True, fs_type="erofs")
