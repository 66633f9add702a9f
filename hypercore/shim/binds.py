"""Host files and directories that config.json binds into the container → one read-only disk.

A microVM shares no filesystem with its host: the guest gets copies, as they are at Create. They
are mounted read-only whatever the mount says, so that a write fails instead of going nowhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hypercore import erofs
from hypercore.errors import InvalidArgument, from_os_error
from hypercore.spec import Disk

SERIAL = "hcbinds"
MAX_BYTES = 4 << 30
"""Of all copies of one container."""


@dataclass(frozen=True, slots=True)
class HostBind:
    """`name` is the entry in the image's root."""

    name: str
    source: Path
    destination: str


def disk(binds: Sequence[HostBind], image: Path) -> Disk:
    """The disk with copies of all sources, made anew. Blocking.

    Raises:
        InvalidArgument: a source is missing, neither file nor directory, or too large.
        ResourceExhausted: no space for the copies.
    """
    try:
        image.unlink(missing_ok=True)
        erofs.write(image, [(b.name, b.source) for b in binds], max_bytes=MAX_BYTES)
        # The directory is closed to others, and the VMM has another user than root.
        image.chmod(0o644)
    except InvalidArgument as exc:
        shown = ", ".join(f"{b.source} on {b.destination}" for b in binds)
        raise InvalidArgument(
            f"bind mounts {shown}: {exc.message}",
            hint="files and directories are copied into a microVM; sockets and devices cannot be",
        ) from exc
    except OSError as exc:
        raise from_os_error(exc, f"make {image}") from exc
    return Disk(image, SERIAL, read_only=True, fs_type="erofs")
