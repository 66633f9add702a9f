# Generated from health.proto by scripts/protogen.py; do not edit.
from typing import ClassVar

from hypercore.wire.codec import Message

class HealthCheckRequest(Message):
    service: str
    def __init__(
        self,
        *,
        service: str = ...,
    ) -> None: ...

class HealthCheckResponse_ServingStatus:
    UNKNOWN: ClassVar[int]
    SERVING: ClassVar[int]
    NOT_SERVING: ClassVar[int]
    SERVICE_UNKNOWN: ClassVar[int]

class HealthCheckResponse(Message):
    status: int
    def __init__(
        self,
        *,
        status: int = ...,
    ) -> None: ...

class Health:
    NAME: ClassVar[str]
    METHODS: ClassVar[dict[str, tuple[type[Message], type[Message]]]]
