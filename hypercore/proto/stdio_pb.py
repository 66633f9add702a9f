"""Generated from stdio.proto by scripts/protogen.py; do not edit."""

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


class Attach(Message):
    __slots__ = (
        "namespace",
        "task_id",
        "exec_id",
        "stdin",
        "stdout",
        "stderr",
        "replay",
    )
    FIELDS = (
        Field(1, "namespace", STRING),
        Field(2, "task_id", STRING),
        Field(3, "exec_id", STRING),
        Field(4, "stdin", BOOL),
        Field(5, "stdout", BOOL),
        Field(6, "stderr", BOOL),
        Field(7, "replay", BOOL),
    )


class CloseStdin(Message):
    __slots__ = ()


class Resize(Message):
    __slots__ = (
        "rows",
        "columns",
    )
    FIELDS = (
        Field(1, "rows", UINT),
        Field(2, "columns", UINT),
    )


class StdioRequest(Message):
    __slots__ = (
        "attach",
        "resize",
        "close_stdin",
    )
    FIELDS = (
        Field(1, "attach", MESSAGE, OPTIONAL, Attach),
        Field(2, "resize", MESSAGE, OPTIONAL, Resize),
        Field(3, "close_stdin", MESSAGE, OPTIONAL, CloseStdin),
    )


class Attached(Message):
    __slots__ = (
        "terminal",
    )
    FIELDS = (
        Field(1, "terminal", BOOL),
    )


class Dropped(Message):
    __slots__ = (
        "reason",
    )
    FIELDS = (
        Field(1, "reason", STRING),
    )


class Error(Message):
    __slots__ = (
        "code",
        "message",
    )
    FIELDS = (
        Field(1, "code", INT),
        Field(2, "message", STRING),
    )


class Exit(Message):
    __slots__ = (
        "exit_status",
        "missing_bytes",
        "reason",
    )
    FIELDS = (
        Field(1, "exit_status", UINT),
        Field(2, "missing_bytes", UINT),
        Field(3, "reason", STRING),
    )


class StdioReply(Message):
    __slots__ = (
        "attached",
        "exit",
        "dropped",
        "error",
    )
    FIELDS = (
        Field(1, "attached", MESSAGE, OPTIONAL, Attached),
        Field(2, "exit", MESSAGE, OPTIONAL, Exit),
        Field(3, "dropped", MESSAGE, OPTIONAL, Dropped),
        Field(4, "error", MESSAGE, OPTIONAL, Error),
    )
