"""Our own containerd: found, configured, started in the background, stopped, asked for its state.

One per data and run directory. It shares nothing with another containerd on the host: its own
root, state, socket and log. What runs in it is not stopped with it: shims live on and are found
again by the next one. Getting the program onto the host is host_setup.py's.
"""

import asyncio
import fcntl
import json
import os
import platform
import resource
import signal
import socket as sockets
import sys
import sysconfig
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hypercore import _process, paths
from hypercore.config import HostConfig
from hypercore.containerd import blockfile, program
from hypercore.errors import (
    DeadlineExceeded,
    HypercoreError,
    PermissionDenied,
    StateError,
    Unavailable,
    from_os_error,
)

if TYPE_CHECKING:
    from hypercore.containerd.client import Client

START_DEADLINE_S = 60.0
STOP_GRACE_S = 15.0
LOGS_KEPT = 3

_PLATFORMS = {"x86_64": "linux/amd64", "aarch64": "linux/arm64"}
# What a clean environment keeps for containerd; the shims it starts inherit it.
_ENVIRONMENT = ("HOME", "LANG", "PATH", "SSL_CERT_DIR", "SSL_CERT_FILE")


@dataclass(frozen=True, slots=True)
class Status:
    """What is known of our containerd at one moment."""

    pid: int
    """0: not running"""
    serving: bool
    """its socket takes connections"""
    socket: Path
    log: Path


def render_config() -> str:
    """Its config file; good for 1.7 and all of 2.x, which migrate it in memory."""
    arch = _PLATFORMS.get(platform.machine(), f"linux/{platform.machine()}")
    lines = [
        "# Written by hypercore at each start of its containerd: changes are lost.",
        "version = 2",
        f"root = {_quoted(paths.containerd_root())}",
        f"state = {_quoted(paths.containerd_state())}",
        # 1.7's name, then 2.x's: no Kubernetes here, and none of its set-up in /etc.
        "disabled_plugins = [",
        '  "io.containerd.grpc.v1.cri",',
        '  "io.containerd.cri.v1.images",',
        '  "io.containerd.cri.v1.runtime",',
        '  "io.containerd.nri.v1.nri",',
        "]",
        "[grpc]",
        f"  address = {_quoted(paths.containerd_socket())}",
        "[ttrpc]",
        f"  address = {_quoted(Path(f'{paths.containerd_socket()}.ttrpc'))}",
        '[plugins."io.containerd.snapshotter.v1.blockfile"]',
        f"  root_path = {_quoted(paths.blockfile_dir())}",
        '  fs_type = "ext4"',
        # Exactly this: with more options some versions mix up ro and rw of concurrent calls.
        '  mount_options = ["loop"]',
        "  recreate_scratch = false",
        '[plugins."io.containerd.transfer.v1.local"]',
        '  [[plugins."io.containerd.transfer.v1.local".unpack_config]]',
        f'    platform = "{arch}"',
        '    snapshotter = "blockfile"',
        '    differ = "walking"',
    ]
    return "\n".join(lines) + "\n"


def status() -> Status:
    """The state now; asks neither containerd nor waits."""
    pid, _start = _find()
    socket = paths.containerd_socket()
    return Status(pid, bool(pid) and _peer(socket) > 0, socket, paths.containerd_log())


async def start(config: HostConfig, *, deadline_s: float = START_DEADLINE_S) -> Status:
    """Start our containerd unless it runs, and return once it serves.

    Raises:
        Unavailable: not installed, or it ended at once; the message has its last log lines.
        DeadlineExceeded: it does not serve in time; it is stopped again.
        StateError: another containerd serves our socket.
        PermissionDenied: not root.
    """
    if os.geteuid() != 0:
        raise PermissionDenied("starting containerd needs root", hint="run as root")
    if config.containerd_socket.absolute() != paths.containerd_socket().absolute():
        raise StateError(
            f"the containerd at {config.containerd_socket} is not ours to start",
            hint=f"start it by its own means, or remove its socket from {paths.config_file()}",
        )
    async with _locked(deadline_s):
        if _find()[0]:
            await _wait_until_serving(deadline_s)
            return status()
        await _require_free(paths.containerd_socket(), deadline_s)
        binary = await asyncio.to_thread(program.find, config)
        await asyncio.to_thread(_prepare_files)
        await _spawn(binary, deadline_s)
        try:
            await _prepare_snapshotter(config.namespace)
        except BaseException:
            await asyncio.shield(_end(*_find()))
            raise
        return status()


async def stop() -> bool:
    """End our containerd and wait for it; False if it did not run. Tasks live on."""
    if os.geteuid() != 0:
        raise PermissionDenied("stopping containerd needs root", hint="run as root")
    if not paths.run_dir().exists():
        return False
    async with _locked(STOP_GRACE_S * 2):
        pid, start_time = _find()
        if pid:
            await _end(pid, start_time)
        paths.containerd_record().unlink(missing_ok=True)
        return pid != 0


def last_log_lines(count: int = 12) -> str:
    """The end of containerd's log."""
    with suppress(OSError), paths.containerd_log().open("rb") as log:
        log.seek(max(0, os.fstat(log.fileno()).st_size - 16384))
        return "\n".join(log.read().decode(errors="replace").splitlines()[-count:])
    return ""


def _prepare_files() -> None:
    try:
        paths.data_dir().mkdir(parents=True, exist_ok=True, mode=0o711)
        paths.containerd_root().mkdir(exist_ok=True, mode=0o711)
        blockfile.prepare_scratch(paths.blockfile_dir())
        config = paths.containerd_config()
        unfinished = config.with_suffix(".new")
        unfinished.write_text(render_config())
        unfinished.rename(config)
        log = paths.containerd_log()
        for number in range(LOGS_KEPT - 1, -1, -1):
            older = log.with_name(f"{log.name}.{number + 1}")
            newer = log.with_name(f"{log.name}.{number}") if number else log
            with suppress(FileNotFoundError):
                newer.rename(older)
    except OSError as exc:
        raise from_os_error(exc, f"prepare {exc.filename or paths.data_dir()}") from exc


async def _require_free(socket: Path, deadline_s: float) -> None:
    """Refuse to take over a socket that another process serves."""
    end = time.monotonic() + deadline_s
    while other := _peer(socket):
        dying = other > 0 and not _process.start_time(other)  # killed, but its files still open
        if not dying or time.monotonic() > end:
            raise StateError(
                f"process {other}, not started by hypercore, serves {socket}",
                hint="unset HYPERCORE_CONTAINERD_SOCKET, or choose another HYPERCORE_RUN_DIR",
            )
        await asyncio.sleep(0.02)


async def _spawn(binary: Path, deadline_s: float) -> None:
    """Start `binary` and return when it says that it serves."""
    with ExitStack() as stack:
        notify_path = paths.containerd_notify()
        notify_path.unlink(missing_ok=True)
        notify = sockets.socket(sockets.AF_UNIX, sockets.SOCK_DGRAM | sockets.SOCK_NONBLOCK)
        stack.enter_context(notify)
        notify.bind(str(notify_path))
        stack.callback(notify_path.unlink, missing_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        log_fd = os.open(paths.containerd_log(), flags, 0o640)
        stack.callback(os.close, log_fd)
        null_fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, null_fd)
        env = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        env |= {name: value for name, value in os.environ.items() if name.startswith("HYPERCORE_")}
        env["PATH"] = _search_path(binary)
        env["NOTIFY_SOCKET"] = str(notify_path)
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        argv = [str(binary), "--config", str(paths.containerd_config())]
        try:
            pid, pidfd = _process.spawn(
                argv,
                env=env,
                fds=[(null_fd, 0), (log_fd, 1), (log_fd, 2)],
                rlimits=[(resource.RLIMIT_NOFILE, most, most)],
                no_new_privs=False,
                umask=0o022,
            )
        except OSError as exc:
            raise from_os_error(exc, f"start {binary}") from exc
        stack.callback(os.close, pidfd)
        start_time = _process.start_time(pid)
        try:
            record = paths.containerd_record()
            record.write_text(f"{pid} {start_time}\n")
            await _wait_until_notified(notify, pidfd, deadline_s)
        except BaseException:
            await asyncio.shield(_end(pid, start_time))
            with suppress(ChildProcessError):
                _process.reap(pidfd)  # one that ended by itself
            raise


async def _wait_until_notified(notify: sockets.socket, pidfd: int, deadline_s: float) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    said = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    loop.add_reader(notify.fileno(), said.set)
    waits = {asyncio.create_task(event.wait()) for event in (ended, said)}
    try:
        end = time.monotonic() + deadline_s
        while not said.is_set() and not ended.is_set():
            # A build without sd_notify says nothing: look at the socket now and then as well.
            await asyncio.wait(waits, timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
            if not said.is_set() and _peer(paths.containerd_socket()):
                return
            if time.monotonic() > end:
                raise DeadlineExceeded(
                    f"containerd does not serve {paths.containerd_socket()} "
                    f"after {deadline_s:g} s; its log ends:\n{last_log_lines()}",
                    hint=f"see {paths.containerd_log()}",
                )
    finally:
        loop.remove_reader(pidfd)
        loop.remove_reader(notify.fileno())
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
    if ended.is_set():
        raise Unavailable(
            f"containerd ended at its start; its log ends:\n{last_log_lines()}",
            hint=f"see {paths.containerd_log()}",
        )


async def _wait_until_serving(deadline_s: float) -> None:
    """For one that runs already, started perhaps a moment ago by a process that was killed."""
    end = time.monotonic() + deadline_s
    while not _peer(paths.containerd_socket()):
        if not _find()[0]:
            raise Unavailable(
                f"containerd has ended; its log ends:\n{last_log_lines()}",
                hint="`hypercore containerd start` starts it again",
            )
        if time.monotonic() > end:
            raise DeadlineExceeded(
                f"containerd runs but does not serve {paths.containerd_socket()}",
                hint="`hypercore containerd stop`, then start it again",
                detail=last_log_lines(),
            )
        await asyncio.sleep(0.05)


async def _prepare_snapshotter(namespace: str) -> None:
    """Check that blockfile works, and have what images are unpacked onto before it is needed."""
    from hypercore.containerd import unpack
    from hypercore.containerd.client import Client

    async with Client(namespace=namespace) as client:
        await _require_blockfile(client)
        await unpack.ensure_base(client)
    await asyncio.to_thread(blockfile.grow_scratch, paths.blockfile_dir())


async def _require_blockfile(client: "Client") -> None:
    from hypercore.proto.containerd_introspection_pb import (
        Introspection,
        PluginsRequest,
        PluginsResponse,
    )

    request = PluginsRequest(filters=["id==blockfile"])
    reply = await client.unary(Introspection, "Plugins", request, PluginsResponse)
    if not reply.plugins:
        raise Unavailable("this containerd has no blockfile snapshotter", hint="use 1.7 or newer")
    failed = reply.plugins[0].init_err
    if failed is not None and failed.code:
        raise Unavailable(
            f"containerd's blockfile snapshotter did not start: {failed.message}",
            hint=f"see {paths.containerd_log()}",
        )


async def _end(pid: int, start_time: int) -> None:
    """SIGTERM, then SIGKILL, to that very process; returns when it is gone."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if _process.start_time(pid) != start_time:
            return
        for number, grace_s in ((signal.SIGTERM, STOP_GRACE_S), (signal.SIGKILL, STOP_GRACE_S)):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, number)
            if await _readable(pidfd, grace_s):
                break
        else:
            raise HypercoreError(f"containerd (pid {pid}) does not end", hint="see dmesg")
        with suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)  # noqa: ASYNC222 (never blocks)
    finally:
        os.close(pidfd)


async def _readable(fd: int, timeout_s: float) -> bool:
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(fd, event.set)
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(fd)
    return True


def _find() -> tuple[int, int]:
    """(pid, start time) of our containerd; (0, 0) when it does not run.

    By the record, else by looking at every process: whoever started it may have died before
    writing the record.
    """
    with suppress(OSError, ValueError):
        pid_text, start_text = paths.containerd_record().read_text().split()
        pid, start_time = int(pid_text), int(start_text)
        if start_time and _process.start_time(pid) == start_time:
            return pid, start_time
    if not paths.containerd_config().exists():
        return 0, 0
    wanted = os.fsencode(paths.containerd_config())
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        start_time = _process.start_time(int(name))
        with suppress(OSError):
            # Ours runs as root; anybody may give a process of theirs these arguments.
            if os.stat(f"/proc/{name}").st_uid != 0:
                continue
            argv = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
            if argv[1:3] == [b"--config", wanted] and start_time:
                return int(name), start_time
    return 0, 0


def _peer(socket: Path) -> int:
    """Pid of the process that listens on the unix socket; 0 if none does."""
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM | sockets.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(socket))
        except BlockingIOError:
            return -1  # its backlog is full: somebody is there
        except OSError:
            return 0
        credentials = probe.getsockopt(sockets.SOL_SOCKET, sockets.SO_PEERCRED, 12)
        return int.from_bytes(credentials[:4], sys.byteorder) or -1


@asynccontextmanager
async def _locked(deadline_s: float) -> AsyncIterator[None]:
    """Only one process at a time starts or stops our containerd; freed by the kernel."""
    try:
        paths.run_dir().mkdir(parents=True, exist_ok=True, mode=0o711)
        fd = os.open(paths.containerd_lock(), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise from_os_error(exc, f"open {paths.containerd_lock()}") from exc
    try:
        end = time.monotonic() + deadline_s
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if time.monotonic() > end:
                raise DeadlineExceeded("another process is starting or stopping containerd")
            await asyncio.sleep(0.05)
        yield
    finally:
        os.close(fd)


def _search_path(binary: Path) -> str:
    """PATH of containerd: where our shims are, beside itself, then the caller's."""
    package = Path(__file__).resolve().parent.parent
    places = [package.parent / "bin", Path(sysconfig.get_path("scripts")), binary.parent]
    inherited = os.environ.get("PATH") or "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
    return os.pathsep.join([*map(str, places), inherited])


def _quoted(path: Path) -> str:
    return json.dumps(str(path))  # JSON's string is a TOML basic string
