"""Generated from containerd_diff.proto by scripts/protogen.py; do not edit."""

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


class ApplyRequest(Message):
    __slots__ = (
        "diff",
        "mounts",
        "payloads",
    )
    FIELDS = (
        Field(1, "diff", MESSAGE, OPTIONAL, containerd_types_pb.Descriptor),
        Field(2, "mounts", MESSAGE, REPEATED, types_pb.Mount),
        Field(3, "payloads", MESSAGE, MAP, types_pb.Any),
    )


class ApplyResponse(Message):
    __slots__ = (
        "applied",
    )
    FIELDS = (
        Field(1, "applied", MESSAGE, OPTIONAL, containerd_types_pb.Descriptor),
    )


class Diff:
    NAME = "containerd.services.diff.v1.Diff"
    METHODS = {
        "Apply": (ApplyRequest, ApplyResponse),
    }
