# Generated from containerd_snapshots.proto by scripts/protogen.py; do not edit.
from typing import ClassVar

from hypercore.proto import types_pb
from hypercore.wire.codec import Message

class Kind:
    UNKNOWN: ClassVar[int]
    VIEW: ClassVar[int]
    ACTIVE: ClassVar[int]
    COMMITTED: ClassVar[int]

class PrepareSnapshotRequest(Message):
    snapshotter: str
    key: str
    parent: str
    labels: dict[str, str]
    def __init__(
        self,
        *,
        snapshotter: str = ...,
        key: str = ...,
        parent: str = ...,
        labels: dict[str, str] = ...,
    ) -> None: ...

class PrepareSnapshotResponse(Message):
    mounts: list[types_pb.Mount]
    def __init__(
        self,
        *,
        mounts: list[types_pb.Mount] = ...,
    ) -> None: ...

class ViewSnapshotRequest(Message):
    snapshotter: str
    key: str
    parent: str
    labels: dict[str, str]
    def __init__(
        self,
        *,
        snapshotter: str = ...,
        key: str = ...,
        parent: str = ...,
        labels: dict[str, str] = ...,
    ) -> None: ...

class ViewSnapshotResponse(Message):
    mounts: list[types_pb.Mount]
    def __init__(
        self,
        *,
        mounts: list[types_pb.Mount] = ...,
    ) -> None: ...

class MountsRequest(Message):
    snapshotter: str
    key: str
    def __init__(
        self,
        *,
        snapshotter: str = ...,
        key: str = ...,
    ) -> None: ...

class MountsResponse(Message):
    mounts: list[types_pb.Mount]
    def __init__(
        self,
        *,
        mounts: list[types_pb.Mount] = ...,
    ) -> None: ...

class CommitSnapshotRequest(Message):
    snapshotter: str
    name: str
    key: str
    labels: dict[str, str]
    def __init__(
        self,
        *,
        snapshotter: str = ...,
        name: str = ...,
        key: str = ...,
        labels: dict[str, str] = ...,
    ) -> None: ...

class RemoveSnapshotRequest(Message):
    snapshotter: str
    key: str
    def __init__(
        self,
        *,
        snapshotter: str = ...,
        key: str = ...,
    ) -> None: ...

class StatSnapshotRequest(Message):
    snapshotter: str
    key: str
    def __init__(
        self,
        *,
        snapshotter: str = ...,
        key: str = ...,
    ) -> None: ...

class Info(Message):
    name: str
    parent: str
    kind: int
    created_at: types_pb.Timestamp | None
    updated_at: types_pb.Timestamp | None
    labels: dict[str, str]
    def __init__(
        self,
        *,
        name: str = ...,
        parent: str = ...,
        kind: int = ...,
        created_at: types_pb.Timestamp | None = ...,
        updated_at: types_pb.Timestamp | None = ...,
        labels: dict[str, str] = ...,
    ) -> None: ...

class StatSnapshotResponse(Message):
    info: Info | None
    def __init__(
        self,
        *,
        info: Info | None = ...,
    ) -> None: ...

class ListSnapshotsRequest(Message):
    snapshotter: str
    filters: list[str]
    def __init__(
        self,
        *,
        snapshotter: str = ...,
        filters: list[str] = ...,
    ) -> None: ...

class ListSnapshotsResponse(Message):
    info: list[Info]
    def __init__(
        self,
        *,
        info: list[Info] = ...,
    ) -> None: ...

class UsageRequest(Message):
    snapshotter: str
    key: str
    def __init__(
        self,
        *,
        snapshotter: str = ...,
        key: str = ...,
    ) -> None: ...

class UsageResponse(Message):
    size: int
    inodes: int
    def __init__(
        self,
        *,
        size: int = ...,
        inodes: int = ...,
    ) -> None: ...

class CleanupRequest(Message):
    snapshotter: str
    def __init__(
        self,
        *,
        snapshotter: str = ...,
    ) -> None: ...

class Snapshots:
    NAME: ClassVar[str]
    METHODS: ClassVar[dict[str, tuple[type[Message], type[Message]]]]
