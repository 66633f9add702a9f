# Generated from task.proto by scripts/protogen.py; do not edit.
from typing import ClassVar

from hypercore.proto import containerd_types_pb, types_pb
from hypercore.wire.codec import Message

class CreateTaskRequest(Message):
    id: str
    bundle: str
    rootfs: list[types_pb.Mount]
    terminal: bool
    stdin: str
    stdout: str
    stderr: str
    checkpoint: str
    parent_checkpoint: str
    options: types_pb.Any | None
    def __init__(
        self,
        *,
        id: str = ...,
        bundle: str = ...,
        rootfs: list[types_pb.Mount] = ...,
        terminal: bool = ...,
        stdin: str = ...,
        stdout: str = ...,
        stderr: str = ...,
        checkpoint: str = ...,
        parent_checkpoint: str = ...,
        options: types_pb.Any | None = ...,
    ) -> None: ...

class CreateTaskResponse(Message):
    pid: int
    def __init__(
        self,
        *,
        pid: int = ...,
    ) -> None: ...

class StartRequest(Message):
    id: str
    exec_id: str
    def __init__(
        self,
        *,
        id: str = ...,
        exec_id: str = ...,
    ) -> None: ...

class StartResponse(Message):
    pid: int
    def __init__(
        self,
        *,
        pid: int = ...,
    ) -> None: ...

class DeleteRequest(Message):
    id: str
    exec_id: str
    def __init__(
        self,
        *,
        id: str = ...,
        exec_id: str = ...,
    ) -> None: ...

class DeleteResponse(Message):
    pid: int
    exit_status: int
    exited_at: types_pb.Timestamp | None
    def __init__(
        self,
        *,
        pid: int = ...,
        exit_status: int = ...,
        exited_at: types_pb.Timestamp | None = ...,
    ) -> None: ...

class ExecProcessRequest(Message):
    id: str
    exec_id: str
    terminal: bool
    stdin: str
    stdout: str
    stderr: str
    spec: types_pb.Any | None
    def __init__(
        self,
        *,
        id: str = ...,
        exec_id: str = ...,
        terminal: bool = ...,
        stdin: str = ...,
        stdout: str = ...,
        stderr: str = ...,
        spec: types_pb.Any | None = ...,
    ) -> None: ...

class ResizePtyRequest(Message):
    id: str
    exec_id: str
    width: int
    height: int
    def __init__(
        self,
        *,
        id: str = ...,
        exec_id: str = ...,
        width: int = ...,
        height: int = ...,
    ) -> None: ...

class StateRequest(Message):
    id: str
    exec_id: str
    def __init__(
        self,
        *,
        id: str = ...,
        exec_id: str = ...,
    ) -> None: ...

class StateResponse(Message):
    id: str
    bundle: str
    pid: int
    status: int
    stdin: str
    stdout: str
    stderr: str
    terminal: bool
    exit_status: int
    exited_at: types_pb.Timestamp | None
    exec_id: str
    def __init__(
        self,
        *,
        id: str = ...,
        bundle: str = ...,
        pid: int = ...,
        status: int = ...,
        stdin: str = ...,
        stdout: str = ...,
        stderr: str = ...,
        terminal: bool = ...,
        exit_status: int = ...,
        exited_at: types_pb.Timestamp | None = ...,
        exec_id: str = ...,
    ) -> None: ...

class KillRequest(Message):
    id: str
    exec_id: str
    signal: int
    all: bool
    def __init__(
        self,
        *,
        id: str = ...,
        exec_id: str = ...,
        signal: int = ...,
        all: bool = ...,
    ) -> None: ...

class CloseIORequest(Message):
    id: str
    exec_id: str
    stdin: bool
    def __init__(
        self,
        *,
        id: str = ...,
        exec_id: str = ...,
        stdin: bool = ...,
    ) -> None: ...

class PidsRequest(Message):
    id: str
    def __init__(
        self,
        *,
        id: str = ...,
    ) -> None: ...

class PidsResponse(Message):
    processes: list[containerd_types_pb.ProcessInfo]
    def __init__(
        self,
        *,
        processes: list[containerd_types_pb.ProcessInfo] = ...,
    ) -> None: ...

class CheckpointTaskRequest(Message):
    id: str
    path: str
    options: types_pb.Any | None
    def __init__(
        self,
        *,
        id: str = ...,
        path: str = ...,
        options: types_pb.Any | None = ...,
    ) -> None: ...

class UpdateTaskRequest(Message):
    id: str
    resources: types_pb.Any | None
    annotations: dict[str, str]
    def __init__(
        self,
        *,
        id: str = ...,
        resources: types_pb.Any | None = ...,
        annotations: dict[str, str] = ...,
    ) -> None: ...

class WaitRequest(Message):
    id: str
    exec_id: str
    def __init__(
        self,
        *,
        id: str = ...,
        exec_id: str = ...,
    ) -> None: ...

class WaitResponse(Message):
    exit_status: int
    exited_at: types_pb.Timestamp | None
    def __init__(
        self,
        *,
        exit_status: int = ...,
        exited_at: types_pb.Timestamp | None = ...,
    ) -> None: ...

class StatsRequest(Message):
    id: str
    def __init__(
        self,
        *,
        id: str = ...,
    ) -> None: ...

class StatsResponse(Message):
    stats: types_pb.Any | None
    def __init__(
        self,
        *,
        stats: types_pb.Any | None = ...,
    ) -> None: ...

class ConnectRequest(Message):
    id: str
    def __init__(
        self,
        *,
        id: str = ...,
    ) -> None: ...

class ConnectResponse(Message):
    shim_pid: int
    task_pid: int
    version: str
    def __init__(
        self,
        *,
        shim_pid: int = ...,
        task_pid: int = ...,
        version: str = ...,
    ) -> None: ...

class ShutdownRequest(Message):
    id: str
    now: bool
    def __init__(
        self,
        *,
        id: str = ...,
        now: bool = ...,
    ) -> None: ...

class PauseRequest(Message):
    id: str
    def __init__(
        self,
        *,
        id: str = ...,
    ) -> None: ...

class ResumeRequest(Message):
    id: str
    def __init__(
        self,
        *,
        id: str = ...,
    ) -> None: ...

class Task:
    NAME: ClassVar[str]
    METHODS: ClassVar[dict[str, tuple[type[Message], type[Message]]]]
