"""A VM snapshot on the host: a directory with a guest's state and memory, its private disks, and a
record of what it was.

Ordered by microvm.py; the state's format is the provider's. The directory is root's alone, and the
files in it may be read by all: a confined VMM sees those that are bound into its jail. A snapshot
is for the microVM of its id, on a host like this one: its sockets, addresses and disks are in it.
"""

import asyncio
import errno
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from hypercore import _blockio
from hypercore.errors import AlreadyExists, InvalidArgument, StateError, from_os_error
from hypercore.paths import MicroVMPaths
from hypercore.providers.base import BootSpec, Probe, Provider, VmSnapshot
from hypercore.spec import Disk

RECORD = "snapshot.json"
FORMAT = 1
_LISTS = ("addresses", "disks")


@dataclass(frozen=True, slots=True)
class Origin:
    """What a snapshot must agree with to be restored."""

    microvm_id: str
    provider: str
    version: str
    """of the VMM: it may read the states of older ones, never of newer ones"""
    cores: int
    memory_mib: int
    addresses: tuple[str, ...]
    """of the guest, which keeps them"""
    disks: tuple[str, ...]
    """paths, in order"""


def origin(provider: Provider, probe: Probe, boot: BootSpec, addresses: Iterable[str]) -> Origin:
    return Origin(
        microvm_id=boot.microvm_id,
        provider=provider.name,
        version=probe.version,
        cores=boot.cores,
        memory_mib=boot.memory_mib,
        addresses=tuple(addresses),
        disks=tuple(str(disk.path) for disk in boot.disks),
    )


async def take(
    provider: Provider, boot: BootSpec, uid: int, what: Origin, directory: Path, deadline: float
) -> None:
    """Write the paused guest of `boot` into the new `directory`, whole or not at all.

    Raises:
        AlreadyExists: the directory is there.
        HypercoreError: the VMM or the disk did not take it.
    """
    unfinished = directory.with_name(f".{directory.name}.unfinished")
    await asyncio.to_thread(_begin, directory, unfinished, boot.disks)
    try:
        made = prepare(boot.paths, uid)
        try:
            await provider.take_snapshot(boot, made, deadline)
            await asyncio.to_thread(_keep, made, what, boot.disks, unfinished, directory)
        finally:
            discard(made)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _begin(directory: Path, unfinished: Path, disks: tuple[Disk, ...]) -> None:
    for disk in disks:
        if not (disk.read_only or disk.path.is_file()):
            raise InvalidArgument(f"the disk {disk.path} is no file: it cannot be kept")
    try:
        if directory.exists():
            raise AlreadyExists(f"{directory} is there already", hint="name a new directory")
        unfinished.mkdir(mode=0o700, parents=True)
    except OSError as exc:
        raise from_os_error(exc, f"make {unfinished} for a VM snapshot") from exc


def _keep(
    made: VmSnapshot, what: Origin, disks: tuple[Disk, ...], unfinished: Path, directory: Path
) -> None:
    seal(made, files_in(unfinished))
    for index, disk in enumerate(disks):
        if not disk.read_only:
            copy_disk(disk.path, unfinished / f"disk{index}")
    record = {"format": FORMAT, "origin": asdict(what)}
    try:
        (unfinished / RECORD).write_text(json.dumps(record, indent=1) + "\n")
        unfinished.rename(directory)
    except OSError as exc:
        raise from_os_error(exc, f"keep the VM snapshot {directory}") from exc


def files_in(directory: Path) -> VmSnapshot:
    return VmSnapshot(directory / "state", directory / "memory")


def check(directory: Path, what: Origin) -> None:
    """Refuse a snapshot that is not of this very microVM.

    Raises:
        InvalidArgument: it is no snapshot, or of another machine; names what differs.
        StateError: its addresses are another microVM's now.
    """
    try:
        record = json.loads((directory / RECORD).read_text())
        had = Origin(**{**record["origin"], **{k: tuple(record["origin"][k]) for k in _LISTS}})
    except (OSError, ValueError, TypeError, KeyError) as exc:
        raise InvalidArgument(f"{directory} is no VM snapshot: {exc}") from exc
    if record.get("format") != FORMAT:
        raise InvalidArgument(f"{directory} is a VM snapshot of format {record.get('format')!r}")
    if had.addresses != what.addresses:
        raise StateError(
            f"the guest in {directory} has the addresses {', '.join(had.addresses)}, and gets"
            f" {', '.join(what.addresses)} now",
            hint="other microVMs have taken its slot; stop them first",
        )
    for name in ("microvm_id", "provider", "cores", "memory_mib", "disks"):
        was, wanted = getattr(had, name), getattr(what, name)
        if was != wanted:
            raise InvalidArgument(
                f"the VM snapshot {directory} has {name} = {was!r}, this microVM {wanted!r}"
            )


def put_back_disks(directory: Path, disks: Iterable[Disk]) -> None:
    """Give private disks the content they had. Blocks."""
    for index, disk in enumerate(disks):
        if not disk.read_only:
            copy_disk(directory / f"disk{index}", disk.path)


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
