"""gRPC: our service, health and reflection, over grpc.aio and our own codec.

Deadlines and cancellation are grpc.aio's: it cancels the coroutine that works for a call, and all
below it undo what they have done.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import grpc.aio

from hypercore.api import METHODS, SERVICE, Method, Shape
from hypercore.errors import HypercoreError, InvalidArgument, TaskError, kind_of
from hypercore.proto.error_details_pb import (
    BadRequest,
    BadRequest_FieldViolation,
    ErrorInfo,
)
from hypercore.proto.types_pb import Any as AnyMessage
from hypercore.proto.types_pb import Status
from hypercore.serve import reflection
from hypercore.serve.callers import LOCAL, Caller
from hypercore.serve.calls import Calls
from hypercore.serve.listeners import Tls
from hypercore.wire.codec import DecodeError, Message

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 4 << 20
MAX_STREAMS = 4096
FIRST_MESSAGE_S = 2.0
DETAIL_LIMIT_BYTES = 4096
"""of an error, for it travels in trailers; a header block may have 8 KiB altogether"""

OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", 32 << 20),  # a page of 1,000 microVMs
    ("grpc.max_concurrent_streams", MAX_STREAMS),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.handshake_timeout_ms", 10_000),
]

_OPEN = (("hypercore-open", "1"),)
"""Metadata that tells a stream that is open from one that was refused"""

Context: TypeAlias = Any
"""grpc.aio.ServicerContext, which has no types"""
Identify = Callable[[Context], Awaitable[Caller]]
"""Finds out who calls. Raises Unauthenticated."""


async def identify_local(context: Context) -> Caller:
    """For a server that listens on unix sockets alone."""
    return LOCAL


def server(calls: Calls, identify: Identify) -> grpc.aio.Server:
    """A server without ports."""
    made = grpc.aio.server(options=OPTIONS)
    handlers = {f"/{SERVICE}/{m.name}": _handler(calls, identify, m) for m in METHODS.values()}
    handlers |= reflection.handlers(lambda: not calls.draining and calls.service.watch.is_synced)
    made.add_generic_rpc_handlers((_Handlers(handlers),))
    return made


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, handlers: Mapping[str, grpc.RpcMethodHandler]) -> None:
        self._handlers = handlers

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return self._handlers.get(details.method)


def _handler(calls: Calls, identify: Identify, method: Method) -> grpc.RpcMethodHandler:
    streams_in = method.shape in (Shape.SOCKET, Shape.UPLOAD)
    streams_out = method.shape not in (Shape.UNARY, Shape.UPLOAD)

    def request_of(data: Any) -> Any:
        return _messages(method.request, data) if streams_in else _decode(method.request, data)

    async def admitted(data: Any, context: Context) -> Caller:
        try:
            caller = await identify(context)
            caller.require(method)
        except HypercoreError:
            if streams_in:
                await _let_write(data)
            raise
        return caller

    async def unary(data: Any, context: Context) -> bytes:
        try:
            caller = await admitted(data, context)
            answer = await calls.unary(method, request_of(data), caller, "grpc")
            return answer.encode()
        except HypercoreError as exc:
            await abort(context, exc)
            raise

    async def stream(data: Any, context: Context) -> AsyncIterator[bytes]:
        try:
            caller = await admitted(data, context)
            async with calls.stream(method, request_of(data), caller, "grpc") as answers:
                await context.send_initial_metadata(_OPEN)
                async for answer in answers:
                    yield answer.encode()
        except HypercoreError as exc:
            await abort(context, exc)

    if streams_out:
        kind = grpc.stream_stream_rpc_method_handler if streams_in else None
        return (kind or grpc.unary_stream_rpc_method_handler)(stream)
    kind = grpc.stream_unary_rpc_method_handler if streams_in else None
    return (kind or grpc.unary_unary_rpc_method_handler)(unary)


async def _let_write(data: AsyncIterator[bytes]) -> None:
    """Wait for a stream's first message before it is refused.

    A client that is writing it when the refusal comes may tell its user of an internal error
    instead: grpc's own library for Python does.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(FIRST_MESSAGE_S):
            async for _message in data:
                return


def _decode(cls: type[Message], data: bytes) -> Message:
    try:
        return cls.decode(data)
    except DecodeError as exc:
        raise InvalidArgument(f"the request is no valid {cls.__name__}: {exc}") from exc


async def _messages(cls: type[Message], data: AsyncIterator[bytes]) -> AsyncIterator[Message]:
    async for item in data:
        yield _decode(cls, item)


async def abort(context: Context, exc: HypercoreError) -> None:
    """End the call with the error's code, and its details in google.rpc's form."""
    codes: Sequence[grpc.StatusCode] = list(grpc.StatusCode)
    code = next((c for c in codes if c.value[0] == exc.grpc_code), grpc.StatusCode.UNKNOWN)
    status = Status(code=code.value[0], message=exc.message, details=_details(exc))
    trailers = (("grpc-status-details-bin", status.encode()),)
    await context.abort(code, exc.message, trailing_metadata=trailers)


def _details(exc: HypercoreError) -> list[AnyMessage]:
    metadata = {"hint": exc.hint, "field": exc.field, "detail": exc.detail[-DETAIL_LIMIT_BYTES:]}
    if isinstance(exc, TaskError):
        metadata["exit_code"] = str(exc.exit_code)
    info = ErrorInfo(
        reason=kind_of(exc),
        domain="hypercore",
        metadata={key: value for key, value in metadata.items() if value},
    )
    details: list[Message] = [info]
    if exc.field:
        violation = BadRequest_FieldViolation(field=exc.field, description=exc.message)
        details.append(BadRequest(field_violations=[violation]))
    return [
        AnyMessage(
            type_url=f"type.googleapis.com/google.rpc.{type(detail).__name__}",
            value=detail.encode(),
        )
        for detail in details
    ]


def bearer(context: Context) -> str:
    """The token in the call's metadata; "" when there is none."""
    for key, value in context.invocation_metadata() or ():
        if key == "authorization":
            text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
            scheme, _, token = text.partition(" ")
            return token.strip() if scheme.lower() == "bearer" else ""
    return ""


def credentials(tls: Tls) -> grpc.ServerCredentials:
    """A server's TLS; its files are read again for each connection if they have changed."""
    last: list[tuple[float, ...]] = []

    def files() -> list[Path]:
        return [path for path in (tls.key, tls.certificate, tls.client_ca) if path is not None]

    def configuration() -> grpc.ServerCertificateConfiguration | None:
        try:
            stamp = tuple(path.stat().st_mtime for path in files())
            if last == [stamp]:
                return None
            key, certificate, *ca = (path.read_bytes() for path in files())
        except OSError as exc:
            log.error("certificates: %s", exc)
            return None
        last[:] = [stamp]
        return grpc.ssl_server_certificate_configuration([(key, certificate)], *ca)

    first = configuration()
    if first is None:
        raise InvalidArgument(f"the certificates {tls.certificate}, {tls.key} are not readable")
    return grpc.dynamic_ssl_server_credentials(
        first, configuration, require_client_authentication=tls.client_ca is not None
    )


def certificate_names(context: Context) -> Sequence[str]:
    """The names in the client's certificate, which TLS has verified; none without one."""
    found = context.auth_context() or {}
    names = [*found.get("x509_common_name", ()), *found.get("x509_subject_alternative_name", ())]
    return [name.decode(errors="replace") for name in names]
