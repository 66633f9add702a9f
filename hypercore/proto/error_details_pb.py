"""Generated from error_details.proto by scripts/protogen.py; do not edit."""

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


class ErrorInfo(Message):
    __slots__ = (
        "reason",
        "domain",
        "metadata",
    )
    FIELDS = (
        Field(1, "reason", STRING),
        Field(2, "domain", STRING),
        Field(3, "metadata", STRING, MAP),
    )


class BadRequest_FieldViolation(Message):
    __slots__ = (
        "field",
        "description",
    )
    FIELDS = (
        Field(1, "field", STRING),
        Field(2, "description", STRING),
    )


class BadRequest(Message):
    __slots__ = (
        "field_violations",
    )
    FIELDS = (
        Field(1, "field_violations", MESSAGE, REPEATED, BadRequest_FieldViolation),
    )
