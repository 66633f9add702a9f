"""What a ttrpc client and server share: one connection, its streams, and back-pressure.

Not for method tables (server.py) nor for pending calls (client.py). One event loop; nothing here
is thread-safe.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import cast

from hypercore.errors import HypercoreError, ResourceExhausted, Unavailable, from_grpc_code
from hypercore.wire._frame import (
    DATA,
    MAX_LENGTH,
    NO_DATA,
    REMOTE_CLOSED,
    Parser,
    encode_frame,
)

Metadata = tuple[tuple[bytes, bytes], ...]

STREAM_BUFFER = 64
"""Messages a stream holds for a reader that is behind, as in containerd's ttrpc."""

STREAM_STALL_S = 1.0
"""How long a full stream may stop its connection before it is dropped."""

MAX_STATUS_BYTES = 8192

DEADLINE_EXCEEDED, INVALID_ARGUMENT, RESOURCE_EXHAUSTED, UNIMPLEMENTED = 4, 3, 8, 12
UNKNOWN = 2


def status_of(exc: BaseException) -> tuple[int, str]:
    """The status code and text a peer gets for `exc`."""
    if isinstance(exc, TimeoutError):
        return DEADLINE_EXCEEDED, "deadline exceeded"
    if not isinstance(exc, HypercoreError):
        return UNKNOWN, f"{type(exc).__name__}: {exc}"[:MAX_STATUS_BYTES]
    text = exc.message
    if exc.hint:
        text += f" ({exc.hint})"
    if exc.detail:
        text += "\n" + exc.detail
    return exc.grpc_code, text[:MAX_STATUS_BYTES]


class Connection(asyncio.Protocol):
    """Frames in and out of one transport."""

    def __init__(self, max_length: int = MAX_LENGTH) -> None:
        self.transport: asyncio.Transport | None = None
        self.streams: dict[int, Stream] = {}
        self._parser = Parser(max_length)
        self._writable: asyncio.Future[None] | None = None
        self._stalled: dict[Stream, asyncio.TimerHandle] = {}
        self._hold_reads_while_writing = False
        self._reading = True

    # what the two sides fill in
    def frame(self, stream_id: int, kind: int, flags: int, body: bytes | None) -> None:
        raise AssertionError("client and server define it")

    def lost(self, exc: Exception | None) -> None:
        raise AssertionError("client and server define it")

    # asyncio.Protocol
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        for stream_id, kind, flags, body in self._parser.feed(data):
            self.frame(stream_id, kind, flags, body)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        for timer in self._stalled.values():
            timer.cancel()
        self._stalled.clear()
        streams, self.streams = self.streams, {}
        for stream in streams.values():
            stream.fail(Unavailable("the ttrpc connection was closed"))
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self.lost(exc)

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()
        self._set_reading()

    def resume_writing(self) -> None:
        waiter, self._writable = self._writable, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        self._set_reading()

    # for both sides and their streams
    def write(self, frame: bytes) -> None:
        """Queue `frame`; dropped when the connection is gone."""
        if self.transport is not None:
            self.transport.write(frame)

    async def drain(self) -> None:
        """Wait until the peer has taken enough of what was written."""
        if self._writable is not None:
            await asyncio.shield(self._writable)
        if self.transport is None:
            raise Unavailable("the ttrpc connection was closed")

    def close(self) -> None:
        """Close the transport once what was written is sent. Idempotent."""
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        """Close the transport now, dropping what was not sent. Idempotent."""
        if self.transport is not None:
            self.transport.abort()

    def stream_closed(self, stream: "Stream") -> None:
        """`stream` sends no more."""

    def stream_full(self, stream: "Stream") -> None:
        if stream not in self._stalled:
            loop = asyncio.get_running_loop()
            self._stalled[stream] = loop.call_later(STREAM_STALL_S, stream.drop)
            self._set_reading()

    def stream_free(self, stream: "Stream") -> None:
        timer = self._stalled.pop(stream, None)
        if timer is not None:
            timer.cancel()
            self._set_reading()

    def _set_reading(self) -> None:
        held = self._hold_reads_while_writing and self._writable is not None
        reading = not held and not self._stalled
        if reading == self._reading or self.transport is None:
            return
        self._reading = reading
        if reading:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()


class Stream:
    """One side of a ttrpc stream: messages in, messages out, each side ends on its own."""

    def __init__(
        self, connection: Connection, stream_id: int, dropped: Callable[["Stream"], None]
    ) -> None:
        self.stream_id = stream_id
        self.send_closed = False
        self._connection = connection
        self._dropped = dropped
        self._messages: deque[bytes] = deque()
        self._ended = False
        self._error: HypercoreError | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def receive(self) -> bytes | None:
        """The next message, or None at the peer's end. Raises the error the stream ended with."""
        while not self._messages:
            if self._error is not None:
                raise self._error
            if self._ended:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        message = self._messages.popleft()
        if len(self._messages) < STREAM_BUFFER:
            self._connection.stream_free(self)
        return message

    async def send(self, message: bytes) -> None:
        """Send one message, waiting while the peer is behind."""
        if self._error is not None:
            raise self._error
        self._connection.write(encode_frame(self.stream_id, DATA, 0, message))
        await self._connection.drain()

    def close_send(self) -> None:
        """Tell the peer that no message follows. Idempotent."""
        if not self.send_closed:
            self.send_closed = True
            flags = REMOTE_CLOSED | NO_DATA
            self._connection.write(encode_frame(self.stream_id, DATA, flags, b""))
            self._connection.stream_closed(self)

    # for the connection
    @property
    def ended(self) -> bool:
        return self._ended

    def push(self, message: bytes) -> None:
        if self._error is not None:
            return
        self._messages.append(message)
        self._wake()
        if len(self._messages) >= STREAM_BUFFER:
            self._connection.stream_full(self)

    def end(self) -> None:
        self._ended = True
        self._wake()

    def fail(self, error: HypercoreError) -> None:
        if self._error is None:
            self._error = error
        self._messages.clear()
        self._connection.stream_free(self)
        self._wake()

    def take(self, flags: int, body: bytes) -> None:
        """Accept a data frame."""
        if not flags & NO_DATA:
            self.push(body)
        if flags & REMOTE_CLOSED:
            self.end()

    def drop(self) -> None:
        """Its reader did not come in time: give up so that the connection goes on."""
        self.fail(ResourceExhausted(f"stream {self.stream_id} was full for {STREAM_STALL_S} s"))
        self._dropped(self)

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


def error_from_status(code: int, message: str) -> HypercoreError:
    """The error that a response's status stands for."""
    return from_grpc_code(code, message)
