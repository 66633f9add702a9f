"""The bytes of a copy's stream, which come and go in pieces with their length before them.

For blocking sockets. The empty piece is the end: not every VMM passes a half-close on.
"""

from hypercore.wire.codec import DecodeError


class Pieces:
    """Both directions of one connected socket, which stays the caller's."""

    def __init__(self, sock):
        self._sock = sock
        self._left = 0
        self._ended = False

    def send(self, data):
        if data:
            self._sock.sendall(len(data).to_bytes(4, "big") + data)

    def end(self):
        """No more is sent. Returns when the peer has closed, which it does once it has all."""
        self._sock.sendall(bytes(4))
        self._sock.recv(1)

    def read(self, limit):
        """Up to `limit` bytes; none at the end. DecodeError when the peer closes before."""
        if not self._left and not self._ended:
            head = b""
            while len(head) < 4:
                head += self._receive(4 - len(head))
            self._left = int.from_bytes(head, "big")
            self._ended = not self._left
        if self._ended:
            return b""
        data = self._receive(min(limit, self._left))
        self._left -= len(data)
        return data

    def _receive(self, limit):
        data = self._sock.recv(limit)
        if not data:
            raise DecodeError("the stream of the copy was cut")
        return data
