"""Generated from containerd_snapshots.proto by scripts/protogen.py; do not edit."""

from hypercore.proto import types_pb
from hypercore.wire.codec import (
    BOOL,
    BYTES,
    DOUBLE,
    INT,
    MAP,
    MESSAGE,
    OPTIONAL,
    REPEATED,
    SINGULAR,
    STRING,
    UINT,
    Field,
    Message,
)


class Kind:
    UNKNOWN = 0
    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3


class PrepareSnapshotRequest(Message):
    __slots__ = (
        "snapshotter",
        "key",
        "parent",
        "labels",
    )
    FIELDS = (
        Field(1, "snapshotter", STRING),
        Field(2, "key", STRING),
        Field(3, "parent", STRING),
        Field(4, "labels", STRING, MAP),
    )


class PrepareSnapshotResponse(Message):
    __slots__ = (
        "mounts",
    )
    FIELDS = (
        Field(1, "mounts", MESSAGE, REPEATED, types_pb.Mount),
    )


class ViewSnapshotRequest(Message):
    __slots__ = (
        "snapshotter",
        "key",
        "parent",
        "labels",
    )
    FIELDS = (
        Field(1, "snapshotter", STRING),
        Field(2, "key", STRING),
        Field(3, "parent", STRING),
        Field(4, "labels", STRING, MAP),
    )


class ViewSnapshotResponse(Message):
    __slots__ = (
        "mounts",
    )
    FIELDS = (
        Field(1, "mounts", MESSAGE, REPEATED, types_pb.Mount),
    )


class MountsRequest(Message):
    __slots__ = (
        "snapshotter",
        "key",
    )
    FIELDS = (
        Field(1, "snapshotter", STRING),
        Field(2, "key", STRING),
    )


class MountsResponse(Message):
    __slots__ = (
        "mounts",
    )
    FIELDS = (
        Field(1, "mounts", MESSAGE, REPEATED, types_pb.Mount),
    )


class CommitSnapshotRequest(Message):
    __slots__ = (
        "snapshotter",
        "name",
        "key",
        "labels",
    )
    FIELDS = (
        Field(1, "snapshotter", STRING),
        Field(2, "name", STRING),
        Field(3, "key", STRING),
        Field(4, "labels", STRING, MAP),
    )


class RemoveSnapshotRequest(Message):
    __slots__ = (
        "snapshotter",
        "key",
    )
    FIELDS = (
        Field(1, "snapshotter", STRING),
        Field(2, "key", STRING),
    )


class StatSnapshotRequest(Message):
    __slots__ = (
        "snapshotter",
        "key",
    )
    FIELDS = (
        Field(1, "snapshotter", STRING),
        Field(2, "key", STRING),
    )


class Info(Message):
    __slots__ = (
        "name",
        "parent",
        "kind",
        "created_at",
        "updated_at",
        "labels",
    )
    FIELDS = (
        Field(1, "name", STRING),
        Field(2, "parent", STRING),
        Field(3, "kind", UINT),
        Field(4, "created_at", MESSAGE, OPTIONAL, types_pb.Timestamp),
        Field(5, "updated_at", MESSAGE, OPTIONAL, types_pb.Timestamp),
        Field(6, "labels", STRING, MAP),
    )


class StatSnapshotResponse(Message):
    __slots__ = (
        "info",
    )
    FIELDS = (
        Field(1, "info", MESSAGE, OPTIONAL, Info),
    )


class ListSnapshotsRequest(Message):
    __slots__ = (
        "snapshotter",
        "filters",
    )
    FIELDS = (
        Field(1, "snapshotter", STRING),
        Field(2, "filters", STRING, REPEATED),
    )


class ListSnapshotsResponse(Message):
    __slots__ = (
        "info",
    )
    FIELDS = (
        Field(1, "info", MESSAGE, REPEATED, Info),
    )


class UsageRequest(Message):
    __slots__ = (
        "snapshotter",
        "key",
    )
    FIELDS = (
        Field(1, "snapshotter", STRING),
        Field(2, "key", STRING),
    )


class UsageResponse(Message):
    __slots__ = (
        "size",
        "inodes",
    )
    FIELDS = (
        Field(1, "size", INT),
        Field(2, "inodes", INT),
    )


class CleanupRequest(Message):
    __slots__ = (
        "snapshotter",
    )
    FIELDS = (
        Field(1, "snapshotter", STRING),
    )


class Snapshots:
    NAME = "containerd.services.snapshots.v1.Snapshots"
    METHODS = {
        "Prepare": (PrepareSnapshotRequest, PrepareSnapshotResponse),
        "View": (ViewSnapshotRequest, ViewSnapshotResponse),
        "Mounts": (MountsRequest, MountsResponse),
        "Commit": (CommitSnapshotRequest, types_pb.Empty),
        "Remove": (RemoveSnapshotRequest, types_pb.Empty),
        "Stat": (StatSnapshotRequest, StatSnapshotResponse),
        "List": (ListSnapshotsRequest, ListSnapshotsResponse),
        "Usage": (UsageRequest, UsageResponse),
        "Cleanup": (CleanupRequest, types_pb.Empty),
    }
