"""gRPC's standard services: health and reflection, from api_descriptors.json."""

import base64
import json
from collections.abc import AsyncIterator, Callable, Mapping
from functools import cache
from importlib import resources
from typing import Any

import grpc
import grpc.aio

from hypercore.api import SERVICE
from hypercore.proto.health_pb import (
    Health,
    HealthCheckRequest,
    HealthCheckResponse,
    HealthCheckResponse_ServingStatus,
)
from hypercore.proto.reflection_pb import (
    ErrorResponse,
    FileDescriptorResponse,
    ListServiceResponse,
    ServerReflectionRequest,
    ServerReflectionResponse,
    ServiceResponse,
)
from hypercore.wire.codec import DecodeError

WATCH_EACH_S = 1.0
NOT_FOUND = 5
_VERSIONS = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
_SERVED = ("", SERVICE, Health.NAME, *_VERSIONS)


@cache
def descriptors() -> dict[str, Any]:
    """What scripts/protogen.py wrote of the served files."""
    text = resources.files("hypercore.proto").joinpath("api_descriptors.json").read_text()
    found: dict[str, Any] = json.loads(text)
    return found


def handlers(is_serving: Callable[[], bool]) -> Mapping[str, grpc.RpcMethodHandler]:
    """Handlers by full name of the method."""

    async def check(data: bytes, context: grpc.aio.ServicerContext) -> bytes:
        request = await _decoded(HealthCheckRequest, data, context)
        if request.service not in _SERVED:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service here")
        return HealthCheckResponse(status=_status(request.service, is_serving)).encode()

    async def watch(data: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        import asyncio

        request = await _decoded(HealthCheckRequest, data, context)
        last = -1
        while True:
            if (status := _status(request.service, is_serving)) != last:
                last = status
                yield HealthCheckResponse(status=status).encode()
            await asyncio.sleep(WATCH_EACH_S)

    async def reflect(
        data: AsyncIterator[bytes], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[bytes]:
        async for item in data:
            request = await _decoded(ServerReflectionRequest, item, context)
            yield answer(request).encode()

    found = {
        f"/{Health.NAME}/Check": grpc.unary_unary_rpc_method_handler(check),
        f"/{Health.NAME}/Watch": grpc.unary_stream_rpc_method_handler(watch),
    }
    for name in _VERSIONS:
        handler = grpc.stream_stream_rpc_method_handler(reflect)
        found[f"/{name}/ServerReflectionInfo"] = handler
    return found


async def _decoded(cls: type[Any], data: bytes, context: grpc.aio.ServicerContext) -> Any:
    try:
        return cls.decode(data)
    except DecodeError as exc:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(exc))
        raise


def _status(service: str, is_serving: Callable[[], bool]) -> int:
    status = HealthCheckResponse_ServingStatus
    if service not in _SERVED:
        return status.SERVICE_UNKNOWN
    if service in ("", SERVICE) and not is_serving():
        return status.NOT_SERVING
    return status.SERVING


def answer(request: ServerReflectionRequest) -> ServerReflectionResponse:
    reply = ServerReflectionResponse(valid_host=request.host, original_request=request)
    files = descriptors()
    if request.list_services is not None:
        names = sorted(name for name in _SERVED if name)
        reply.list_services_response = ListServiceResponse(
            service=[ServiceResponse(name=name) for name in names]
        )
        return reply
    file = None
    if request.file_by_filename is not None:
        file = files.get(request.file_by_filename)
    elif (symbol := request.file_containing_symbol) is not None:
        # v1alpha's messages are v1's; nothing but the service's name differs.
        symbol = symbol.replace("grpc.reflection.v1alpha.", "grpc.reflection.v1.")
        file = next((f for f in files.values() if _has(f, symbol)), None)
    if file is None:
        reply.error_response = ErrorResponse(error_code=NOT_FOUND, error_message="not found")
        return reply
    data = base64.b64decode(file["descriptor"])
    reply.file_descriptor_response = FileDescriptorResponse(file_descriptor_proto=[data])
    return reply


def _has(file: Mapping[str, Any], symbol: str) -> bool:
    names = file["symbols"]
    if symbol in names:
        return True
    parent, _, member = symbol.rpartition(".")
    return parent in names and (parent not in file["services"] or member in file["methods"])
