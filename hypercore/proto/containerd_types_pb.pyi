# Generated from containerd_types.proto by scripts/protogen.py; do not edit.
from typing import ClassVar

from hypercore.proto import types_pb
from hypercore.wire.codec import Message

class TaskStatus:
    UNKNOWN: ClassVar[int]
    CREATED: ClassVar[int]
    RUNNING: ClassVar[int]
    STOPPED: ClassVar[int]
    PAUSED: ClassVar[int]
    PAUSING: ClassVar[int]

class Descriptor(Message):
    media_type: str
    digest: str
    size: int
    annotations: dict[str, str]
    def __init__(
        self,
        *,
        media_type: str = ...,
        digest: str = ...,
        size: int = ...,
        annotations: dict[str, str] = ...,
    ) -> None: ...

class Platform(Message):
    os: str
    architecture: str
    variant: str
    os_version: str
    def __init__(
        self,
        *,
        os: str = ...,
        architecture: str = ...,
        variant: str = ...,
        os_version: str = ...,
    ) -> None: ...

class FieldMask(Message):
    paths: list[str]
    def __init__(
        self,
        *,
        paths: list[str] = ...,
    ) -> None: ...

class Process(Message):
    container_id: str
    id: str
    pid: int
    status: int
    stdin: str
    stdout: str
    stderr: str
    terminal: bool
    exit_status: int
    exited_at: types_pb.Timestamp | None
    def __init__(
        self,
        *,
        container_id: str = ...,
        id: str = ...,
        pid: int = ...,
        status: int = ...,
        stdin: str = ...,
        stdout: str = ...,
        stderr: str = ...,
        terminal: bool = ...,
        exit_status: int = ...,
        exited_at: types_pb.Timestamp | None = ...,
    ) -> None: ...

class ProcessInfo(Message):
    pid: int
    info: types_pb.Any | None
    def __init__(
        self,
        *,
        pid: int = ...,
        info: types_pb.Any | None = ...,
    ) -> None: ...

class Metric(Message):
    timestamp: types_pb.Timestamp | None
    id: str
    data: types_pb.Any | None
    def __init__(
        self,
        *,
        timestamp: types_pb.Timestamp | None = ...,
        id: str = ...,
        data: types_pb.Any | None = ...,
    ) -> None: ...

class Envelope(Message):
    timestamp: types_pb.Timestamp | None
    namespace: str
    topic: str
    event: types_pb.Any | None
    def __init__(
        self,
        *,
        timestamp: types_pb.Timestamp | None = ...,
        namespace: str = ...,
        topic: str = ...,
        event: types_pb.Any | None = ...,
    ) -> None: ...
