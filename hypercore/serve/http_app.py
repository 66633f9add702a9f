"""The API over HTTP, as an ASGI application: api.py's routes, and what operators ask for.

JSON in and out, problem+json for errors (RFC 9457), server-sent events for streams. What a
connection is, with its limits, is http_protocol.py's.
"""

import asyncio
import json as stdlib_json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute

from hypercore.api import METHODS, Method, Scope, Shape
from hypercore.errors import (
    HypercoreError,
    InvalidArgument,
    PermissionDenied,
    TaskError,
    Unauthenticated,
    kind_of,
)
from hypercore.proto import hypercore_pb as pb
from hypercore.serve.callers import Caller, CallerLeft
from hypercore.serve.calls import Calls, too_late
from hypercore.serve.http_socket import socket_endpoint
from hypercore.serve.openapi import document
from hypercore.wire import json
from hypercore.wire.codec import Message

MAX_BODY_BYTES = 1 << 20
BODY_TIMEOUT_S = 30.0
HEARTBEAT_S = 15.0
MIN_TIMEOUT_S = 0.01
MAX_TIMEOUT_S = 7 * 24 * 3600.0
TIMEOUT_HEADER = "hypercore-timeout"
KEY_HEADER = "idempotency-key"
JSON_TYPE = "application/json"

Identify = Callable[[str, "Peer"], Caller]
"""Finds out who presents a token and comes from there. Raises Unauthenticated."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Where a connection comes from."""

    local: bool
    certificate_names: Sequence[str] = ()


def app(calls: Calls, identify: Identify) -> Starlette:
    """The application."""

    def caller(request: Any) -> Caller:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        token = token.strip() if scheme.lower() == "bearer" else ""
        return identify(token, request.scope["state"]["peer"])

    routes: list[BaseRoute] = []
    by_path: dict[str, dict[str, Endpoint]] = {}
    for method in METHODS.values():
        if method.shape is Shape.SOCKET:
            routes.append(WebSocketRoute(method.path, socket_endpoint(calls, method, caller)))
        else:
            endpoint = _endpoint(calls, method, caller)
            by_path.setdefault(method.path, {})[method.verb] = endpoint
    # One route a path, so that a wrong verb is told which are right.
    for path, endpoints in by_path.items():
        routes.append(Route(path, _by_verb(endpoints), methods=list(endpoints)))
    routes += _operators(calls, caller)
    made = Starlette(routes=routes)
    made.add_exception_handler(HypercoreError, _on_error)
    made.add_exception_handler(HTTPException, _on_http_error)
    made.router.redirect_slashes = False
    return made


# requests


async def message_of(method: Method, request: Request) -> Any:
    """The message that path, query and body of a request describe.

    Raises:
        InvalidArgument: naming the field.
    """
    pairs = request.query_params.multi_items()
    if method.has_body:
        if pairs:
            raise InvalidArgument(
                f"{pairs[0][0][:80]}: {method.name} takes a JSON body, no query",
                field=pairs[0][0][:80],
            )
        message = json.loads(method.start, await _body(request))
    else:
        message = json.from_query(method.start, pairs)
    for name, value in request.path_params.items():
        given = getattr(message, name)
        if given not in ("", value):
            raise InvalidArgument(f"{name} differs from the path's", field=name)
        setattr(message, name, value)
    if isinstance(message, pb.SpawnRequest) and (key := request.headers.get(KEY_HEADER)):
        message.idempotency_key = message.idempotency_key or key
    return message


async def _body(request: Request) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for piece in request.stream():
                body += piece
                if len(body) > MAX_BODY_BYTES:
                    raise HTTPException(413, f"the body is longer than {MAX_BODY_BYTES} bytes")
    except TimeoutError:
        raise HTTPException(408, f"the body did not come within {BODY_TIMEOUT_S:g} s") from None
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if body and kind != JSON_TYPE:
        raise HTTPException(415, f"the body must be {JSON_TYPE}, not {kind[:80] or 'unnamed'}")
    return bytes(body)


def timeout_of(headers: Mapping[str, str]) -> float | None:
    """What the caller's Hypercore-Timeout header allows, in seconds."""
    text = headers.get(TIMEOUT_HEADER)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not MIN_TIMEOUT_S <= value <= MAX_TIMEOUT_S:
        raise InvalidArgument(
            f"{TIMEOUT_HEADER}: must be seconds, {MIN_TIMEOUT_S} to {MAX_TIMEOUT_S:g}",
            field=TIMEOUT_HEADER,
        )
    return value


# answers

Endpoint = Callable[[Request], Awaitable[Response]]


def _by_verb(endpoints: Mapping[str, Endpoint]) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        return await endpoints["GET" if request.method == "HEAD" else request.method](request)

    return endpoint


def _endpoint(calls: Calls, method: Method, caller_of: Callable[[Any], Caller]) -> Endpoint:
    async def unary(request: Request) -> Response:
        caller = caller_of(request)
        caller.require(method)
        timeout_s = timeout_of(request.headers)
        message = await message_of(method, request)
        work = calls.unary(method, message, caller, "http")
        answer: Any = await (work if method.quick else _watched(request, method, work, timeout_s))
        status = 201 if method.name == "Spawn" and not answer.replayed else 200
        return Response(_text(answer), status, media_type=JSON_TYPE)

    async def upload(request: Request) -> Response:
        caller = caller_of(request)
        caller.require(method)
        start = await message_of(method, request)
        work = calls.unary(method, _pieces(method, start, request), caller, "http")
        try:
            async with asyncio.timeout(timeout_of(request.headers)) as limit:
                answer = await work
        except TimeoutError:
            if limit.expired():
                raise too_late(method, timeout_of(request.headers) or 0) from None
            raise
        except ClientDisconnect:
            return Response(status_code=499)
        return Response(json.dumps(answer), media_type=JSON_TYPE)

    async def stream(request: Request) -> Response:
        caller = caller_of(request)
        caller.require(method)
        message = await message_of(method, request)
        timeout_s = timeout_of(request.headers)
        return _Stream(calls, method, message, caller, timeout_s, request.headers.get("accept"))

    return {Shape.UNARY: unary, Shape.UPLOAD: upload}.get(method.shape, stream)


def _text(answer: Any) -> str:
    # A document is JSON already.
    return answer.document if isinstance(answer, pb.InspectResponse) else json.dumps(answer)


async def _watched(
    request: Request, method: Method, work: Awaitable[Message], timeout_s: float | None
) -> Any:
    """Await `work`; end it when the caller has left, or its time is over."""
    job = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({job, leaving}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if job.done():
            return job.result()
        if leaving.done():
            raise CallerLeft(f"the caller of {method.name} has left")
        assert timeout_s is not None
        raise too_late(method, timeout_s)
    finally:
        leaving.cancel()
        if not job.done():
            job.cancel()
            await asyncio.wait({job})
            if not job.cancelled():
                job.exception()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue


async def _pieces(method: Method, start: Message, request: Request) -> AsyncIterator[Message]:
    yield method.request(start=start)
    async for piece in request.stream():
        if piece:
            yield method.request(data=bytes(piece))


class _Stream(Response):
    """A stream of messages as server-sent events; logs also as plain bytes, downloads as those."""

    def __init__(
        self,
        calls: Calls,
        method: Method,
        message: Any,
        caller: Caller,
        timeout_s: float | None,
        accept: str | None,
    ) -> None:
        super().__init__()
        self._call = calls.stream(method, message, caller, "http")
        self._method = method
        self._timeout_s = timeout_s
        self._plain = method.shape is Shape.DOWNLOAD or (
            method.name == "Logs" and (accept or "").startswith("text/plain")
        )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._method.shape is Shape.DOWNLOAD:
            kind = b"application/x-tar"
        else:
            kind = b"text/plain; charset=utf-8" if self._plain else b"text/event-stream"
        headers = [(b"content-type", kind), (b"cache-control", b"no-store")]
        started = False
        job = asyncio.current_task()
        assert job is not None
        left = False

        async def watch() -> None:
            nonlocal left
            while (await receive())["type"] != "http.disconnect":
                continue
            left = True
            job.cancel()

        async def body(data: bytes) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": True})

        watching = asyncio.create_task(watch())
        try:
            async with asyncio.timeout(self._timeout_s) as limit, self._call as answers:
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                started = True
                if not self._plain:
                    await body(b":\n\n")
                await self._send_all(answers, body)
        except asyncio.CancelledError:
            if not left:
                raise
            job.uncancel()
            return
        except (HypercoreError, TimeoutError) as exc:
            problem = exc
            if isinstance(exc, TimeoutError):
                if not limit.expired():
                    raise
                problem = too_late(self._method, self._timeout_s or 0)
            assert isinstance(problem, HypercoreError)
            if not started:
                await problem_response(problem)(scope, receive, send)
                return
            if self._plain:
                raise  # the connection breaks: bytes cannot say that they are not all
            text = stdlib_json.dumps(problem_of(problem))
            await body(f"event: error\ndata: {text}\n\n".encode())
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
        if not self._plain:
            await body(b"event: end\ndata: {}\n\n")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_all(
        self, answers: AsyncIterator[Any], body: Callable[[bytes], Awaitable[None]]
    ) -> None:
        if self._plain:
            async for answer in answers:
                await body(answer.data)
            return
        # A line now and then tells both ends that the other is still there.
        pending = asyncio.ensure_future(anext(answers))
        try:
            while True:
                done, _ = await asyncio.wait({pending}, timeout=HEARTBEAT_S)
                if not done:
                    await body(b":\n\n")
                    continue
                answer = pending.result()
                await body(f"data: {json.dumps(answer)}\n\n".encode())
                pending = asyncio.ensure_future(anext(answers))
        except StopAsyncIteration:
            return
        finally:
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)


# errors


def problem_of(exc: HypercoreError) -> dict[str, object]:
    """An error as RFC 9457's object."""
    kind = kind_of(exc)
    values: dict[str, object] = {
        "type": f"urn:hypercore:error:{kind}",
        "title": kind,
        "status": exc.http_status,
        "detail": exc.message,
        "hint": exc.hint,
        "field": exc.field,
        "log": exc.detail,
        "retryable": exc.retryable,
    }
    if isinstance(exc, TaskError):
        values["exit_code"] = exc.exit_code
    return {key: value for key, value in values.items() if value != ""}


def problem_response(exc: HypercoreError) -> Response:
    headers = {}
    if isinstance(exc, Unauthenticated):
        headers["www-authenticate"] = 'Bearer realm="hypercore"'
    text = stdlib_json.dumps(problem_of(exc))
    return Response(text, exc.http_status, headers, media_type="application/problem+json")


async def _on_error(request: Any, exc: Exception) -> Response:
    assert isinstance(exc, HypercoreError)
    return problem_response(exc)


async def _on_http_error(request: Any, exc: Exception) -> Response:
    """What Starlette and the checks of bodies refuse."""
    assert isinstance(exc, HTTPException)
    values = {
        "type": "about:blank",
        "title": {404: "NoSuchRoute", 405: "MethodNotAllowed"}.get(exc.status_code, "BadRequest"),
        "status": exc.status_code,
        "detail": exc.detail,
    }
    # The rest of a body that is too long is not read: the connection cannot be used again.
    headers = {**(exc.headers or {})}
    if exc.status_code in (408, 413):
        headers["connection"] = "close"
    text = stdlib_json.dumps(values)
    return Response(text, exc.status_code, headers, media_type="application/problem+json")


# for operators


def _operators(calls: Calls, caller_of: Callable[[Any], Caller]) -> list[BaseRoute]:
    async def healthz(request: Request) -> Response:
        return Response("ok\n", media_type="text/plain")

    async def readyz(request: Request) -> Response:
        ready = calls.service.watch.is_synced and not calls.draining
        text = "ok\n" if ready else "containerd is not followed\n"
        return Response(text, 200 if ready else 503, media_type="text/plain")

    async def metrics(request: Request) -> Response:
        caller = caller_of(request)
        if not caller.scope.allows(Scope.READ):
            raise PermissionDenied("metrics need scope read")
        watch = calls.service.watch
        text = calls.service.figures.text(
            watch.states(), synced=watch.is_synced, rss_bytes=_rss_bytes()
        )
        return Response(text, media_type="text/plain; version=0.0.4")

    async def openapi(request: Request) -> Response:
        return Response(document(), media_type=JSON_TYPE)

    async def docs(request: Request) -> Response:
        page = resources.files("hypercore.serve").joinpath("docs.html").read_bytes()
        headers = {
            "content-security-policy": "default-src 'none'; connect-src 'self'; "
            "style-src 'unsafe-inline'; script-src 'unsafe-inline'",
            "x-content-type-options": "nosniff",
        }
        return Response(page, headers=headers, media_type="text/html; charset=utf-8")

    return [
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/metrics", metrics),
        Route("/v1/openapi.json", openapi),
        Route("/docs", docs),
    ]


def _rss_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
