# Generated from containerd_diff.proto by scripts/protogen.py; do not edit.
from typing import ClassVar

from hypercore.proto import containerd_types_pb, types_pb
from hypercore.wire.codec import Message

class ApplyRequest(Message):
    diff: containerd_types_pb.Descriptor | None
    mounts: list[types_pb.Mount]
    payloads: dict[str, types_pb.Any]
    def __init__(
        self,
        *,
        diff: containerd_types_pb.Descriptor | None = ...,
        mounts: list[types_pb.Mount] = ...,
        payloads: dict[str, types_pb.Any] = ...,
    ) -> None: ...

class ApplyResponse(Message):
    applied: containerd_types_pb.Descriptor | None
    def __init__(
        self,
        *,
        applied: containerd_types_pb.Descriptor | None = ...,
    ) -> None: ...

class Diff:
    NAME: ClassVar[str]
    METHODS: ClassVar[dict[str, tuple[type[Message], type[Message]]]]
