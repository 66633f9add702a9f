"""Unix sockets of the host, listened for in the guest: it accepts, the host dials back.

A guest that dialled by itself could fill the host's backlog, and waits long for a host that does
not listen. So the host asks for the next connection and opens a stream for it, as for stdio. On
that stream bytes come in pieces with their length before them, an empty piece for the end of one
direction: not every VMM passes a half-close on.
"""

import _socket
import posix

from agent import files, loop
from agent.errors import INVALID_ARGUMENT, NOT_FOUND, RpcError

MAX_CONNECTIONS = 128
"""Of one container at one time; more wait in the kernel's backlog."""
DIAL_BACK_S = 10

_CHUNK = 32768
_MAX_PIECE = 1 << 20


class Forwards:
    """The listeners of one container, and their connections."""

    def __init__(self, events, registry, directory):
        self._loop = events
        self._registry = registry
        self._directory = directory + "/sockets"
        self._listeners = {}
        self._paused = False
        self._pending = []
        self._waiters = []
        self._connections = []
        self._paths = []

    def listen(self, sockets):
        """Make the sockets of a CreateRequest, owned as on the host."""
        if not sockets:
            return
        files.make_dir(self._directory, 0o700)
        for given in sockets:
            if not given.name.isalnum():
                raise RpcError(INVALID_ARGUMENT, f"socket {given.name!r} is no name")
            path = f"{self._directory}/{given.name}"
            kind = _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
            listener = _socket.socket(_socket.AF_UNIX, kind)
            self._listeners[listener] = given.name
            listener.bind(path)
            self._paths.append(path)
            posix.chmod(path, given.mode & 0o777)
            posix.chown(path, given.uid, given.gid)
            listener.listen(128)
        self._watch(True)

    def next(self):
        """(name, token) of a connection the host has to dial for; a generator for the loop."""
        while not self._pending:
            if not self._listeners:
                raise RpcError(NOT_FOUND, "the container forwards no sockets")
            yield _Waiter(self._waiters)
        return self._pending.pop(0)

    def close(self):
        """Close all; unlink the sockets."""
        self._watch(False)
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        for connection in list(self._connections):
            connection.close()
        for path in self._paths:
            files.remove(path)
        self._paths = []
        try:
            posix.rmdir(self._directory)
        except FileNotFoundError:
            pass
        self._wake()

    def _watch(self, watching):
        for listener, name in self._listeners.items():
            if watching:
                self._loop.add(
                    listener.fileno(),
                    loop.READ,
                    lambda events, listener=listener, name=name: self._accept(listener, name),
                )
            else:
                self._loop.remove(listener.fileno())
        self._paused = not watching

    def _accept(self, listener, name):
        try:
            fd, _ = listener._accept()
        except OSError:
            return  # gone already, or no descriptor is free
        sock = _socket.socket(fileno=fd)
        sock.setblocking(False)
        token = posix.urandom(16)
        self._connections.append(
            _Connection(self._loop, sock, self._registry, token, self._connection_ended)
        )
        self._pending.append((name, token))
        if len(self._connections) >= MAX_CONNECTIONS:
            self._watch(False)
        self._wake()

    def _wake(self):
        waiters, self._waiters = self._waiters, []
        for resume in waiters:
            resume(None)

    def _connection_ended(self, connection):
        self._connections.remove(connection)
        self._pending = [pair for pair in self._pending if pair[1] != connection.token]
        if self._paused and self._listeners:
            self._watch(True)


class _Waiter:
    def __init__(self, waiters):
        self._waiters = waiters

    def arm(self, events, resume):
        self._waiters.append(resume)


class _Connection:
    """One connection of the container and, once the host has dialled, its stream."""

    def __init__(self, events, local, registry, token, ended):
        self.token = token
        self._loop = events
        self._local = local
        self._registry = registry
        self._ended = ended
        self._stream = None
        self._to_stream = b""
        self._to_local = b""
        self._head = b""
        self._left = 0
        self._local_ended = False
        self._stream_ended = False
        self._watched = {}
        self._timer = events.call_later(DIAL_BACK_S, self.close)
        registry.expect(token, self)

    def connect(self, sock):
        """The host has dialled."""
        if self._stream is not None:
            sock.close()
            return
        self._loop.cancel(self._timer)
        self._stream = sock
        self._update()

    def close(self):
        if self._local is None:
            return
        self._loop.cancel(self._timer)
        self._registry.release(self.token)
        for fd in list(self._watched):
            self._loop.remove(fd)
        self._watched.clear()
        self._local.close()
        self._local = None
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        self._ended(self)

    def _update(self):
        """Watch each side for what is next: bytes are read only where they have a place."""
        local = stream = 0
        if self._to_stream:
            stream |= loop.WRITE
        elif not self._local_ended:
            local |= loop.READ
        if self._to_local:
            local |= loop.WRITE
        else:
            # After its end only the host's closing is waited for.
            stream |= loop.READ
        self._set(self._local.fileno(), local, self._local_ready)
        self._set(self._stream.fileno(), stream, self._stream_ready)

    def _set(self, fd, events, callback):
        before = self._watched.get(fd, 0)
        if events == before:
            return
        if not events:
            del self._watched[fd]
            self._loop.remove(fd)  # an empty mask would still tell of hang-ups
            return
        if before:
            self._loop.change(fd, events)
        else:
            self._loop.add(fd, events, callback)
        self._watched[fd] = events

    def _local_ready(self, events):
        try:
            if self._to_local:
                self._send_local()
            elif not self._to_stream and not self._local_ended:
                data = self._local.recv(_CHUNK)
                self._local_ended = not data
                self._to_stream = len(data).to_bytes(4, "big") + data
                self._send_stream()
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        self._update()

    def _stream_ready(self, events):
        try:
            if self._to_stream:
                self._send_stream()
            if not self._to_local:
                self._receive_stream()
        except BlockingIOError:
            pass
        except (OSError, EOFError):
            self.close()
            return
        self._update()

    def _send_stream(self):
        self._to_stream = self._to_stream[self._stream.send(self._to_stream) :]

    def _send_local(self):
        if self._to_local:
            self._to_local = self._to_local[self._local.send(self._to_local) :]

    def _receive_stream(self):
        if self._left:
            data = self._stream.recv(min(_CHUNK, self._left))
            if not data:
                raise EOFError
            self._left -= len(data)
            self._to_local = data
            self._send_local()
            return
        data = self._stream.recv(4 - len(self._head))
        if not data or self._stream_ended:
            raise EOFError
        self._head += data
        if len(self._head) < 4:
            return
        self._left = int.from_bytes(self._head, "big")
        self._head = b""
        if self._left > _MAX_PIECE:
            raise EOFError
        if not self._left:
            self._stream_ended = True
            self._local.shutdown(_socket.SHUT_WR)
