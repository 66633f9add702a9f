# Generated from containerd_introspection.proto by scripts/protogen.py; do not edit.
from typing import ClassVar

from hypercore.proto import containerd_types_pb, types_pb
from hypercore.wire.codec import Message

class Plugin(Message):
    type: str
    id: str
    requires: list[str]
    platforms: list[containerd_types_pb.Platform]
    exports: dict[str, str]
    capabilities: list[str]
    init_err: types_pb.Status | None
    def __init__(
        self,
        *,
        type: str = ...,
        id: str = ...,
        requires: list[str] = ...,
        platforms: list[containerd_types_pb.Platform] = ...,
        exports: dict[str, str] = ...,
        capabilities: list[str] = ...,
        init_err: types_pb.Status | None = ...,
    ) -> None: ...

class PluginsRequest(Message):
    filters: list[str]
    def __init__(
        self,
        *,
        filters: list[str] = ...,
    ) -> None: ...

class PluginsResponse(Message):
    plugins: list[Plugin]
    def __init__(
        self,
        *,
        plugins: list[Plugin] = ...,
    ) -> None: ...

class ServerResponse(Message):
    uuid: str
    pid: int
    pidns: int
    def __init__(
        self,
        *,
        uuid: str = ...,
        pid: int = ...,
        pidns: int = ...,
    ) -> None: ...

class Introspection:
    NAME: ClassVar[str]
    METHODS: ClassVar[dict[str, tuple[type[Message], type[Message]]]]
