# Generated from hypercore.proto by scripts/protogen.py; do not edit.
from typing import ClassVar

from hypercore.wire.codec import Message

class MicroVM(Message):
    id: str
    name: str
    description: str
    image: str
    provider: str
    state: str
    command: str
    tty: bool
    stdin: bool
    owned: bool
    remove: bool
    stop_signal: str
    pid: int
    exit_code: int | None
    created_at: float
    exited_at: float
    def __init__(
        self,
        *,
        id: str = ...,
        name: str = ...,
        description: str = ...,
        image: str = ...,
        provider: str = ...,
        state: str = ...,
        command: str = ...,
        tty: bool = ...,
        stdin: bool = ...,
        owned: bool = ...,
        remove: bool = ...,
        stop_signal: str = ...,
        pid: int = ...,
        exit_code: int | None = ...,
        created_at: float = ...,
        exited_at: float = ...,
    ) -> None: ...

class MicroVMRequest(Message):
    id: str
    def __init__(
        self,
        *,
        id: str = ...,
    ) -> None: ...

class Hardware(Message):
    ref: str
    cores: int | None
    memory: int | None
    interface: str
    kernel: str
    drive: str
    def __init__(
        self,
        *,
        ref: str = ...,
        cores: int | None = ...,
        memory: int | None = ...,
        interface: str = ...,
        kernel: str = ...,
        drive: str = ...,
    ) -> None: ...

class Network(Message):
    mode: str
    netns: str
    dns: list[str]
    mtu: int | None
    ports: list[str]
    def __init__(
        self,
        *,
        mode: str = ...,
        netns: str = ...,
        dns: list[str] = ...,
        mtu: int | None = ...,
        ports: list[str] = ...,
    ) -> None: ...

class Spacecore(Message):
    name: str
    description: str
    def __init__(
        self,
        *,
        name: str = ...,
        description: str = ...,
    ) -> None: ...

class VM(Message):
    provider: str
    cmdline: str
    initrd: str
    def __init__(
        self,
        *,
        provider: str = ...,
        cmdline: str = ...,
        initrd: str = ...,
    ) -> None: ...

class Workload(Message):
    command: list[str]
    args: list[str]
    env: list[str]
    workdir: str
    user: str
    tty: bool
    def __init__(
        self,
        *,
        command: list[str] = ...,
        args: list[str] = ...,
        env: list[str] = ...,
        workdir: str = ...,
        user: str = ...,
        tty: bool = ...,
    ) -> None: ...

class SpawnRequest(Message):
    spacecore: Spacecore | None
    hardware: Hardware | None
    vm: VM | None
    network: Network | None
    workload: Workload | None
    hac: str
    stdin: bool | None
    remove: bool
    idempotency_key: str
    def __init__(
        self,
        *,
        spacecore: Spacecore | None = ...,
        hardware: Hardware | None = ...,
        vm: VM | None = ...,
        network: Network | None = ...,
        workload: Workload | None = ...,
        hac: str = ...,
        stdin: bool | None = ...,
        remove: bool = ...,
        idempotency_key: str = ...,
    ) -> None: ...

class SpawnResponse(Message):
    microvm: MicroVM | None
    engine_ms: dict[str, float]
    shim_ms: dict[str, float]
    notices: list[str]
    replayed: bool
    def __init__(
        self,
        *,
        microvm: MicroVM | None = ...,
        engine_ms: dict[str, float] = ...,
        shim_ms: dict[str, float] = ...,
        notices: list[str] = ...,
        replayed: bool = ...,
    ) -> None: ...

class ListRequest(Message):
    state: str
    name: str
    image: str
    provider: str
    page_size: int
    page_token: str
    running: bool
    def __init__(
        self,
        *,
        state: str = ...,
        name: str = ...,
        image: str = ...,
        provider: str = ...,
        page_size: int = ...,
        page_token: str = ...,
        running: bool = ...,
    ) -> None: ...

class ListResponse(Message):
    microvms: list[MicroVM]
    next_page_token: str
    def __init__(
        self,
        *,
        microvms: list[MicroVM] = ...,
        next_page_token: str = ...,
    ) -> None: ...

class InspectResponse(Message):
    document: str
    def __init__(
        self,
        *,
        document: str = ...,
    ) -> None: ...

class StopRequest(Message):
    id: str
    grace_s: float | None
    signal: str
    def __init__(
        self,
        *,
        id: str = ...,
        grace_s: float | None = ...,
        signal: str = ...,
    ) -> None: ...

class KillRequest(Message):
    id: str
    signal: str
    def __init__(
        self,
        *,
        id: str = ...,
        signal: str = ...,
    ) -> None: ...

class DeleteRequest(Message):
    id: str
    force: bool
    def __init__(
        self,
        *,
        id: str = ...,
        force: bool = ...,
    ) -> None: ...

class ExitStatus(Message):
    exit_code: int
    missing_bytes: int
    reason: str
    def __init__(
        self,
        *,
        exit_code: int = ...,
        missing_bytes: int = ...,
        reason: str = ...,
    ) -> None: ...

class CloseStdin(Message):
    def __init__(self) -> None: ...

class Resize(Message):
    rows: int
    columns: int
    def __init__(
        self,
        *,
        rows: int = ...,
        columns: int = ...,
    ) -> None: ...

class ExecStart(Message):
    id: str
    args: list[str]
    env: list[str]
    workdir: str
    user: str
    tty: bool
    stdin: bool
    size: Resize | None
    def __init__(
        self,
        *,
        id: str = ...,
        args: list[str] = ...,
        env: list[str] = ...,
        workdir: str = ...,
        user: str = ...,
        tty: bool = ...,
        stdin: bool = ...,
        size: Resize | None = ...,
    ) -> None: ...

class Signal(Message):
    signal: str
    def __init__(
        self,
        *,
        signal: str = ...,
    ) -> None: ...

class ExecInput(Message):
    start: ExecStart | None
    stdin: bytes | None
    close_stdin: CloseStdin | None
    resize: Resize | None
    signal: Signal | None
    def __init__(
        self,
        *,
        start: ExecStart | None = ...,
        stdin: bytes | None = ...,
        close_stdin: CloseStdin | None = ...,
        resize: Resize | None = ...,
        signal: Signal | None = ...,
    ) -> None: ...

class AttachStart(Message):
    id: str
    stdin: bool
    no_replay: bool
    def __init__(
        self,
        *,
        id: str = ...,
        stdin: bool = ...,
        no_replay: bool = ...,
    ) -> None: ...

class AttachInput(Message):
    start: AttachStart | None
    stdin: bytes | None
    close_stdin: CloseStdin | None
    resize: Resize | None
    signal: Signal | None
    def __init__(
        self,
        *,
        start: AttachStart | None = ...,
        stdin: bytes | None = ...,
        close_stdin: CloseStdin | None = ...,
        resize: Resize | None = ...,
        signal: Signal | None = ...,
    ) -> None: ...

class ProcessStarted(Message):
    tty: bool
    def __init__(
        self,
        *,
        tty: bool = ...,
    ) -> None: ...

class ProcessOutput(Message):
    started: ProcessStarted | None
    stdout: bytes | None
    stderr: bytes | None
    exit: ExitStatus | None
    def __init__(
        self,
        *,
        started: ProcessStarted | None = ...,
        stdout: bytes | None = ...,
        stderr: bytes | None = ...,
        exit: ExitStatus | None = ...,
    ) -> None: ...

class LogsRequest(Message):
    id: str
    follow: bool
    tail: int | None
    source: str
    def __init__(
        self,
        *,
        id: str = ...,
        follow: bool = ...,
        tail: int | None = ...,
        source: str = ...,
    ) -> None: ...

class LogChunk(Message):
    stream: str
    data: bytes
    def __init__(
        self,
        *,
        stream: str = ...,
        data: bytes = ...,
    ) -> None: ...

class EventsRequest(Message):
    id: str
    kinds: list[str]
    def __init__(
        self,
        *,
        id: str = ...,
        kinds: list[str] = ...,
    ) -> None: ...

class Event(Message):
    kind: str
    id: str
    at: float
    exit_code: int | None
    def __init__(
        self,
        *,
        kind: str = ...,
        id: str = ...,
        at: float = ...,
        exit_code: int | None = ...,
    ) -> None: ...

class CopyToStart(Message):
    id: str
    path: str
    def __init__(
        self,
        *,
        id: str = ...,
        path: str = ...,
    ) -> None: ...

class CopyToInput(Message):
    start: CopyToStart | None
    data: bytes | None
    def __init__(
        self,
        *,
        start: CopyToStart | None = ...,
        data: bytes | None = ...,
    ) -> None: ...

class CopyToResponse(Message):
    bytes_read: int
    def __init__(
        self,
        *,
        bytes_read: int = ...,
    ) -> None: ...

class CopyFromRequest(Message):
    id: str
    path: str
    def __init__(
        self,
        *,
        id: str = ...,
        path: str = ...,
    ) -> None: ...

class DataChunk(Message):
    data: bytes
    def __init__(
        self,
        *,
        data: bytes = ...,
    ) -> None: ...

class StatsRequest(Message):
    id: str
    interval_s: float
    def __init__(
        self,
        *,
        id: str = ...,
        interval_s: float = ...,
    ) -> None: ...

class StatsResponse(Message):
    at: float
    cpu_us: int
    memory_bytes: int
    memory_limit_bytes: int
    processes: int
    oom_kills: int
    def __init__(
        self,
        *,
        at: float = ...,
        cpu_us: int = ...,
        memory_bytes: int = ...,
        memory_limit_bytes: int = ...,
        processes: int = ...,
        oom_kills: int = ...,
    ) -> None: ...

class PullImageRequest(Message):
    ref: str
    username: str
    password: str
    plain_http: bool
    def __init__(
        self,
        *,
        ref: str = ...,
        username: str = ...,
        password: str = ...,
        plain_http: bool = ...,
    ) -> None: ...

class Image(Message):
    ref: str
    digest: str
    created_at: float
    def __init__(
        self,
        *,
        ref: str = ...,
        digest: str = ...,
        created_at: float = ...,
    ) -> None: ...

class PullProgress(Message):
    step: str
    name: str
    done_bytes: int
    total_bytes: int
    image: Image | None
    def __init__(
        self,
        *,
        step: str = ...,
        name: str = ...,
        done_bytes: int = ...,
        total_bytes: int = ...,
        image: Image | None = ...,
    ) -> None: ...

class ListImagesRequest(Message):
    def __init__(self) -> None: ...

class ListImagesResponse(Message):
    images: list[Image]
    def __init__(
        self,
        *,
        images: list[Image] = ...,
    ) -> None: ...

class RemoveImageRequest(Message):
    ref: str
    def __init__(
        self,
        *,
        ref: str = ...,
    ) -> None: ...

class ImportImageStart(Message):
    name: str
    def __init__(
        self,
        *,
        name: str = ...,
    ) -> None: ...

class ImportImageInput(Message):
    start: ImportImageStart | None
    data: bytes | None
    def __init__(
        self,
        *,
        start: ImportImageStart | None = ...,
        data: bytes | None = ...,
    ) -> None: ...

class ImportImageResponse(Message):
    refs: list[str]
    def __init__(
        self,
        *,
        refs: list[str] = ...,
    ) -> None: ...

class InfoRequest(Message):
    def __init__(self) -> None: ...

class InfoResponse(Message):
    version: str
    containerd_version: str
    namespace: str
    microvms: int
    running: int
    providers: list[str]
    started_at: float
    def __init__(
        self,
        *,
        version: str = ...,
        containerd_version: str = ...,
        namespace: str = ...,
        microvms: int = ...,
        running: int = ...,
        providers: list[str] = ...,
        started_at: float = ...,
    ) -> None: ...

class CheckRequest(Message):
    def __init__(self) -> None: ...

class CheckStep(Message):
    name: str
    ready: bool
    found: str
    def __init__(
        self,
        *,
        name: str = ...,
        ready: bool = ...,
        found: str = ...,
    ) -> None: ...

class CheckResponse(Message):
    ready: bool
    steps: list[CheckStep]
    def __init__(
        self,
        *,
        ready: bool = ...,
        steps: list[CheckStep] = ...,
    ) -> None: ...

class Hypercore:
    NAME: ClassVar[str]
    METHODS: ClassVar[dict[str, tuple[type[Message], type[Message]]]]
