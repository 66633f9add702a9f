"""Generated from health.proto by scripts/protogen.py; do not edit."""

from hypercore.wire.codec import (
    BOOL,
    BYTES,
    DOUBLE,
    INT,
    MAP,
    MESSAGE,
    OPTIONAL,
    REPEATED,
    SINGULAR,
    STRING,
    UINT,
    Field,
    Message,
)


class HealthCheckRequest(Message):
    __slots__ = (
        "service",
    )
    FIELDS = (
        Field(1, "service", STRING),
    )


class HealthCheckResponse_ServingStatus:
    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


class HealthCheckResponse(Message):
    __slots__ = (
        "status",
    )
    FIELDS = (
        Field(1, "status", UINT),
    )


class Health:
    NAME = "grpc.health.v1.Health"
    METHODS = {
        "Check": (HealthCheckRequest, HealthCheckResponse),
        "Watch": (HealthCheckRequest, HealthCheckResponse),
    }
