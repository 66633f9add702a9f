"""Generated from events_forward.proto by scripts/protogen.py; do not edit."""

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


class ForwardRequest(Message):
    __slots__ = (
        "envelope",
    )
    FIELDS = (
        Field(1, "envelope", MESSAGE, OPTIONAL, containerd_types_pb.Envelope),
    )


class Events:
    NAME = "containerd.services.events.ttrpc.v1.Events"
    METHODS = {
        "Forward": (ForwardRequest, types_pb.Empty),
    }
