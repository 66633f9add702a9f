"""Generated from task.proto by scripts/protogen.py; do not edit."""

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
        "id",
        "bundle",
        "rootfs",
        "terminal",
        "stdin",
        "stdout",
        "stderr",
        "checkpoint",
        "parent_checkpoint",
        "options",
    )
    FIELDS = (
        Field(1, "id", STRING),
        Field(2, "bundle", STRING),
        Field(3, "rootfs", MESSAGE, REPEATED, types_pb.Mount),
        Field(4, "terminal", BOOL),
        Field(5, "stdin", STRING),
        Field(6, "stdout", STRING),
        Field(7, "stderr", STRING),
        Field(8, "checkpoint", STRING),
        Field(9, "parent_checkpoint", STRING),
        Field(10, "options", MESSAGE, OPTIONAL, types_pb.Any),
    )


class CreateTaskResponse(Message):
    __slots__ = (
        "pid",
    )
    FIELDS = (
        Field(1, "pid", UINT),
    )


class StartRequest(Message):
    __slots__ = (
        "id",
        "exec_id",
    )
    FIELDS = (
        Field(1, "id", STRING),
        Field(2, "exec_id", STRING),
    )


class StartResponse(Message):
    __slots__ = (
        "pid",
    )
    FIELDS = (
        Field(1, "pid", UINT),
    )


class DeleteRequest(Message):
    __slots__ = (
        "id",
        "exec_id",
    )
    FIELDS = (
        Field(1, "id", STRING),
        Field(2, "exec_id", STRING),
    )


class DeleteResponse(Message):
    __slots__ = (
        "pid",
        "exit_status",
        "exited_at",
    )
    FIELDS = (
        Field(1, "pid", UINT),
        Field(2, "exit_status", UINT),
        Field(3, "exited_at", MESSAGE, OPTIONAL, types_pb.Timestamp),
    )


class ExecProcessRequest(Message):
    __slots__ = (
        "id",
        "exec_id",
        "terminal",
        "stdin",
        "stdout",
        "stderr",
        "spec",
    )
    FIELDS = (
        Field(1, "id", STRING),
        Field(2, "exec_id", STRING),
        Field(3, "terminal", BOOL),
        Field(4, "stdin", STRING),
        Field(5, "stdout", STRING),
        Field(6, "stderr", STRING),
        Field(7, "spec", MESSAGE, OPTIONAL, types_pb.Any),
    )


class ResizePtyRequest(Message):
    __slots__ = (
        "id",
        "exec_id",
        "width",
        "height",
    )
    FIELDS = (
        Field(1, "id", STRING),
        Field(2, "exec_id", STRING),
        Field(3, "width", UINT),
        Field(4, "height", UINT),
    )


class StateRequest(Message):
    __slots__ = (
        "id",
        "exec_id",
    )
    FIELDS = (
        Field(1, "id", STRING),
        Field(2, "exec_id", STRING),
    )


class StateResponse(Message):
    __slots__ = (
        "id",
        "bundle",
        "pid",
        "status",
        "stdin",
        "stdout",
        "stderr",
        "terminal",
        "exit_status",
        "exited_at",
        "exec_id",
    )
    FIELDS = (
        Field(1, "id", STRING),
        Field(2, "bundle", STRING),
        Field(3, "pid", UINT),
        Field(4, "status", UINT),
        Field(5, "stdin", STRING),
        Field(6, "stdout", STRING),
        Field(7, "stderr", STRING),
        Field(8, "terminal", BOOL),
        Field(9, "exit_status", UINT),
        Field(10, "exited_at", MESSAGE, OPTIONAL, types_pb.Timestamp),
        Field(11, "exec_id", STRING),
    )


class KillRequest(Message):
    __slots__ = (
        "id",
        "exec_id",
        "signal",
        "all",
    )
    FIELDS = (
        Field(1, "id", STRING),
        Field(2, "exec_id", STRING),
        Field(3, "signal", UINT),
        Field(4, "all", BOOL),
    )


class CloseIORequest(Message):
    __slots__ = (
        "id",
        "exec_id",
        "stdin",
    )
    FIELDS = (
        Field(1, "id", STRING),
        Field(2, "exec_id", STRING),
        Field(3, "stdin", BOOL),
    )


class PidsRequest(Message):
    __slots__ = (
        "id",
    )
    FIELDS = (
        Field(1, "id", STRING),
    )


class PidsResponse(Message):
    __slots__ = (
        "processes",
    )
    FIELDS = (
        Field(1, "processes", MESSAGE, REPEATED, containerd_types_pb.ProcessInfo),
    )


class CheckpointTaskRequest(Message):
    __slots__ = (
        "id",
        "path",
        "options",
    )
    FIELDS = (
        Field(1, "id", STRING),
        Field(2, "path", STRING),
        Field(3, "options", MESSAGE, OPTIONAL, types_pb.Any),
    )


class UpdateTaskRequest(Message):
    __slots__ = (
        "id",
        "resources",
        "annotations",
    )
    FIELDS = (
        Field(1, "id", STRING),
        Field(2, "resources", MESSAGE, OPTIONAL, types_pb.Any),
        Field(3, "annotations", STRING, MAP),
    )


class WaitRequest(Message):
    __slots__ = (
        "id",
        "exec_id",
    )
    FIELDS = (
        Field(1, "id", STRING),
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


class StatsRequest(Message):
    __slots__ = (
        "id",
    )
    FIELDS = (
        Field(1, "id", STRING),
    )


class StatsResponse(Message):
    __slots__ = (
        "stats",
    )
    FIELDS = (
        Field(1, "stats", MESSAGE, OPTIONAL, types_pb.Any),
    )


class ConnectRequest(Message):
    __slots__ = (
        "id",
    )
    FIELDS = (
        Field(1, "id", STRING),
    )


class ConnectResponse(Message):
    __slots__ = (
        "shim_pid",
        "task_pid",
        "version",
    )
    FIELDS = (
        Field(1, "shim_pid", UINT),
        Field(2, "task_pid", UINT),
        Field(3, "version", STRING),
    )


class ShutdownRequest(Message):
    __slots__ = (
        "id",
        "now",
    )
    FIELDS = (
        Field(1, "id", STRING),
        Field(2, "now", BOOL),
    )


class PauseRequest(Message):
    __slots__ = (
        "id",
    )
    FIELDS = (
        Field(1, "id", STRING),
    )


class ResumeRequest(Message):
    __slots__ = (
        "id",
    )
    FIELDS = (
        Field(1, "id", STRING),
    )


class Task:
    NAME = "containerd.task.v2.Task"
    METHODS = {
        "State": (StateRequest, StateResponse),
        "Create": (CreateTaskRequest, CreateTaskResponse),
        "Start": (StartRequest, StartResponse),
        "Delete": (DeleteRequest, DeleteResponse),
        "Pids": (PidsRequest, PidsResponse),
        "Pause": (PauseRequest, types_pb.Empty),
        "Resume": (ResumeRequest, types_pb.Empty),
        "Checkpoint": (CheckpointTaskRequest, types_pb.Empty),
        "Kill": (KillRequest, types_pb.Empty),
        "Exec": (ExecProcessRequest, types_pb.Empty),
        "ResizePty": (ResizePtyRequest, types_pb.Empty),
        "CloseIO": (CloseIORequest, types_pb.Empty),
        "Update": (UpdateTaskRequest, types_pb.Empty),
        "Wait": (WaitRequest, WaitResponse),
        "Stats": (StatsRequest, StatsResponse),
        "Connect": (ConnectRequest, ConnectResponse),
        "Shutdown": (ShutdownRequest, types_pb.Empty),
    }
