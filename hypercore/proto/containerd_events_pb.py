"""Generated from containerd_events.proto by scripts/protogen.py; do not edit."""

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


class SubscribeRequest(Message):
    __slots__ = (
        "filters",
    )
    FIELDS = (
        Field(1, "filters", STRING, REPEATED),
    )


class PublishRequest(Message):
    __slots__ = (
        "topic",
        "event",
    )
    FIELDS = (
        Field(1, "topic", STRING),
        Field(2, "event", MESSAGE, OPTIONAL, types_pb.Any),
    )


class Events:
    NAME = "containerd.services.events.v1.Events"
    METHODS = {
        "Publish": (PublishRequest, types_pb.Empty),
        "Subscribe": (SubscribeRequest, containerd_types_pb.Envelope),
    }
