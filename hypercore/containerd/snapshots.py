"""Calls to containerd's snapshotters. What a snapshot holds is images.py's business."""

from collections.abc import Mapping
from contextlib import suppress

from hypercore.containerd.client import Client
from hypercore.errors import NotFound
from hypercore.proto.containerd_snapshots_pb import (
    CommitSnapshotRequest,
    Info,
    ListSnapshotsRequest,
    ListSnapshotsResponse,
    MountsRequest,
    MountsResponse,
    PrepareSnapshotRequest,
    PrepareSnapshotResponse,
    RemoveSnapshotRequest,
    Snapshots,
    StatSnapshotRequest,
    StatSnapshotResponse,
    ViewSnapshotRequest,
    ViewSnapshotResponse,
)
from hypercore.proto.types_pb import Empty, Mount

BLOCKFILE = "blockfile"
COPY_TIMEOUT_S = 600.0
"""Prepare copies the parent's whole file where the filesystem cannot share extents."""


async def view(
    client: Client,
    key: str,
    parent: str,
    *,
    snapshotter: str = BLOCKFILE,
    labels: Mapping[str, str] | None = None,
) -> list[Mount]:
    """Make a read-only snapshot of a committed one and return its mounts; copies nothing."""
    request = ViewSnapshotRequest(
        snapshotter=snapshotter, key=key, parent=parent, labels=dict(labels or {})
    )
    return (await client.unary(Snapshots, "View", request, ViewSnapshotResponse)).mounts


async def prepare(
    client: Client,
    key: str,
    parent: str,
    *,
    snapshotter: str = BLOCKFILE,
    labels: Mapping[str, str] | None = None,
) -> list[Mount]:
    """Make a writable snapshot of a committed one (of nothing: "") and return its mounts."""
    request = PrepareSnapshotRequest(
        snapshotter=snapshotter, key=key, parent=parent, labels=dict(labels or {})
    )
    reply = await client.unary(
        Snapshots, "Prepare", request, PrepareSnapshotResponse, timeout_s=COPY_TIMEOUT_S
    )
    return reply.mounts


async def mounts(client: Client, key: str, *, snapshotter: str = BLOCKFILE) -> list[Mount]:
    request = MountsRequest(snapshotter=snapshotter, key=key)
    return (await client.unary(Snapshots, "Mounts", request, MountsResponse)).mounts


async def commit(
    client: Client,
    key: str,
    name: str,
    *,
    snapshotter: str = BLOCKFILE,
    labels: Mapping[str, str] | None = None,
) -> None:
    """Turn the writable snapshot `key` into the committed one `name`."""
    request = CommitSnapshotRequest(
        snapshotter=snapshotter, key=key, name=name, labels=dict(labels or {})
    )
    await client.unary(Snapshots, "Commit", request, Empty)


async def stat(client: Client, key: str, *, snapshotter: str = BLOCKFILE) -> Info | None:
    """What containerd knows of snapshot `key`; None if there is none."""
    request = StatSnapshotRequest(snapshotter=snapshotter, key=key)
    try:
        return (await client.unary(Snapshots, "Stat", request, StatSnapshotResponse)).info
    except NotFound:
        return None


async def remove(client: Client, key: str, *, snapshotter: str = BLOCKFILE) -> None:
    """Remove snapshot `key`; idempotent. StateError while others have it as their parent."""
    request = RemoveSnapshotRequest(snapshotter=snapshotter, key=key)
    with suppress(NotFound):
        await client.unary(Snapshots, "Remove", request, Empty)


async def list_all(client: Client, *, snapshotter: str = BLOCKFILE) -> list[Info]:
    request = ListSnapshotsRequest(snapshotter=snapshotter)
    replies = client.stream(Snapshots, "List", request, ListSnapshotsResponse)
    return [info async for reply in replies for info in reply.info]
