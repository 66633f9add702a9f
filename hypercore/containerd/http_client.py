"""As much of HTTP/1.1 as a registry needs: one request a connection, its body as it arrives.

On asyncio's streams, so that a pull can be cancelled at any moment; urllib would block a thread.
No redirects, no authentication, no retries: registry.py decides about those.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urljoin, urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from hypercore.errors import InvalidArgument, Unavailable

CONNECT_TIMEOUT_S = 15.0
IDLE_TIMEOUT_S = 60.0
HEADER_LIMIT_BYTES = 64 << 10
READ_BYTES = 256 << 10
CERTIFICATE_DIRS = (Path("/etc/docker/certs.d"), Path("/etc/containerd/certs.d"))


class Interrupted(Unavailable):
    """The connection broke after it was made; trying again may help."""


@dataclass(slots=True)
class Response:
    """An answer whose body has not been read yet."""

    url: str
    status: int
    headers: Mapping[str, str]
    """names in lower case; of repeated ones the last"""
    reader: asyncio.StreamReader

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body in pieces; Interrupted when it is cut short."""
        try:
            if self.headers.get("transfer-encoding", "").lower() == "chunked":
                pieces = self._chunked()
            else:
                pieces = self._plain()
            async for piece in pieces:
                yield piece
        except TimeoutError as exc:
            raise Interrupted(f"{_host(self.url)} sent nothing for {IDLE_TIMEOUT_S:g} s") from exc
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as exc:
            raise Interrupted(f"{_host(self.url)} broke the connection: {exc}") from exc

    async def read(self, limit: int) -> bytes:
        """The whole body; InvalidArgument when it is longer than `limit`."""
        data = bytearray()
        async for piece in self.chunks():
            data += piece
            if len(data) > limit:
                raise InvalidArgument(f"{self.url} is longer than {limit} bytes")
        return bytes(data)

    def location(self) -> str:
        """Where a redirect points to; empty if it is none."""
        if self.status not in (301, 302, 303, 307, 308):
            return ""
        return urljoin(self.url, self.headers.get("location", ""))

    async def _plain(self) -> AsyncIterator[bytes]:
        length = self.headers.get("content-length", "")
        left = int(length) if length.isdecimal() else -1
        while left:
            async with asyncio.timeout(IDLE_TIMEOUT_S):
                piece = await self.reader.read(READ_BYTES if left < 0 else min(READ_BYTES, left))
            if not piece:
                if left > 0:
                    raise Interrupted(f"{_host(self.url)} sent {left} bytes too few")
                return
            left -= len(piece) if left > 0 else 0
            yield piece

    async def _chunked(self) -> AsyncIterator[bytes]:
        while True:
            async with asyncio.timeout(IDLE_TIMEOUT_S):
                line = await self.reader.readuntil(b"\r\n")
            size_text = line.split(b";")[0].strip()
            try:
                left = int(size_text, 16)
            except ValueError as exc:
                raise Interrupted(f"{_host(self.url)} sent a bad chunk") from exc
            if left == 0:
                return
            while left:
                async with asyncio.timeout(IDLE_TIMEOUT_S):
                    piece = await self.reader.read(min(READ_BYTES, left))
                if not piece:
                    raise Interrupted(f"{_host(self.url)} ended within a chunk")
                left -= len(piece)
                yield piece
            async with asyncio.timeout(IDLE_TIMEOUT_S):
                await self.reader.readexactly(2)


@asynccontextmanager
async def request(
    method: str, url: str, headers: Mapping[str, str], body: bytes = b""
) -> AsyncIterator[Response]:
    """Send a request; the connection is closed when the block is left.

    Raises:
        Unavailable: there is no connection; the message says why.
        Interrupted: it broke before the answer's headers were there.
    """
    target = urlsplit(url)
    if target.scheme not in ("http", "https") or not target.hostname:
        raise InvalidArgument(f"{url!r} is no URL of a registry")
    proxy = _proxy(target)
    reader, writer = await _connect(target, proxy)
    try:
        path = (target.path or "/") + (f"?{target.query}" if target.query else "")
        if proxy is not None and target.scheme == "http":
            path = url
        head = {"Host": target.netloc.rpartition("@")[2], "Connection": "close", **headers}
        head.setdefault("User-Agent", "hypercore")
        if body or method not in ("GET", "HEAD"):
            head["Content-Length"] = str(len(body))
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {text}" for name, text in head.items())]
        if any("\r" in line or "\n" in line for line in lines):
            raise InvalidArgument(f"{url!r}: line break in a header")
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        try:
            async with asyncio.timeout(IDLE_TIMEOUT_S):
                await writer.drain()
                status, answer = await _read_head(reader, target)
        except TimeoutError as exc:
            raise Interrupted(f"{target.hostname} did not answer in {IDLE_TIMEOUT_S:g} s") from exc
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as exc:
            raise Interrupted(f"{target.hostname} broke the connection: {exc}") from exc
        yield Response(url, status, answer, reader)
    finally:
        writer.transport.abort()


async def _connect(
    target: SplitResult, proxy: SplitResult | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host = target.hostname or ""
    place = proxy or target
    secure = target.scheme == "https"
    context = _tls(target.netloc.rpartition("@")[2]) if secure else None
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(
                place.hostname,
                place.port or (443 if place.scheme == "https" else 80),
                ssl=None if proxy else context,
                limit=HEADER_LIMIT_BYTES,
            )
            if proxy is not None and context is not None:
                try:
                    await _tunnel(reader, writer, target)
                    await writer.start_tls(context, server_hostname=host)
                except BaseException:
                    writer.transport.abort()
                    raise
    except ssl.SSLCertVerificationError as exc:
        raise Unavailable(
            f"registry {host}: its certificate is not trusted: {exc.verify_message}",
            hint=f"put its CA into {CERTIFICATE_DIRS[0] / target.netloc}/ca.crt",
        ) from exc
    except ssl.SSLError as exc:
        raise Unavailable(
            f"registry {host}: no TLS connection: {exc.reason or exc}",
            hint="does it speak plain HTTP? then use --plain-http",
        ) from exc
    except TimeoutError as exc:
        raise Unavailable(
            f"registry {host} does not answer: no connection in {CONNECT_TIMEOUT_S:g} s",
            hint=_NETWORK_HINT,
        ) from exc
    except OSError as exc:
        reason = exc.strerror or str(exc)
        raise Unavailable(
            f"registry {host} does not answer: {reason}", hint=_NETWORK_HINT
        ) from exc
    return reader, writer


_NETWORK_HINT = "check the registry's name, the network and HTTPS_PROXY"


async def _tunnel(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: SplitResult
) -> None:
    place = f"{target.hostname}:{target.port or 443}"
    writer.write(f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n".encode())
    await writer.drain()
    status, _headers = await _read_head(reader, target)
    if status != 200:
        raise Unavailable(f"the proxy refuses a connection to {place}: status {status}")


async def _read_head(
    reader: asyncio.StreamReader, target: SplitResult
) -> tuple[int, dict[str, str]]:
    text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = text.split("\r\n")
    words = first.split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdecimal():
        raise Unavailable(
            f"{target.hostname}:{target.port or ''} does not speak HTTP: {first[:60]!r}",
            hint="is this the registry's port?",
        )
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    return int(words[1]), headers


def _proxy(target: SplitResult) -> SplitResult | None:
    from hypercore.containerd.reference import is_loopback

    url = getproxies_environment().get(target.scheme)
    if not url or is_loopback(target.netloc) or proxy_bypass(target.netloc):
        return None
    proxy = urlsplit(url if "//" in url else f"http://{url}")
    if proxy.scheme != "http" or not proxy.hostname:
        raise InvalidArgument(f"{target.scheme}_proxy={url}: only http:// proxies are supported")
    return proxy


def _tls(netloc: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for directory in CERTIFICATE_DIRS:
        for certificate in sorted((directory / netloc).glob("*.crt")):
            context.load_verify_locations(certificate)
    return context


def _host(url: str) -> str:
    return urlsplit(url).netloc
