"""The transport over HTTP/1.1: asyncio's streams for calls, websockets for exec and attach.

Connections are kept for calls that may be repeated; one that changes something gets its own, so
that a failure to connect is told from an answer that was lost.
"""

import asyncio
import json as stdlib_json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from hypercore.api import Method, Shape, checked_id
from hypercore.client.address import Address
from hypercore.client.transport import broken, silent
from hypercore.containerd.http_client import Interrupted, Response
from hypercore.errors import HypercoreError, Unavailable, from_kind
from hypercore.proto import hypercore_pb as pb
from hypercore.wire import json

CONNECT_TIMEOUT_S = 10.0
HEADER_LIMIT_BYTES = 64 << 10
BODY_LIMIT_BYTES = 64 << 20
MARGIN_S = 5.0
"""what the service gets to tell that a deadline has passed"""
IDLE_CONNECTIONS = 8
MAX_FRAME_BYTES = 4 << 20
STDIN, STDOUT, STDERR = range(3)


@dataclass(slots=True)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def abort(self) -> None:
        self.writer.transport.abort()


class Http:
    """A transport.Transport."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._idle: list[_Connection] = []
        self._tls = _tls(address) if address.secure else None
        host = "localhost" if address.path is not None else address.host_port
        self._headers = {"Host": host, "User-Agent": "hypercore"}
        if address.token:
            self._headers["Authorization"] = f"Bearer {address.token}"

    async def open(self) -> None:
        """Connections are made when they are needed."""

    async def close(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.writer.close()
        for connection in idle:
            try:
                async with asyncio.timeout(1):
                    await connection.writer.wait_closed()
            except (OSError, TimeoutError):
                connection.abort()

    # calls

    async def unary(self, method: Method, request: Any, timeout_s: float | None) -> Any:
        target, body = _target(method, request)
        headers = _timing(method, timeout_s)
        if body:
            headers["Content-Type"] = "application/json"
        limit = None if timeout_s is None else timeout_s + MARGIN_S
        try:
            async with asyncio.timeout(limit) as timer:
                status, data = await self._exchange(method, target, headers, body)
        except TimeoutError:
            if timer.expired() and timeout_s is not None:
                raise silent(method, timeout_s) from None
            raise
        if method.name == "Inspect" and status < 300:
            return pb.InspectResponse(document=data.decode())
        return _answer(method, status, data)

    async def _exchange(
        self, method: Method, target: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, bytes]:
        reused = bool(self._idle) and method.idempotent
        connection = self._idle.pop() if reused else await self._connect(method)
        kept = False
        try:
            await self._send_head(connection, method.verb, target, headers, len(body))
            connection.writer.write(body)
            response = await _read_response(connection.reader)
            data = await response.read(BODY_LIMIT_BYTES)
            kept = response.headers.get("connection", "").lower() != "close"
        except (OSError, EOFError, asyncio.LimitOverrunError, Interrupted) as exc:
            if reused:
                # The service had closed it for idling: not a failure of this call.
                for idle in self._idle:
                    idle.abort()
                self._idle.clear()
                return await self._exchange(method, target, headers, body)
            raise broken(method, True, str(exc)) from exc
        finally:
            if kept and len(self._idle) < IDLE_CONNECTIONS:
                self._idle.append(connection)
            else:
                connection.abort()
        return response.status, data

    @asynccontextmanager
    async def stream(
        self, method: Method, request: Any, timeout_s: float | None
    ) -> AsyncIterator[AsyncIterator[Any]]:
        target, body = _target(method, request)
        headers = _timing(method, timeout_s)
        if body:
            headers["Content-Type"] = "application/json"
        connection = await self._connect(method)
        try:
            try:
                await self._send_head(connection, method.verb, target, headers, len(body))
                connection.writer.write(body)
                response = await _read_response(connection.reader)
                if response.status >= 300:
                    raise _error(response.status, await response.read(BODY_LIMIT_BYTES))
            except (OSError, EOFError, asyncio.LimitOverrunError, Interrupted) as exc:
                raise broken(method, True, str(exc)) from exc
            if method.shape is Shape.DOWNLOAD:
                yield _downloaded(method, response)
            else:
                yield _events(method, response)
        finally:
            connection.abort()

    async def upload(
        self, method: Method, start: Any, data: AsyncIterator[bytes], timeout_s: float | None
    ) -> Any:
        target, _body = _target(method, start)
        headers = {**_timing(method, timeout_s), "Content-Type": "application/x-tar"}
        connection = await self._connect(method)
        try:
            limit = None if timeout_s is None else timeout_s + MARGIN_S
            async with asyncio.timeout(limit) as timer:
                await self._send_head(connection, method.verb, target, headers, None)
                sending = asyncio.ensure_future(_send_chunks(connection.writer, data))
                try:
                    # An error is answered before all has been sent.
                    response = await _read_response(connection.reader)
                    if response.status < 300:
                        await sending
                    answer = await response.read(BODY_LIMIT_BYTES)
                finally:
                    sending.cancel()
                    await asyncio.gather(sending, return_exceptions=True)
        except TimeoutError:
            if timer.expired() and timeout_s is not None:
                raise silent(method, timeout_s) from None
            raise
        except (OSError, EOFError, asyncio.LimitOverrunError, Interrupted) as exc:
            raise broken(method, True, str(exc)) from exc
        finally:
            connection.abort()
        return _answer(method, response.status, answer)

    @asynccontextmanager
    async def duplex(self, method: Method, start: Any) -> AsyncIterator["_Duplex"]:
        from websockets.asyncio.client import connect, unix_connect
        from websockets.exceptions import InvalidHandshake, InvalidStatus

        path = method.path.replace("{id}", checked_id(start.id))
        options: dict[str, Any] = {
            "additional_headers": {k: v for k, v in self._headers.items() if k == "Authorization"},
            "compression": None,
            "max_size": MAX_FRAME_BYTES,
            "proxy": None,
            "open_timeout": CONNECT_TIMEOUT_S,
        }
        address = self._address
        try:
            if address.path is not None:
                options.pop("proxy")
                opening = unix_connect(str(address.path), f"ws://localhost{path}", **options)
            else:
                scheme = "wss" if address.secure else "ws"
                opening = connect(
                    f"{scheme}://{address.host_port}{path}", ssl=self._tls, **options
                )
            socket = await opening
        except InvalidStatus as exc:
            raise _error(exc.response.status_code, bytes(exc.response.body or b"")) from exc
        except (OSError, TimeoutError, InvalidHandshake) as exc:
            raise broken(method, False, str(exc)) from exc
        try:
            opened = _Duplex(socket, method)
            await opened.send(method.request(start=start))
            yield opened
        finally:
            await socket.close()

    # connections

    async def _connect(self, method: Method) -> _Connection:
        address = self._address
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                if address.path is not None:
                    pair = await asyncio.open_unix_connection(
                        str(address.path), limit=HEADER_LIMIT_BYTES
                    )
                else:
                    pair = await asyncio.open_connection(
                        address.host, address.port, ssl=self._tls, limit=HEADER_LIMIT_BYTES
                    )
        except TimeoutError as exc:
            raise broken(method, False, f"no connection in {CONNECT_TIMEOUT_S:g} s") from exc
        except ssl.SSLCertVerificationError as exc:
            raise Unavailable(
                f"{address.host}: its certificate is not trusted: {exc.verify_message}",
                hint="give `ca`, the file with the certificate of who issued it",
            ) from exc
        except OSError as exc:
            place = address.path or address.host_port
            raise broken(method, False, f"{place}: {exc.strerror or exc}") from exc
        return _Connection(*pair)

    async def _send_head(
        self,
        connection: _Connection,
        verb: str,
        target: str,
        headers: Mapping[str, str],
        length: int | None,
    ) -> None:
        lines = [f"{verb} {target} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in (self._headers | dict(headers)).items()]
        if length is None:
            lines.append("Transfer-Encoding: chunked")
        elif length or verb in ("POST", "PUT"):
            lines.append(f"Content-Length: {length}")
        connection.writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        await connection.writer.drain()


class _Duplex:
    """A transport.Duplex over a WebSocket."""

    def __init__(self, socket: Any, method: Method) -> None:
        self._socket = socket
        self._method = method

    async def send(self, message: Any) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            if message.stdin is not None:
                await self._socket.send(bytes((STDIN,)) + message.stdin)
            else:
                await self._socket.send(json.dumps(message))
        except ConnectionClosed:
            return  # `answers` tells why

    async def done_sending(self) -> None:
        """A WebSocket closes both ways; the end of stdin is a message of its own."""

    async def answers(self) -> AsyncIterator[Any]:
        from websockets.exceptions import ConnectionClosed

        try:
            async for frame in self._socket:
                if isinstance(frame, bytes):
                    data = frame[1:]
                    is_stderr = frame[:1] == bytes((STDERR,))
                    yield (
                        pb.ProcessOutput(stderr=data)
                        if is_stderr
                        else pb.ProcessOutput(stdout=data)
                    )
                    continue
                value = stdlib_json.loads(frame)
                if "error" in value:
                    raise _problem(value["error"])
                yield json.from_object(self._method.response, value)
        except ConnectionClosed as exc:
            raise broken(self._method, True, str(exc)) from exc


# messages


def _target(method: Method, request: Any) -> tuple[str, bytes]:
    """Path with query, and body."""
    path = method.path
    if "{id}" in path:
        path = path.replace("{id}", checked_id(request.id))
    without = "id" if "{id}" in method.path else ""
    if method.has_body:
        values = {key: value for key, value in json.as_plain(request).items() if key != without}
        return path, stdlib_json.dumps(values).encode()
    query = urlencode(json.to_query(request, without=without))
    return f"{path}?{query}" if query else path, b""


def _timing(method: Method, timeout_s: float | None) -> dict[str, str]:
    return {} if timeout_s is None or method.quick else {"Hypercore-Timeout": f"{timeout_s:.3f}"}


def _answer(method: Method, status: int, data: bytes) -> Any:
    if status >= 300:
        raise _error(status, data)
    return json.loads(method.response, data)


def _error(status: int, data: bytes) -> HypercoreError:
    try:
        value = stdlib_json.loads(data)
        return _problem(value)
    except (ValueError, TypeError, AttributeError):
        return HypercoreError(f"hypercore answered with status {status}")


def _problem(value: Mapping[str, Any]) -> HypercoreError:
    return from_kind(
        str(value["title"]),
        str(value["detail"]),
        hint=str(value.get("hint", "")),
        detail=str(value.get("log", "")),
        field=str(value.get("field", "")),
        exit_code=int(value.get("exit_code", 0)),
    )


async def _read_response(reader: asyncio.StreamReader) -> Response:
    while True:
        text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = text.split("\r\n")
        words = first.split(" ", 2)
        if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdecimal():
            raise Unavailable(f"what answers does not speak HTTP: {first[:60]!r}")
        if words[1] != "100":
            break
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    return Response("http://hypercore/", int(words[1]), headers, reader)


async def _send_chunks(writer: asyncio.StreamWriter, data: AsyncIterator[bytes]) -> None:
    async for piece in data:
        if piece:
            writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            await writer.drain()
    writer.write(b"0\r\n\r\n")
    await writer.drain()


async def _downloaded(method: Method, response: Response) -> AsyncIterator[Any]:
    try:
        async for piece in response.chunks():
            yield pb.DataChunk(data=piece)
    except Interrupted as exc:
        raise broken(method, True, exc.message) from exc


async def _events(method: Method, response: Response) -> AsyncIterator[Any]:
    """Server-sent events as messages; their last one is `event: end`."""
    buffer = b""
    try:
        async for piece in response.chunks():
            buffer += piece
            *blocks, buffer = buffer.split(b"\n\n")
            for block in blocks:
                kind, data = _event(block)
                if kind == "end":
                    return
                if kind == "error":
                    raise _problem(stdlib_json.loads(data))
                if data:
                    yield json.loads(method.response, data)
    except Interrupted as exc:
        raise broken(method, True, exc.message) from exc
    raise broken(method, True, "the stream was cut short")


def _event(block: bytes) -> tuple[str, bytes]:
    kind, data = "", b""
    for line in block.split(b"\n"):
        name, _, value = line.partition(b": ")
        if name == b"event":
            kind = value.decode()
        elif name == b"data":
            data = value
    return kind, data


def _tls(address: Address) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(address.ca) if address.ca else None)
    if address.certificate is not None:
        context.load_cert_chain(address.certificate, address.key)
    return context
