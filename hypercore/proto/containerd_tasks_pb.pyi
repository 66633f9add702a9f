# Generated from containerd_tasks.proto by scripts/protogen.py; do not edit.
from typing import ClassVar

from hypercore.proto import containerd_types_pb, types_pb
from hypercore.wire.codec import Message

class CreateTaskRequest(Message):
    container_id: str
    rootfs: list[types_pb.Mount]
    stdin: str
    stdout: str
    stderr: str
    terminal: bool
    checkpoint: containerd_types_pb.Descriptor | None
    options: types_pb.Any | None
    runtime_path: str
    def __init__(
        self,
        *,
        container_id: str = ...,
        rootfs: list[types_pb.Mount] = ...,
        stdin: str = ...,
        stdout: str = ...,
        stderr: str = ...,
        terminal: bool = ...,
        checkpoint: containerd_types_pb.Descriptor | None = ...,
        options: types_pb.Any | None = ...,
        runtime_path: str = ...,
    ) -> None: ...

class CreateTaskResponse(Message):
    container_id: str
    pid: int
    def __init__(
        self,
        *,
        container_id: str = ...,
        pid: int = ...,
    ) -> None: ...

class StartRequest(Message):
    container_id: str
    exec_id: str
    def __init__(
        self,
        *,
        container_id: str = ...,
        exec_id: str = ...,
    ) -> None: ...

class StartResponse(Message):
    pid: int
    def __init__(
        self,
        *,
        pid: int = ...,
    ) -> None: ...

class DeleteTaskRequest(Message):
    container_id: str
    def __init__(
        self,
        *,
        container_id: str = ...,
    ) -> None: ...

class DeleteResponse(Message):
    id: str
    pid: int
    exit_status: int
    exited_at: types_pb.Timestamp | None
    def __init__(
        self,
        *,
        id: str = ...,
        pid: int = ...,
        exit_status: int = ...,
        exited_at: types_pb.Timestamp | None = ...,
    ) -> None: ...

class DeleteProcessRequest(Message):
    container_id: str
    exec_id: str
    def __init__(
        self,
        *,
        container_id: str = ...,
        exec_id: str = ...,
    ) -> None: ...

class GetRequest(Message):
    container_id: str
    exec_id: str
    def __init__(
        self,
        *,
        container_id: str = ...,
        exec_id: str = ...,
    ) -> None: ...

class GetResponse(Message):
    process: containerd_types_pb.Process | None
    def __init__(
        self,
        *,
        process: containerd_types_pb.Process | None = ...,
    ) -> None: ...

class ListTasksRequest(Message):
    filter: str
    def __init__(
        self,
        *,
        filter: str = ...,
    ) -> None: ...

class ListTasksResponse(Message):
    tasks: list[containerd_types_pb.Process]
    def __init__(
        self,
        *,
        tasks: list[containerd_types_pb.Process] = ...,
    ) -> None: ...

class KillRequest(Message):
    container_id: str
    exec_id: str
    signal: int
    all: bool
    def __init__(
        self,
        *,
        container_id: str = ...,
        exec_id: str = ...,
        signal: int = ...,
        all: bool = ...,
    ) -> None: ...

class ExecProcessRequest(Message):
    container_id: str
    stdin: str
    stdout: str
    stderr: str
    terminal: bool
    spec: types_pb.Any | None
    exec_id: str
    def __init__(
        self,
        *,
        container_id: str = ...,
        stdin: str = ...,
        stdout: str = ...,
        stderr: str = ...,
        terminal: bool = ...,
        spec: types_pb.Any | None = ...,
        exec_id: str = ...,
    ) -> None: ...

class ResizePtyRequest(Message):
    container_id: str
    exec_id: str
    width: int
    height: int
    def __init__(
        self,
        *,
        container_id: str = ...,
        exec_id: str = ...,
        width: int = ...,
        height: int = ...,
    ) -> None: ...

class CloseIORequest(Message):
    container_id: str
    exec_id: str
    stdin: bool
    def __init__(
        self,
        *,
        container_id: str = ...,
        exec_id: str = ...,
        stdin: bool = ...,
    ) -> None: ...

class PauseTaskRequest(Message):
    container_id: str
    def __init__(
        self,
        *,
        container_id: str = ...,
    ) -> None: ...

class ResumeTaskRequest(Message):
    container_id: str
    def __init__(
        self,
        *,
        container_id: str = ...,
    ) -> None: ...

class ListPidsRequest(Message):
    container_id: str
    def __init__(
        self,
        *,
        container_id: str = ...,
    ) -> None: ...

class ListPidsResponse(Message):
    processes: list[containerd_types_pb.ProcessInfo]
    def __init__(
        self,
        *,
        processes: list[containerd_types_pb.ProcessInfo] = ...,
    ) -> None: ...

class CheckpointTaskRequest(Message):
    container_id: str
    parent_checkpoint: str
    options: types_pb.Any | None
    def __init__(
        self,
        *,
        container_id: str = ...,
        parent_checkpoint: str = ...,
        options: types_pb.Any | None = ...,
    ) -> None: ...

class CheckpointTaskResponse(Message):
    descriptors: list[containerd_types_pb.Descriptor]
    def __init__(
        self,
        *,
        descriptors: list[containerd_types_pb.Descriptor] = ...,
    ) -> None: ...

class UpdateTaskRequest(Message):
    container_id: str
    resources: types_pb.Any | None
    annotations: dict[str, str]
    def __init__(
        self,
        *,
        container_id: str = ...,
        resources: types_pb.Any | None = ...,
        annotations: dict[str, str] = ...,
    ) -> None: ...

class MetricsRequest(Message):
    filters: list[str]
    def __init__(
        self,
        *,
        filters: list[str] = ...,
    ) -> None: ...

class MetricsResponse(Message):
    metrics: list[containerd_types_pb.Metric]
    def __init__(
        self,
        *,
        metrics: list[containerd_types_pb.Metric] = ...,
    ) -> None: ...

class WaitRequest(Message):
    container_id: str
    exec_id: str
    def __init__(
        self,
        *,
        container_id: str = ...,
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

class Tasks:
    NAME: ClassVar[str]
    METHODS: ClassVar[dict[str, tuple[type[Message], type[Message]]]]
