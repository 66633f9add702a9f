"""containerd's content store: blobs read whole or by range, and written as they arrive.

A written blob is collected unless a lease or another blob's label refers to it: write under a
lease, and label documents with what they refer to (`image_labels`, `index_labels`).
"""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing, suppress

from hypercore.containerd.client import Client
from hypercore.errors import AlreadyExists, HypercoreError, InvalidArgument, NotFound, StateError
from hypercore.proto.containerd_content_pb import (
    AbortRequest,
    Content,
    Info,
    InfoRequest,
    InfoResponse,
    ReadContentRequest,
    ReadContentResponse,
    UpdateRequest,
    UpdateResponse,
    WriteAction,
    WriteContentRequest,
    WriteContentResponse,
)
from hypercore.proto.containerd_types_pb import Descriptor, FieldMask
from hypercore.proto.types_pb import Empty

CHUNK_BYTES = 1 << 20
READ_TIMEOUT_S = 60.0


async def info(client: Client, digest: str) -> Info | None:
    """What the store knows of a blob; None if it is not there."""
    try:
        reply = await client.unary(Content, "Info", InfoRequest(digest=digest), InfoResponse)
    except NotFound:
        return None
    return reply.info


async def read(
    client: Client, digest: str, *, limit: int, offset: int = 0, size: int = 0
) -> bytes:
    """A blob's bytes, or `size` of them from `offset`; InvalidArgument beyond `limit`."""
    request = ReadContentRequest(digest=digest, offset=offset, size=size)
    replies = client.stream(
        Content, "Read", request, ReadContentResponse, timeout_s=READ_TIMEOUT_S
    )
    data = bytearray()
    async for reply in replies:
        data += reply.data
        if len(data) > limit:
            raise InvalidArgument(f"blob {digest} is larger than {limit} bytes")
    return bytes(data)


async def write(
    client: Client,
    digest: str,
    size: int,
    chunks: AsyncGenerator[bytes, None],
    *,
    labels: Mapping[str, str] | None = None,
) -> None:
    """Write a blob; containerd checks its size and digest. Nothing is left of one that fails.

    Raises:
        InvalidArgument: the bytes are not those of `digest`.
    """
    ref = f"hypercore-{uuid.uuid4()}"
    committed = False
    try:
        async with (
            aclosing(chunks),
            client.duplex(Content, "Write", WriteContentResponse) as stream,
        ):
            offset = 0
            async for chunk in chunks:
                await stream.exchange(
                    WriteContentRequest(
                        action=WriteAction.WRITE,
                        ref=ref,
                        total=size,
                        expected=digest,
                        offset=offset,
                        data=chunk,
                    )
                )
                offset += len(chunk)
            commit = WriteContentRequest(
                action=WriteAction.COMMIT,
                ref=ref,
                total=size,
                expected=digest,
                offset=offset,
                labels=dict(labels or {}),
            )
            await stream.exchange(commit)
        committed = True
    except AlreadyExists:
        committed = True  # another writer was first
    except StateError as exc:  # what containerd calls a wrong size or digest
        raise InvalidArgument(f"blob {digest} does not hold what it should: {exc}") from exc
    finally:
        if not committed:
            await asyncio.shield(_abort(client, ref))


async def write_bytes(
    client: Client, data: bytes, digest: str, *, labels: Mapping[str, str] | None = None
) -> None:
    """Write a small blob, or only its labels if it is there."""

    async def chunks() -> AsyncGenerator[bytes, None]:
        for start in range(0, len(data), CHUNK_BYTES):
            yield data[start : start + CHUNK_BYTES]

    if await info(client, digest) is None:
        await write(client, digest, len(data), chunks(), labels=labels)
    # Also for a blob just written: AlreadyExists leaves the labels of the first writer.
    if labels:
        await set_labels(client, digest, labels)


async def set_labels(client: Client, digest: str, labels: Mapping[str, str]) -> None:
    """Set these labels of a blob and leave the others."""
    request = UpdateRequest(
        info=Info(digest=digest, labels=dict(labels)),
        update_mask=FieldMask(paths=[f"labels.{key}" for key in labels]),
    )
    await client.unary(Content, "Update", request, UpdateResponse)


def image_labels(config: Descriptor, layers: Iterable[Descriptor]) -> dict[str, str]:
    """Labels with which an image's manifest keeps its blobs alive."""
    labels = {
        f"containerd.io/gc.ref.content.l.{number}": layer.digest
        for number, layer in enumerate(layers)
    }
    return {"containerd.io/gc.ref.content.config": config.digest, **labels}


def index_labels(number: int, manifest: Descriptor) -> dict[str, str]:
    """Labels with which an index keeps the manifest alive that is its `number`th."""
    return {f"containerd.io/gc.ref.content.m.{number}": manifest.digest}


async def _abort(client: Client, ref: str) -> None:
    with suppress(HypercoreError):
        await client.unary(Content, "Abort", AbortRequest(ref=ref), Empty)
