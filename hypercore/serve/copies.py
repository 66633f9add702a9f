"""Tar archives into and out of a microVM's container, as streams of messages."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from hypercore import engine_copy
from hypercore.errors import InvalidArgument
from hypercore.inventory import Record
from hypercore.proto import hypercore_pb as pb

QUEUED_CHUNKS = 4


def checked_path(path: str) -> str:
    """A path in the container. Raises InvalidArgument unless it is absolute."""
    if not path.startswith("/") or "\0" in path or len(path) > 4096:
        raise InvalidArgument(
            f"path {path[:80]!r}: must be an absolute path in the microVM", field="path"
        )
    return path


async def copy_to(
    namespace: str, record: Record, path: str, inputs: AsyncIterator[pb.CopyToInput]
) -> pb.CopyToResponse:
    """Unpack the archive that `inputs` carry into the directory `path`."""
    count = 0

    async def read() -> bytes:
        nonlocal count
        async for message in inputs:
            if message.data is None:
                raise InvalidArgument("start may only be the first message", field="start")
            if message.data:
                count += len(message.data)
                return message.data
        return b""

    await engine_copy.send_archive(namespace, record, path, read)
    return pb.CopyToResponse(bytes_read=count)


async def copy_from(
    namespace: str, record: Record, path: str
) -> AsyncGenerator[pb.DataChunk, None]:
    """The archive of `path`; leaving ends the copy."""
    queue: asyncio.Queue[bytes] = asyncio.Queue(QUEUED_CHUNKS)

    async def copy() -> None:
        await engine_copy.receive_archive(namespace, record, path, queue.put)
        await queue.put(b"")

    copying = asyncio.create_task(copy())
    try:
        while True:
            taking = asyncio.ensure_future(queue.get())
            await asyncio.wait({taking, copying}, return_when=asyncio.FIRST_COMPLETED)
            if not taking.done():
                taking.cancel()
                await copying  # it ends before its last chunk only by failing
                continue
            if not (data := taking.result()):
                return
            yield pb.DataChunk(data=data)
    finally:
        copying.cancel()
        await asyncio.gather(copying, return_exceptions=True)
