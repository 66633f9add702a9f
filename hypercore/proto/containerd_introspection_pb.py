"""Generated from containerd_introspection.proto by scripts/protogen.py; do not edit."""

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


class Plugin(Message):
    __slots__ = (
        "type",
        "id",
        "requires",
        "platforms",
        "exports",
        "capabilities",
        "init_err",
    )
    FIELDS = (
        Field(1, "type", STRING),
        Field(2, "id", STRING),
        Field(3, "requires", STRING, REPEATED),
        Field(4, "platforms", MESSAGE, REPEATED, containerd_types_pb.Platform),
        Field(5, "exports", STRING, MAP),
        Field(6, "capabilities", STRING, REPEATED),
        Field(7, "init_err", MESSAGE, OPTIONAL, types_pb.Status),
    )


class PluginsRequest(Message):
    __slots__ = (
        "filters",
    )
    FIELDS = (
        Field(1, "filters", STRING, REPEATED),
    )


class PluginsResponse(Message):
    __slots__ = (
        "plugins",
    )
    FIELDS = (
        Field(1, "plugins", MESSAGE, REPEATED, Plugin),
    )


class ServerResponse(Message):
    __slots__ = (
        "uuid",
        "pid",
        "pidns",
    )
    FIELDS = (
        Field(1, "uuid", STRING),
        Field(2, "pid", UINT),
        Field(3, "pidns", UINT),
    )


class Introspection:
    NAME = "containerd.services.introspection.v1.Introspection"
    METHODS = {
        "Plugins": (PluginsRequest, PluginsResponse),
        "Server": (types_pb.Empty, ServerResponse),
    }
