"""Generated from containerd_types.proto by scripts/protogen.py; do not edit."""

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


class TaskStatus:
    UNKNOWN = 0
    CREATED = 1
    RUNNING = 2
    STOPPED = 3
    PAUSED = 4
    PAUSING = 5


class Descriptor(Message):
    __slots__ = (
        "media_type",
        "digest",
        "size",
        "annotations",
    )
    FIELDS = (
        Field(1, "media_type", STRING),
        Field(2, "digest", STRING),
        Field(3, "size", INT),
        Field(5, "annotations", STRING, MAP),
    )


class Platform(Message):
    __slots__ = (
        "os",
        "architecture",
        "variant",
        "os_version",
    )
    FIELDS = (
        Field(1, "os", STRING),
        Field(2, "architecture", STRING),
        Field(3, "variant", STRING),
        Field(4, "os_version", STRING),
    )


class FieldMask(Message):
    __slots__ = (
        "paths",
    )
    FIELDS = (
        Field(1, "paths", STRING, REPEATED),
    )


class Process(Message):
    __slots__ = (
        "container_id",
        "id",
        "pid",
        "status",
        "stdin",
        "stdout",
        "stderr",
        "terminal",
        "exit_status",
        "exited_at",
    )
    FIELDS = (
        Field(1, "container_id", STRING),
        Field(2, "id", STRING),
        Field(3, "pid", UINT),
        Field(4, "status", UINT),
        Field(5, "stdin", STRING),
        Field(6, "stdout", STRING),
        Field(7, "stderr", STRING),
        Field(8, "terminal", BOOL),
        Field(9, "exit_status", UINT),
        Field(10, "exited_at", MESSAGE, OPTIONAL, types_pb.Timestamp),
    )


class ProcessInfo(Message):
    __slots__ = (
        "pid",
        "info",
    )
    FIELDS = (
        Field(1, "pid", UINT),
        Field(2, "info", MESSAGE, OPTIONAL, types_pb.Any),
    )


class Metric(Message):
    __slots__ = (
        "timestamp",
        "id",
        "data",
    )
    FIELDS = (
        Field(1, "timestamp", MESSAGE, OPTIONAL, types_pb.Timestamp),
        Field(2, "id", STRING),
        Field(3, "data", MESSAGE, OPTIONAL, types_pb.Any),
    )


class Envelope(Message):
    __slots__ = (
        "timestamp",
        "namespace",
        "topic",
        "event",
    )
    FIELDS = (
        Field(1, "timestamp", MESSAGE, OPTIONAL, types_pb.Timestamp),
        Field(2, "namespace", STRING),
        Field(3, "topic", STRING),
        Field(4, "event", MESSAGE, OPTIONAL, types_pb.Any),
    )
