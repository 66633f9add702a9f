# Generated from types.proto by scripts/protogen.py; do not edit.
from typing import ClassVar

from hypercore.wire.codec import Message

class Empty(Message):
    def __init__(self) -> None: ...

class Any(Message):
    type_url: str
    value: bytes
    def __init__(
        self,
        *,
        type_url: str = ...,
        value: bytes = ...,
    ) -> None: ...

class Timestamp(Message):
    seconds: int
    nanos: int
    def __init__(
        self,
        *,
        seconds: int = ...,
        nanos: int = ...,
    ) -> None: ...

class Mount(Message):
    type: str
    source: str
    target: str
    options: list[str]
    def __init__(
        self,
        *,
        type: str = ...,
        source: str = ...,
        target: str = ...,
        options: list[str] = ...,
    ) -> None: ...

class Status(Message):
    code: int
    message: str
    details: list[Any]
    def __init__(
        self,
        *,
        code: int = ...,
        message: str = ...,
        details: list[Any] = ...,
    ) -> None: ...
