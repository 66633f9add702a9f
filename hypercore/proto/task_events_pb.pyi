# Generated from task_events.proto by scripts/protogen.py; do not edit.
from typing import ClassVar

from hypercore.proto import types_pb
from hypercore.wire.codec import Message

class TaskIO(Message):
    stdin: str
    stdout: str
    stderr: str
    terminal: bool
    def __init__(
        self,
        *,
        stdin: str = ...,
        stdout: str = ...,
        stderr: str = ...,
        terminal: bool = ...,
    ) -> None: ...

class TaskCreate(Message):
    container_id: str
    bundle: str
    rootfs: list[types_pb.Mount]
    io: TaskIO | None
    checkpoint: str
    pid: int
    def __init__(
        self,
        *,
        container_id: str = ...,
        bundle: str = ...,
        rootfs: list[types_pb.Mount] = ...,
        io: TaskIO | None = ...,
        checkpoint: str = ...,
        pid: int = ...,
    ) -> None: ...

class TaskStart(Message):
    container_id: str
    pid: int
    def __init__(
        self,
        *,
        container_id: str = ...,
        pid: int = ...,
    ) -> None: ...

class TaskDelete(Message):
    container_id: str
    pid: int
    exit_status: int
    exited_at: types_pb.Timestamp | None
    id: str
    def __init__(
        self,
        *,
        container_id: str = ...,
        pid: int = ...,
        exit_status: int = ...,
        exited_at: types_pb.Timestamp | None = ...,
        id: str = ...,
    ) -> None: ...

class TaskExit(Message):
    container_id: str
    id: str
    pid: int
    exit_status: int
    exited_at: types_pb.Timestamp | None
    def __init__(
        self,
        *,
        container_id: str = ...,
        id: str = ...,
        pid: int = ...,
        exit_status: int = ...,
        exited_at: types_pb.Timestamp | None = ...,
    ) -> None: ...

class TaskOOM(Message):
    container_id: str
    def __init__(
        self,
        *,
        container_id: str = ...,
    ) -> None: ...

class TaskExecAdded(Message):
    container_id: str
    exec_id: str
    def __init__(
        self,
        *,
        container_id: str = ...,
        exec_id: str = ...,
    ) -> None: ...

class TaskExecStarted(Message):
    container_id: str
    exec_id: str
    pid: int
    def __init__(
        self,
        *,
        container_id: str = ...,
        exec_id: str = ...,
        pid: int = ...,
    ) -> None: ...

class TaskPaused(Message):
    container_id: str
    def __init__(
        self,
        *,
        container_id: str = ...,
    ) -> None: ...

class TaskResumed(Message):
    container_id: str
    def __init__(
        self,
        *,
        container_id: str = ...,
    ) -> None: ...
