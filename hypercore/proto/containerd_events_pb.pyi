# Generated from containerd_events.proto by scripts/protogen.py; do not edit.
from typing import ClassVar

from hypercore.proto import containerd_types_pb
from hypercore.wire.codec import Message

class SubscribeRequest(Message):
    filters: list[str]
    def __init__(
        self,
        *,
        filters: list[str] = ...,
    ) -> None: ...

class Events:
    NAME: ClassVar[str]
    METHODS: ClassVar[dict[str, tuple[type[Message], type[Message]]]]
