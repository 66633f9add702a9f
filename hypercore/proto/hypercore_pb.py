"""Generated from hypercore.proto by scripts/protogen.py; do not edit."""

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


class MicroVM(Message):
    __slots__ = (
        "id",
        "name",
        "description",
        "image",
        "provider",
        "state",
        "command",
        "tty",
        "stdin",
        "owned",
        "remove",
        "stop_signal",
        "pid",
        "exit_code",
        "created_at",
        "exited_at",
    )
    FIELDS = (
        Field(1, "id", STRING),
        Field(2, "name", STRING),
        Field(3, "description", STRING),
        Field(4, "image", STRING),
        Field(5, "provider", STRING),
        Field(6, "state", STRING),
        Field(7, "command", STRING),
        Field(8, "tty", BOOL),
        Field(9, "stdin", BOOL),
        Field(10, "owned", BOOL),
        Field(11, "remove", BOOL),
        Field(12, "stop_signal", STRING),
        Field(13, "pid", UINT),
        Field(14, "exit_code", UINT, OPTIONAL),
        Field(15, "created_at", DOUBLE),
        Field(16, "exited_at", DOUBLE),
    )


class MicroVMRequest(Message):
    __slots__ = (
        "id",
    )
    FIELDS = (
        Field(1, "id", STRING),
    )


class Hardware(Message):
    __slots__ = (
        "ref",
        "cores",
        "memory",
        "interface",
        "kernel",
        "drive",
    )
    FIELDS = (
        Field(1, "ref", STRING),
        Field(2, "cores", UINT, OPTIONAL),
        Field(3, "memory", UINT, OPTIONAL),
        Field(4, "interface", STRING),
        Field(5, "kernel", STRING),
        Field(6, "drive", STRING),
    )


class Network(Message):
    __slots__ = (
        "mode",
        "netns",
        "dns",
        "mtu",
        "ports",
    )
    FIELDS = (
        Field(1, "mode", STRING),
        Field(2, "netns", STRING),
        Field(3, "dns", STRING, REPEATED),
        Field(4, "mtu", UINT, OPTIONAL),
        Field(5, "ports", STRING, REPEATED),
    )


class Spacecore(Message):
    __slots__ = (
        "name",
        "description",
    )
    FIELDS = (
        Field(1, "name", STRING),
        Field(2, "description", STRING),
    )


class VM(Message):
    __slots__ = (
        "provider",
        "cmdline",
        "initrd",
    )
    FIELDS = (
        Field(1, "provider", STRING),
        Field(2, "cmdline", STRING),
        Field(3, "initrd", STRING),
    )


class Workload(Message):
    __slots__ = (
        "command",
        "args",
        "env",
        "workdir",
        "user",
        "tty",
    )
    FIELDS = (
        Field(1, "command", STRING, REPEATED),
        Field(2, "args", STRING, REPEATED),
        Field(3, "env", STRING, REPEATED),
        Field(4, "workdir", STRING),
        Field(5, "user", STRING),
        Field(6, "tty", BOOL),
    )


class SpawnRequest(Message):
    __slots__ = (
        "spacecore",
        "hardware",
        "vm",
        "network",
        "workload",
        "hac",
        "stdin",
        "remove",
        "idempotency_key",
    )
    FIELDS = (
        Field(1, "spacecore", MESSAGE, OPTIONAL, Spacecore),
        Field(2, "hardware", MESSAGE, OPTIONAL, Hardware),
        Field(3, "vm", MESSAGE, OPTIONAL, VM),
        Field(4, "network", MESSAGE, OPTIONAL, Network),
        Field(5, "workload", MESSAGE, OPTIONAL, Workload),
        Field(6, "hac", STRING),
        Field(7, "stdin", BOOL, OPTIONAL),
        Field(8, "remove", BOOL),
        Field(9, "idempotency_key", STRING),
    )


class SpawnResponse(Message):
    __slots__ = (
        "microvm",
        "engine_ms",
        "shim_ms",
        "notices",
        "replayed",
    )
    FIELDS = (
        Field(1, "microvm", MESSAGE, OPTIONAL, MicroVM),
        Field(2, "engine_ms", DOUBLE, MAP),
        Field(3, "shim_ms", DOUBLE, MAP),
        Field(4, "notices", STRING, REPEATED),
        Field(5, "replayed", BOOL),
    )


class ListRequest(Message):
    __slots__ = (
        "state",
        "name",
        "image",
        "provider",
        "page_size",
        "page_token",
        "running",
    )
    FIELDS = (
        Field(1, "state", STRING),
        Field(2, "name", STRING),
        Field(3, "image", STRING),
        Field(4, "provider", STRING),
        Field(5, "page_size", UINT),
        Field(6, "page_token", STRING),
        Field(7, "running", BOOL),
    )


class ListResponse(Message):
    __slots__ = (
        "microvms",
        "next_page_token",
    )
    FIELDS = (
        Field(1, "microvms", MESSAGE, REPEATED, MicroVM),
        Field(2, "next_page_token", STRING),
    )


class InspectResponse(Message):
    __slots__ = (
        "document",
    )
    FIELDS = (
        Field(1, "document", STRING),
    )


class StopRequest(Message):
    __slots__ = (
        "id",
        "grace_s",
        "signal",
    )
    FIELDS = (
        Field(1, "id", STRING),
        Field(2, "grace_s", DOUBLE, OPTIONAL),
        Field(3, "signal", STRING),
    )


class KillRequest(Message):
    __slots__ = (
        "id",
        "signal",
    )
    FIELDS = (
        Field(1, "id", STRING),
        Field(2, "signal", STRING),
    )


class DeleteRequest(Message):
    __slots__ = (
        "id",
        "force",
    )
    FIELDS = (
        Field(1, "id", STRING),
        Field(2, "force", BOOL),
    )


class ExitStatus(Message):
    __slots__ = (
        "exit_code",
        "missing_bytes",
        "reason",
    )
    FIELDS = (
        Field(1, "exit_code", UINT),
        Field(2, "missing_bytes", UINT),
        Field(3, "reason", STRING),
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


class ExecStart(Message):
    __slots__ = (
        "id",
        "args",
        "env",
        "workdir",
        "user",
        "tty",
        "stdin",
        "size",
    )
    FIELDS = (
        Field(1, "id", STRING),
        Field(2, "args", STRING, REPEATED),
        Field(3, "env", STRING, REPEATED),
        Field(4, "workdir", STRING),
        Field(5, "user", STRING),
        Field(6, "tty", BOOL),
        Field(7, "stdin", BOOL),
        Field(8, "size", MESSAGE, OPTIONAL, Resize),
    )


class Signal(Message):
    __slots__ = (
        "signal",
    )
    FIELDS = (
        Field(1, "signal", STRING),
    )


class ExecInput(Message):
    __slots__ = (
        "start",
        "stdin",
        "close_stdin",
        "resize",
        "signal",
    )
    FIELDS = (
        Field(1, "start", MESSAGE, OPTIONAL, ExecStart),
        Field(2, "stdin", BYTES, OPTIONAL),
        Field(3, "close_stdin", MESSAGE, OPTIONAL, CloseStdin),
        Field(4, "resize", MESSAGE, OPTIONAL, Resize),
        Field(5, "signal", MESSAGE, OPTIONAL, Signal),
    )


class AttachStart(Message):
    __slots__ = (
        "id",
        "stdin",
        "no_replay",
    )
    FIELDS = (
        Field(1, "id", STRING),
        Field(2, "stdin", BOOL),
        Field(3, "no_replay", BOOL),
    )


class AttachInput(Message):
    __slots__ = (
        "start",
        "stdin",
        "close_stdin",
        "resize",
        "signal",
    )
    FIELDS = (
        Field(1, "start", MESSAGE, OPTIONAL, AttachStart),
        Field(2, "stdin", BYTES, OPTIONAL),
        Field(3, "close_stdin", MESSAGE, OPTIONAL, CloseStdin),
        Field(4, "resize", MESSAGE, OPTIONAL, Resize),
        Field(5, "signal", MESSAGE, OPTIONAL, Signal),
    )


class ProcessStarted(Message):
    __slots__ = (
        "tty",
    )
    FIELDS = (
        Field(1, "tty", BOOL),
    )


class ProcessOutput(Message):
    __slots__ = (
        "started",
        "stdout",
        "stderr",
        "exit",
    )
    FIELDS = (
        Field(1, "started", MESSAGE, OPTIONAL, ProcessStarted),
        Field(2, "stdout", BYTES, OPTIONAL),
        Field(3, "stderr", BYTES, OPTIONAL),
        Field(4, "exit", MESSAGE, OPTIONAL, ExitStatus),
    )


class LogsRequest(Message):
    __slots__ = (
        "id",
        "follow",
        "tail",
        "source",
    )
    FIELDS = (
        Field(1, "id", STRING),
        Field(2, "follow", BOOL),
        Field(3, "tail", UINT, OPTIONAL),
        Field(4, "source", STRING),
    )


class LogChunk(Message):
    __slots__ = (
        "stream",
        "data",
    )
    FIELDS = (
        Field(1, "stream", STRING),
        Field(2, "data", BYTES),
    )


class EventsRequest(Message):
    __slots__ = (
        "id",
        "kinds",
    )
    FIELDS = (
        Field(1, "id", STRING),
        Field(2, "kinds", STRING, REPEATED),
    )


class Event(Message):
    __slots__ = (
        "kind",
        "id",
        "at",
        "exit_code",
    )
    FIELDS = (
        Field(1, "kind", STRING),
        Field(2, "id", STRING),
        Field(3, "at", DOUBLE),
        Field(4, "exit_code", UINT, OPTIONAL),
    )


class CopyToStart(Message):
    __slots__ = (
        "id",
        "path",
    )
    FIELDS = (
        Field(1, "id", STRING),
        Field(2, "path", STRING),
    )


class CopyToInput(Message):
    __slots__ = (
        "start",
        "data",
    )
    FIELDS = (
        Field(1, "start", MESSAGE, OPTIONAL, CopyToStart),
        Field(2, "data", BYTES, OPTIONAL),
    )


class CopyToResponse(Message):
    __slots__ = (
        "bytes_read",
    )
    FIELDS = (
        Field(1, "bytes_read", UINT),
    )


class CopyFromRequest(Message):
    __slots__ = (
        "id",
        "path",
    )
    FIELDS = (
        Field(1, "id", STRING),
        Field(2, "path", STRING),
    )


class DataChunk(Message):
    __slots__ = (
        "data",
    )
    FIELDS = (
        Field(1, "data", BYTES),
    )


class StatsRequest(Message):
    __slots__ = (
        "id",
        "interval_s",
    )
    FIELDS = (
        Field(1, "id", STRING),
        Field(2, "interval_s", DOUBLE),
    )


class StatsResponse(Message):
    __slots__ = (
        "at",
        "cpu_us",
        "memory_bytes",
        "memory_limit_bytes",
        "processes",
        "oom_kills",
    )
    FIELDS = (
        Field(1, "at", DOUBLE),
        Field(2, "cpu_us", UINT),
        Field(3, "memory_bytes", UINT),
        Field(4, "memory_limit_bytes", UINT),
        Field(5, "processes", UINT),
        Field(6, "oom_kills", UINT),
    )


class PullImageRequest(Message):
    __slots__ = (
        "ref",
        "username",
        "password",
        "plain_http",
    )
    FIELDS = (
        Field(1, "ref", STRING),
        Field(2, "username", STRING),
        Field(3, "password", STRING),
        Field(4, "plain_http", BOOL),
    )


class Image(Message):
    __slots__ = (
        "ref",
        "digest",
        "created_at",
    )
    FIELDS = (
        Field(1, "ref", STRING),
        Field(2, "digest", STRING),
        Field(3, "created_at", DOUBLE),
    )


class PullProgress(Message):
    __slots__ = (
        "step",
        "name",
        "done_bytes",
        "total_bytes",
        "image",
    )
    FIELDS = (
        Field(1, "step", STRING),
        Field(2, "name", STRING),
        Field(3, "done_bytes", UINT),
        Field(4, "total_bytes", UINT),
        Field(5, "image", MESSAGE, OPTIONAL, Image),
    )


class ListImagesRequest(Message):
    __slots__ = ()


class ListImagesResponse(Message):
    __slots__ = (
        "images",
    )
    FIELDS = (
        Field(1, "images", MESSAGE, REPEATED, Image),
    )


class RemoveImageRequest(Message):
    __slots__ = (
        "ref",
    )
    FIELDS = (
        Field(1, "ref", STRING),
    )


class ImportImageStart(Message):
    __slots__ = (
        "name",
    )
    FIELDS = (
        Field(1, "name", STRING),
    )


class ImportImageInput(Message):
    __slots__ = (
        "start",
        "data",
    )
    FIELDS = (
        Field(1, "start", MESSAGE, OPTIONAL, ImportImageStart),
        Field(2, "data", BYTES, OPTIONAL),
    )


class ImportImageResponse(Message):
    __slots__ = (
        "refs",
    )
    FIELDS = (
        Field(1, "refs", STRING, REPEATED),
    )


class InfoRequest(Message):
    __slots__ = ()


class InfoResponse(Message):
    __slots__ = (
        "version",
        "containerd_version",
        "namespace",
        "microvms",
        "running",
        "providers",
        "started_at",
    )
    FIELDS = (
        Field(1, "version", STRING),
        Field(2, "containerd_version", STRING),
        Field(3, "namespace", STRING),
        Field(4, "microvms", UINT),
        Field(5, "running", UINT),
        Field(6, "providers", STRING, REPEATED),
        Field(7, "started_at", DOUBLE),
    )


class CheckRequest(Message):
    __slots__ = ()


class CheckStep(Message):
    __slots__ = (
        "name",
        "ready",
        "found",
    )
    FIELDS = (
        Field(1, "name", STRING),
        Field(2, "ready", BOOL),
        Field(3, "found", STRING),
    )


class CheckResponse(Message):
    __slots__ = (
        "ready",
        "steps",
    )
    FIELDS = (
        Field(1, "ready", BOOL),
        Field(2, "steps", MESSAGE, REPEATED, CheckStep),
    )


class Hypercore:
    NAME = "hypercore.v1.Hypercore"
    METHODS = {
        "Spawn": (SpawnRequest, SpawnResponse),
        "Start": (MicroVMRequest, MicroVM),
        "Get": (MicroVMRequest, MicroVM),
        "List": (ListRequest, ListResponse),
        "Inspect": (MicroVMRequest, InspectResponse),
        "Stop": (StopRequest, MicroVM),
        "Kill": (KillRequest, MicroVM),
        "Pause": (MicroVMRequest, MicroVM),
        "Resume": (MicroVMRequest, MicroVM),
        "Delete": (DeleteRequest, MicroVM),
        "Wait": (MicroVMRequest, ExitStatus),
        "Exec": (ExecInput, ProcessOutput),
        "Attach": (AttachInput, ProcessOutput),
        "Logs": (LogsRequest, LogChunk),
        "Events": (EventsRequest, Event),
        "CopyTo": (CopyToInput, CopyToResponse),
        "CopyFrom": (CopyFromRequest, DataChunk),
        "Stats": (StatsRequest, StatsResponse),
        "PullImage": (PullImageRequest, PullProgress),
        "ListImages": (ListImagesRequest, ListImagesResponse),
        "RemoveImage": (RemoveImageRequest, Image),
        "ImportImage": (ImportImageInput, ImportImageResponse),
        "Info": (InfoRequest, InfoResponse),
        "Check": (CheckRequest, CheckResponse),
    }
