"""Bytes over containerd's Streaming service, as its core/transfer/streaming does: both sides.

A stream carries one direction of bytes, in messages, as many as the receiver's window allows.
"""

import asyncio
from typing import TypeVar

from hypercore.errors import InvalidArgument, Unavailable
from hypercore.proto import transfer_pb
from hypercore.proto.types_pb import Any
from hypercore.wire.codec import DecodeError, Message
from hypercore.wire.connection import Stream

TRANSFER = "containerd.services.transfer.v1.Transfer"
STREAMING = "containerd.services.streaming.v1.Streaming"
STREAM_INIT = "containerd.services.streaming.v1.StreamInit"
TYPES = "containerd.types.transfer."
TAR = "application/x-tar"

WINDOW = 64 * 1024
"""How many bytes a sender may be ahead of its receiver."""
CHUNK = 32 * 1024

M = TypeVar("M", bound=Message)


class ByteStream:
    """One stream, used by the side that sends or by the one that receives."""

    def __init__(self, stream: Stream) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """for whoever keeps the stream open: nothing more is to come"""
        self._stream = stream
        self._window = 0

    async def receive(self) -> bytes:
        """The next bytes; none at the sender's end."""
        if self._window < WINDOW:
            update = transfer_pb.WindowUpdate(update=WINDOW)
            await self._stream.send(packed(f"{TYPES}WindowUpdate", update))
            self._window += WINDOW
        while True:
            message = await self._stream.receive()
            if message is None:
                return b""
            data = unpacked(message, f"{TYPES}Data", transfer_pb.Data).data
            if data:
                self._window -= len(data)
                return data

    async def send(self, data: bytes) -> None:
        """Send `data` once the receiver has room for it.

        Raises:
            Unavailable: the receiver has ended the stream.
        """
        while data:
            while self._window <= 0:
                message = await self._stream.receive()
                if message is None:
                    raise Unavailable("the receiver has closed the stream")
                update = unpacked(message, f"{TYPES}WindowUpdate", transfer_pb.WindowUpdate)
                self._window += max(0, update.update)
            part = data[: min(CHUNK, self._window)]
            await self._stream.send(packed(f"{TYPES}Data", transfer_pb.Data(data=part)))
            self._window -= len(part)
            data = data[len(part) :]

    def end(self) -> None:
        """Tell the receiver that nothing follows. Idempotent."""
        self._stream.close_send()

    def close(self) -> None:
        """Let go of the stream. Idempotent."""
        if not self.done.done():
            self.done.set_result(None)


def packed(name: str, message: Message) -> bytes:
    return Any(type_url=name, value=message.encode()).encode()


def unpacked(message: bytes, name: str, kind: type[M]) -> M:
    """The message of type `name` in an encoded Any. Raises InvalidArgument."""
    try:
        given = Any.decode(message)
    except DecodeError as exc:
        raise InvalidArgument(f"a malformed stream message: {exc}") from exc
    return decoded(given, name, kind)


def decoded(given: Any, name: str, kind: type[M]) -> M:
    """The message of type `name` in an Any. Raises InvalidArgument."""
    if given.type_url.rpartition("/")[2] != name:
        raise InvalidArgument(f"{given.type_url!r} where {name} is expected")
    try:
        return kind.decode(given.value)
    except DecodeError as exc:
        raise InvalidArgument(f"a malformed {name}: {exc}") from exc
