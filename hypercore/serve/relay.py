"""Connections of a socket that systemd opened, passed to gRPC's own.

gRPC's library only listens on sockets that it has opened itself. Bytes are passed as they come;
asyncio's flow control holds a fast sender back.
"""

import asyncio
import socket
from pathlib import Path
from typing import cast


class _Half(asyncio.Protocol):
    """One end of a relayed connection."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.other: _Half | None = None
        self.early: list[bytes] = []
        self.ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            self.other.transport.write(data)
        else:
            self.early.append(data)

    def eof_received(self) -> bool:
        self.ended = True
        if self.other is not None:
            self.other.transport.write_eof()
        return True

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None:
            self.other.transport.close()


class Relay:
    """Passes what connects to a listening socket on to the unix socket at `target`."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._joining: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self, listener: socket.socket) -> None:
        self._server = await asyncio.get_running_loop().create_unix_server(
            self._accepted, sock=listener
        )

    def _accepted(self) -> asyncio.Protocol:
        return _Near(self)

    def join(self, near: _Half) -> None:
        task = asyncio.get_running_loop().create_task(self._join(near))
        self._joining.add(task)
        task.add_done_callback(self._joining.discard)

    async def _join(self, near: _Half) -> None:
        near.transport.pause_reading()
        far = _Half()
        loop = asyncio.get_running_loop()
        try:
            await loop.create_unix_connection(lambda: far, str(self._target))
        except OSError:
            near.transport.abort()
            return
        near.other, far.other = far, near
        for half, other in ((near, far), (far, near)):
            # What came before the two knew each other.
            if half.early:
                other.transport.write(b"".join(half.early))
                half.early.clear()
            if half.ended:
                other.transport.write_eof()
        if near.transport.is_closing():
            far.transport.close()
            return
        near.transport.resume_reading()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._joining:
            task.cancel()
        await asyncio.gather(*self._joining, return_exceptions=True)


class _Near(_Half):
    """The end that a client has connected to."""

    def __init__(self, relay: Relay) -> None:
        super().__init__()
        self._relay = relay

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._relay.join(self)
