"""A guest's stream on which both directions end by themselves: pieces with their length before.

For copies and forwarded sockets; stdio has its own ends (DESIGN: not every VMM passes a half-close
on). Format: proto/agent.proto, CopyRequest.
"""

import asyncio
import socket

from hypercore.errors import Unavailable

MAX_PIECE = 1 << 20
HEAD = 4


class PieceStream:
    """One connection to the guest, from open_stream. Closed by the caller."""

    def __init__(self, fd: int) -> None:
        # The loops know unix sockets; what AF_VSOCK does differs in nothing they look at.
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=fd)
        self._left = 0
        self._ended = False

    async def send(self, data: bytes) -> None:
        """Send a piece; an empty one is the end of this direction.

        Raises:
            Unavailable: the guest has closed the stream.
        """
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_sendall(self._sock, len(data).to_bytes(HEAD, "big") + data)
        except OSError as exc:
            raise Unavailable(f"the guest closed the stream: {exc.strerror}") from exc

    async def receive(self, limit: int) -> bytes:
        """Up to `limit` bytes; none at the end of the guest's direction.

        Raises:
            Unavailable: the guest closed the stream before that end.
        """
        if self._ended:
            return b""
        if not self._left:
            head = b""
            while len(head) < HEAD:
                head += await self._some(HEAD - len(head))
            self._left = int.from_bytes(head, "big")
            if self._left > MAX_PIECE:
                raise Unavailable(f"the guest announced a piece of {self._left} bytes")
            if not self._left:
                self._ended = True
                return b""
        data = await self._some(min(limit, self._left))
        self._left -= len(data)
        return data

    async def _some(self, limit: int) -> bytes:
        try:
            data = await asyncio.get_running_loop().sock_recv(self._sock, limit)
        except OSError as exc:
            raise Unavailable(f"the guest's stream broke: {exc.strerror}") from exc
        if not data:
            raise Unavailable("the guest closed the stream")
        return data

    def close(self) -> None:
        """Idempotent."""
        self._sock.close()
