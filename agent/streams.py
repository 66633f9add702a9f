"""Stdio: pipes or a terminal on one side, one vsock connection a stream on the other.

The host dials port 10790 and names the stream by a token, which Create or Exec names again. Bytes
are counted, and ends are told by RPC with those counts: not every VMM passes a half-close on. A
connection that breaks leaves its process waiting until a successor of the host dials with the
same token; nothing is thrown away while the process lives.
"""

import fcntl
import posix

from agent import _sys, loop
from agent.errors import FAILED_PRECONDITION, INVALID_ARGUMENT, RpcError
from hypercore.proto.agent_pb import StreamHeader
from hypercore.wire.codec import DecodeError

TOKEN_BYTES = 16
MAX_HEADER = 256
HEADER_TIMEOUT_S = 10
MAX_UNNAMED = 256
"""Connections without a header, and named ones no process has claimed, at one time."""

_CHUNK = 32768
_SPLICE = 1 << 20
_EAGAIN = 11
_FIONREAD, _TIOCSWINSZ = 0x541B, 0x5414
_F_DUPFD_CLOEXEC, _F_SETPIPE_SZ = 1030, 1031
_PIPE_BYTES = 1 << 18


class Registry:
    """Stream connections by token: those that wait for a process, and those in use."""

    def __init__(self, events):
        self._loop = events
        self._pending = 0
        self._waiting = {}
        self._users = {}

    def accept(self, sock):
        """Take over a connection that has yet to send its header."""
        if self._pending + len(self._waiting) >= MAX_UNNAMED:
            sock.close()
            return
        sock.setblocking(False)
        self._pending += 1
        _Header(self._loop, sock, self._named)

    def _named(self, sock, header):
        """The header of `sock` has come (None: it is none)."""
        self._pending -= 1
        if header is None or header.version != 1 or len(header.token) != TOKEN_BYTES:
            _answer(sock, b"-")
            sock.close()
            return
        token = header.token
        user = self._users.get(token)
        if user is not None:
            # A successor of the host: it knows the token, so its word counts, even where the old
            # connection has not yet been seen to break.
            if _answer(sock, b"+"):
                user.connect(sock)
            else:
                sock.close()
            return
        old = self._waiting.pop(token, None)
        if old is not None:
            self._forget(old)
        self._waiting[token] = sock
        self._loop.add(sock.fileno(), loop.HANGUP, lambda events: self._hung_up(token))
        if not _answer(sock, b"+"):
            self._hung_up(token)

    def _hung_up(self, token):
        sock = self._waiting.pop(token, None)
        if sock is not None:
            self._forget(sock)

    def _forget(self, sock):
        self._loop.remove(sock.fileno())
        sock.close()

    def check(self, tokens):
        """Raise RpcError unless a connection waits for each of the non-empty tokens."""
        for token in tokens:
            if token and token not in self._waiting:
                raise RpcError(FAILED_PRECONDITION, f"no stream with token {token.hex()}")

    def take(self, token):
        """The waiting connection of `token`, the caller's from now on; RpcError without one."""
        check_token(token)
        self.check([token])
        sock = self._waiting.pop(token, None)
        if sock is None:
            raise RpcError(INVALID_ARGUMENT, "no token of a stream")
        self._loop.remove(sock.fileno())
        return sock

    def expect(self, token, user):
        """Give a connection that is yet to come with `token` to `user`."""
        self._users[token] = user

    def claim(self, token, user):
        """Give the waiting connection to `user`; later ones with this token go there too."""
        sock = self._waiting.pop(token)
        self._loop.remove(sock.fileno())
        self._users[token] = user
        user.connect(sock)

    def release(self, token):
        self._users.pop(token, None)


class _Header:
    """Reads the header of one new connection."""

    def __init__(self, events, sock, done):
        self._loop = events
        self._sock = sock
        self._done = done
        self._data = b""
        events.add(sock.fileno(), loop.READ, self._ready)
        self._timer = events.call_later(HEADER_TIMEOUT_S, lambda: self._end(None))

    def _ready(self, events):
        # Never more than the header: what follows is the stream's.
        size = int.from_bytes(self._data[:2], "big") if len(self._data) >= 2 else 0
        if size > MAX_HEADER:
            self._end(None)
            return
        wanted = (2 + size if size else 2) - len(self._data)
        try:
            part = self._sock.recv(wanted)
        except BlockingIOError:
            return
        except OSError:
            part = b""
        if not part:
            self._end(None)
            return
        self._data += part
        size = int.from_bytes(self._data[:2], "big") if len(self._data) >= 2 else 0
        if size and len(self._data) == 2 + size:
            try:
                header = StreamHeader.decode(self._data[2:])
            except DecodeError:
                header = None
            self._end(header)

    def _end(self, header):
        self._loop.cancel(self._timer)
        self._loop.remove(self._sock.fileno())
        self._done(self._sock, header)


def _answer(sock, byte):
    try:
        return sock.send(byte) == 1
    except OSError:
        return False


class _Stream:
    """One of our ends of a pipe or terminal and its connection to the host; owns both."""

    def __init__(self, events, fd, terminal):
        self._loop = events
        self._fd = fd
        self._terminal = terminal
        self._sock = None
        self._watched = -1
        self._tail = b""
        self.count = 0

    def connect(self, sock):
        """Take over a connection, in place of the one before."""
        if self._sock is not None:
            self._disconnect()
        self._sock = sock
        self._connected()

    def close(self):
        self._watch(-1, 0, None)
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        self._close_fd()

    def _close_fd(self):
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            posix.close(fd)

    def _watch(self, fd, events, callback):
        # One descriptor at a time: a hung-up pipe cannot be silenced by an empty event mask.
        if self._watched >= 0:
            self._loop.remove(self._watched)
        self._watched = fd
        if fd >= 0:
            self._loop.add(fd, events, callback)

    def _disconnect(self):
        self._watch(-1, 0, None)
        self._sock.close()
        self._sock = None


class Output(_Stream):
    """From a pipe or a terminal to the host. Can discard what nobody wants."""

    def __init__(self, events, fd, terminal, discard, changed):
        _Stream.__init__(self, events, fd, terminal)
        self._discard = discard
        self._changed = changed
        self._due = -1
        self.ended = fd < 0
        if discard and not self.ended:
            self._watch(fd, loop.READ, self._readable)

    def _connected(self):
        if self.ended:
            self._watch(self._sock.fileno(), loop.HANGUP, self._gone)
        else:
            self._watch(self._fd, loop.READ, self._readable)

    def drop_rest(self):
        """The process has ended and nobody is connected: count what is left, discard it."""
        if self._sock is None and not self.ended and not self._discard:
            self._discard = True
            self.count += len(self._tail)
            self._tail = b""
            self._watch(self._fd, loop.READ, self._readable)

    def settle(self):
        """Owe the host no more than what has been written by now."""
        self._due = self.count + len(self._tail)
        if not self.ended:
            waiting = fcntl.ioctl(self._fd, _FIONREAD, b"\0\0\0\0")
            self._due += int.from_bytes(waiting, "little")

    def settled(self):
        """Whether the host has all that is owed; others may still hold the pipe, and write."""
        return self.ended or 0 <= self._due <= self.count

    def _readable(self, events):
        if self._terminal or self._discard:
            moved = self._copy()
        else:
            moved = _sys.splice(self._fd, self._sock.fileno(), _SPLICE)
        if moved > 0:
            self.count += moved
        elif moved == -_EAGAIN:
            # The source is readable, so it is the socket that is full.
            self._watch(self._sock.fileno(), loop.WRITE, self._writable)
        elif moved < 0:
            self._disconnect()
        else:
            self._end()
        self._changed()

    def _copy(self):
        """A terminal cannot be spliced. Returns bytes moved, 0 at the end, or -errno."""
        if not self._tail:
            try:
                self._tail = posix.read(self._fd, _CHUNK)
            except OSError:
                return 0
            if not self._tail:
                return 0
        if self._discard:
            sent = len(self._tail)
        else:
            try:
                sent = self._sock.send(self._tail)
            except OSError as exc:
                return -exc.errno
        self._tail = self._tail[sent:]
        return sent

    def _writable(self, events):
        self._watch(self._fd, loop.READ, self._readable)

    def _gone(self, events):
        self._disconnect()

    def _end(self):
        self.ended = True
        self._watch(-1, 0, None)
        if not self._terminal:
            self._close_fd()
        if self._sock is not None:
            # Stays open until the host closes it: closing first may cost bytes in flight.
            self._watch(self._sock.fileno(), loop.HANGUP, self._gone)


class Input(_Stream):
    """From the host to a pipe or a terminal. Ended by `end_at` alone."""

    def __init__(self, events, fd, terminal):
        _Stream.__init__(self, events, fd, terminal)
        self._limit = -1

    def _connected(self):
        self._next()

    def end_at(self, count):
        """Close the pipe once `count` bytes have been delivered."""
        if not self._terminal:
            self._limit = count
            self._next()

    def resize(self, rows, columns):
        """Set the terminal's size."""
        size = rows.to_bytes(2, "little") + columns.to_bytes(2, "little") + b"\0\0\0\0"
        fcntl.ioctl(self._fd, _TIOCSWINSZ, size)

    def _next(self):
        """Watch what the next step waits for."""
        if self._fd >= 0 and self._tail:
            self._watch(self._fd, loop.WRITE, self._writable)
        elif self._fd >= 0 and 0 <= self._limit <= self.count:
            self._watch(-1, 0, None)
            self._close_fd()
            self._next()
        elif self._sock is not None:
            self._watch(self._sock.fileno(), loop.READ, self._readable)
        else:
            self._watch(-1, 0, None)

    def _readable(self, events):
        try:
            data = self._sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._disconnect()
            return
        self.count += len(data)
        self._tail = data
        self._writable(0)

    def _writable(self, events):
        if self._fd >= 0:
            try:
                sent = posix.write(self._fd, self._tail)
            except BlockingIOError:
                sent = 0
            except OSError:
                # The process has closed its stdin: what still comes is read and dropped.
                self._watch(-1, 0, None)
                self._close_fd()
        if self._fd >= 0:
            self._tail = self._tail[sent:]
        else:
            self._tail = b""
        self._next()


def new_pipe(outgoing):
    """A pipe as (process's end, our end); ours does not block."""
    read_fd, write_fd = posix.pipe2(posix.O_CLOEXEC)
    ours, theirs = (read_fd, write_fd) if outgoing else (write_fd, read_fd)
    posix.set_blocking(ours, False)
    if outgoing:
        try:
            fcntl.fcntl(ours, _F_SETPIPE_SZ, _PIPE_BYTES)
        except PermissionError:
            pass  # the limit of all pipes together is reached; the default size serves
    return theirs, ours


def second_fd(fd):
    """Another number for the same terminal: epoll needs one for each direction."""
    return fcntl.fcntl(fd, _F_DUPFD_CLOEXEC, 0)


def check_token(token):
    if token and len(token) != TOKEN_BYTES:
        raise RpcError(INVALID_ARGUMENT, f"a stream's token of {len(token)} bytes, not 16")
