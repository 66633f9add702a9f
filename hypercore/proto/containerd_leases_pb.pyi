# Generated from containerd_leases.proto by scripts/protogen.py; do not edit.
from typing import ClassVar

from hypercore.proto import types_pb
from hypercore.wire.codec import Message

class Lease(Message):
    id: str
    created_at: types_pb.Timestamp | None
    labels: dict[str, str]
    def __init__(
        self,
        *,
        id: str = ...,
        created_at: types_pb.Timestamp | None = ...,
        labels: dict[str, str] = ...,
    ) -> None: ...

class CreateRequest(Message):
    id: str
    labels: dict[str, str]
    def __init__(
        self,
        *,
        id: str = ...,
        labels: dict[str, str] = ...,
    ) -> None: ...

class CreateResponse(Message):
    lease: Lease | None
    def __init__(
        self,
        *,
        lease: Lease | None = ...,
    ) -> None: ...

class DeleteRequest(Message):
    id: str
    sync: bool
    def __init__(
        self,
        *,
        id: str = ...,
        sync: bool = ...,
    ) -> None: ...

class ListRequest(Message):
    filters: list[str]
    def __init__(
        self,
        *,
        filters: list[str] = ...,
    ) -> None: ...

class ListResponse(Message):
    leases: list[Lease]
    def __init__(
        self,
        *,
        leases: list[Lease] = ...,
    ) -> None: ...

class Resource(Message):
    id: str
    type: str
    def __init__(
        self,
        *,
        id: str = ...,
        type: str = ...,
    ) -> None: ...

class AddResourceRequest(Message):
    id: str
    resource: Resource | None
    def __init__(
        self,
        *,
        id: str = ...,
        resource: Resource | None = ...,
    ) -> None: ...

class Leases:
    NAME: ClassVar[str]
    METHODS: ClassVar[dict[str, tuple[type[Message], type[Message]]]]
