# Generated from agent.proto by scripts/protogen.py; do not edit.
from typing import ClassVar

from hypercore.proto import types_pb
from hypercore.wire.codec import Message

class Neighbour(Message):
    address: str
    mac: str
    def __init__(
        self,
        *,
        address: str = ...,
        mac: str = ...,
    ) -> None: ...

class Route(Message):
    destination: str
    gateway: str
    def __init__(
        self,
        *,
        destination: str = ...,
        gateway: str = ...,
    ) -> None: ...

class Interface(Message):
    name: str
    mac: str
    addresses: list[str]
    gateways: list[str]
    mtu: int
    routes: list[Route]
    neighbours: list[Neighbour]
    def __init__(
        self,
        *,
        name: str = ...,
        mac: str = ...,
        addresses: list[str] = ...,
        gateways: list[str] = ...,
        mtu: int = ...,
        routes: list[Route] = ...,
        neighbours: list[Neighbour] = ...,
    ) -> None: ...

class HelloRequest(Message):
    version: int
    unix_ns: int
    hostname: str
    interfaces: list[Interface]
    dns_servers: list[str]
    dns_search: list[str]
    poweroff: str
    def __init__(
        self,
        *,
        version: int = ...,
        unix_ns: int = ...,
        hostname: str = ...,
        interfaces: list[Interface] = ...,
        dns_servers: list[str] = ...,
        dns_search: list[str] = ...,
        poweroff: str = ...,
    ) -> None: ...

class HelloResponse(Message):
    version: int
    agent_version: str
    features: list[str]
    ready_us: int
    kernel: str
    def __init__(
        self,
        *,
        version: int = ...,
        agent_version: str = ...,
        features: list[str] = ...,
        ready_us: int = ...,
        kernel: str = ...,
    ) -> None: ...

class SetClockRequest(Message):
    unix_ns: int
    def __init__(
        self,
        *,
        unix_ns: int = ...,
    ) -> None: ...

class RootDisk(Message):
    serial: str
    fs_type: str
    writable: bool
    offset_bytes: int
    size_bytes: int
    def __init__(
        self,
        *,
        serial: str = ...,
        fs_type: str = ...,
        writable: bool = ...,
        offset_bytes: int = ...,
        size_bytes: int = ...,
    ) -> None: ...

class RootDisks(Message):
    read_only: list[RootDisk]
    writable: RootDisk | None
    def __init__(
        self,
        *,
        read_only: list[RootDisk] = ...,
        writable: RootDisk | None = ...,
    ) -> None: ...

class InjectedFile(Message):
    path: str
    mode: int
    content: bytes
    def __init__(
        self,
        *,
        path: str = ...,
        mode: int = ...,
        content: bytes = ...,
    ) -> None: ...

class Stdio(Message):
    terminal: bool
    stdin_token: bytes
    stdout_token: bytes
    stderr_token: bytes
    rows: int
    columns: int
    def __init__(
        self,
        *,
        terminal: bool = ...,
        stdin_token: bytes = ...,
        stdout_token: bytes = ...,
        stderr_token: bytes = ...,
        rows: int = ...,
        columns: int = ...,
    ) -> None: ...

class ForwardedSocket(Message):
    name: str
    mode: int
    uid: int
    gid: int
    def __init__(
        self,
        *,
        name: str = ...,
        mode: int = ...,
        uid: int = ...,
        gid: int = ...,
    ) -> None: ...

class CreateRequest(Message):
    container_id: str
    root_disks: RootDisks | None
    config_json: bytes
    stdio: Stdio | None
    files: list[InjectedFile]
    runtime: str
    binds: RootDisk | None
    sockets: list[ForwardedSocket]
    def __init__(
        self,
        *,
        container_id: str = ...,
        root_disks: RootDisks | None = ...,
        config_json: bytes = ...,
        stdio: Stdio | None = ...,
        files: list[InjectedFile] = ...,
        runtime: str = ...,
        binds: RootDisk | None = ...,
        sockets: list[ForwardedSocket] = ...,
    ) -> None: ...

class ConnectionResponse(Message):
    name: str
    token: bytes
    def __init__(
        self,
        *,
        name: str = ...,
        token: bytes = ...,
    ) -> None: ...

class CopyRequest(Message):
    container_id: str
    path: str
    token: bytes
    into: bool
    only_entry: bool
    preserve_ownership: bool
    def __init__(
        self,
        *,
        container_id: str = ...,
        path: str = ...,
        token: bytes = ...,
        into: bool = ...,
        only_entry: bool = ...,
        preserve_ownership: bool = ...,
    ) -> None: ...

class ProcessRequest(Message):
    container_id: str
    exec_id: str
    def __init__(
        self,
        *,
        container_id: str = ...,
        exec_id: str = ...,
    ) -> None: ...

class ProcessResponse(Message):
    pid: int
    def __init__(
        self,
        *,
        pid: int = ...,
    ) -> None: ...

class ExecRequest(Message):
    container_id: str
    exec_id: str
    process_json: bytes
    stdio: Stdio | None
    def __init__(
        self,
        *,
        container_id: str = ...,
        exec_id: str = ...,
        process_json: bytes = ...,
        stdio: Stdio | None = ...,
    ) -> None: ...

class WaitResponse(Message):
    exit_status: int
    exited_unix_ns: int
    stdout_bytes: int
    stderr_bytes: int
    oom_killed: bool
    def __init__(
        self,
        *,
        exit_status: int = ...,
        exited_unix_ns: int = ...,
        stdout_bytes: int = ...,
        stderr_bytes: int = ...,
        oom_killed: bool = ...,
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

class CloseIORequest(Message):
    container_id: str
    exec_id: str
    stdin_bytes: int
    def __init__(
        self,
        *,
        container_id: str = ...,
        exec_id: str = ...,
        stdin_bytes: int = ...,
    ) -> None: ...

class ResizePtyRequest(Message):
    container_id: str
    exec_id: str
    rows: int
    columns: int
    def __init__(
        self,
        *,
        container_id: str = ...,
        exec_id: str = ...,
        rows: int = ...,
        columns: int = ...,
    ) -> None: ...

class PidsResponse(Message):
    pids: list[int]
    def __init__(
        self,
        *,
        pids: list[int] = ...,
    ) -> None: ...

class StatsResponse(Message):
    cpu_usage_us: int
    cpu_user_us: int
    cpu_system_us: int
    memory_current_bytes: int
    memory_limit_bytes: int
    memory_anon_bytes: int
    memory_file_bytes: int
    pids_current: int
    pids_limit: int
    oom_kills: int
    throttled_us: int
    nr_periods: int
    nr_throttled: int
    def __init__(
        self,
        *,
        cpu_usage_us: int = ...,
        cpu_user_us: int = ...,
        cpu_system_us: int = ...,
        memory_current_bytes: int = ...,
        memory_limit_bytes: int = ...,
        memory_anon_bytes: int = ...,
        memory_file_bytes: int = ...,
        pids_current: int = ...,
        pids_limit: int = ...,
        oom_kills: int = ...,
        throttled_us: int = ...,
        nr_periods: int = ...,
        nr_throttled: int = ...,
    ) -> None: ...

class UpdateRequest(Message):
    container_id: str
    resources_json: bytes
    def __init__(
        self,
        *,
        container_id: str = ...,
        resources_json: bytes = ...,
    ) -> None: ...

class StreamHeader(Message):
    version: int
    token: bytes
    offset: int
    def __init__(
        self,
        *,
        version: int = ...,
        token: bytes = ...,
        offset: int = ...,
    ) -> None: ...

class Agent:
    NAME: ClassVar[str]
    METHODS: ClassVar[dict[str, tuple[type[Message], type[Message]]]]
