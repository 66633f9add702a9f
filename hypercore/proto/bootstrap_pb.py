"""Generated from bootstrap.proto by scripts/protogen.py; do not edit."""

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


class Extension(Message):
    __slots__ = (
        "value",
    )
    FIELDS = (
        Field(1, "value", MESSAGE, OPTIONAL, types_pb.Any),
    )


class BootstrapParams(Message):
    __slots__ = (
        "instance_id",
        "namespace",
        "log_level",
        "containerd_version",
        "ttrpc_address",
        "grpc_address",
        "containerd_binary",
        "extensions",
        "socket_dir",
    )
    FIELDS = (
        Field(1, "instance_id", STRING),
        Field(2, "namespace", STRING),
        Field(3, "log_level", INT),
        Field(4, "containerd_version", STRING),
        Field(5, "ttrpc_address", STRING),
        Field(6, "grpc_address", STRING),
        Field(7, "containerd_binary", STRING),
        Field(8, "extensions", MESSAGE, REPEATED, Extension),
        Field(9, "socket_dir", STRING),
    )


class BootstrapResult(Message):
    __slots__ = (
        "version",
        "address",
        "protocol",
    )
    FIELDS = (
        Field(1, "version", INT),
        Field(2, "address", STRING),
        Field(3, "protocol", STRING),
    )


class RuntimeVersion(Message):
    __slots__ = (
        "version",
        "revision",
    )
    FIELDS = (
        Field(1, "version", STRING),
        Field(2, "revision", STRING),
    )


class RuntimeInfo(Message):
    __slots__ = (
        "name",
        "version",
        "options",
        "features",
        "annotations",
    )
    FIELDS = (
        Field(1, "name", STRING),
        Field(2, "version", MESSAGE, OPTIONAL, RuntimeVersion),
        Field(3, "options", MESSAGE, OPTIONAL, types_pb.Any),
        Field(4, "features", MESSAGE, OPTIONAL, types_pb.Any),
        Field(5, "annotations", STRING, MAP),
    )
