"""The API's methods: what each is called, may be called by, and how it looks over HTTP.

One table for servers, clients and the OpenAPI document. The messages are hypercore.proto's; what a
method does is serve/service.py's.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from hypercore.errors import InvalidArgument
from hypercore.proto import hypercore_pb
from hypercore.wire.codec import Message

SERVICE = hypercore_pb.Hypercore.NAME
ID_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}"


_ID = re.compile(ID_PATTERN)


def checked_id(text: str, field: str = "id") -> str:
    """An id, the beginning of one, or a name; nothing else can be one.

    Raises:
        InvalidArgument: it cannot.
    """
    if not _ID.fullmatch(text):
        shown = text[:40] if text.isprintable() else repr(text[:40])
        raise InvalidArgument(
            f"{field} {shown!r} is neither an id nor a name of a microVM",
            hint="letters, digits and _ . -, beginning with one of the first two",
            field=field,
        )
    return text


class Scope(StrEnum):
    """What a caller may do; each includes those before it."""

    READ = "read"
    OPERATE = "operate"
    ADMIN = "admin"

    def allows(self, wanted: "Scope") -> bool:
        order = list(Scope)
        return order.index(self) >= order.index(wanted)


class Shape(StrEnum):
    """How a method's messages travel over HTTP."""

    UNARY = "unary"
    """JSON both ways"""
    EVENTS = "events"
    """JSON in, server-sent events out"""
    UPLOAD = "upload"
    """the request's body is the data, the first message is path and query"""
    DOWNLOAD = "download"
    """the answer's body is the data"""
    SOCKET = "socket"
    """a WebSocket"""


@dataclass(frozen=True, slots=True)
class Method:
    """One method of the service."""

    name: str
    scope: Scope
    verb: str
    path: str
    """under HTTP; `{id}` is the request's field"""
    shape: Shape = Shape.UNARY
    idempotent: bool = True
    """may be sent again when nobody knows whether it arrived"""
    quick: bool = False
    """answers from memory: it is not worth watching whether its caller has left"""

    @property
    def request(self) -> type[Message]:
        return hypercore_pb.Hypercore.METHODS[self.name][0]

    @property
    def response(self) -> type[Message]:
        return hypercore_pb.Hypercore.METHODS[self.name][1]

    @property
    def start(self) -> type[Message]:
        """What path, query and body describe: the request, or a stream's first message."""
        if self.shape in (Shape.UPLOAD, Shape.SOCKET):
            first = self.request.BY_NUMBER[1].message
            assert first is not None
            return first
        return self.request

    @property
    def has_body(self) -> bool:
        return self.verb == "POST" and self.shape in (Shape.UNARY, Shape.EVENTS)


_READ, _OPERATE, _ADMIN = Scope
_VM = "/v1/microvms/{id}"

METHODS = {
    method.name: method
    for method in (
        Method("Spawn", _OPERATE, "POST", "/v1/microvms", idempotent=False),
        Method("List", _READ, "GET", "/v1/microvms", quick=True),
        Method("Get", _READ, "GET", _VM, quick=True),
        Method("Delete", _OPERATE, "DELETE", _VM),
        Method("Inspect", _READ, "GET", f"{_VM}/inspect"),
        Method("Start", _OPERATE, "POST", f"{_VM}/start"),
        Method("Stop", _OPERATE, "POST", f"{_VM}/stop"),
        Method("Kill", _OPERATE, "POST", f"{_VM}/kill", idempotent=False),
        Method("Pause", _OPERATE, "POST", f"{_VM}/pause"),
        Method("Resume", _OPERATE, "POST", f"{_VM}/resume"),
        Method("Wait", _READ, "GET", f"{_VM}/wait"),
        Method("Exec", _OPERATE, "GET", f"{_VM}/exec", Shape.SOCKET, idempotent=False),
        Method("Attach", _OPERATE, "GET", f"{_VM}/attach", Shape.SOCKET),
        Method("Logs", _READ, "GET", f"{_VM}/logs", Shape.EVENTS),
        Method("Stats", _READ, "GET", f"{_VM}/stats", Shape.EVENTS),
        Method("CopyTo", _OPERATE, "PUT", f"{_VM}/files", Shape.UPLOAD),
        Method("CopyFrom", _OPERATE, "GET", f"{_VM}/files", Shape.DOWNLOAD),
        Method("Events", _READ, "GET", "/v1/events", Shape.EVENTS),
        Method("ListImages", _READ, "GET", "/v1/images"),
        Method("RemoveImage", _ADMIN, "DELETE", "/v1/images"),
        Method("PullImage", _OPERATE, "POST", "/v1/images/pull", Shape.EVENTS),
        Method("ImportImage", _ADMIN, "POST", "/v1/images/import", Shape.UPLOAD),
        Method("Info", _READ, "GET", "/v1/info", quick=True),
        Method("Check", _ADMIN, "GET", "/v1/check"),
    )
}
