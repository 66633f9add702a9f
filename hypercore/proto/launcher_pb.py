"""Generated from launcher.proto by scripts/protogen.py; do not edit."""

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


class RegisterRequest(Message):
    __slots__ = (
        "id",
    )
    FIELDS = (
        Field(1, "id", STRING),
    )


class Launcher:
    NAME = "hypercore.shim.v1.Launcher"
    METHODS = {
        "Register": (RegisterRequest, types_pb.Empty),
        "End": (types_pb.Empty, types_pb.Empty),
    }
