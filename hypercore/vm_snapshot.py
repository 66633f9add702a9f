"""The files of a VM snapshot: made for a confined VMM to write, then taken out of its hands.

Ordered by microvm.py; what is in the files is the provider's. A snapshot is a directory, root's
alone, in which the files may be read by all: a VMM sees those that are bound into its jail.
"""

import contextlib
import errno
import os
from pathlib import Path

from hypercore import _blockio
from hypercore.errors import from_os_error
from hypercore.paths import MicroVMPaths
from hypercore.providers.base import VmSnapshot


def prepare(files: MicroVMPaths, uid: int) -> VmSnapshot:
    """Empty files where the VMM of `uid` (-1: root) finds them. Replaces unfinished ones."""
    made = VmSnapshot(files.snapshot_dir / "state", files.snapshot_dir / "memory")
    try:
        for path in (made.state, made.memory):
            path.unlink(missing_ok=True)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.fchown(fd, uid, uid)
            finally:
                os.close(fd)
    except OSError as exc:
        raise from_os_error(exc, f"make the files of a VM snapshot in {files.data}") from exc
    return made


def seal(made: VmSnapshot, kept: VmSnapshot) -> None:
    """Make the files root's, and move them. Blocks: to another filesystem they are copied."""
    for source, target in ((made.state, kept.state), (made.memory, kept.memory)):
        try:
            os.chown(source, 0, 0, follow_symlinks=False)
            os.chmod(source, 0o644)
            _move(source, target)
        except OSError as exc:
            raise from_os_error(exc, f"keep {target} of a VM snapshot") from exc


def discard(made: VmSnapshot) -> None:
    """Forget what `prepare` made. Idempotent."""
    for path in (made.state, made.memory):
        path.unlink(missing_ok=True)


def copy_disk(source: Path, target: Path) -> None:
    """A copy of a private disk, which shares its blocks where the filesystem can. Blocks."""
    try:
        with open(source, "rb") as from_file, open(target, "wb") as to_file:
            os.fchmod(to_file.fileno(), 0o600)
            try:
                _blockio.clone(from_file.fileno(), to_file.fileno())
            except OSError:  # no filesystem that shares blocks: EOPNOTSUPP, EXDEV, EINVAL
                _blockio.copy_sparse(from_file.fileno(), to_file.fileno())
    except OSError as exc:
        with contextlib.suppress(OSError):
            target.unlink()
        raise from_os_error(exc, f"copy the disk {source} to {target}") from exc


def _move(source: Path, target: Path) -> None:
    try:
        os.rename(source, target)
    except OSError as exc:
        if exc.errno != errno.EXDEV:
            raise
        with open(source, "rb") as from_file, open(target, "wb") as to_file:
            os.fchmod(to_file.fileno(), 0o644)
            _blockio.copy_sparse(from_file.fileno(), to_file.fileno())
        source.unlink()
