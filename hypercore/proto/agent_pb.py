"""Generated from agent.proto by scripts/protogen.py; do not edit."""

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


class Neighbour(Message):
    __slots__ = (
        "address",
        "mac",
    )
    FIELDS = (
        Field(1, "address", STRING),
        Field(2, "mac", STRING),
    )


class Route(Message):
    __slots__ = (
        "destination",
        "gateway",
    )
    FIELDS = (
        Field(1, "destination", STRING),
        Field(2, "gateway", STRING),
    )


class Interface(Message):
    __slots__ = (
        "name",
        "mac",
        "addresses",
        "gateways",
        "mtu",
        "routes",
        "neighbours",
    )
    FIELDS = (
        Field(1, "name", STRING),
        Field(2, "mac", STRING),
        Field(3, "addresses", STRING, REPEATED),
        Field(4, "gateways", STRING, REPEATED),
        Field(5, "mtu", UINT),
        Field(6, "routes", MESSAGE, REPEATED, Route),
        Field(7, "neighbours", MESSAGE, REPEATED, Neighbour),
    )


class HelloRequest(Message):
    __slots__ = (
        "version",
        "unix_ns",
        "hostname",
        "interfaces",
        "dns_servers",
        "dns_search",
        "poweroff",
    )
    FIELDS = (
        Field(1, "version", UINT),
        Field(2, "unix_ns", INT),
        Field(3, "hostname", STRING),
        Field(4, "interfaces", MESSAGE, REPEATED, Interface),
        Field(5, "dns_servers", STRING, REPEATED),
        Field(6, "dns_search", STRING, REPEATED),
        Field(7, "poweroff", STRING),
    )


class HelloResponse(Message):
    __slots__ = (
        "version",
        "agent_version",
        "features",
        "ready_us",
        "kernel",
    )
    FIELDS = (
        Field(1, "version", UINT),
        Field(2, "agent_version", STRING),
        Field(3, "features", STRING, REPEATED),
        Field(4, "ready_us", UINT),
        Field(5, "kernel", STRING),
    )


class SetClockRequest(Message):
    __slots__ = (
        "unix_ns",
    )
    FIELDS = (
        Field(1, "unix_ns", INT),
    )


class RootDisk(Message):
    __slots__ = (
        "serial",
        "fs_type",
        "writable",
        "offset_bytes",
        "size_bytes",
    )
    FIELDS = (
        Field(1, "serial", STRING),
        Field(2, "fs_type", STRING),
        Field(3, "writable", BOOL),
        Field(4, "offset_bytes", UINT),
        Field(5, "size_bytes", UINT),
    )


class RootDisks(Message):
    __slots__ = (
        "read_only",
        "writable",
    )
    FIELDS = (
        Field(1, "read_only", MESSAGE, REPEATED, RootDisk),
        Field(2, "writable", MESSAGE, OPTIONAL, RootDisk),
    )


class InjectedFile(Message):
    __slots__ = (
        "path",
        "mode",
        "content",
    )
    FIELDS = (
        Field(1, "path", STRING),
        Field(2, "mode", UINT),
        Field(3, "content", BYTES),
    )


class Stdio(Message):
    __slots__ = (
        "terminal",
        "stdin_token",
        "stdout_token",
        "stderr_token",
        "rows",
        "columns",
    )
    FIELDS = (
        Field(1, "terminal", BOOL),
        Field(2, "stdin_token", BYTES),
        Field(3, "stdout_token", BYTES),
        Field(4, "stderr_token", BYTES),
        Field(5, "rows", UINT),
        Field(6, "columns", UINT),
    )


class ForwardedSocket(Message):
    __slots__ = (
        "name",
        "mode",
        "uid",
        "gid",
    )
    FIELDS = (
        Field(1, "name", STRING),
        Field(2, "mode", UINT),
        Field(3, "uid", UINT),
        Field(4, "gid", UINT),
    )


class CreateRequest(Message):
    __slots__ = (
        "container_id",
        "root_disks",
        "config_json",
        "stdio",
        "files",
        "runtime",
        "binds",
        "sockets",
    )
    FIELDS = (
        Field(1, "container_id", STRING),
        Field(2, "root_disks", MESSAGE, OPTIONAL, RootDisks),
        Field(3, "config_json", BYTES),
        Field(4, "stdio", MESSAGE, OPTIONAL, Stdio),
        Field(5, "files", MESSAGE, REPEATED, InjectedFile),
        Field(6, "runtime", STRING),
        Field(7, "binds", MESSAGE, OPTIONAL, RootDisk),
        Field(8, "sockets", MESSAGE, REPEATED, ForwardedSocket),
    )


class ConnectionResponse(Message):
    __slots__ = (
        "name",
        "token",
    )
    FIELDS = (
        Field(1, "name", STRING),
        Field(2, "token", BYTES),
    )


class CopyRequest(Message):
    __slots__ = (
        "container_id",
        "path",
        "token",
        "into",
        "only_entry",
        "preserve_ownership",
    )
    FIELDS = (
        Field(1, "container_id", STRING),
        Field(2, "path", STRING),
        Field(3, "token", BYTES),
        Field(4, "into", BOOL),
        Field(5, "only_entry", BOOL),
        Field(6, "preserve_ownership", BOOL),
    )


class ProcessRequest(Message):
    __slots__ = (
        "container_id",
        "exec_id",
    )
    FIELDS = (
        Field(1, "container_id", STRING),
        Field(2, "exec_id", STRING),
    )


class ProcessResponse(Message):
    __slots__ = (
        "pid",
    )
    FIELDS = (
        Field(1, "pid", UINT),
    )


class ExecRequest(Message):
    __slots__ = (
        "container_id",
        "exec_id",
        "process_json",
        "stdio",
    )
    FIELDS = (
        Field(1, "container_id", STRING),
        Field(2, "exec_id", STRING),
        Field(3, "process_json", BYTES),
        Field(4, "stdio", MESSAGE, OPTIONAL, Stdio),
    )


class WaitResponse(Message):
    __slots__ = (
        "exit_status",
        "exited_unix_ns",
        "stdout_bytes",
        "stderr_bytes",
        "oom_killed",
    )
    FIELDS = (
        Field(1, "exit_status", UINT),
        Field(2, "exited_unix_ns", INT),
        Field(3, "stdout_bytes", UINT),
        Field(4, "stderr_bytes", UINT),
        Field(5, "oom_killed", BOOL),
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


class CloseIORequest(Message):
    __slots__ = (
        "container_id",
        "exec_id",
        "stdin_bytes",
    )
    FIELDS = (
        Field(1, "container_id", STRING),
        Field(2, "exec_id", STRING),
        Field(3, "stdin_bytes", UINT),
    )


class ResizePtyRequest(Message):
    __slots__ = (
        "container_id",
        "exec_id",
        "rows",
        "columns",
    )
    FIELDS = (
        Field(1, "container_id", STRING),
        Field(2, "exec_id", STRING),
        Field(3, "rows", UINT),
        Field(4, "columns", UINT),
    )


class PidsResponse(Message):
    __slots__ = (
        "pids",
    )
    FIELDS = (
        Field(1, "pids", UINT, REPEATED),
    )


class StatsResponse(Message):
    __slots__ = (
        "cpu_usage_us",
        "cpu_user_us",
        "cpu_system_us",
        "memory_current_bytes",
        "memory_limit_bytes",
        "memory_anon_bytes",
        "memory_file_bytes",
        "pids_current",
        "pids_limit",
        "oom_kills",
        "throttled_us",
        "nr_periods",
        "nr_throttled",
    )
    FIELDS = (
        Field(1, "cpu_usage_us", UINT),
        Field(2, "cpu_user_us", UINT),
        Field(3, "cpu_system_us", UINT),
        Field(4, "memory_current_bytes", UINT),
        Field(5, "memory_limit_bytes", UINT),
        Field(6, "memory_anon_bytes", UINT),
        Field(7, "memory_file_bytes", UINT),
        Field(8, "pids_current", UINT),
        Field(9, "pids_limit", UINT),
        Field(10, "oom_kills", UINT),
        Field(11, "throttled_us", UINT),
        Field(12, "nr_periods", UINT),
        Field(13, "nr_throttled", UINT),
    )


class UpdateRequest(Message):
    __slots__ = (
        "container_id",
        "resources_json",
    )
    FIELDS = (
        Field(1, "container_id", STRING),
        Field(2, "resources_json", BYTES),
    )


class StreamHeader(Message):
    __slots__ = (
        "version",
        "token",
        "offset",
    )
    FIELDS = (
        Field(1, "version", UINT),
        Field(2, "token", BYTES),
        Field(3, "offset", UINT),
    )


class Agent:
    NAME = "hypercore.agent.v1.Agent"
    METHODS = {
        "Hello": (HelloRequest, HelloResponse),
        "SetClock": (SetClockRequest, types_pb.Empty),
        "Create": (CreateRequest, ProcessResponse),
        "Start": (ProcessRequest, ProcessResponse),
        "Exec": (ExecRequest, ProcessResponse),
        "Wait": (ProcessRequest, WaitResponse),
        "Kill": (KillRequest, types_pb.Empty),
        "CloseIO": (CloseIORequest, types_pb.Empty),
        "ResizePty": (ResizePtyRequest, types_pb.Empty),
        "Pids": (ProcessRequest, PidsResponse),
        "Stats": (ProcessRequest, StatsResponse),
        "Update": (UpdateRequest, types_pb.Empty),
        "Pause": (ProcessRequest, types_pb.Empty),
        "Resume": (ProcessRequest, types_pb.Empty),
        "Delete": (ProcessRequest, types_pb.Empty),
        "Copy": (CopyRequest, types_pb.Empty),
        "NextConnection": (ProcessRequest, ConnectionResponse),
        "PowerOff": (types_pb.Empty, types_pb.Empty),
    }
