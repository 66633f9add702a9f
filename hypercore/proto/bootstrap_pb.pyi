# Generated from bootstrap.proto by scripts/protogen.py; do not edit.
from typing import ClassVar

from hypercore.proto import types_pb
from hypercore.wire.codec import Message

class Extension(Message):
    value: types_pb.Any | None
    def __init__(
        self,
        *,
        value: types_pb.Any | None = ...,
    ) -> None: ...

class BootstrapParams(Message):
    instance_id: str
    namespace: str
    log_level: int
    containerd_version: str
    ttrpc_address: str
    grpc_address: str
    containerd_binary: str
    extensions: list[Extension]
    socket_dir: str
    def __init__(
        self,
        *,
        instance_id: str = ...,
        namespace: str = ...,
        log_level: int = ...,
        containerd_version: str = ...,
        ttrpc_address: str = ...,
        grpc_address: str = ...,
        containerd_binary: str = ...,
        extensions: list[Extension] = ...,
        socket_dir: str = ...,
    ) -> None: ...

class BootstrapResult(Message):
    version: int
    address: str
    protocol: str
    def __init__(
        self,
        *,
        version: int = ...,
        address: str = ...,
        protocol: str = ...,
    ) -> None: ...

class RuntimeVersion(Message):
    version: str
    revision: str
    def __init__(
        self,
        *,
        version: str = ...,
        revision: str = ...,
    ) -> None: ...

class RuntimeInfo(Message):
    name: str
    version: RuntimeVersion | None
    options: types_pb.Any | None
    features: types_pb.Any | None
    annotations: dict[str, str]
    def __init__(
        self,
        *,
        name: str = ...,
        version: RuntimeVersion | None = ...,
        options: types_pb.Any | None = ...,
        features: types_pb.Any | None = ...,
        annotations: dict[str, str] = ...,
    ) -> None: ...
