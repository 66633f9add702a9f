# Generated from error_details.proto by scripts/protogen.py; do not edit.
from typing import ClassVar

from hypercore.wire.codec import Message

class ErrorInfo(Message):
    reason: str
    domain: str
    metadata: dict[str, str]
    def __init__(
        self,
        *,
        reason: str = ...,
        domain: str = ...,
        metadata: dict[str, str] = ...,
    ) -> None: ...

class BadRequest_FieldViolation(Message):
    field: str
    description: str
    def __init__(
        self,
        *,
        field: str = ...,
        description: str = ...,
    ) -> None: ...

class BadRequest(Message):
    field_violations: list[BadRequest_FieldViolation]
    def __init__(
        self,
        *,
        field_violations: list[BadRequest_FieldViolation] = ...,
    ) -> None: ...
