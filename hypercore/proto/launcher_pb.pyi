# Generated from launcher.proto by scripts/protogen.py; do not edit.
from typing import ClassVar

from hypercore.proto import types_pb
from hypercore.wire.codec import Message

class RegisterRequest(Message):
    id: str
    def __init__(
        self,
        *,
        id: str = ...,
    ) -> None: ...

class Launcher:
    NAME: ClassVar[str]
    METHODS: ClassVar[dict[str, tuple[type[Message], type[Message]]]]
