# Generated from containerd_events.proto by scripts/protogen.py; do not edit.
from typing import ClassVar

from hypercore.proto import containerd_types_pb, types_pb
from hypercore.wire.codec import Message

class SubscribeRequest(Message):
    filters: list[str]
    def __init__(
        self,
        *,
        filters: list[str] = ...,
    ) -> None: ...

class PublishRequest(Message):
    topic: str
    event: types_pb.Any | None
    def __init__(
        self,
        *,
        topic: str = ...,
        event: types_pb.Any | None = ...,
    ) -> None: ...

class Events:
    NAME: ClassVar[str]
    METHODS: ClassVar[dict[str, tuple[type[Message], type[Message]]]]
