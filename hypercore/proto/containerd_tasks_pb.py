"""Generated from containerd_tasks.proto by scripts/protogen.py; do not edit."""

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


class CreateTaskRequest(Message):
    __slots__ = (
        "container_id",
        "rootfs",
        "stdin",
        "stdout",
        "stderr",
        "terminal",
        "checkpoint",
        "options",
        "runtime_path",
    )
    FIELDS = (
        Field(1, "container_id", STRING),
        Field(3, "rootfs", MESSAGE, REPEATED, types_pb.Mount),
        Field(4, "stdin", STRING),
        Field(5, "stdout", STRING),
        Field(6, "stderr", STRING),
        Field(7, "terminal", BOOL),
        Field(8, "checkpoint", MESSAGE, OPTIONAL, containerd_types_pb.Descriptor),
        Field(9, "options", MESSAGE, OPTIONAL, types_pb.Any),
        Field(10, "runtime_path", STRING),
    )


class CreateTaskResponse(Message):
    __slots__ = (
        "container_id",
        "pid",
    )
    FIELDS = (
        Field(1, "container_id", STRING),
        Field(2, "pid", UINT),
    )


class StartRequest(Message):
    __slots__ = (
        "container_id",
        "exec_id",
    )
    FIELDS = (
        Field(1, "container_id", STRING),
        Field(2, "exec_id", STRING),
    )


class StartResponse(Message):
    __slots__ = (
        "pid",
    )
    FIELDS = (
        Field(1, "pid", UINT),
    )


class DeleteTaskRequest(Message):
    __slots__ = (
        "container_id",
    )
    FIELDS = (
        Field(1, "container_id", STRING),
    )


class DeleteResponse(Message):
    __slots__ = (
        "id",
        "pid",
        "exit_status",
        "exited_at",
    )
    FIELDS = (
        Field(1, "id", STRING),
        Field(2, "pid", UINT),
        Field(3, "exit_status", UINT),
        Field(4, "exited_at", MESSAGE, OPTIONAL, types_pb.Timestamp),
    )


class DeleteProcessRequest(Message):
    __slots__ = (
        "container_id",
        "exec_id",
    )
    FIELDS = (
        Field(1, "container_id", STRING),
        Field(2, "exec_id", STRING),
    )


class GetRequest(Message):
    __slots__ = (
        "container_id",
        "exec_id",
    )
    FIELDS = (
        Field(1, "container_id", STRING),
        Field(2, "exec_id", STRING),
    )


class GetResponse(Message):
    __slots__ = (
        "process",
    )
    FIELDS = (
        Field(1, "process", MESSAGE, OPTIONAL, containerd_types_pb.Process),
    )


class ListTasksRequest(Message):
    __slots__ = (
        "filter",
    )
    FIELDS = (
        Field(1, "filter", STRING),
    )


class ListTasksResponse(Message):
    __slots__ = (
        "tasks",
    )
    FIELDS = (
        Field(1, "tasks", MESSAGE, REPEATED, containerd_types_pb.Process),
    )


class KillRequest(Message):
    __slots__ = (
        "container_id",
        "exec_id",
        "signal",
        "all",
    )
    FIELDS = (
        Field(1, "container_id", STRING),
        Field(2, "exec_id", STRING),
        Field(3, "signal", UINT),
        Field(4, "all", BOOL),
    )


class ExecProcessRequest(Message):
    __slots__ = (
        "container_id",
        "stdin",
        "stdout",
        "stderr",
        "terminal",
        "spec",
        "exec_id",
    )
    FIELDS = (
        Field(1, "container_id", STRING),
        Field(2, "stdin", STRING),
        Field(3, "stdout", STRING),
        Field(4, "stderr", STRING),
        Field(5, "terminal", BOOL),
        Field(6, "spec", MESSAGE, OPTIONAL, types_pb.Any),
        Field(7, "exec_id", STRING),
    )


class ResizePtyRequest(Message):
    __slots__ = (
        "container_id",
        "exec_id",
        "width",
        "height",
    )
    FIELDS = (
        Field(1, "container_id", STRING),
        Field(2, "exec_id", STRING),
        Field(3, "width", UINT),
        Field(4, "height", UINT),
    )


class CloseIORequest(Message):
    __slots__ = (
        "container_id",
        "exec_id",
        "stdin",
    )
    FIELDS = (
        Field(1, "container_id", STRING),
        Field(2, "exec_id", STRING),
        Field(3, "stdin", BOOL),
    )


class PauseTaskRequest(Message):
    __slots__ = (
        "container_id",
    )
    FIELDS = (
        Field(1, "container_id", STRING),
    )


class ResumeTaskRequest(Message):
    __slots__ = (
        "container_id",
    )
    FIELDS = (
        Field(1, "container_id", STRING),
    )


class ListPidsRequest(Message):
    __slots__ = (
        "container_id",
    )
    FIELDS = (
        Field(1, "container_id", STRING),
    )


class ListPidsResponse(Message):
    __slots__ = (
        "processes",
    )
    FIELDS = (
        Field(1, "processes", MESSAGE, REPEATED, containerd_types_pb.ProcessInfo),
    )


class CheckpointTaskRequest(Message):
    __slots__ = (
        "container_id",
        "parent_checkpoint",
        "options",
    )
    FIELDS = (
        Field(1, "container_id", STRING),
        Field(2, "parent_checkpoint", STRING),
        Field(3, "options", MESSAGE, OPTIONAL, types_pb.Any),
    )


class CheckpointTaskResponse(Message):
    __slots__ = (
        "descriptors",
    )
    FIELDS = (
        Field(1, "descriptors", MESSAGE, REPEATED, containerd_types_pb.Descriptor),
    )


class UpdateTaskRequest(Message):
    __slots__ = (
        "container_id",
        "resources",
        "annotations",
    )
    FIELDS = (
        Field(1, "container_id", STRING),
        Field(2, "resources", MESSAGE, OPTIONAL, types_pb.Any),
        Field(3, "annotations", STRING, MAP),
    )


class MetricsRequest(Message):
    __slots__ = (
        "filters",
    )
    FIELDS = (
        Field(1, "filters", STRING, REPEATED),
    )


class MetricsResponse(Message):
    __slots__ = (
        "metrics",
    )
    FIELDS = (
        Field(1, "metrics", MESSAGE, REPEATED, containerd_types_pb.Metric),
    )


class WaitRequest(Message):
    __slots__ = (
        "container_id",
        "exec_id",
    )
    FIELDS = (
        Field(1, "container_id", STRING),
        Field(2, "exec_id", STRING),
    )


class WaitResponse(Message):
    __slots__ = (
        "exit_status",
        "exited_at",
    )
    FIELDS = (
        Field(1, "exit_status", UINT),
        Field(2, "exited_at", MESSAGE, OPTIONAL, types_pb.Timestamp),
    )


class Tasks:
    NAME = "containerd.services.tasks.v1.Tasks"
    METHODS = {
        "Create": (CreateTaskRequest, CreateTaskResponse),
        "Start": (StartRequest, StartResponse),
        "Delete": (DeleteTaskRequest, DeleteResponse),
        "DeleteProcess": (DeleteProcessRequest, DeleteResponse),
        "Get": (GetRequest, GetResponse),
        "List": (ListTasksRequest, ListTasksResponse),
        "Kill": (KillRequest, types_pb.Empty),
        "Exec": (ExecProcessRequest, types_pb.Empty),
        "ResizePty": (ResizePtyRequest, types_pb.Empty),
        "CloseIO": (CloseIORequest, types_pb.Empty),
        "Pause": (PauseTaskRequest, types_pb.Empty),
        "Resume": (ResumeTaskRequest, types_pb.Empty),
        "ListPids": (ListPidsRequest, ListPidsResponse),
        "Checkpoint": (CheckpointTaskRequest, CheckpointTaskResponse),
        "Update": (UpdateTaskRequest, types_pb.Empty),
        "Metrics": (MetricsRequest, MetricsResponse),
        "Wait": (WaitRequest, WaitResponse),
    }
