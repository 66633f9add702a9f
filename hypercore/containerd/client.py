"""A connection to containerd: gRPC over its unix socket, in one namespace.

Knows calls, streams, headers and how containerd's errors become ours; what the services mean is
their modules' business (images.py, snapshots.py, tasks.py …). Importing it loads grpc, 100 ms:
import it where it is used.
"""

import asyncio
import os
import socket as sockets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import grpc
import grpc.aio

from hypercore import paths
from hypercore.errors import (
    DeadlineExceeded,
    HypercoreError,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
    from_grpc_code,
)
from hypercore.wire.codec import Message

CALL_TIMEOUT_S = 60.0
"""For calls that only touch metadata: milliseconds, but they queue behind a snapshot's copy."""

EXCHANGE_TIMEOUT_S = 300.0
"""For one message of a stream; the last one of a large blob is answered after its fsync."""

START_HINT = "start it with `hypercore containerd start`"

_waited_s: ContextVar[list[float] | None] = ContextVar("waited_s", default=None)

M = TypeVar("M", bound=Message)
_OPTIONS = [
    ("grpc.default_authority", "localhost"),  # grpc derives an invalid one from a socket path
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 32 << 20),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_reconnect_backoff_ms", 1000),  # else minutes, and containerd restarts in seconds
]


class Service(Protocol):
    """A service class of a generated module."""

    NAME: ClassVar[str]


@contextmanager
def waits() -> Iterator[list[float]]:
    """Collects how many seconds each unary call took that is made within, by this task."""
    seen: list[float] = []
    token = _waited_s.set(seen)
    try:
        yield seen
    finally:
        _waited_s.reset(token)


class Client:
    """An open connection; use as an async context manager, in one event loop.

    Args:
        socket: containerd's socket; None: paths.containerd_socket().
        namespace: containerd namespace of all calls.
    """

    def __init__(
        self,
        socket: Path | None = None,
        namespace: str = paths.OWN_NAMESPACE,
        *,
        lease_id: str = "",
    ) -> None:
        self.socket = (socket or paths.containerd_socket()).absolute()
        self.namespace = namespace
        self.lease_id = lease_id
        self._channel: grpc.aio.Channel | None = None
        if len(os.fsencode(self.socket)) > paths.MAX_SOCKET_PATH:
            raise InvalidArgument(
                f"the socket path {self.socket} is longer than {paths.MAX_SOCKET_PATH} bytes",
                hint="choose a shorter HYPERCORE_RUN_DIR",
            )

    async def __aenter__(self) -> Self:
        self._channel = grpc.aio.insecure_channel(f"unix://{self.socket}", options=_OPTIONS)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    def leased(self, lease_id: str) -> "Client":
        """The same connection, with all that is made through it held by the lease."""
        view = Client(self.socket, self.namespace, lease_id=lease_id)
        view._channel = self._open_channel()
        return view

    async def unary(
        self,
        service: type[Service],
        method: str,
        request: Message,
        reply: type[M],
        *,
        timeout_s: float | None = CALL_TIMEOUT_S,
    ) -> M:
        """Call `method` and return its reply.

        Raises:
            HypercoreError: containerd's error, by its gRPC code.
            Unavailable: no containerd serves the socket.
            DeadlineExceeded: no reply within `timeout_s` (None: wait for ever).
        """
        call = self._open_channel().unary_unary(
            f"/{service.NAME}/{method}",
            request_serializer=_encode,
            response_deserializer=reply.decode,
        )
        begun = time.monotonic()
        try:
            answer: M = await call(request, timeout=timeout_s, metadata=self._metadata())
        except grpc.aio.AioRpcError as exc:
            raise self._error(exc, service, method, timeout_s) from exc
        finally:
            if (waited_s := _waited_s.get()) is not None:
                waited_s.append(time.monotonic() - begun)
        return answer

    async def stream(
        self,
        service: type[Service],
        method: str,
        request: Message,
        reply: type[M],
        *,
        timeout_s: float | None = CALL_TIMEOUT_S,
    ) -> AsyncGenerator[M, None]:
        """Call a method that answers with a stream; errors as in `unary`."""
        call = self._open_channel().unary_stream(
            f"/{service.NAME}/{method}",
            request_serializer=_encode,
            response_deserializer=reply.decode,
        )(request, timeout=timeout_s, metadata=self._metadata())
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as exc:
            raise self._error(exc, service, method, timeout_s) from exc
        finally:
            call.cancel()

    @asynccontextmanager
    async def duplex(
        self, service: type[Service], method: str, reply: type[M]
    ) -> AsyncIterator["Duplex[M]"]:
        """Call a method with a stream both ways; cancelled when the block is left."""
        call = self._open_channel().stream_stream(
            f"/{service.NAME}/{method}",
            request_serializer=_encode,
            response_deserializer=reply.decode,
        )(metadata=self._metadata())
        try:
            yield Duplex(call)
        except grpc.aio.AioRpcError as exc:
            raise self._error(exc, service, method, None) from exc
        finally:
            call.cancel()

    def _open_channel(self) -> grpc.aio.Channel:
        if self._channel is None:
            raise RuntimeError("the client is not open: use `async with Client(...)`")
        return self._channel

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        metadata = (("containerd-namespace", self.namespace),)
        return (*metadata, ("containerd-lease", self.lease_id)) if self.lease_id else metadata

    def _error(
        self,
        exc: grpc.aio.AioRpcError,
        service: type[Service],
        method: str,
        timeout_s: float | None,
    ) -> HypercoreError:
        text = exc.details() or exc.code().name
        if exc.code() is grpc.StatusCode.UNAVAILABLE:
            return self._unreachable() or Unavailable(f"containerd: {text}")
        # containerd 1.7 answers Unknown when its own copy of our deadline passes before ours.
        late = text.startswith("context deadline exceeded")
        if late or exc.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            name = service.NAME.rpartition(".")[2]
            return DeadlineExceeded(
                f"containerd did not answer {name}.{method} within {timeout_s:g} s"
                if timeout_s is not None
                else f"containerd: {name}.{method}: {text}",
                hint="`hypercore containerd status` shows its log",
            )
        if "ttrpc: closed" in text:
            return Unavailable(
                "containerd: the task's shim server has ended", hint="`hypercore cleanup` reclaims"
            )
        if "no space left on device" in text:
            return ResourceExhausted(f"containerd: {text}", hint="free some disk space")
        return from_grpc_code(exc.code().value[0], f"containerd: {text}")

    def _unreachable(self) -> HypercoreError | None:
        """Why the socket cannot be connected to; None when it can."""
        with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(str(self.socket))
            except PermissionError:
                return PermissionDenied(f"no access to {self.socket}", hint="run as root")
            except BlockingIOError:
                return None
            except OSError:
                return Unavailable(f"containerd is not running at {self.socket}", hint=START_HINT)
        return None


class Duplex(Generic[M]):
    """Both directions of an open stream."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def exchange(self, request: Message) -> M | None:
        """Send `request` and return the next reply; None when the other side has ended."""
        try:
            async with asyncio.timeout(EXCHANGE_TIMEOUT_S):
                await self._call.write(request)
                reply = await self._call.read()
        except TimeoutError as exc:
            raise DeadlineExceeded(
                f"containerd did not answer within {EXCHANGE_TIMEOUT_S:g} s"
            ) from exc
        return None if reply is grpc.aio.EOF else reply


def _encode(message: Message) -> bytes:
    return message.encode()
