# Generated from containerd_containers.proto by scripts/protogen.py; do not edit.
from typing import ClassVar

from hypercore.proto import containerd_types_pb, types_pb
from hypercore.wire.codec import Message

class Container_Runtime(Message):
    name: str
    options: types_pb.Any | None
    def __init__(
        self,
        *,
        name: str = ...,
        options: types_pb.Any | None = ...,
    ) -> None: ...

class Container(Message):
    id: str
    labels: dict[str, str]
    image: str
    runtime: Container_Runtime | None
    spec: types_pb.Any | None
    snapshotter: str
    snapshot_key: str
    created_at: types_pb.Timestamp | None
    updated_at: types_pb.Timestamp | None
    extensions: dict[str, types_pb.Any]
    sandbox: str
    def __init__(
        self,
        *,
        id: str = ...,
        labels: dict[str, str] = ...,
        image: str = ...,
        runtime: Container_Runtime | None = ...,
        spec: types_pb.Any | None = ...,
        snapshotter: str = ...,
        snapshot_key: str = ...,
        created_at: types_pb.Timestamp | None = ...,
        updated_at: types_pb.Timestamp | None = ...,
        extensions: dict[str, types_pb.Any] = ...,
        sandbox: str = ...,
    ) -> None: ...

class GetContainerRequest(Message):
    id: str
    def __init__(
        self,
        *,
        id: str = ...,
    ) -> None: ...

class GetContainerResponse(Message):
    container: Container | None
    def __init__(
        self,
        *,
        container: Container | None = ...,
    ) -> None: ...

class ListContainersRequest(Message):
    filters: list[str]
    def __init__(
        self,
        *,
        filters: list[str] = ...,
    ) -> None: ...

class ListContainersResponse(Message):
    containers: list[Container]
    def __init__(
        self,
        *,
        containers: list[Container] = ...,
    ) -> None: ...

class CreateContainerRequest(Message):
    container: Container | None
    def __init__(
        self,
        *,
        container: Container | None = ...,
    ) -> None: ...

class CreateContainerResponse(Message):
    container: Container | None
    def __init__(
        self,
        *,
        container: Container | None = ...,
    ) -> None: ...

class UpdateContainerRequest(Message):
    container: Container | None
    update_mask: containerd_types_pb.FieldMask | None
    def __init__(
        self,
        *,
        container: Container | None = ...,
        update_mask: containerd_types_pb.FieldMask | None = ...,
    ) -> None: ...

class UpdateContainerResponse(Message):
    container: Container | None
    def __init__(
        self,
        *,
        container: Container | None = ...,
    ) -> None: ...

class DeleteContainerRequest(Message):
    id: str
    def __init__(
        self,
        *,
        id: str = ...,
    ) -> None: ...

class Containers:
    NAME: ClassVar[str]
    METHODS: ClassVar[dict[str, tuple[type[Message], type[Message]]]]
