# Generated from containerd_version.proto by scripts/protogen.py; do not edit.
from typing import ClassVar

from hypercore.proto import types_pb
from hypercore.wire.codec import Message

class VersionResponse(Message):
    version: str
    revision: str
    def __init__(
        self,
        *,
        version: str = ...,
        revision: str = ...,
    ) -> None: ...

class Version:
    NAME: ClassVar[str]
    METHODS: ClassVar[dict[str, tuple[type[Message], type[Message]]]]
