# Generated from transfer.proto by scripts/protogen.py; do not edit.
from typing import ClassVar

from hypercore.proto import types_pb
from hypercore.wire.codec import Message

class TransferOptions(Message):
    progress_stream: str
    def __init__(
        self,
        *,
        progress_stream: str = ...,
    ) -> None: ...

class TransferRequest(Message):
    source: types_pb.Any | None
    destination: types_pb.Any | None
    options: TransferOptions | None
    def __init__(
        self,
        *,
        source: types_pb.Any | None = ...,
        destination: types_pb.Any | None = ...,
        options: TransferOptions | None = ...,
    ) -> None: ...

class StreamInit(Message):
    id: str
    def __init__(
        self,
        *,
        id: str = ...,
    ) -> None: ...

class Data(Message):
    data: bytes
    def __init__(
        self,
        *,
        data: bytes = ...,
    ) -> None: ...

class WindowUpdate(Message):
    update: int
    def __init__(
        self,
        *,
        update: int = ...,
    ) -> None: ...

class ByteStream(Message):
    stream: str
    media_type: str
    def __init__(
        self,
        *,
        stream: str = ...,
        media_type: str = ...,
    ) -> None: ...

class ContainerPath(Message):
    container_id: str
    path: str
    no_walk: bool
    preserve_ownership: bool
    def __init__(
        self,
        *,
        container_id: str = ...,
        path: str = ...,
        no_walk: bool = ...,
        preserve_ownership: bool = ...,
    ) -> None: ...

class Transfer:
    NAME: ClassVar[str]
    METHODS: ClassVar[dict[str, tuple[type[Message], type[Message]]]]
