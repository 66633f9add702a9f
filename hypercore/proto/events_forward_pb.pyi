# Generated from events_forward.proto by scripts/protogen.py; do not edit.
from typing import ClassVar

from hypercore.proto import containerd_types_pb, types_pb
from hypercore.wire.codec import Message

class ForwardRequest(Message):
    envelope: containerd_types_pb.Envelope | None
    def __init__(
        self,
        *,
        envelope: containerd_types_pb.Envelope | None = ...,
    ) -> None: ...

class Events:
    NAME: ClassVar[str]
    METHODS: ClassVar[dict[str, tuple[type[Message], type[Message]]]]
