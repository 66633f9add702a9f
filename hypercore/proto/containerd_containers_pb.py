"""Generated from containerd_containers.proto by scripts/protogen.py; do not edit."""

from hypercore.proto import containerd_types_pb, types_pb
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


class Container_Runtime(Message):
    __slots__ = (
        "name",
        "options",
    )
    FIELDS = (
        Field(1, "name", STRING),
        Field(2, "options", MESSAGE, OPTIONAL, types_pb.Any),
    )


class Container(Message):
    __slots__ = (
        "id",
        "labels",
        "image",
        "runtime",
        "spec",
        "snapshotter",
        "snapshot_key",
        "created_at",
        "updated_at",
        "extensions",
        "sandbox",
    )
    FIELDS = (
        Field(1, "id", STRING),
        Field(2, "labels", STRING, MAP),
        Field(3, "image", STRING),
        Field(4, "runtime", MESSAGE, OPTIONAL, Container_Runtime),
        Field(5, "spec", MESSAGE, OPTIONAL, types_pb.Any),
        Field(6, "snapshotter", STRING),
        Field(7, "snapshot_key", STRING),
        Field(8, "created_at", MESSAGE, OPTIONAL, types_pb.Timestamp),
        Field(9, "updated_at", MESSAGE, OPTIONAL, types_pb.Timestamp),
        Field(10, "extensions", MESSAGE, MAP, types_pb.Any),
        Field(11, "sandbox", STRING),
    )


class GetContainerRequest(Message):
    __slots__ = (
        "id",
    )
    FIELDS = (
        Field(1, "id", STRING),
    )


class GetContainerResponse(Message):
    __slots__ = (
        "container",
    )
    FIELDS = (
        Field(1, "container", MESSAGE, OPTIONAL, Container),
    )


class ListContainersRequest(Message):
    __slots__ = (
        "filters",
    )
    FIELDS = (
        Field(1, "filters", STRING, REPEATED),
    )


class ListContainersResponse(Message):
    __slots__ = (
        "containers",
    )
    FIELDS = (
        Field(1, "containers", MESSAGE, REPEATED, Container),
    )


class CreateContainerRequest(Message):
    __slots__ = (
        "container",
    )
    FIELDS = (
        Field(1, "container", MESSAGE, OPTIONAL, Container),
    )


class CreateContainerResponse(Message):
    __slots__ = (
        "container",
    )
    FIELDS = (
        Field(1, "container", MESSAGE, OPTIONAL, Container),
    )


class UpdateContainerRequest(Message):
    __slots__ = (
        "container",
        "update_mask",
    )
    FIELDS = (
        Field(1, "container", MESSAGE, OPTIONAL, Container),
        Field(2, "update_mask", MESSAGE, OPTIONAL, containerd_types_pb.FieldMask),
    )


class UpdateContainerResponse(Message):
    __slots__ = (
        "container",
    )
    FIELDS = (
        Field(1, "container", MESSAGE, OPTIONAL, Container),
    )


class DeleteContainerRequest(Message):
    __slots__ = (
        "id",
    )
    FIELDS = (
        Field(1, "id", STRING),
    )


class Containers:
    NAME = "containerd.services.containers.v1.Containers"
    METHODS = {
        "Get": (GetContainerRequest, GetContainerResponse),
        "List": (ListContainersRequest, ListContainersResponse),
        "Create": (CreateContainerRequest, CreateContainerResponse),
        "Update": (UpdateContainerRequest, UpdateContainerResponse),
        "Delete": (DeleteContainerRequest, types_pb.Empty),
    }
