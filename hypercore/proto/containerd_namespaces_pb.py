"""Generated from containerd_namespaces.proto by scripts/protogen.py; do not edit."""

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


class Namespace(Message):
    __slots__ = (
        "name",
        "labels",
    )
    FIELDS = (
        Field(1, "name", STRING),
        Field(2, "labels", STRING, MAP),
    )


class ListNamespacesRequest(Message):
    __slots__ = (
        "filter",
    )
    FIELDS = (
        Field(1, "filter", STRING),
    )


class ListNamespacesResponse(Message):
    __slots__ = (
        "namespaces",
    )
    FIELDS = (
        Field(1, "namespaces", MESSAGE, REPEATED, Namespace),
    )


class CreateNamespaceRequest(Message):
    __slots__ = (
        "namespace",
    )
    FIELDS = (
        Field(1, "namespace", MESSAGE, OPTIONAL, Namespace),
    )


class CreateNamespaceResponse(Message):
    __slots__ = (
        "namespace",
    )
    FIELDS = (
        Field(1, "namespace", MESSAGE, OPTIONAL, Namespace),
    )


class DeleteNamespaceRequest(Message):
    __slots__ = (
        "name",
    )
    FIELDS = (
        Field(1, "name", STRING),
    )


class Namespaces:
    NAME = "containerd.services.namespaces.v1.Namespaces"
    METHODS = {
        "List": (ListNamespacesRequest, ListNamespacesResponse),
        "Create": (CreateNamespaceRequest, CreateNamespaceResponse),
        "Delete": (DeleteNamespaceRequest, types_pb.Empty),
    }
