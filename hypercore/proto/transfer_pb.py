"""Generated from transfer.proto by scripts/protogen.py; do not edit."""

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


class TransferOptions(Message):
    __slots__ = (
        "progress_stream",
    )
    FIELDS = (
        Field(1, "progress_stream", STRING),
    )


class TransferRequest(Message):
    __slots__ = (
        "source",
        "destination",
        "options",
    )
    FIELDS = (
        Field(1, "source", MESSAGE, OPTIONAL, types_pb.Any),
        Field(2, "destination", MESSAGE, OPTIONAL, types_pb.Any),
        Field(3, "options", MESSAGE, OPTIONAL, TransferOptions),
    )


class StreamInit(Message):
    __slots__ = (
        "id",
    )
    FIELDS = (
        Field(1, "id", STRING),
    )


class Data(Message):
    __slots__ = (
        "data",
    )
    FIELDS = (
        Field(1, "data", BYTES),
    )


class WindowUpdate(Message):
    __slots__ = (
        "update",
    )
    FIELDS = (
        Field(1, "update", INT),
    )


class ByteStream(Message):
    __slots__ = (
        "stream",
        "media_type",
    )
    FIELDS = (
        Field(1, "stream", STRING),
        Field(2, "media_type", STRING),
    )


class ContainerPath(Message):
    __slots__ = (
        "container_id",
        "path",
        "no_walk",
        "preserve_ownership",
    )
    FIELDS = (
        Field(1, "container_id", STRING),
        Field(2, "path", STRING),
        Field(3, "no_walk", BOOL),
        Field(4, "preserve_ownership", BOOL),
    )


class Transfer:
    NAME = "hypercore.transfer.Transfer"
    METHODS = {
        "Transfer": (TransferRequest, types_pb.Empty),
    }
