# Generated from containerd_content.proto by scripts/protogen.py; do not edit.
from typing import ClassVar

from hypercore.proto import containerd_types_pb, types_pb
from hypercore.wire.codec import Message

class WriteAction:
    STAT: ClassVar[int]
    WRITE: ClassVar[int]
    COMMIT: ClassVar[int]

class Info(Message):
    digest: str
    size: int
    created_at: types_pb.Timestamp | None
    updated_at: types_pb.Timestamp | None
    labels: dict[str, str]
    def __init__(
        self,
        *,
        digest: str = ...,
        size: int = ...,
        created_at: types_pb.Timestamp | None = ...,
        updated_at: types_pb.Timestamp | None = ...,
        labels: dict[str, str] = ...,
    ) -> None: ...

class InfoRequest(Message):
    digest: str
    def __init__(
        self,
        *,
        digest: str = ...,
    ) -> None: ...

class InfoResponse(Message):
    info: Info | None
    def __init__(
        self,
        *,
        info: Info | None = ...,
    ) -> None: ...

class UpdateRequest(Message):
    info: Info | None
    update_mask: containerd_types_pb.FieldMask | None
    def __init__(
        self,
        *,
        info: Info | None = ...,
        update_mask: containerd_types_pb.FieldMask | None = ...,
    ) -> None: ...

class UpdateResponse(Message):
    info: Info | None
    def __init__(
        self,
        *,
        info: Info | None = ...,
    ) -> None: ...

class ListContentRequest(Message):
    filters: list[str]
    def __init__(
        self,
        *,
        filters: list[str] = ...,
    ) -> None: ...

class ListContentResponse(Message):
    info: list[Info]
    def __init__(
        self,
        *,
        info: list[Info] = ...,
    ) -> None: ...

class DeleteContentRequest(Message):
    digest: str
    def __init__(
        self,
        *,
        digest: str = ...,
    ) -> None: ...

class ReadContentRequest(Message):
    digest: str
    offset: int
    size: int
    def __init__(
        self,
        *,
        digest: str = ...,
        offset: int = ...,
        size: int = ...,
    ) -> None: ...

class ReadContentResponse(Message):
    offset: int
    data: bytes
    def __init__(
        self,
        *,
        offset: int = ...,
        data: bytes = ...,
    ) -> None: ...

class Status(Message):
    started_at: types_pb.Timestamp | None
    updated_at: types_pb.Timestamp | None
    ref: str
    offset: int
    total: int
    expected: str
    def __init__(
        self,
        *,
        started_at: types_pb.Timestamp | None = ...,
        updated_at: types_pb.Timestamp | None = ...,
        ref: str = ...,
        offset: int = ...,
        total: int = ...,
        expected: str = ...,
    ) -> None: ...

class ListStatusesRequest(Message):
    filters: list[str]
    def __init__(
        self,
        *,
        filters: list[str] = ...,
    ) -> None: ...

class ListStatusesResponse(Message):
    statuses: list[Status]
    def __init__(
        self,
        *,
        statuses: list[Status] = ...,
    ) -> None: ...

class WriteContentRequest(Message):
    action: int
    ref: str
    total: int
    expected: str
    offset: int
    data: bytes
    labels: dict[str, str]
    def __init__(
        self,
        *,
        action: int = ...,
        ref: str = ...,
        total: int = ...,
        expected: str = ...,
        offset: int = ...,
        data: bytes = ...,
        labels: dict[str, str] = ...,
    ) -> None: ...

class WriteContentResponse(Message):
    action: int
    started_at: types_pb.Timestamp | None
    updated_at: types_pb.Timestamp | None
    offset: int
    total: int
    digest: str
    def __init__(
        self,
        *,
        action: int = ...,
        started_at: types_pb.Timestamp | None = ...,
        updated_at: types_pb.Timestamp | None = ...,
        offset: int = ...,
        total: int = ...,
        digest: str = ...,
    ) -> None: ...

class AbortRequest(Message):
    ref: str
    def __init__(
        self,
        *,
        ref: str = ...,
    ) -> None: ...

class Content:
    NAME: ClassVar[str]
    METHODS: ClassVar[dict[str, tuple[type[Message], type[Message]]]]
