"""Client side of the shim server's stdio socket (proto/stdio.proto).

`connect` hands over pipe ends and speaks the protocol; cli/terminal.py joins those pipes with a
terminal. Knows neither containerd nor what a signal should do.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from hypercore.errors import HypercoreError, NotFound, Unavailable, from_grpc_code, from_os_error
from hypercore.proto.stdio_pb import Attach, CloseStdin, Exit, Resize, StdioReply, StdioRequest

CONNECT_TIMEOUT_S = 5.0
MAX_PACKET = 64 * 1024


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended, as the shim server saw it."""

    exit_code: int
    missing_bytes: int = 0
    """output that the guest counted and the host never got"""
    reason: str = ""
    """why, when the microVM died instead of the process"""


class StdioConnection:
    """An attached client. Closing it detaches; the process goes on."""

    def __init__(self, sock: socket.socket, terminal: bool) -> None:
        self._sock = sock
        self.terminal = terminal

    async def resize(self, rows: int, columns: int) -> None:
        await self._send(StdioRequest(resize=Resize(rows=rows, columns=columns)))

    async def close_stdin(self) -> None:
        """EOF for the process, after all that this client's stdin pipe held."""
        await self._send(StdioRequest(close_stdin=CloseStdin()))

    async def wait(self) -> ExitStatus:
        """Wait for the end of the process; all its output is in this client's pipes then.

        Raises:
            Unavailable: the shim server went away, or dropped this client for being too slow.
        """
        while True:
            reply = await _receive(self._sock)
            if reply.exit is not None:
                return _exit_status(reply.exit)
            if reply.dropped is not None:
                raise Unavailable(
                    f"detached by the shim server: {reply.dropped.reason}",
                    hint="`hypercore logs` has the output; attach again to follow it",
                )
            if reply.error is not None:
                raise from_grpc_code(reply.error.code, reply.error.message)

    async def _send(self, request: StdioRequest) -> None:
        try:
            await asyncio.get_running_loop().sock_sendall(self._sock, request.encode())
        except OSError:
            # The peer is gone; wait() says so better than a lost resize would.
            return

    def close(self) -> None:
        self._sock.close()


class _Closed(Unavailable):
    """The server has closed the connection."""


@asynccontextmanager
async def connect(
    path: Path,
    *,
    namespace: str,
    task_id: str,
    exec_id: str = "",
    stdin_fd: int | None = None,
    stdout_fd: int | None = None,
    stderr_fd: int | None = None,
    replay: bool = True,
) -> AsyncIterator[StdioConnection]:
    """Attach to a process through the stdio socket at `path`; leaving the context detaches.

    The fds are pipe ends (stdin the read end, the others write ends). They are duplicated to the
    server; the caller keeps its own and closes them, or EOF never comes.

    Raises:
        NotFound: no such socket, or the server knows no such process.
        Unavailable: the server does not answer.
    """
    request = Attach(
        namespace=namespace,
        task_id=task_id,
        exec_id=exec_id,
        stdin=stdin_fd is not None,
        stdout=stdout_fd is not None,
        stderr=stderr_fd is not None,
        replay=replay,
    )
    fds = [fd for fd in (stdin_fd, stdout_fd, stderr_fd) if fd is not None]
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as sock:
        await asyncio.to_thread(_dial, sock, path)
        sock.setblocking(False)
        try:
            socket.send_fds(sock, [StdioRequest(attach=request).encode()], fds)
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                reply = await _receive(sock)
        except TimeoutError as exc:
            raise Unavailable(f"the shim server at {path} does not answer") from exc
        except (ConnectionError, _Closed) as exc:
            # It listens while the microVM is there, and may close before it has accepted.
            raise NotFound(
                f"the shim server at {path} has closed: the task is not running any more",
                hint="see `hypercore ps -a` and `hypercore logs`",
            ) from exc
        if reply.error is not None:
            raise from_grpc_code(reply.error.code, reply.error.message)
        if reply.attached is None:
            raise HypercoreError(f"the shim server at {path} answered out of turn: {reply!r}")
        yield StdioConnection(sock, reply.attached.terminal)


def _dial(sock: socket.socket, path: Path) -> None:
    sock.settimeout(CONNECT_TIMEOUT_S)
    try:
        sock.connect(os.fspath(path))
    except (FileNotFoundError, ConnectionRefusedError) as exc:
        raise NotFound(
            f"no shim server listens at {path}: the task is not running",
            hint="see `hypercore ps -a` and `hypercore logs`",
        ) from exc
    except TimeoutError as exc:
        raise Unavailable(f"the shim server at {path} does not accept connections") from exc
    except OSError as exc:
        raise from_os_error(exc, f"connect to {path}") from exc


async def _receive(sock: socket.socket) -> StdioReply:
    try:
        packet = await asyncio.get_running_loop().sock_recv(sock, MAX_PACKET)
    except ConnectionError:
        packet = b""
    if not packet:
        raise _Closed(
            "the shim server closed the connection before the process ended",
            hint="`hypercore ps -a` shows what became of it",
        )
    return StdioReply.decode(packet)


def _exit_status(message: Exit) -> ExitStatus:
    return ExitStatus(message.exit_status, message.missing_bytes, message.reason)


def pipes(wanted: Sequence[bool]) -> list[tuple[int, int]]:
    """A CLOEXEC pipe (read end, write end) for each wanted stream, (-1, -1) for the others."""
    made: list[tuple[int, int]] = []
    try:
        for want in wanted:
            made.append(os.pipe2(os.O_CLOEXEC) if want else (-1, -1))
    except OSError as exc:
        for pair in made:
            for fd in pair:
                if fd >= 0:
                    os.close(fd)
        raise from_os_error(exc, "make a pipe") from exc
    return made
