"""The VMM process and its helpers: spawn confined, watch the exit, stop softly then hard.

Knows processes, not microVMs: which ones, in what order and with which fds is microvm.py's and
the provider's. A process is watched by its pidfd; its end is a future, never a poll.
"""

import asyncio
import contextlib
import os
import resource
import select
import signal
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hypercore import _inotify, _process, processes
from hypercore.errors import InvalidArgument, VmmError, from_os_error
from hypercore.providers.base import FIRST_FD, VmmCommand

NAMESPACES = (
    _process.CLONE_NEWNS
    | _process.CLONE_NEWPID
    | _process.CLONE_NEWNET
    | _process.CLONE_NEWIPC
    | _process.CLONE_NEWUTS
)
SYSTEM_DIRECTORIES = ("/usr", "/lib", "/lib32", "/lib64", "/libx32")
SYSTEM_FILES = ("/etc/ld.so.cache", "/dev/null", "/dev/urandom")
OPEN_FILES = 4096
KILL_TIMEOUT_S = 5.0
LISTEN_PAUSE_S = 0.0005
SO_ACCEPTCON = 0x10000
"""__SO_ACCEPTCON of linux/net.h, as /proc/net/unix shows it"""


@dataclass(frozen=True, slots=True)
class Confinement:
    """Whom the processes of one microVM run as, and where."""

    uid: int
    gid: int
    jail_root: Path
    """an existing directory of ours; the process's own root is mounted over it, unseen by us"""
    device_dir: Path
    """where device nodes are made for the moment of the start, on a filesystem that allows them"""


class VmmProcess:
    """One process of a microVM, from its spawn to `close`. Bound to the running event loop.

    `exited` is done with the exit code, or −signal.
    """

    def __init__(self, role: str, pid: int, pidfd: int) -> None:
        self.role = role
        self.pid = pid
        self.pidfd = pidfd
        self._loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[int] = self._loop.create_future()
        self._loop.add_reader(pidfd, self._on_exit)

    def _on_exit(self) -> None:
        status = _process.reap(self.pidfd)
        if status is None:
            return
        self._loop.remove_reader(self.pidfd)
        if not self.exited.done():
            self.exited.set_result(status)

    def send_signal(self, number: int) -> None:
        """Does nothing to a process that has ended."""
        if self.pidfd >= 0 and not self.exited.done():
            with contextlib.suppress(ProcessLookupError):
                _process.send_signal(self.pidfd, number)

    async def kill(self) -> None:
        """SIGKILL and wait for the end.

        Raises:
            VmmError: the kernel has not let go of it in KILL_TIMEOUT_S.
        """
        self.send_signal(signal.SIGKILL)
        done, _ = await asyncio.wait({self.exited}, timeout=KILL_TIMEOUT_S)
        if not done:
            raise VmmError(
                f"{self.role} (pid {self.pid}) survives SIGKILL: it hangs in the kernel"
            )

    def close(self) -> None:
        """Let go of the pidfd. Idempotent; a process still running is no longer watched."""
        fd, self.pidfd = self.pidfd, -1
        if fd >= 0:
            self._loop.remove_reader(fd)
            os.close(fd)


def spawn(
    command: VmmCommand,
    *,
    microvm_id: str,
    record_file: Path,
    fds: Mapping[str, int],
    stdout_fd: int,
    stderr_fd: int,
    confinement: Confinement | None,
    cgroup_fds: Sequence[int],
    netns_fd: int = -1,
) -> VmmProcess:
    """Start one process; returns once it has been exec'ed.

    Args:
        fds: the fds its command names, by name, and `stdin` for its console, if there is one;
            they stay the caller's.
        confinement: None: as root in the host's namespaces, for debugging.
        netns_fd: network namespace to run it in; -1: an empty one, or the host's if unconfined.

    Raises:
        HypercoreError: it could not be started; the message names the step.
    """
    try:
        processes.record_intent(record_file, command.role)
    except OSError as exc:
        raise from_os_error(exc, f"write {record_file}") from exc
    places = [(fds[name], FIRST_FD + index) for index, name in enumerate(command.fds)]
    if command.console_on_stdout and "stdin" in fds:
        places.append((fds["stdin"], 0))
    no_core = (resource.RLIMIT_CORE, 0, 0)
    open_files = min(OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    namespaces = NAMESPACES if confinement is not None else 0
    if netns_fd >= 0:
        namespaces &= ~_process.CLONE_NEWNET
    with contextlib.ExitStack() as nodes:
        try:
            jail = _render_jail(command, confinement, nodes) if confinement is not None else None
            pid, pidfd = _process.spawn(
                command.argv,
                env=processes.environment(microvm_id),
                fds=[(stdout_fd, 1), (stderr_fd, 2), *places],
                uid=confinement.uid if confinement else -1,
                gid=confinement.gid if confinement else -1,
                namespaces=namespaces,
                netns_fd=netns_fd,
                cgroup_fds=cgroup_fds,
                rlimits=(no_core, (resource.RLIMIT_NOFILE, open_files, open_files)),
                root=jail,
            )
        except OSError as exc:
            raise from_os_error(
                exc, f"start {command.role} of microVM {microvm_id} ({exc.filename})"
            ) from exc
    try:
        processes.record(record_file, command.role, pid)
        return VmmProcess(command.role, pid, pidfd)
    except BaseException as exc:
        _end_unwatched(pidfd)
        if isinstance(exc, OSError):
            raise from_os_error(exc, f"write {record_file}") from exc
        raise


def _end_unwatched(pidfd: int) -> None:
    """End and collect a process that is watched by nobody yet: else it stays, as a zombie."""
    try:
        _process.send_signal(pidfd, signal.SIGKILL)
        ended = select.poll()
        ended.register(pidfd, select.POLLIN)
        ended.poll(KILL_TIMEOUT_S * 1000)  # a moment: it has only just begun
        _process.reap(pidfd)
    finally:
        os.close(pidfd)


async def wait_for_paths(wanted: Sequence[Path], directory: Path, pid: int) -> None:
    """Wait until all of `wanted` exist in `directory`, and process `pid` listens on the sockets.

    The caller sets the deadline, and watches for the end of the process.
    """
    loop = asyncio.get_running_loop()
    watch_fd = _inotify.watch_directory(str(directory))
    changed = asyncio.Event()

    def on_change() -> None:
        os.read(watch_fd, 4096)
        changed.set()

    loop.add_reader(watch_fd, on_change)
    try:
        while not all(path.exists() for path in wanted):
            changed.clear()
            await changed.wait()
    finally:
        loop.remove_reader(watch_fd)
        os.close(watch_fd)
    # bind(2) makes the path; a connect before listen(2) is refused, and nothing tells of that.
    while not _all_listen(wanted, pid):  # noqa: ASYNC110
        await asyncio.sleep(LISTEN_PAUSE_S)


def _all_listen(wanted: Sequence[Path], pid: int) -> bool:
    """Whether those of `wanted` that are sockets listen, by the process's network namespace."""
    listening: set[str] = set()
    try:
        for line in Path(f"/proc/{pid}/net/unix").read_text(errors="replace").splitlines()[1:]:
            fields = line.split(None, 7)
            if len(fields) == 8 and int(fields[3], 16) & SO_ACCEPTCON:
                listening.add(fields[7])
    except OSError:  # it has ended
        return False
    return all(str(path) in listening for path in wanted if path.is_socket())


def describe_status(status: int) -> str:
    """`ended with status 1` or `was killed by SIGSEGV`."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def check_readable(path: Path, what: str) -> None:
    """Refuse a file that a confined VMM, which is no owner of it, cannot read.

    Raises:
        InvalidArgument: names `what`, the path and the way out.
        NotFound: there is no such file.
    """
    try:
        mode = path.stat().st_mode
    except OSError as exc:
        raise from_os_error(exc, f"read {what} {path}") from exc
    if not stat.S_ISREG(mode):
        raise InvalidArgument(f"{what} = {str(path)!r} is not a file")
    if not mode & stat.S_IROTH:
        raise InvalidArgument(
            f"{what} = {str(path)!r} cannot be read by the VMM, which does not run as root",
            hint=f"chmod o+r {path}",
        )


def _render_jail(
    command: VmmCommand, confinement: Confinement, nodes: contextlib.ExitStack
) -> _process.Jail:
    """The process's root. Device nodes are made for it and unlinked once `nodes` unwinds.

    Its mount keeps a node alive; the host's own has an owner and mode of the host's choosing.
    """
    binds: list[_process.Bind] = []
    symlinks: list[tuple[str, str]] = []
    for name in SYSTEM_DIRECTORIES:
        if os.path.islink(name):
            symlinks.append((os.readlink(name), name))
        elif os.path.isdir(name):
            binds.append(_process.Bind(name, name))
    binds += [_process.Bind(f, f, is_file=True) for f in SYSTEM_FILES if os.path.exists(f)]
    for bind in command.binds:
        path = str(bind.path)
        binds.append(_process.Bind(path, path, bind.read_only, bind.path.is_file()))
    for device in command.devices:
        node = confinement.device_dir / f".{device.name}"
        with contextlib.suppress(FileNotFoundError):
            node.unlink()
        os.mknod(node, stat.S_IFCHR | 0o600, device.stat().st_rdev)
        nodes.callback(node.unlink)
        os.chown(node, confinement.uid, confinement.gid)
        binds.append(_process.Bind(str(node), str(device), read_only=False, is_file=True))
    return _process.Jail(
        root=str(confinement.jail_root), binds=tuple(binds), symlinks=tuple(symlinks)
    )
