"""The transport over gRPC, by grpc.aio and our own codec. Importing it loads grpc, 100 ms."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from hypercore.api import SERVICE, Method
from hypercore.client.address import Address
from hypercore.client.transport import broken, silent
from hypercore.errors import HypercoreError, from_grpc_code, from_kind
from hypercore.proto.error_details_pb import ErrorInfo
from hypercore.proto.types_pb import Status
from hypercore.wire.codec import DecodeError, Message

_OPTIONS = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.enable_retries", 0),  # they would hide whether a call was sent
]


class Grpc:
    """A transport.Transport."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._channel: Any = None

    async def open(self) -> None:
        address = self._address
        if address.path is not None:
            options = [*_OPTIONS, ("grpc.default_authority", "localhost")]
            self._channel = grpc.aio.insecure_channel(f"unix:{address.path}", options=options)
        elif address.secure:
            credentials = grpc.ssl_channel_credentials(
                _file(address.ca), _file(address.key), _file(address.certificate)
            )
            self._channel = grpc.aio.secure_channel(
                address.host_port, credentials, options=_OPTIONS
            )
        else:
            self._channel = grpc.aio.insecure_channel(address.host_port, options=_OPTIONS)

    async def close(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    def _method(self, kind: str, method: Method) -> Callable[..., Any]:
        if self._channel is None:
            raise RuntimeError("the client is not open: use `with Client(…)`")
        made: Callable[..., Any] = getattr(self._channel, kind)(
            f"/{SERVICE}/{method.name}",
            request_serializer=_encode,
            response_deserializer=method.response.decode,
        )
        return made

    @property
    def _metadata(self) -> tuple[tuple[str, str], ...]:
        token = self._address.token
        return (("authorization", f"Bearer {token}"),) if token else ()

    async def unary(self, method: Method, request: Any, timeout_s: float | None) -> Any:
        call = self._method("unary_unary", method)
        try:
            return await call(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as exc:
            raise error_of(exc, method, timeout_s) from exc

    @asynccontextmanager
    async def stream(
        self, method: Method, request: Any, timeout_s: float | None
    ) -> AsyncIterator[AsyncIterator[Any]]:
        call = self._method("unary_stream", method)(
            request, timeout=timeout_s, metadata=self._metadata
        )
        try:
            # Sent once the stream is open; a refusal has none, and reading raises it.
            if not await call.initial_metadata():
                await call.read()
            yield _translated(call, method, timeout_s)
        except grpc.aio.AioRpcError as exc:
            raise error_of(exc, method, timeout_s) from exc
        finally:
            call.cancel()

    async def upload(
        self, method: Method, start: Any, data: AsyncIterator[bytes], timeout_s: float | None
    ) -> Any:
        async def messages() -> AsyncIterator[Any]:
            yield method.request(start=start)
            async for piece in data:
                yield method.request(data=piece)

        call = self._method("stream_unary", method)
        try:
            return await call(messages(), timeout=timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as exc:
            raise error_of(exc, method, timeout_s) from exc

    @asynccontextmanager
    async def duplex(self, method: Method, start: Any) -> AsyncIterator["_Duplex"]:
        call = self._method("stream_stream", method)(metadata=self._metadata)
        try:
            opened = _Duplex(call, method)
            await opened.send(method.request(start=start))
            yield opened
        finally:
            call.cancel()


class _Duplex:
    """A transport.Duplex."""

    def __init__(self, call: Any, method: Method) -> None:
        self._call = call
        self._method = method

    async def send(self, message: Any) -> None:
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # `answers` tells why
            await self._call.write(message)

    async def done_sending(self) -> None:
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self._call.done_writing()

    def answers(self) -> AsyncIterator[Any]:
        return _translated(self._call, self._method, None)


async def _translated(call: Any, method: Method, timeout_s: float | None) -> AsyncIterator[Any]:
    try:
        while (answer := await call.read()) is not grpc.aio.EOF:
            yield answer
    except grpc.aio.AioRpcError as exc:
        raise error_of(exc, method, timeout_s) from exc


def _encode(message: Message) -> bytes:
    return message.encode()


def _file(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()


def error_of(exc: Any, method: Method, timeout_s: float | None) -> HypercoreError:
    """Our error for gRPC's, with what the service said in its details."""
    code: int = exc.code().value[0]
    for key, value in exc.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and (found := _detailed(value)) is not None:
            return found
    text = exc.details() or exc.code().name
    if exc.code() is grpc.StatusCode.UNAVAILABLE:
        return broken(method, "failed to connect" not in text, text)
    if exc.code() is grpc.StatusCode.DEADLINE_EXCEEDED and timeout_s is not None:
        return silent(method, timeout_s)
    return from_grpc_code(code, text)


def _detailed(data: bytes) -> HypercoreError | None:
    try:
        status = Status.decode(data)
        for detail in status.details:
            if detail.type_url.endswith("/google.rpc.ErrorInfo"):
                info = ErrorInfo.decode(detail.value)
                said = info.metadata
                return from_kind(
                    info.reason,
                    status.message,
                    hint=said.get("hint", ""),
                    detail=said.get("detail", ""),
                    field=said.get("field", ""),
                    exit_code=int(said.get("exit_code", "0")),
                )
    except (DecodeError, ValueError):
        return None
    return None
