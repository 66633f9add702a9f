"""Generated from containerd_leases.proto by scripts/protogen.py; do not edit."""

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


class Lease(Message):
    __slots__ = (
        "id",
        "created_at",
        "labels",
    )
    FIELDS = (
        Field(1, "id", STRING),
        Field(2, "created_at", MESSAGE, OPTIONAL, types_pb.Timestamp),
        Field(3, "labels", STRING, MAP),
    )


class CreateRequest(Message):
    __slots__ = (
        "id",
        "labels",
    )
    FIELDS = (
        Field(1, "id", STRING),
        Field(3, "labels", STRING, MAP),
    )


class CreateResponse(Message):
    __slots__ = (
        "lease",
    )
    FIELDS = (
        Field(1, "lease", MESSAGE, OPTIONAL, Lease),
    )


class DeleteRequest(Message):
    __slots__ = (
        "id",
        "sync",
    )
    FIELDS = (
        Field(1, "id", STRING),
        Field(2, "sync", BOOL),
    )


class ListRequest(Message):
    __slots__ = (
        "filters",
    )
    FIELDS = (
        Field(1, "filters", STRING, REPEATED),
    )


class ListResponse(Message):
    __slots__ = (
        "leases",
    )
    FIELDS = (
        Field(1, "leases", MESSAGE, REPEATED, Lease),
    )


class Resource(Message):
    __slots__ = (
        "id",
        "type",
    )
    FIELDS = (
        Field(1, "id", STRING),
        Field(2, "type", STRING),
    )


class AddResourceRequest(Message):
    __slots__ = (
        "id",
        "resource",
    )
    FIELDS = (
        Field(1, "id", STRING),
        Field(2, "resource", MESSAGE, OPTIONAL, Resource),
    )


class Leases:
    NAME = "containerd.services.leases.v1.Leases"
    METHODS = {
        "Create": (CreateRequest, CreateResponse),
        "Delete": (DeleteRequest, types_pb.Empty),
        "List": (ListRequest, ListResponse),
        "AddResource": (AddResourceRequest, types_pb.Empty),
    }
