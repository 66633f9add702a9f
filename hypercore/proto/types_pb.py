"""Generated from types.proto by scripts/protogen.py; do not edit."""

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


class Empty(Message):
    __slots__ = ()


class Any(Message):
    __slots__ = (
        "type_url",
        "value",
    )
    FIELDS = (
        Field(1, "type_url", STRING),
        Field(2, "value", BYTES),
    )


class Timestamp(Message):
    __slots__ = (
        "seconds",
        "nanos",
    )
    FIELDS = (
        Field(1, "seconds", INT),
        Field(2, "nanos", INT),
    )


class Mount(Message):
    __slots__ = (
        "type",
        "source",
        "target",
        "options",
    )
    FIELDS = (
        Field(1, "type", STRING),
        Field(2, "source", STRING),
        Field(3, "target", STRING),
        Field(4, "options", STRING, REPEATED),
    )


class Status(Message):
    __slots__ = (
        "code",
        "message",
        "details",
    )
    FIELDS = (
        Field(1, "code", INT),
        Field(2, "message", STRING),
        Field(3, "details", MESSAGE, REPEATED, Any),
    )
