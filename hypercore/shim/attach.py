"""The stdio socket: clients that attach to `hypercore://` streams (proto/stdio.proto).

A client hands over pipe ends. Output of an init comes from its log, so that any number of clients
may come and go; an exec has no log, and the one client that attaches before its start is its
other end.
"""

import asyncio
import errno
import logging
import os
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from hypercore._pump import Event
from hypercore.errors import (
    AlreadyExists,
    HypercoreError,
    InvalidArgument,
    StateError,
)
from hypercore.proto.stdio_pb import (
    Attach,
    Attached,
    Dropped,
    Error,
    StdioReply,
    StdioRequest,
)
from hypercore.proto.stdio_pb import Exit as ExitMessage
from hypercore.shim.process import Process, State
from hypercore.shim.streams import Input, Output
from hypercore.shim.uris import Ends
from hypercore.spec import STDIO_URI
from hypercore.wire.codec import DecodeError

if TYPE_CHECKING:
    from hypercore.shim.task import Task

logger = logging.getLogger(__name__)

MAX_PACKET = 64 * 1024
FIRST_PACKET_S = 10.0
MAX_CLIENTS = 1024
ACCEPT_PAUSE_S = 0.5
"""After a client could not be accepted: the backlog that holds it is readable all the time."""

FindTask = Callable[[str], "Task"]
"""The task of an id. Raises NotFound."""


class AttachServer:
    """Serves one listening SEQPACKET socket."""

    def __init__(self, listener: socket.socket, namespace: str, find_task: FindTask) -> None:
        self._listener = listener
        self.namespace = namespace
        self.find_task = find_task
        self._clients: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._listener.setblocking(False)
        self._resume()

    async def close(self) -> None:
        """Detach all clients. Idempotent."""
        if self._pause is not None:
            self._pause.cancel()
        if self._listener.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()
        for task in self._clients:
            task.cancel()
        if self._clients:
            await asyncio.wait(self._clients)

    def _resume(self) -> None:
        self._pause = None
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as exc:  # no descriptor or memory is free
            logger.warning("a client cannot attach yet: %s", exc)
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._listener.fileno())
            self._pause = loop.call_later(ACCEPT_PAUSE_S, self._resume)
            return
        sock.setblocking(False)
        if _peer_uid(sock) not in (0, os.geteuid()) or len(self._clients) >= MAX_CLIENTS:
            sock.close()
            return
        task = asyncio.get_running_loop().create_task(AttachClient(self, sock).run())
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)


class AttachClient:
    """One attached client, from its first packet until it goes or the process has ended."""

    def __init__(self, server: AttachServer, sock: socket.socket) -> None:
        self._server = server
        self._sock = sock
        self.ends = Ends()
        self._task: Task | None = None
        self._process: Process | None = None
        self._stdin: Input | None = None
        self._source = -1
        self._stdin_closed = False
        self._outputs: dict[int, Output] = {}
        self._dropped = ""
        self._done = asyncio.Event()

    async def run(self) -> None:
        try:
            try:
                async with asyncio.timeout(FIRST_PACKET_S):
                    await self._attach()
            except TimeoutError:
                return
            except HypercoreError as exc:
                self._send(StdioReply(error=Error(code=exc.grpc_code, message=str(exc))))
                return
            await self._serve()
        finally:
            self._detach()

    # the first packet

    async def _attach(self) -> None:
        packet, fds = await self._receive()
        names = ("stdin", "stdout", "stderr")
        try:
            attach = _decode(packet).attach if packet else None
        except InvalidArgument:
            for fd in fds:
                os.close(fd)
            raise
        wanted = [name for name in names if attach is not None and getattr(attach, name)]
        for name, fd in zip(wanted, fds, strict=False):
            setattr(self.ends, name, fd)
        for fd in fds[len(wanted) :]:
            os.close(fd)
        if attach is None:
            raise InvalidArgument("the first packet must be Attach")
        if len(fds) != len(wanted):
            raise InvalidArgument(f"{len(fds)} fds came for {len(wanted)} streams")
        if attach.namespace != self._server.namespace:
            raise InvalidArgument(
                f"namespace {attach.namespace!r}: this server is for {self._server.namespace!r}"
            )
        self._task = self._server.find_task(attach.task_id)
        self._process = self._task.process(attach.exec_id)
        if STDIO_URI not in self._process.uris:
            raise StateError(
                f"the output of {self._process.name} belongs to the client that made it",
                hint="use that client's own attach, for example `ctr task attach`",
            )
        self._settle_absent(attach)
        if attach.exec_id:
            self._join_exec(self._process)
        else:
            self._join_init(self._process, attach.replay)
        self._send(StdioReply(attached=Attached(terminal=self._process.terminal)))

    def _settle_absent(self, attach: Attach) -> None:
        """Close ends of streams that the process does not have: EOF for the client."""
        assert self._process is not None
        for name, uri in zip(("stdin", "stdout", "stderr"), self._process.uris, strict=True):
            if not uri and getattr(attach, name):
                os.close(self.ends.take(name))

    def _join_exec(self, process: Process) -> None:
        if process.state is not State.CREATED or process.starting is not None:
            raise StateError(f"exec {process.exec_id} is {process.state}: attach before its start")
        if process.client is not None:
            raise AlreadyExists(f"exec {process.exec_id} has a client already")
        process.client = self

    def _join_init(self, process: Process, replay: bool) -> None:
        io = process.io
        if io is None:
            raise StateError(f"process {process.name} has no streams yet")
        for name, output in (("stdout", io.stdout), ("stderr", io.stderr)):
            fd = self.ends.take(name)
            if fd < 0:
                continue
            if output is None:
                os.close(fd)
                continue
            number = output.add_client(fd, replay, self._on_client_event)
            self._outputs[number] = output
        if self.ends.stdin >= 0:
            if io.stdin is not None and process.state is not State.STOPPED:
                self.join_stdin(io.stdin)
            else:
                os.close(self.ends.take("stdin"))
        if not self._outputs:
            self._done.set()

    def join_stdin(self, stdin: Input) -> None:
        """Feed the client's stdin to the process; for an exec, task.py calls it at the start."""
        self._stdin = stdin
        self._source = stdin.add_source(self.ends.take("stdin"))
        if self._stdin_closed:
            stdin.end_after(self._source)

    # until the end

    async def _serve(self) -> None:
        assert self._process is not None
        packets = asyncio.ensure_future(self._packets())
        ended = asyncio.ensure_future(self._ended())
        try:
            await asyncio.wait({packets, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                return
            if self._dropped:
                self._send(StdioReply(dropped=Dropped(reason=self._dropped)))
                return
            end = self._process.exit
            assert end is not None
            message = ExitMessage(
                exit_status=end.status, missing_bytes=end.missing_bytes, reason=end.reason
            )
            self._send(StdioReply(exit=message))
        finally:
            for waiter in (packets, ended):
                waiter.cancel()
            await asyncio.wait({packets, ended})

    async def _ended(self) -> None:
        """Until the process has ended and this client has its output, or was dropped."""
        assert self._process is not None
        if self._process.exec_id:
            self._done.set()
        await self._done.wait()
        if not self._dropped:
            await asyncio.shield(self._process.exited)

    async def _packets(self) -> None:
        while True:
            packet, fds = await self._receive()
            for fd in fds:
                os.close(fd)
            if not packet:
                return
            try:
                await self._request(_decode(packet))
            except HypercoreError as exc:
                logger.debug("a client's request failed: %s", exc)

    async def _request(self, request: StdioRequest) -> None:
        assert self._task is not None
        assert self._process is not None
        if request.resize is not None:
            rows, columns = request.resize.rows, request.resize.columns
            await self._task.resize(self._process.exec_id, rows, columns)
        elif request.close_stdin is not None and not self._stdin_closed:
            self._stdin_closed = True
            if self._stdin is not None:
                self._stdin.end_after(self._source)

    def _on_client_event(self, number: int, kind: int, value: int) -> None:
        if kind not in (Event.CLIENT_DONE, Event.CLIENT_DROPPED):
            return
        self._outputs.pop(number, None)
        if kind == Event.CLIENT_DROPPED and value != errno.EPIPE:
            self._dropped = "it took the output too slowly"
        if self._dropped or not self._outputs:
            self._done.set()

    # sockets

    async def _receive(self) -> tuple[bytes, list[int]]:
        """One packet with its fds; an empty one when the client is gone."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                packet, fds, flags, _ = socket.recv_fds(
                    self._sock, MAX_PACKET, 8, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                readable = asyncio.Event()
                loop.add_reader(self._sock.fileno(), readable.set)
                try:
                    await readable.wait()
                finally:
                    loop.remove_reader(self._sock.fileno())
                continue
            except ConnectionError:
                return b"", []
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                for fd in fds:
                    os.close(fd)
                return b"", []
            return packet, fds

    def _send(self, reply: StdioReply) -> None:
        """A client that takes no packets is not waited for: the close that follows tells it."""
        try:
            self._sock.send(reply.encode())
        except OSError as exc:
            logger.debug("a client did not take its packet: %s", exc)

    def _detach(self) -> None:
        for number, output in self._outputs.items():
            output.remove_client(number)
        if self._stdin is not None and self._source >= 0:
            self._stdin.remove_source(self._source)
        if self._process is not None and self._process.client is self:
            self._process.client = None
        self.ends.close()
        self._sock.close()


def _decode(packet: bytes) -> StdioRequest:
    try:
        return StdioRequest.decode(packet)
    except DecodeError as exc:
        raise InvalidArgument(f"malformed packet: {exc}") from exc


def _peer_uid(sock: socket.socket) -> int:
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    uid: int = struct.unpack("iII", credentials)[1]
    return uid
