"""Generated from containerd_version.proto by scripts/protogen.py; do not edit."""

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


class VersionResponse(Message):
    __slots__ = (
        "version",
        "revision",
    )
    FIELDS = (
        Field(1, "version", STRING),
        Field(2, "revision", STRING),
    )


class Version:
    NAME = "containerd.services.version.v1.Version"
    METHODS = {
        "Version": (types_pb.Empty, VersionResponse),
    }
