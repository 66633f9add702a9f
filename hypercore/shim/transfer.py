"""containerd's Transfer and Streaming services: a container's files, in and out, as tar.

A client opens a stream under an id of its choice and names that id in Transfer. How bytes go is
transfer_stream.py's; what is copied is the agent's business.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Iterator
from typing import Protocol

from hypercore.agent_client import AgentClient
from hypercore.errors import (
    AlreadyExists,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from hypercore.proto import agent_pb, transfer_pb
from hypercore.proto.types_pb import Any, Empty
from hypercore.shim.pieces import PieceStream
from hypercore.transfer_stream import (
    CHUNK,
    STREAM_INIT,
    STREAMING,
    TAR,
    TRANSFER,
    TYPES,
    ByteStream,
    decoded,
    unpacked,
)
from hypercore.wire.connection import Stream
from hypercore.wire.server import Server

MAX_UNCLAIMED = 64
UNCLAIMED_S = 30.0
"""How long a stream waits for the Transfer that names it."""
VERDICT_S = 10.0
"""For the agent to say why it cut a copy short."""

TOKEN_BYTES = 16


class Container(Protocol):
    """What a copy needs of a task."""

    id: str

    @property
    def agent(self) -> AgentClient: ...

    async def open_stream(self, token: bytes) -> int: ...


class TransferService:
    """The streams that wait for a Transfer, and the transfers.

    Args:
        find: the task of a container id; raises NotFound.
    """

    def __init__(self, find: Callable[[str], Container]) -> None:
        self._find = find
        self._waiting: dict[str, ByteStream] = {}

    def serve_on(self, server: Server) -> None:
        server.add_streams(STREAMING, {"Stream": self.stream})
        server.add(TRANSFER, transfer_pb.Transfer.METHODS, {"Transfer": self.transfer})

    async def stream(self, stream: Stream) -> None:
        """Keep a client's stream until its transfer is over."""
        first = await stream.receive()
        if first is None:
            raise InvalidArgument("a stream begins with StreamInit")
        stream_id = unpacked(first, STREAM_INIT, transfer_pb.StreamInit).id
        if not stream_id:
            raise InvalidArgument("StreamInit: id is empty")
        if stream_id in self._waiting:
            raise AlreadyExists(f"stream {stream_id} exists")
        if len(self._waiting) >= MAX_UNCLAIMED:
            raise ResourceExhausted(f"{MAX_UNCLAIMED} streams wait for their Transfer")
        opened = ByteStream(stream)
        self._waiting[stream_id] = opened
        try:
            await stream.send(Any(type_url="google.protobuf.Empty").encode())
            await asyncio.wait({opened.done}, timeout=UNCLAIMED_S)
            if self._waiting.get(stream_id) is opened:
                raise DeadlineExceeded(f"no Transfer named stream {stream_id}")
            await opened.done
        finally:
            if self._waiting.get(stream_id) is opened:
                del self._waiting[stream_id]

    async def transfer(self, request: transfer_pb.TransferRequest) -> Empty:
        """Copy between a container's path and a stream; answers when all is done."""
        source, target = request.source, request.destination
        if source is None or target is None:
            raise InvalidArgument("Transfer: source or destination is missing")
        kinds = tuple(end.type_url.rpartition("/")[2] for end in (source, target))
        inward = kinds == (f"{TYPES}ReadStream", f"{TYPES}ContainerPath")
        if not inward and kinds != (f"{TYPES}ContainerPath", f"{TYPES}WriteStream"):
            raise InvalidArgument(
                f"Transfer from {kinds[0] or '?'} to {kinds[1] or '?'} is not possible",
                hint="a shim copies between a container's path and a stream",
            )
        where = decoded(
            target if inward else source, f"{TYPES}ContainerPath", transfer_pb.ContainerPath
        )
        given = source if inward else target
        bytes_of = decoded(given, given.type_url.rpartition("/")[2], transfer_pb.ByteStream)
        if bytes_of.media_type not in ("", TAR):
            raise InvalidArgument(
                f"stream {bytes_of.stream}: media type {bytes_of.media_type!r}",
                hint=f"it is {TAR}",
            )
        with self._claimed(bytes_of.stream) as stream, self._progress(request):
            container = self._find(where.container_id)
            await _copy(container, where, stream, inward=inward)
        return Empty()

    @contextlib.contextmanager
    def _claimed(self, stream_id: str) -> Iterator[ByteStream]:
        stream = self._waiting.pop(stream_id, None)
        if stream is None:
            raise NotFound(f"there is no stream {stream_id!r}")
        try:
            yield stream
        finally:
            stream.close()

    @contextlib.contextmanager
    def _progress(self, request: transfer_pb.TransferRequest) -> Iterator[None]:
        """A client may wait for the end of progress that a copy does not tell."""
        name = request.options.progress_stream if request.options else ""
        stream = self._waiting.pop(name, None) if name else None
        try:
            yield
        finally:
            if stream is not None:
                stream.close()


async def _copy(
    container: Container, where: transfer_pb.ContainerPath, stream: ByteStream, *, inward: bool
) -> None:
    """The agent's word decides: it says why a stream broke."""
    token = secrets.token_bytes(TOKEN_BYTES)
    agent = container.agent
    guest = PieceStream(await container.open_stream(token))
    try:
        request = agent_pb.CopyRequest(
            container_id=container.id,
            path=where.path,
            token=token,
            into=inward,
            only_entry=where.no_walk,
            preserve_ownership=where.preserve_ownership,
        )
        asked = asyncio.ensure_future(agent.copy(request))
        moving = asyncio.ensure_future(
            _inward(stream, guest) if inward else _outward(guest, stream)
        )
        try:
            await asyncio.wait({asked, moving}, return_when=asyncio.FIRST_COMPLETED)
            if not moving.done():
                # The agent has given up, or has what it wants of the archive.
                await asyncio.wait({moving}, timeout=0 if asked.exception() else VERDICT_S)
            elif moving.exception() is not None:
                guest.close()
                await asyncio.wait({asked}, timeout=VERDICT_S)
                if asked.done():
                    asked.result()
                moving.result()
            if not inward:
                guest.close()  # the agent waits for it, to know that all has arrived
            await asked
            moving.result()
        finally:
            for task in (asked, moving):
                task.cancel()
            await asyncio.gather(asked, moving, return_exceptions=True)
    finally:
        guest.close()


async def _inward(stream: ByteStream, guest: PieceStream) -> None:
    while data := await stream.receive():
        await guest.send(data)
    await guest.send(b"")


async def _outward(guest: PieceStream, stream: ByteStream) -> None:
    while data := await guest.receive(CHUNK):
        await stream.send(data)
