"""Which processes belong to a microVM: the record on disk, and killing exactly those.

A record is lines of `role pid start_time`; `role 0 0` is the intent, written before the start. A
pid alone names nobody for long, so a process is opened as a pidfd first and then compared with
its start time. Standard library only: reclaim.py loads it.
"""

import contextlib
import os
import select
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from hypercore import paths

MARK = "HYPERCORE_MICROVM"
"""Environment variable of every process we start for a microVM; its value is the id."""
RUN_DIR = "HYPERCORE_RUN_DIR"


@dataclass(frozen=True, slots=True)
class Process:
    role: str
    pid: int
    start_time: int


def environment(microvm_id: str) -> dict[str, str]:
    """The whole environment of a microVM's processes; finds them again should the record fail."""
    return {MARK: microvm_id, RUN_DIR: str(paths.run_dir())}


def record_intent(file: Path, role: str) -> None:
    """Note that a process is about to start."""
    _append(file, f"{role} 0 0\n")


def record(file: Path, role: str, pid: int) -> Process:
    """Note that it did."""
    process = Process(role, pid, start_time(pid))
    _append(file, f"{role} {pid} {process.start_time}\n")
    return process


def read(file: Path) -> tuple[list[Process], bool]:
    """The recorded processes, and whether some process may run that is not among them."""
    try:
        lines = file.read_text().splitlines()
    except FileNotFoundError:
        return [], True
    started: list[Process] = []
    intended: set[str] = set()
    complete = True
    for line in lines:
        words = line.split()
        if len(words) != 3 or not (words[1].isdecimal() and words[2].isdecimal()):
            complete = False  # the host died while it was written
            continue
        role, pid, ticks = words[0], int(words[1]), int(words[2])
        if pid == 0:
            intended.add(role)
        else:
            intended.discard(role)
            started.append(Process(role, pid, ticks))
    return started, bool(intended) or not complete


def find_marked(microvm_id: str) -> list[Process]:
    """Running processes that carry the microVM's mark, by their environment."""
    wanted = {f"{name}={value}".encode() for name, value in environment(microvm_id).items()}
    found: list[Process] = []
    for name in os.listdir("/proc"):
        if not name.isdecimal() or int(name) == os.getpid():
            continue
        try:
            environ = Path(f"/proc/{name}/environ").read_bytes()
        except OSError:  # gone, or a kernel thread
            continue
        if wanted <= set(environ.split(b"\0")) and (ticks := start_time(int(name))):
            found.append(Process("marked", int(name), ticks))
    return found


def kill(processes: list[Process], timeout_s: float) -> list[Process]:
    """SIGKILL these very processes and wait for their ends; returns those still there then."""
    deadline = time.monotonic() + timeout_s
    with contextlib.ExitStack() as stack:
        pending: dict[int, Process] = {}
        for process in processes:
            pidfd = _open_if_same(process)
            if pidfd is None:
                continue
            stack.callback(os.close, pidfd)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            pending[pidfd] = process
        poll = select.poll()
        for pidfd in pending:
            poll.register(pidfd, select.POLLIN)
        while pending and (left := deadline - time.monotonic()) > 0:
            for pidfd, _ in poll.poll(left * 1000):
                poll.unregister(pidfd)
                del pending[pidfd]
        return list(pending.values())


def send_signal(file: Path, role: str, number: int) -> bool:
    """Send a signal to the process last recorded as `role`; whether it is there."""
    for process in reversed(read(file)[0]):
        if process.role == role:
            pidfd = _open_if_same(process)
            if pidfd is None:
                return False
            try:
                signal.pidfd_send_signal(pidfd, number)
            except ProcessLookupError:
                return False
            finally:
                os.close(pidfd)
            return True
    return False


def start_time(pid: int) -> int:
    """When `pid` started, in clock ticks since boot; 0 if there is none or it is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    fields = stat.rpartition(b")")[2].split()  # the name before it may hold anything
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


def _open_if_same(process: Process) -> int | None:
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    # Held by the pidfd, the pid cannot be used again between this look and a signal.
    if start_time(process.pid) != process.start_time:
        os.close(pidfd)
        return None
    return pidfd


def _append(file: Path, line: str) -> None:
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)
