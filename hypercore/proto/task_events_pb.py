"""Generated from task_events.proto by scripts/protogen.py; do not edit."""

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


class TaskIO(Message):
    __slots__ = (
        "stdin",
        "stdout",
        "stderr",
        "terminal",
    )
    FIELDS = (
        Field(1, "stdin", STRING),
        Field(2, "stdout", STRING),
        Field(3, "stderr", STRING),
        Field(4, "terminal", BOOL),
    )


class TaskCreate(Message):
    __slots__ = (
        "container_id",
        "bundle",
        "rootfs",
        "io",
        "checkpoint",
        "pid",
    )
    FIELDS = (
        Field(1, "container_id", STRING),
        Field(2, "bundle", STRING),
        Field(3, "rootfs", MESSAGE, REPEATED, types_pb.Mount),
        Field(4, "io", MESSAGE, OPTIONAL, TaskIO),
        Field(5, "checkpoint", STRING),
        Field(6, "pid", UINT),
    )


class TaskStart(Message):
    __slots__ = (
        "container_id",
        "pid",
    )
    FIELDS = (
        Field(1, "container_id", STRING),
        Field(2, "pid", UINT),
    )


class TaskDelete(Message):
    __slots__ = (
        "container_id",
        "pid",
        "exit_status",
        "exited_at",
        "id",
    )
    FIELDS = (
        Field(1, "container_id", STRING),
        Field(2, "pid", UINT),
        Field(3, "exit_status", UINT),
        Field(4, "exited_at", MESSAGE, OPTIONAL, types_pb.Timestamp),
        Field(5, "id", STRING),
    )


class TaskExit(Message):
    __slots__ = (
        "container_id",
        "id",
        "pid",
        "exit_status",
        "exited_at",
    )
    FIELDS = (
        Field(1, "container_id", STRING),
        Field(2, "id", STRING),
        Field(3, "pid", UINT),
        Field(4, "exit_status", UINT),
        Field(5, "exited_at", MESSAGE, OPTIONAL, types_pb.Timestamp),
    )


class TaskOOM(Message):
    __slots__ = (
        "container_id",
    )
    FIELDS = (
        Field(1, "container_id", STRING),
    )


class TaskExecAdded(Message):
    __slots__ = (
        "container_id",
        "exec_id",
    )
    FIELDS = (
        Field(1, "container_id", STRING),
        Field(2, "exec_id", STRING),
    )


class TaskExecStarted(Message):
    __slots__ = (
        "container_id",
        "exec_id",
        "pid",
    )
    FIELDS = (
        Field(1, "container_id", STRING),
        Field(2, "exec_id", STRING),
        Field(3, "pid", UINT),
    )


class TaskPaused(Message):
    __slots__ = (
        "container_id",
    )
    FIELDS = (
        Field(1, "container_id", STRING),
    )


class TaskResumed(Message):
    __slots__ = (
        "container_id",
    )
    FIELDS = (
        Field(1, "container_id", STRING),
    )
