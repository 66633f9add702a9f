"""Exec and attach over a WebSocket.

Both sides send text frames with JSON messages, as over gRPC, and binary frames with bytes of a
stream: the first byte is its number (0 stdin, 1 stdout, 2 stderr). The caller's first frame is
`{"start": {…}}`. An error is a text frame `{"error": {…problem…}}`, then the socket is closed with
4000 and the error's HTTP status.
"""

import json as stdlib_json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from hypercore.api import Method
from hypercore.errors import HypercoreError, InvalidArgument
from hypercore.serve.callers import Caller, CallerLeft
from hypercore.serve.calls import Calls
from hypercore.wire import json

STDIN, STDOUT, STDERR = range(3)
NORMAL = 1000

Endpoint = Callable[[WebSocket], Awaitable[None]]


def socket_endpoint(calls: Calls, method: Method, caller_of: Callable[[Any], Caller]) -> Endpoint:
    """The endpoint of a method whose messages go both ways."""

    async def endpoint(socket: WebSocket) -> None:
        from hypercore.serve.http_app import problem_of, problem_response

        try:
            caller = caller_of(socket)
            caller.require(method)
        except HypercoreError as exc:
            await socket.send_denial_response(problem_response(exc))
            return
        await socket.accept()
        try:
            inputs = _inputs(socket, method)
            async with calls.stream(method, inputs, caller, "http") as answers:
                async for answer in answers:
                    await _send(socket, answer)
            await socket.close(NORMAL)
        except CallerLeft:
            return
        except HypercoreError as exc:
            await _fail(socket, exc, problem_of(exc))
        except WebSocketDisconnect:
            return

    return endpoint


async def _send(socket: WebSocket, answer: Any) -> None:
    if answer.stdout is not None:
        await socket.send_bytes(bytes((STDOUT,)) + answer.stdout)
    elif answer.stderr is not None:
        await socket.send_bytes(bytes((STDERR,)) + answer.stderr)
    else:
        await socket.send_text(json.dumps(answer))


async def _fail(socket: WebSocket, exc: HypercoreError, problem: dict[str, object]) -> None:
    try:
        await socket.send_text(stdlib_json.dumps({"error": problem}))
        await socket.close(4000 + exc.http_status, exc.message[:100])
    except (WebSocketDisconnect, RuntimeError):
        return  # the caller has left; nobody is told


async def _inputs(socket: WebSocket, method: Method) -> AsyncIterator[Any]:
    """The caller's messages; its leaving ends the call."""
    begun = False
    while True:
        frame = await socket.receive()
        if frame["type"] == "websocket.disconnect":
            raise CallerLeft(f"the caller of {method.name} has left")
        data, text = frame.get("bytes"), frame.get("text")
        if data is not None:
            if data[:1] != bytes((STDIN,)):
                raise InvalidArgument("a binary frame must begin with byte 0, for stdin")
            yield method.request(stdin=data[1:])
            continue
        message: Any = json.loads(method.request, text or "{}")
        if len([f for f in method.request.FIELDS if getattr(message, f.name) is not None]) != 1:
            raise InvalidArgument("a message must have exactly one member")
        if not begun and message.start is not None:
            path_id = socket.path_params["id"]
            if message.start.id not in ("", path_id):
                raise InvalidArgument("id differs from the path's", field="id")
            message.start.id = path_id
        begun = True
        yield message
