"""ttrpc client: many calls at once on one connection, each with its own deadline."""

import asyncio
import logging
import socket
from typing import TypeVar

from hypercore.errors import DeadlineExceeded, HypercoreError, ResourceExhausted, Unavailable
from hypercore.wire._frame import (
    DATA,
    MAX_LENGTH,
    REMOTE_CLOSED,
    REMOTE_OPEN,
    RESPONSE,
    decode_response,
    encode_request,
)
from hypercore.wire.codec import Message
from hypercore.wire.connection import Connection, Metadata, Stream, error_from_status

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)


class Client(Connection):
    """One ttrpc connection, made by `Client.connect` or `Client.over`.

    `closed` is done once the connection has ended, by either side; calls under way then fail with
    Unavailable.
    """

    def __init__(self, max_length: int = MAX_LENGTH) -> None:
        super().__init__(max_length)
        self._next_id = 1
        self._pending: dict[int, asyncio.Future[bytes]] = {}
        self._given_up = 0
        """calls nobody waits for any more, whose answers may still come"""
        self._has_streamed = False
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def connect(cls, path: str, *, max_length: int = MAX_LENGTH) -> "Client":
        """Connect to the unix socket at `path`. Raises Unavailable naming it."""
        loop = asyncio.get_running_loop()
        try:
            _, client = await loop.create_unix_connection(lambda: cls(max_length), path)
        except OSError as exc:
            raise Unavailable(f"cannot connect to {path}: {exc.strerror}") from exc
        return client

    @classmethod
    async def over(cls, sock: socket.socket, *, max_length: int = MAX_LENGTH) -> "Client":
        """Take over a connected stream socket, of any family.

        Args:
            sock: owned by the client from now on, also when this fails.
            max_length: longest reply accepted; give a bound to a peer that is not trusted.
        """
        loop = asyncio.get_running_loop()
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            # The loops take what calls itself a unix socket; of AF_VSOCK they know nothing.
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=sock.detach())
        try:
            _, client = await loop.create_unix_connection(lambda: cls(max_length), sock=sock)
        except BaseException:
            sock.close()
            raise
        return client

    async def call(
        self,
        service: str,
        method: str,
        payload: bytes,
        *,
        timeout_s: float | None,
        metadata: Metadata = (),
    ) -> bytes:
        """One unary call.

        Raises:
            DeadlineExceeded: no answer within `timeout_s`; the peer may still act on it.
            Unavailable: the connection is or was closed.
            HypercoreError: what the peer answered, by its status code.
        """
        if self.transport is None:
            raise Unavailable(f"{method}: the ttrpc connection was closed")
        loop = asyncio.get_running_loop()
        stream_id = self._take_id()
        answer: asyncio.Future[bytes] = loop.create_future()
        timeout_ns = 0 if timeout_s is None else max(1, int(timeout_s * 1e9))
        frame = encode_request(
            stream_id, 0, service.encode(), method.encode(), payload, timeout_ns, metadata
        )
        self._pending[stream_id] = answer
        timer = None
        if timeout_s is not None:
            timer = loop.call_later(timeout_s, self._expire, stream_id, method, timeout_s)
        try:
            self.write(frame)
            return await answer
        finally:
            self._give_up(stream_id)
            if timer is not None:
                timer.cancel()

    async def request(
        self,
        service: str,
        method: str,
        message: Message,
        reply: type[M],
        *,
        timeout_s: float | None,
        metadata: Metadata = (),
    ) -> M:
        """`call` with messages instead of bytes."""
        answer = await self.call(
            service, method, message.encode(), timeout_s=timeout_s, metadata=metadata
        )
        try:
            return reply.decode(answer)
        except ValueError as exc:
            raise HypercoreError(f"{method}: malformed reply: {exc}") from exc

    def open_stream(
        self,
        service: str,
        method: str,
        first: bytes | None = None,
        *,
        timeout_s: float | None = None,
        metadata: Metadata = (),
    ) -> Stream:
        """Open a stream; with `first` it is the only message this side sends.

        The response that closes a client stream is its last message.
        """
        if self.transport is None:
            raise Unavailable(f"{method}: the ttrpc connection was closed")
        self._has_streamed = True
        stream = Stream(self, self._take_id(), self._stream_dropped)
        self.streams[stream.stream_id] = stream
        flags = REMOTE_OPEN if first is None else REMOTE_CLOSED
        stream.send_closed = first is not None
        timeout_ns = 0 if timeout_s is None else max(1, int(timeout_s * 1e9))
        self.write(
            encode_request(
                stream.stream_id,
                flags,
                service.encode(),
                method.encode(),
                first or b"",
                timeout_ns,
                metadata,
            )
        )
        return stream

    def frame(self, stream_id: int, kind: int, flags: int, body: bytes | None) -> None:
        answer = self._pending.pop(stream_id, None)
        if answer is not None:
            if answer.done():
                return
            if kind == RESPONSE:
                self._settle(answer, body)
            else:
                # Nobody else would end this call: its deadline is found by the same table.
                text = f"a unary call was answered by a frame of type {kind}"
                answer.set_exception(HypercoreError(text))
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            self._stray()
            return
        if body is None:
            stream.drop()
        elif kind == DATA:
            stream.take(flags, body)
        elif kind == RESPONSE:
            self._close_stream(stream, body)
        self.stream_closed(stream)

    def stream_closed(self, stream: Stream) -> None:
        if stream.ended and stream.send_closed:
            self.streams.pop(stream.stream_id, None)

    def lost(self, exc: Exception | None) -> None:
        pending, self._pending = self._pending, {}
        for answer in pending.values():
            if not answer.done():
                answer.set_exception(Unavailable("the ttrpc connection was closed"))
        if not self.closed.done():
            self.closed.set_result(None)

    def _take_id(self) -> int:
        stream_id = self._next_id
        self._next_id += 2
        return stream_id

    def _give_up(self, stream_id: int) -> asyncio.Future[bytes] | None:
        """Forget a call if it is not answered yet."""
        answer = self._pending.pop(stream_id, None)
        if answer is not None:
            self._given_up += 1
        return answer

    def _stray(self) -> None:
        """A frame for nobody. Streams may get any number after their end; unary calls one each,
        and a guest that sends more would only cost all guests' server its time.
        """
        if self._has_streamed:
            return
        self._given_up -= 1
        if self._given_up == -1:  # later frames of the same piece are below it
            logger.warning("a ttrpc peer answers what it was not asked: disconnected")
            self.abort()

    def _expire(self, stream_id: int, method: str, timeout_s: float) -> None:
        answer = self._give_up(stream_id)
        if answer is not None and not answer.done():
            answer.set_exception(DeadlineExceeded(f"{method}: no answer within {timeout_s:g} s"))

    def _settle(self, answer: asyncio.Future[bytes], body: bytes | None) -> None:
        if body is None:
            limit = self._parser.max_length
            answer.set_exception(ResourceExhausted(f"a reply was longer than {limit} bytes"))
            return
        try:
            code, text, payload = decode_response(body)
        except ValueError as exc:
            answer.set_exception(HypercoreError(f"malformed response: {exc}"))
            return
        if code:
            answer.set_exception(error_from_status(code, text))
        else:
            answer.set_result(payload)

    def _close_stream(self, stream: Stream, body: bytes) -> None:
        self.streams.pop(stream.stream_id, None)
        try:
            code, text, payload = decode_response(body)
        except ValueError as exc:
            stream.fail(HypercoreError(f"malformed response: {exc}"))
            return
        if code:
            stream.fail(error_from_status(code, text))
        else:
            stream.push(payload)
            stream.end()

    def _stream_dropped(self, stream: Stream) -> None:
        self.streams.pop(stream.stream_id, None)
