"""ttrpc server: method tables, unary calls and streams on unix sockets.

A handler that returns its reply is answered inline; one that returns an awaitable gets a task,
which its connection owns and cancels when it ends (a task a call costs 4-6 µs, and most calls a
shim gets are State). What a call's deadline ends answers DeadlineExceeded.
"""

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from hypercore.errors import HypercoreError
from hypercore.wire._frame import (
    DATA,
    REMOTE_OPEN,
    REQUEST,
    decode_request,
    encode_error,
    encode_response,
)
from hypercore.wire.codec import DecodeError, Message
from hypercore.wire.connection import (
    INVALID_ARGUMENT,
    RESOURCE_EXHAUSTED,
    UNIMPLEMENTED,
    Connection,
    Stream,
    status_of,
)

logger = logging.getLogger(__name__)

MAX_CALLS = 1024
"""Calls under way on one connection; more are refused with ResourceExhausted."""

Reply = Message | bytes
Handler = Callable[[Any], Reply | Awaitable[Reply]]
StreamHandler = Callable[[Stream], Coroutine[Any, Any, bytes | None]]
Methods = Mapping[str, tuple[type[Message], type[Message]]]


class Server:
    """Serves its method tables on any number of listening sockets.

    Only root and the server's own user may connect.
    """

    def __init__(self) -> None:
        self._unary: dict[bytes, tuple[type[Message], Handler]] = {}
        self._streams: dict[bytes, StreamHandler] = {}
        self._services: set[bytes] = set()
        self._servers: list[asyncio.Server] = []
        self.connections: set[_ServerConnection] = set()

    def add(self, service: str, methods: Methods, handlers: Mapping[str, Handler]) -> None:
        """Serve `service`'s methods that `handlers` names; requests are decoded by `methods`."""
        for name, handler in handlers.items():
            request, _ = methods[name]
            self._unary[f"{service}/{name}".encode()] = (request, handler)
        self._services.add(service.encode())

    def add_streams(self, service: str, handlers: Mapping[str, StreamHandler]) -> None:
        """Serve streaming methods. A handler's return value is the closing response, if any."""
        for name, handler in handlers.items():
            self._streams[f"{service}/{name}".encode()] = handler
        self._services.add(service.encode())

    async def serve(self, listener: socket.socket) -> None:
        """Accept on `listener`, which is bound and listening. Returns at once."""
        loop = asyncio.get_running_loop()
        self._servers.append(
            await loop.create_unix_server(lambda: _ServerConnection(self), sock=listener)
        )

    async def close(self, flush_s: float = 1.0) -> None:
        """Stop listening, cancel all calls, close all connections. Idempotent.

        What was answered is still sent, to peers that take it within `flush_s`.
        """
        for server in self._servers:
            server.close()
        self._servers.clear()
        tasks = [task for c in self.connections for task in c.tasks]
        for task in tasks:
            task.cancel()
        for connection in list(self.connections):
            connection.close()
        await asyncio.gather(*tasks, return_exceptions=True)
        ended = [c.ended for c in self.connections]
        if ended:
            await asyncio.wait(ended, timeout=flush_s)
        for connection in list(self.connections):
            connection.abort()


class _ServerConnection(Connection):
    def __init__(self, server: Server) -> None:
        super().__init__()
        self._server = server
        self._last_stream_id = 0
        self._hold_reads_while_writing = True
        self.tasks: set[asyncio.Task[None]] = set()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._server.connections.add(self)
        uid = _peer_uid(transport)
        if uid not in (0, os.geteuid()):
            logger.warning("refused a connection of uid %d", uid)
            self.close()

    def lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self.ended.set_result(None)
        for task in self.tasks:
            task.cancel()

    def frame(self, stream_id: int, kind: int, flags: int, body: bytes | None) -> None:
        if kind == REQUEST:
            self._request(stream_id, flags, body)
        elif kind == DATA:
            self._data(stream_id, flags, body)

    def _request(self, stream_id: int, flags: int, body: bytes | None) -> None:
        if stream_id & 1 == 0:
            return self._refuse(stream_id, INVALID_ARGUMENT, "StreamID must be odd")
        if stream_id <= self._last_stream_id:
            text = "StreamID cannot be re-used and must increment"
            return self._refuse(stream_id, INVALID_ARGUMENT, text)
        self._last_stream_id = stream_id
        if body is None:
            return self._refuse(stream_id, RESOURCE_EXHAUSTED, "message longer than 4 MiB")
        if len(self.tasks) >= MAX_CALLS:
            return self._refuse(stream_id, RESOURCE_EXHAUSTED, f"more than {MAX_CALLS} calls")
        try:
            route, payload, timeout_ns, _ = decode_request(body)
        except ValueError as exc:
            return self._refuse(stream_id, INVALID_ARGUMENT, f"unmarshal request error: {exc}")
        found = self._server._unary.get(route)
        if found is not None:
            return self._call(stream_id, found, payload, timeout_ns)
        handler = self._server._streams.get(route)
        if handler is not None:
            return self._open_stream(stream_id, flags, handler, payload, timeout_ns)
        service, _, method = route.partition(b"/")
        known = service in self._server._services
        text = (
            f"method {method.decode(errors='replace')}"
            if known
            else (f"service {service.decode(errors='replace')}")
        )
        self._refuse(stream_id, UNIMPLEMENTED, text)

    def _call(
        self,
        stream_id: int,
        found: tuple[type[Message], Handler],
        payload: bytes,
        timeout_ns: int,
    ) -> None:
        request, handler = found
        try:
            reply = handler(request.decode(payload))
        except DecodeError as exc:
            return self._refuse(stream_id, INVALID_ARGUMENT, f"unmarshal payload error: {exc}")
        except Exception as exc:
            return self._fail(stream_id, exc)
        if isinstance(reply, bytes):
            self.write(encode_response(stream_id, reply))
        elif isinstance(reply, Message):
            self.write(encode_response(stream_id, reply.encode()))
        else:
            task = self._spawn(self._answer(stream_id, reply, timeout_ns))
            if isinstance(reply, Coroutine):
                # A task that is cancelled before its first step never awaits it.
                task.add_done_callback(lambda _: reply.close())

    async def _answer(self, stream_id: int, reply: Awaitable[Reply], timeout_ns: int) -> None:
        try:
            async with asyncio.timeout(timeout_ns / 1e9 if timeout_ns > 0 else None):
                result = await reply
            body = result if isinstance(result, bytes) else result.encode()
            self.write(encode_response(stream_id, body))
        except Exception as exc:
            self._fail(stream_id, exc)

    def _open_stream(
        self,
        stream_id: int,
        flags: int,
        handler: StreamHandler,
        payload: bytes,
        timeout_ns: int,
    ) -> None:
        stream = Stream(self, stream_id, self._stream_dropped)
        self.streams[stream_id] = stream
        if payload or not flags & REMOTE_OPEN:
            stream.push(payload)
        if not flags & REMOTE_OPEN:
            stream.end()
        self._spawn(self._run_stream(stream, handler, timeout_ns))

    async def _run_stream(self, stream: Stream, handler: StreamHandler, timeout_ns: int) -> None:
        try:
            async with asyncio.timeout(timeout_ns / 1e9 if timeout_ns > 0 else None):
                result = await handler(stream)
            if result is None:
                stream.close_send()
            else:
                self.write(encode_response(stream.stream_id, result))
        except Exception as exc:
            self._fail(stream.stream_id, exc)
        finally:
            self.streams.pop(stream.stream_id, None)
            self.stream_free(stream)

    def _stream_dropped(self, stream: Stream) -> None:
        self.streams.pop(stream.stream_id, None)
        self._refuse(stream.stream_id, RESOURCE_EXHAUSTED, "stream was not read in time")

    def _data(self, stream_id: int, flags: int, body: bytes | None) -> None:
        stream = self.streams.get(stream_id)
        if stream is None:
            if stream_id & 1 == 0 or stream_id > self._last_stream_id:
                self._refuse(stream_id, INVALID_ARGUMENT, "StreamID is no longer active")
        elif body is None:
            stream.drop()
        elif stream.ended:
            self._refuse(stream_id, INVALID_ARGUMENT, "StreamID is closed for sending")
        else:
            stream.take(flags, body)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def _refuse(self, stream_id: int, code: int, text: str) -> None:
        self.write(encode_error(stream_id, code, text))

    def _fail(self, stream_id: int, exc: Exception) -> None:
        code, text = status_of(exc)
        if not isinstance(exc, HypercoreError | TimeoutError):
            logger.error("a call failed: %s", text, exc_info=exc)
        self.write(encode_error(stream_id, code, text))


def _peer_uid(transport: asyncio.BaseTransport) -> int:
    sock = transport.get_extra_info("socket")
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _, uid, _ = struct.unpack("3i", credentials)
    return int(uid)
