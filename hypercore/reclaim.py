"""Take back all that a microVM holds on this host, whoever started it and however that died.

Needs no guest, no VMM, no event loop and no memory of the start: only the state directory, the
slots and the mark on processes. Idempotent; goes on past failures and reports them together.
Standard library only, because the launcher's `delete` path loads it. What outlives a microVM on
purpose, its data directory, is not touched.
"""

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from hypercore import cgroup, paths, processes, slots
from hypercore.errors import HypercoreError

KILL_TIMEOUT_S = 1.0
LOCK_TIMEOUT_S = 5.0
"""For another process to take the same microVM back."""
LOCK_RETRY_S = 0.005


def claim(files: paths.MicroVMPaths) -> str:
    """Mark the run directory as that of one start; returns the mark, for `reclaim`.

    The caller has just made a directory in it that no other start could make.
    """
    mark = os.urandom(8).hex()
    fd = os.open(files.claim, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, mark.encode())
    finally:
        os.close(fd)
    return mark


def reclaim(microvm_id: str, claimed: str = "") -> bool:
    """Kill the microVM's processes, give back its cgroup, network, slot and run directory.

    Args:
        claimed: the mark of a start: only what that start made. Somebody else may have taken it
            back already, and the id be in use again, by another server. Empty: whoever's it is.

    Returns:
        False if nothing of that start is left, so nothing was done.

    Raises:
        HypercoreError: names every part that could not be taken back; call again.
    """
    files = paths.MicroVMPaths(microvm_id)
    with _held(files.run):
        if claimed and _mark(files) != claimed:
            return False
        _take_back(microvm_id, files)
    return True


def _mark(files: paths.MicroVMPaths) -> str:
    try:
        return files.claim.read_text()
    except FileNotFoundError:
        return ""


@contextlib.contextmanager
def _held(directory: Path) -> Iterator[None]:
    """One at a time: who has waited looks at what the other has left, or at who came after."""
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    with contextlib.ExitStack() as stack:
        while True:
            try:
                fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                break
            stack.callback(os.close, fd)
            _lock(fd, directory, deadline)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), os.stat(directory)):
                    break
            stack.close()
        yield


def _lock(fd: int, directory: Path, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise HypercoreError(
                    f"another process has been reclaiming {directory} for {LOCK_TIMEOUT_S:g} s",
                    hint="try again",
                ) from None
            time.sleep(LOCK_RETRY_S)
        else:
            return


def _take_back(microvm_id: str, files: paths.MicroVMPaths) -> None:
    failures: list[str] = []

    def attempt(what: str, step: Callable[[], None]) -> bool:
        try:
            step()
        except (OSError, HypercoreError) as exc:
            failures.append(f"{what}: {exc}")
            return False
        return True

    # What a process still running uses is not given to anybody else.
    gone = attempt("processes", lambda: _kill_processes(microvm_id))
    if gone:
        attempt("cgroup", lambda: cgroup.delete(microvm_id))
        if attempt("network", lambda: _detach_network(microvm_id)):
            attempt("slot", lambda: slots.release(microvm_id))
    if not failures and files.run.exists():
        attempt("run directory", lambda: _remove(files))
    if failures:
        raise HypercoreError(
            f"microVM {microvm_id} was not reclaimed entirely: " + "; ".join(failures),
            hint=f"try again: hypercore cleanup {microvm_id}",
        )


def _remove(files: paths.MicroVMPaths) -> None:
    """The mark last: without it, a second try would take what is left for somebody else's."""
    with os.scandir(files.run) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            elif entry.name != files.claim.name:
                os.unlink(entry.path)
    shutil.rmtree(files.run)


def _kill_processes(microvm_id: str) -> None:
    recorded, more = processes.read(paths.MicroVMPaths(microvm_id).processes)
    # vhost-device-vsock and the like go after the VMM that uses them.
    victims = list(reversed(recorded))
    if more:
        known = {process.pid for process in recorded}
        victims += [p for p in processes.find_marked(microvm_id) if p.pid not in known]
    survivors = processes.kill(victims, KILL_TIMEOUT_S)
    if survivors:
        names = ", ".join(f"{p.role} (pid {p.pid})" for p in survivors)
        raise HypercoreError(f"{names} not gone {KILL_TIMEOUT_S:g} s after SIGKILL")


def _detach_network(microvm_id: str) -> None:
    from hypercore import network

    for slot, owner in slots.owners().items():
        if owner == microvm_id:
            network.detach(microvm_id, slot)
