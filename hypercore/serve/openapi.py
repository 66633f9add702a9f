"""The OpenAPI 3.1 document, made of the same table and messages that serve the requests.

https://spec.openapis.org/oas/v3.1.1.html. WebSockets are described in words: OpenAPI has none.
"""

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import hypercore
from hypercore.api import ID_PATTERN, METHODS, Method, Shape
from hypercore.observed import EVENT_KINDS
from hypercore.serve.reflection import descriptors
from hypercore.serve.service import MAX_GRACE_S, MAX_PAGE
from hypercore.wire import codec
from hypercore.wire.codec import Field, Message

_ID_PATTERN = f"^{ID_PATTERN}$"
_KINDS: dict[int, dict[str, Any]] = {
    codec.STRING: {"type": "string"},
    codec.BYTES: {"type": "string", "contentEncoding": "base64"},
    codec.BOOL: {"type": "boolean"},
    codec.UINT: {"type": "integer", "minimum": 0},
    codec.INT: {"type": "integer"},
    codec.DOUBLE: {"type": "number"},
}
_ENUMS = {
    "MicroVM.state": ["created", "running", "paused", "exited", "stopped"],
    "Event.kind": list(EVENT_KINDS),
    "LogChunk.stream": ["stdout", "stderr"],
    "EventsRequest.kinds": list(EVENT_KINDS),
}
_LIMITS: dict[str, dict[str, Any]] = {
    "ListRequest.page_size": {"maximum": MAX_PAGE},
    "StopRequest.grace_s": {"minimum": 0, "maximum": MAX_GRACE_S},
    "RemoveImageRequest.ref": {"minLength": 1},
    "PullImageRequest.ref": {"minLength": 1},
    "Hardware.ref": {"minLength": 1},
    "CopyFromRequest.path": {"pattern": "^/"},
    "CopyToStart.path": {"pattern": "^/"},
}
_STATUSES = (
    "400",
    "401",
    "403",
    "404",
    "408",
    "409",
    "413",
    "415",
    "422",
    "429",
    "500",
    "503",
    "504",
)


@cache
def document() -> bytes:
    """The document as JSON."""
    return json.dumps(_document(), separators=(",", ":")).encode()


def _document() -> dict[str, Any]:
    paths: dict[str, dict[str, Any]] = {}
    schemas: dict[str, Any] = {"Problem": _PROBLEM}
    for method in METHODS.values():
        paths.setdefault(method.path, {})[method.verb.lower()] = _operation(method)
        for message in (method.start, method.response):
            for found in _closure(message):
                schemas[found.__name__] = schema(found)
    for path, words in _OPERATORS.items():
        kind = "application/json" if path.endswith("json") else "text/plain"
        kind = "text/html" if path == "/docs" else kind
        answers: dict[str, Any] = {"200": {"description": words, "content": {kind: {}}}}
        if path == "/readyz":
            answers["503"] = {"description": "Not ready.", "content": {kind: {}}}
        if path == "/metrics":
            answers |= _problems()
        operation = {"summary": words, "responses": answers, "tags": ["operators"]}
        if path not in ("/metrics",):
            operation["security"] = []
        paths[path] = {"get": operation}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "hypercore",
            "version": hypercore.__version__,
            "description": "OCI images in microVMs. Through the unix socket no token is needed.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"token": []}, {}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(method: Method) -> dict[str, Any]:
    described = descriptors()["hypercore.proto"]["methods"][method.name]
    operation: dict[str, Any] = {
        "operationId": method.name,
        "summary": described["comment"].rstrip("."),
        "description": f"Needs scope {method.scope}." + _WORDS.get(method.shape, ""),
        "tags": ["images" if method.path.startswith("/v1/images") else "microvms"],
        "parameters": list(_parameters(method)),
        "responses": {**_success(method), **_problems()},
    }
    if method.has_body:
        operation["requestBody"] = {
            "required": method.start is not None and "ref" in _names(method.start),
            "content": {"application/json": {"schema": _body_schema(method)}},
        }
    elif method.shape is Shape.UPLOAD:
        # Any type is taken; it is the bytes that tell what they are.
        content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


_WORDS = {
    Shape.SOCKET: ' A WebSocket: text frames are JSON messages, the first one {"start": {…}};'
    " binary frames begin with the stream's number (0 stdin, 1 stdout, 2 stderr).",
    Shape.EVENTS: " Answers with server-sent events, one message each; `event: end` is the last.",
}


def _names(message: type[Message]) -> list[str]:
    return [field.name for field in message.FIELDS]


def _parameters(method: Method) -> Iterator[dict[str, Any]]:
    in_path = "{id}" in method.path
    if in_path:
        pattern = {"type": "string", "pattern": _ID_PATTERN}
        yield {
            "name": "id",
            "in": "path",
            "required": True,
            "schema": pattern,
            "description": "Its id, a unique beginning of it, or its name.",
        }
    if not method.has_body and method.shape is not Shape.SOCKET:
        for field in method.start.FIELDS:
            if in_path and field.name == "id":
                continue
            yield {
                "name": field.name,
                "in": "query",
                "schema": _schema_of(field, method.start.__name__),
                "description": _comment(method.start, field),
            }
    if method.name == "Spawn":
        yield {
            "name": "Idempotency-Key",
            "in": "header",
            "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
            "description": "The same key and request again: the same microVM.",
        }
    if not method.quick:
        yield {
            "name": "Hypercore-Timeout",
            "in": "header",
            "schema": {"type": "number", "minimum": 0.01, "maximum": 604800},
            "description": "Seconds after which the call is given up and undone.",
        }


def _body_schema(method: Method) -> dict[str, Any]:
    if "{id}" not in method.path:
        return {"$ref": f"#/components/schemas/{method.start.__name__}"}
    whole = schema(method.start)
    whole["properties"].pop("id")
    return whole


def _success(method: Method) -> dict[str, Any]:
    ref = {"$ref": f"#/components/schemas/{method.response.__name__}"}
    if method.shape is Shape.SOCKET:
        return {"101": {"description": "The connection is a WebSocket now."}}
    if method.name == "Inspect":
        body: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    elif method.shape is Shape.EVENTS:
        body = {"text/event-stream": {}}
        if method.name == "Logs":
            body["text/plain"] = {"schema": {"type": "string"}}
    elif method.shape is Shape.DOWNLOAD:
        body = {"application/x-tar": {}}
    else:
        body = {"application/json": {"schema": ref}}
    answer = {"description": "Done.", "content": body}
    if method.name == "Spawn":
        replayed = "The microVM that an earlier request with this idempotency key made."
        return {"201": answer, "200": {**answer, "description": replayed}}
    return {"200": answer}


def _problems() -> dict[str, Any]:
    schema_ref = {"schema": {"$ref": "#/components/schemas/Problem"}}
    content = {"application/problem+json": schema_ref}
    return {status: {"description": "An error.", "content": content} for status in _STATUSES}


def schema(message: type[Message]) -> dict[str, Any]:
    """The JSON schema of a message's object."""
    properties = {}
    for field in message.FIELDS:
        found = _schema_of(field, message.__name__)
        if comment := _comment(message, field):
            found = {**found, "description": comment}
        properties[field.name] = found
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _schema_of(field: Field, owner: str) -> dict[str, Any]:
    if field.kind == codec.MESSAGE:
        assert field.message is not None
        one: dict[str, Any] = {"$ref": f"#/components/schemas/{field.message.__name__}"}
    else:
        one = dict(_KINDS[field.kind])
    if values := _ENUMS.get(f"{owner}.{field.name}"):
        one["enum"] = values
    one |= _LIMITS.get(f"{owner}.{field.name}", {})
    if field.label == codec.REPEATED:
        return {"type": "array", "items": one}
    if field.label == codec.MAP:
        return {"type": "object", "additionalProperties": one}
    return one


def _comment(message: type[Message], field: Field) -> str:
    fields: dict[str, str] = descriptors()["hypercore.proto"]["fields"]
    return fields.get(f"{message.__name__}.{field.name}", "")


def _closure(message: type[Message]) -> Iterator[type[Message]]:
    yield message
    for field in message.FIELDS:
        if field.message is not None:
            yield from _closure(field.message)


_OPERATORS = {
    "/healthz": "Whether the daemon answers.",
    "/readyz": "Whether it serves: containerd answers.",
    "/metrics": "Figures for Prometheus.",
    "/v1/openapi.json": "This document.",
    "/docs": "This document, for people.",
}
_PROBLEM = {
    "type": "object",
    "description": "An error, RFC 9457.",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string", "description": "The error's kind."},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "hint": {"type": "string"},
        "field": {"type": "string", "description": "What of the request is at fault."},
        "log": {"type": "string", "description": "Such as the console's last lines."},
        "retryable": {"type": "boolean"},
        "exit_code": {"type": "integer"},
    },
}
