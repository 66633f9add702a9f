"""ttrpc 1.2 server side, unary calls only: frames, dispatch, replies that may come later.

Frame: u32 length, u32 stream id, u8 type (1 request, 2 response), u8 flags, all big-endian.
Specification: https://github.com/containerd/ttrpc/blob/main/PROTOCOL.md
"""

from agent import files, loop
from agent.errors import INTERNAL, INVALID_ARGUMENT, UNIMPLEMENTED, RpcError
from hypercore.proto.types_pb import Status
from hypercore.wire.codec import (
    BYTES,
    MESSAGE,
    OPTIONAL,
    STRING,
    DecodeError,
    Field,
    Message,
)

MAX_MESSAGE = 4 << 20
MAX_UNSENT = 1 << 20
"""Bytes of replies the host has not read yet; beyond that it is taken for dead."""

_REQUEST, _RESPONSE = 1, 2


class Request(Message):
    """ttrpc.Request; timeout and metadata are skipped: deadlines are the host's."""

    __slots__ = ("method", "payload", "service")
    FIELDS = (
        Field(1, "service", STRING),
        Field(2, "method", STRING),
        Field(3, "payload", BYTES),
    )


class Response(Message):
    """ttrpc.Response."""

    __slots__ = ("payload", "status")
    FIELDS = (
        Field(1, "status", MESSAGE, OPTIONAL, Status),
        Field(2, "payload", BYTES),
    )


class Connection:
    """One control connection; owns its socket.

    `handlers` maps a method's name to (request class, function). The function returns a message,
    or a generator for the loop that ends with one.
    """

    def __init__(self, events, sock, service, handlers, closed):
        self._loop = events
        self._sock = sock
        self._fd = sock.fileno()
        self._service = service
        self._handlers = handlers
        self._closed = closed
        self._received = bytearray()
        self._unsent = bytearray()
        self._writing = False
        sock.setblocking(False)
        events.add(self._fd, loop.READ, self._ready)

    def close(self):
        if self._fd < 0:
            return
        self._loop.remove(self._fd)
        self._fd = -1
        self._sock.close()
        self._closed(self)

    def _ready(self, events):
        try:
            if self._unsent:
                self._send()
            if events & ~loop.WRITE:
                self._receive()
        except OSError:
            self.close()

    def _receive(self):
        try:
            data = self._sock.recv(65536)
        except BlockingIOError:
            return
        if not data:
            self.close()
            return
        self._received += data
        while self._fd >= 0 and len(self._received) >= 10:
            size = int.from_bytes(self._received[:4], "big")
            if size > MAX_MESSAGE:
                files.log(f"control: a frame of {size} bytes")
                self.close()
                return
            if len(self._received) < 10 + size:
                return
            stream_id = int.from_bytes(self._received[4:8], "big")
            kind = self._received[8]
            body = bytes(self._received[10 : 10 + size])
            del self._received[: 10 + size]
            if kind == _REQUEST:
                self._dispatch(stream_id, body)

    def _dispatch(self, stream_id, body):
        def done(value, error):
            self._reply(stream_id, value, error)

        try:
            request = Request.decode(body)
            handler = self._handlers.get(request.method)
            if request.service != self._service or handler is None:
                raise RpcError(UNIMPLEMENTED, f"no method {request.service}/{request.method}")
            result = handler[1](handler[0].decode(request.payload))
        except Exception as exc:
            done(None, exc)
            return
        if isinstance(result, Message):
            done(result, None)
        else:
            self._loop.start(result, done)

    def _reply(self, stream_id, value, error):
        if self._fd < 0:
            return
        if error is None:
            body = Response(payload=value.encode()).encode()
        else:
            body = Response(status=_status(error)).encode()
        head = len(body).to_bytes(4, "big") + stream_id.to_bytes(4, "big")
        if len(self._unsent) + len(body) > MAX_UNSENT:
            files.log("control: the host does not read its replies")
            self.close()
            return
        waiting = bool(self._unsent)
        self._unsent += head + bytes((_RESPONSE, 0)) + body
        if not waiting:
            try:
                self._send()
            except OSError:
                self.close()

    def _send(self):
        try:
            sent = self._sock.send(self._unsent)
        except BlockingIOError:
            sent = 0
        del self._unsent[:sent]
        writing = bool(self._unsent)
        if writing != self._writing:
            self._writing = writing
            self._loop.change(self._fd, loop.READ | loop.WRITE if writing else loop.READ)


def _status(error):
    if isinstance(error, RpcError):
        return Status(code=error.code, message=error.message)
    if isinstance(error, DecodeError):
        return Status(code=INVALID_ARGUMENT, message=str(error))
    files.log(f"{type(error).__name__}: {error}")
    return Status(code=INTERNAL, message=f"{type(error).__name__}: {error}")
