"""An image's layers become one committed blockfile snapshot.

One file per image, not containerd's chain of one copy per layer: see blockfile.py. The writable
snapshot that containerd hands out is the caller's to write, so we make its filesystem ourselves,
at the size this image needs, then let containerd's differ unpack every layer into it. It is
committed under the chain id of all layers, where any other client looks for it. Its parent is a
tiny snapshot of ours, which is what containerd copies instead of its scratch file.
"""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from hypercore.containerd import blockfile, content, leases, snapshots
from hypercore.containerd.client import Client
from hypercore.containerd.manifest import (
    DOCUMENT_LIMIT_BYTES,
    INDEXES,
    Manifest,
    chain_id,
    children,
    choose,
    diff_ids,
    media_type_of,
    parse_document,
    parse_manifest,
)
from hypercore.containerd.progress import Progress, ProgressCallback, ignore
from hypercore.errors import (
    AlreadyExists,
    HypercoreError,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from hypercore.proto.containerd_diff_pb import ApplyRequest, ApplyResponse, Diff
from hypercore.proto.containerd_images_pb import GetImageRequest, GetImageResponse, Image, Images
from hypercore.proto.containerd_types_pb import Descriptor
from hypercore.proto.types_pb import Mount

BASE = "hypercore-base-1"
"""Committed snapshot that image snapshots have as their parent."""

SNAPSHOT_LABEL = f"containerd.io/gc.ref.snapshot.{snapshots.BLOCKFILE}"
ROOT_LABEL = "containerd.io/gc.root"
LAYER_TIMEOUT_S = 1800.0

_ATTEMPTS = 4
_SPARE_BYTES = 64 << 20


class Unpacked(NamedTuple):
    """An image that is ready to be run."""

    chain_id: str
    """name of its snapshot"""
    config: dict[str, Any]
    """the image's config document"""


async def get_image(client: Client, name: str) -> Image | None:
    """The image of that canonical name; None if containerd has none."""
    try:
        reply = await client.unary(Images, "Get", GetImageRequest(name=name), GetImageResponse)
    except NotFound:
        return None
    return reply.image


async def ensure_unpacked(
    client: Client, name: str, *, progress: ProgressCallback | None = None
) -> Unpacked:
    """Unpack the image of that canonical name unless it is.

    Safe to call from several processes: the first to finish wins.

    Raises:
        NotFound: there is no such image, or its content is gone.
        InvalidArgument: it is broken or no container image.
        ResourceExhausted: the disk is full.
    """
    image = await get_image(client, name)
    if image is None or image.target is None:
        raise NotFound(f"image {name} is not here", hint=f"hypercore pull {name}")
    manifest, config = await read_image(client, image.target, name)
    ids = diff_ids(config, name)
    if not ids or len(ids) != len(manifest.layers):
        raise InvalidArgument(
            f"image {name} lists {len(manifest.layers)} layers and {len(ids)} of their digests"
        )
    chain = chain_id(ids)
    # Before the look at the snapshot: from here on the collector leaves it alone, whoever made it.
    known = await content.info(client, manifest.config.digest)
    if known is None or known.labels.get(SNAPSHOT_LABEL) != chain:
        await content.set_labels(client, manifest.config.digest, {SNAPSHOT_LABEL: chain})
    if await snapshots.stat(client, chain) is None:
        async with leases.ensure(client, f"unpack {name}") as leased:
            await _unpack(leased, manifest.layers, ids, chain, progress or ignore)
    return Unpacked(chain, config)


async def read_image(
    client: Client, target: Descriptor, name: str
) -> tuple[Manifest, dict[str, Any]]:
    """Manifest for this machine and config document of an image in the content store."""
    try:
        data = await content.read(client, target.digest, limit=DOCUMENT_LIMIT_BYTES)
        document = parse_document(data, f"image {name}: its manifest")
        if media_type_of(document, target.media_type) in INDEXES:
            chosen = children(document)[choose(document, f"image {name}")]
            data = await content.read(client, chosen.digest, limit=DOCUMENT_LIMIT_BYTES)
            document = parse_document(data, f"image {name}: its manifest")
        manifest = parse_manifest(document, f"image {name}")
        data = await content.read(client, manifest.config.digest, limit=DOCUMENT_LIMIT_BYTES)
    except NotFound as exc:
        if exc.hint:
            raise
        raise NotFound(
            f"image {name}: part of its content is missing here: {exc}",
            hint=f"hypercore pull {name}",
        ) from exc
    return manifest, parse_document(data, f"image {name}: its config")


async def _unpack(
    client: Client,
    layers: Sequence[Descriptor],
    ids: Sequence[str],
    chain: str,
    progress: ProgressCallback,
) -> None:
    await ensure_base(client)
    need_bytes = sum([await _unpacked_bytes(client, layer) for layer in layers])
    # Files take whole blocks: an image of many small ones needs twice its tar's size and more.
    size_bytes = max(blockfile.SCRATCH_MIB << 20, 2 * need_bytes + 2 * _SPARE_BYTES)
    path: Path | None = None
    for attempt in range(_ATTEMPTS):
        try:
            async with _active(client, chain, BASE) as (key, mounts, path):
                _require_space(path, need_bytes)
                await asyncio.to_thread(blockfile.create_filesystem, path, size_bytes, chain)
                await _apply(client, layers, ids, mounts, progress)
                await asyncio.to_thread(blockfile.sync, path)
                # A full disk under a loop device is an error of its writeback, which none reports.
                _require_space(path, 0)
                await _commit(client, key, chain)
            return
        except ResourceExhausted:
            if attempt + 1 == _ATTEMPTS or path is None or not _has_space(path, need_bytes):
                raise
            size_bytes *= 2


async def _apply(
    client: Client,
    layers: Sequence[Descriptor],
    ids: Sequence[str],
    mounts: list[Mount],
    progress: ProgressCallback,
) -> None:
    for number, (layer, diff_id) in enumerate(zip(layers, ids, strict=True)):
        progress(Progress("unpack", layer.digest, number, len(layers)))
        request = ApplyRequest(diff=layer, mounts=mounts)
        reply = await client.unary(
            Diff, "Apply", request, ApplyResponse, timeout_s=LAYER_TIMEOUT_S
        )
        applied = reply.applied.digest if reply.applied else ""
        if applied != diff_id:
            raise InvalidArgument(
                f"layer {layer.digest} unpacks to {applied}, the image says {diff_id}",
                hint="the image is broken: build or push it again",
            )
    progress(Progress("unpack", layers[-1].digest, len(layers), len(layers)))


async def ensure_base(client: Client) -> None:
    """Have the snapshot that those of images descend from; idempotent."""
    if await snapshots.stat(client, BASE) is not None:
        return
    async with (
        leases.ensure(client, f"make {BASE}") as leased,
        _active(leased, BASE, "") as (key, _mounts, path),
    ):
        await asyncio.to_thread(blockfile.create_filesystem, path, blockfile.BASE_BYTES, BASE)
        await asyncio.to_thread(blockfile.sync, path)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        await _commit(leased, key, BASE, {ROOT_LABEL: now})


@asynccontextmanager
async def _active(
    client: Client, name: str, parent: str
) -> AsyncIterator[tuple[str, list[Mount], Path]]:
    """A writable snapshot: key, mounts, file. Removed when the block fails.

    Its commit takes it away, so that there is nothing to remove then.
    """
    key = f"unpack-{uuid.uuid4()}-{name[-12:]}"
    try:
        mounts = await snapshots.prepare(client, key, parent)
        yield key, mounts, _file_of(mounts)
    except BaseException:
        # What cannot be removed now goes with the lease.
        with suppress(HypercoreError):
            await asyncio.shield(snapshots.remove(client, key))
        raise


def _file_of(mounts: list[Mount]) -> Path:
    if len(mounts) != 1 or not Path(mounts[0].source).is_file():
        raise Unavailable(
            "containerd's blockfile snapshots are not files on this host",
            hint="hypercore must run on containerd's host and see its directories",
        )
    return Path(mounts[0].source)


async def _commit(
    client: Client, key: str, name: str, labels: Mapping[str, str] | None = None
) -> None:
    try:
        await snapshots.commit(client, key, name, labels=labels)
    except AlreadyExists:  # another process was first, with the same bytes
        await snapshots.remove(client, key)


async def _unpacked_bytes(client: Client, layer: Descriptor) -> int:
    """A guess at a layer's size unpacked; one that is too low costs a second try."""
    if layer.media_type.endswith(("+gzip", ".gzip")) and layer.size > 18:
        # gzip's last four bytes are the size modulo 2**32, of the last member only (RFC 1952).
        tail = await content.read(client, layer.digest, limit=4, offset=layer.size - 4, size=4)
        size = int.from_bytes(tail, "little")
        return size if size >= layer.size else 4 * layer.size
    return 4 * layer.size if "+" in layer.media_type else layer.size


def _has_space(path: Path, need_bytes: int) -> bool:
    place = os.statvfs(path if path.exists() else path.parent)
    return place.f_bavail * place.f_frsize >= need_bytes + _SPARE_BYTES


def _require_space(path: Path, need_bytes: int) -> None:
    if not _has_space(path, need_bytes):
        need_mib = (need_bytes + _SPARE_BYTES) >> 20
        raise ResourceExhausted(
            f"unpacking the image needs {need_mib} MiB free in {path.parent}",
            hint="free some disk space, or remove images",
        )
