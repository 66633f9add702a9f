"""stdio URIs of containerd's clients → file descriptors: FIFOs, files, logging programs.

`hypercore://` streams have no fd of their own; see attach.py. Paths are the client's, who is root.
"""

import asyncio
import contextlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from hypercore import _process
from hypercore.errors import DeadlineExceeded, InvalidArgument, from_os_error
from hypercore.spec import STDIO_URI

LOGGER_START_S = 10.0


@dataclass(slots=True)
class Ends:
    """The host's ends of a process's streams; −1: none. Whoever takes one sets it to −1."""

    stdin: int = -1
    stdin_keeper: int = -1
    stdout: int = -1
    stderr: int = -1

    def close(self) -> None:
        for name in ("stdin", "stdin_keeper", "stdout", "stderr"):
            fd = self.take(name)
            if fd >= 0:
                os.close(fd)

    def take(self, name: str) -> int:
        fd: int = getattr(self, name)
        setattr(self, name, -1)
        return fd


async def open_ends(uris: tuple[str, str, str], container_id: str, namespace: str) -> Ends:
    """Open what the URIs of stdin, stdout and stderr name.

    Raises:
        InvalidArgument: a scheme this shim does not know.
        NotFound, PermissionDenied: the path cannot be opened.
        DeadlineExceeded: a logging program did not get ready.
    """
    stdin, stdout, stderr = uris
    ends = Ends()
    try:
        if stdin and stdin != STDIO_URI:
            _open_stdin(stdin, ends)
        if _scheme(stdout) in ("binary", "binary-v2"):
            await _start_logger(stdout, container_id, namespace, ends)
        else:
            ends.stdout = _open_output(stdout)
            ends.stderr = _open_output(stderr)
    except BaseException:
        ends.close()
        raise
    return ends


def _scheme(uri: str) -> str:
    return urlsplit(uri).scheme if "://" in uri else ""


def _open_stdin(uri: str, ends: Ends) -> None:
    if _scheme(uri) not in ("", "fifo"):
        raise InvalidArgument(f"stdin {uri!r}: only FIFOs can be stdin")
    path = uri.removeprefix("fifo://")
    try:
        ends.stdin = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if stat.S_ISFIFO(os.fstat(ends.stdin).st_mode):
            # Writers come and go (detach, attach): EOF is CloseIO's alone.
            ends.stdin_keeper = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise from_os_error(exc, f"open stdin {path}") from exc


def _open_output(uri: str) -> int:
    if not uri or uri == STDIO_URI:
        return -1
    scheme = _scheme(uri)
    if scheme not in ("", "fifo", "file"):
        raise InvalidArgument(f"stdio {uri!r}: unknown scheme {scheme!r}")
    path = urlsplit(uri).path if scheme else uri
    try:
        if scheme == "file":
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        elif stat.S_ISFIFO(os.stat(path).st_mode):
            # Readers come and go: with a read end of our own, writing waits for the next one.
            flags = os.O_RDWR | os.O_NONBLOCK
        else:
            flags = os.O_WRONLY | os.O_APPEND
        return os.open(path, flags | os.O_CLOEXEC, 0o644)
    except OSError as exc:
        raise from_os_error(exc, f"open stdio {path}") from exc


async def _start_logger(uri: str, container_id: str, namespace: str, ends: Ends) -> None:
    """Run `binary:///program?key=value`, which reads stdout from fd 3 and stderr from fd 4.

    It is ready when it closes fd 5, or (binary-v2) writes a byte there.
    """
    parts = urlsplit(uri)
    argv = [parts.path]
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        argv += [key, value] if value else [key]
    env = {
        "PATH": os.environ.get("PATH", os.defpath),
        "CONTAINER_ID": container_id,
        "CONTAINER_NAMESPACE": namespace,
    }
    with contextlib.ExitStack() as stack:

        def pipe() -> tuple[int, int]:
            read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
            return read_fd, write_fd

        out_read, ends.stdout = pipe()
        stack.callback(os.close, out_read)
        err_read, ends.stderr = pipe()
        stack.callback(os.close, err_read)
        ready_read, ready_write = pipe()
        stack.callback(os.close, ready_read)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, null)
        fds = [(null, 0), (null, 1), (null, 2), (out_read, 3), (err_read, 4), (ready_write, 5)]
        try:
            _pid, pidfd = _process.spawn(
                argv, env=env, fds=fds, drop_capabilities=False, no_new_privs=False
            )
        except OSError as exc:
            raise from_os_error(exc, f"start the logging program {parts.path}") from exc
        finally:
            os.close(ready_write)
        _reap_later(pidfd)
        for fd in (ends.stdout, ends.stderr):
            os.set_blocking(fd, False)
        await _readable(ready_read, parts.path)
        if parts.scheme == "binary-v2" and not os.read(ready_read, 1):
            raise InvalidArgument(f"the logging program {parts.path} ended without getting ready")


async def _readable(fd: int, program: str) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        async with asyncio.timeout(LOGGER_START_S):
            await ready.wait()
    except TimeoutError as exc:
        raise DeadlineExceeded(
            f"the logging program {program} was not ready within {LOGGER_START_S:g} s"
        ) from exc
    finally:
        loop.remove_reader(fd)


def _reap_later(pidfd: int) -> None:
    """Collect the program's exit when it comes: it ends when its pipes do."""
    loop = asyncio.get_running_loop()

    def ended() -> None:
        if _process.reap(pidfd) is not None:
            loop.remove_reader(pidfd)
            os.close(pidfd)

    loop.add_reader(pidfd, ended)
