"""HTTP connections: uvicorn's server with limits it has not, on sockets that are given to it.

A connection must finish its headers in time and in few bytes; who idles between requests for long
is let go.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from hypercore.serve.http_app import Peer

HEADER_TIMEOUT_S = 10.0
MAX_HEADER_BYTES = 32 << 10
KEEP_ALIVE_S = 75
MAX_CONNECTIONS = 4096
MAX_FRAME_BYTES = 1 << 20


class Protocol(HttpToolsProtocol):
    """A connection with bounded headers, which knows where it comes from."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        peer = Peer(
            local=transport.get_extra_info("socket").family == socket.AF_UNIX,
            certificate_names=_names(transport.get_extra_info("ssl_object")),
        )
        self.app_state = {**self.app_state, "peer": peer}
        self._header_bytes = 0
        self._in_headers = True
        self._header_timer = self.loop.call_later(HEADER_TIMEOUT_S, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._header_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_headers:
            self._header_bytes += len(data)
        super().data_received(data)
        if self._in_headers and self._header_bytes > MAX_HEADER_BYTES:
            self._give_up(431, "Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if not self._in_headers:
            self._in_headers, self._header_bytes = True, 0
            self._header_timer = self.loop.call_later(HEADER_TIMEOUT_S, self._give_up)

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._header_timer.cancel()
        super().on_headers_complete()

    def _give_up(self, status: int = 408, reason: str = "Request Timeout") -> None:
        if self.transport.is_closing():
            return
        head = f"HTTP/1.1 {status} {reason}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        self.transport.write(head.encode())
        self.transport.close()


def _names(ssl_object: ssl.SSLObject | None) -> Sequence[str]:
    """The names in the client's certificate, which TLS has verified; none without one."""
    certificate: Any = ssl_object.getpeercert() if ssl_object is not None else None
    if not certificate:
        return ()
    subject = [value for part in certificate.get("subject", ()) for _key, value in part]
    return [*subject, *(value for _kind, value in certificate.get("subjectAltName", ()))]


class Server(uvicorn.Server):
    """uvicorn's, without its signals: they are daemon.py's."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def stop(self, serving: "asyncio.Task[None]") -> None:
        """Take no more connections, let requests end, and return."""
        self.should_exit = True
        await asyncio.wait({serving})
        await serving


def server(app: Starlette, *, tls: ssl.SSLContext | None = None, grace_s: float = 10.0) -> Server:
    """A server of `app`; `serve(sockets=[…])` runs it."""
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="websockets-sansio",
        ws_max_size=MAX_FRAME_BYTES,
        lifespan="off",
        loop="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(grace_s),
        limit_concurrency=MAX_CONNECTIONS,
        backlog=1024,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    config.load()
    config.ssl = tls
    return Server(config)
