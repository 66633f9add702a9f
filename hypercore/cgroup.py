"""One cgroup per microVM, where the host lets us: version 2, else the version 1 controllers found.

Bounds what a VMM gone wild can take. A host without a writable cgroup tree is no error; the caller
says so in its log. Standard library only: reclaim.py loads it.
"""

import contextlib
import errno
import os
import time
from dataclasses import dataclass
from pathlib import Path

from hypercore import paths, slots

PARENT = "hypercore"
REAP_TIMEOUT_S = 1.0
CONTROLLERS = ("memory", "pids", "cpu")
_V1_LIMITS = {"memory": "memory.limit_in_bytes", "pids": "pids.max"}


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A mounted cgroup tree."""

    root: Path
    version: int
    controllers: frozenset[str]


def hierarchies(mountinfo: str) -> tuple[Hierarchy, ...]:
    """The trees to use, from /proc/self/mountinfo's text: one of version 2, or version 1's."""
    found: list[Hierarchy] = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        root = Path(fields[4].replace("\\040", " "))
        if kind[0] == "cgroup2":
            controllers = _read_words(root / "cgroup.controllers")
            if {"memory", "pids"} <= controllers:
                return (Hierarchy(root, 2, frozenset(controllers & set(CONTROLLERS))),)
        elif kind[0] == "cgroup":
            controllers = set(kind[-1].split(",")) & set(CONTROLLERS)
            if controllers:
                found.append(Hierarchy(root, 1, frozenset(controllers)))
    return tuple(found)


def create(microvm_id: str, *, memory_bytes: int, pids: int, path: str = "") -> list[int]:
    """Make the microVM's cgroup; returns open fds through which its processes enter it.

    The caller closes them. Idempotent.

    Args:
        path: of the cgroup in each tree, as a client wants it; empty: one of our own. It is noted
            in the run directory, with how much of it was made here, for `delete`.

    Raises:
        OSError: there is no cgroup tree here that we may write; nothing is left behind.
    """
    trees = hierarchies(Path("/proc/self/mountinfo").read_text())
    if not trees:
        raise OSError(errno.ENOENT, "no cgroup tree with the memory and pids controllers")
    place = path.strip("/") or f"{PARENT}/{_name(microvm_id)}"
    if path:
        _note(microvm_id, place, _missing_levels(trees, place))
    fds: list[int] = []
    try:
        for tree in trees:
            directory = _make(tree, place)
            if tree.version == 2:
                _write(directory / "memory.max", memory_bytes)
                _write(directory / "pids.max", pids)
            else:
                limits = {"memory": memory_bytes, "pids": pids}
                for controller in tree.controllers & limits.keys():
                    _write(directory / _V1_LIMITS[controller], limits[controller])
            entry = "cgroup.procs"
            fds.append(os.open(directory / entry, os.O_WRONLY | os.O_CLOEXEC))
    except BaseException:
        for fd in fds:
            os.close(fd)
        with contextlib.suppress(OSError):
            delete(microvm_id)
        raise
    return fds


def delete(microvm_id: str) -> None:
    """Remove the microVM's cgroup, whose processes must be dead. Idempotent; blocks shortly."""
    place, levels = _noted(microvm_id)
    for tree in hierarchies(Path("/proc/self/mountinfo").read_text()):
        directory = tree.root / place
        if levels > 0:
            _remove_emptied(directory)
        for _ in range(levels - 1):
            directory = directory.parent
            try:
                os.rmdir(directory)
            except OSError as exc:  # other microVMs are in it, or it never was
                if exc.errno not in (errno.EBUSY, errno.ENOTEMPTY, errno.ENOENT, errno.EROFS):
                    raise


def _missing_levels(trees: tuple[Hierarchy, ...], place: str) -> int:
    """How many directories of `place` are not there yet in any tree, from its end."""
    levels = 0
    relative = Path(place)
    while relative.name and not any((tree.root / relative).exists() for tree in trees):
        levels += 1
        relative = relative.parent
    return levels


def _note(microvm_id: str, place: str, levels: int) -> None:
    record = paths.MicroVMPaths(microvm_id).cgroup_record
    if not record.exists():  # else this is a second call, and the directories are ours
        record.write_text(f"{levels} {place}\n")


def _noted(microvm_id: str) -> tuple[str, int]:
    """(place, how many of its directories are ours)."""
    try:
        levels, _, place = (
            paths.MicroVMPaths(microvm_id).cgroup_record.read_text().strip().partition(" ")
        )
        return place, int(levels)
    except (FileNotFoundError, ValueError):
        return f"{PARENT}/{_name(microvm_id)}", 2


def _remove_emptied(directory: Path) -> None:
    """A dead process is in its cgroup until its parent, perhaps another process, has reaped it."""
    deadline = time.monotonic() + REAP_TIMEOUT_S
    while True:
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            return
        except OSError as exc:
            if exc.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.002)
        else:
            return


def _name(microvm_id: str) -> str:
    return slots.tag(microvm_id).replace("/", "_")


def _make(tree: Hierarchy, place: str) -> Path:
    directory = tree.root / place
    above = [level for level in reversed(directory.parents) if level.is_relative_to(tree.root)]
    for _ in range(16):  # another microVM's delete may remove a parent in between
        try:
            for level in above:
                level.mkdir(exist_ok=True)
                if tree.version == 2:
                    _enable(level, tree.controllers)
            directory.mkdir(exist_ok=True)
        except FileNotFoundError:
            continue
        return directory
    raise OSError(errno.EAGAIN, "the cgroup's parent keeps disappearing", str(directory))


def _enable(directory: Path, controllers: frozenset[str]) -> None:
    missing = controllers - _read_words(directory / "cgroup.subtree_control")
    if missing:
        _write(directory / "cgroup.subtree_control", " ".join(f"+{c}" for c in sorted(missing)))


def _read_words(path: Path) -> set[str]:
    try:
        return set(path.read_text().split())
    except OSError:
        return set()


def _write(path: Path, value: int | str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode())
    finally:
        os.close(fd)
