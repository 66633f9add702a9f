"""The registry client over TLS, and through a proxy, with a certificate made for the test."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import uvloop

from hypercore.containerd import http_client
from hypercore.containerd.reference import parse
from hypercore.containerd.registry import Registry
from hypercore.errors import InvalidArgument, Unavailable

BODY = bytes(range(256)) * 4096
NAME = "registry.test"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("tls")
    key, made = directory / "key.pem", directory / "ca.crt"
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    argv += ["-nodes", "-days", "2", "-subj", "/CN=test", "-keyout", key, "-out", made]
    argv += ["-addext", f"subjectAltName=DNS:localhost,DNS:{NAME}"]
    subprocess.run(argv, check=True, capture_output=True)
    return key, made


@asynccontextmanager
async def serving(certificate: tuple[Path, Path]) -> AsyncIterator[int]:
    """A TLS server that answers everything with BODY; yields its port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate[1], certificate[0])

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(BODY)}\r\n\r\n"
            writer.write(head.encode() + BODY)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def proxying(port: int, seen: list[str]) -> AsyncIterator[str]:
    """A proxy that sends every CONNECT to `port` of this machine; yields its URL."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        seen.append(head.splitlines()[0])
        if "refused" in head:
            writer.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
            writer.close()
            return
        onward_reader, onward_writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.wait(
            [
                asyncio.create_task(copy(reader, onward_writer)),
                asyncio.create_task(copy(onward_reader, writer)),
            ],
            return_when=asyncio.FIRST_COMPLETED,
        )
        writer.transport.abort()
        onward_writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield "http://{}:{}".format(*server.sockets[0].getsockname())
    finally:
        server.close()
        await server.wait_closed()


@pytest.fixture(params=["asyncio", "uvloop"])
def runner(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[asyncio.Runner]:
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as made:
        yield made


async def fetch(host: str) -> bytes:
    return (await Registry(parse(f"{host}/app:1"), plain_http=False).manifest("1"))[0]


def test_trusted_certificate(
    runner: asyncio.Runner, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[1]))

    async def main() -> None:
        async with serving(certificate) as port:
            assert await fetch(f"localhost:{port}") == BODY

    runner.run(main())


def test_certificate_for_one_registry(
    runner: asyncio.Runner,
    certificate: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_client, "CERTIFICATE_DIRS", (tmp_path,))

    async def main() -> None:
        async with serving(certificate) as port:
            with pytest.raises(Unavailable, match="not trusted") as caught:
                await fetch(f"localhost:{port}")
            place = tmp_path / f"localhost:{port}"
            assert f"{place}/ca.crt" in caught.value.hint
            place.mkdir()
            (place / "ca.crt").write_bytes(certificate[1].read_bytes())
            assert await fetch(f"localhost:{port}") == BODY

    runner.run(main())


def test_certificate_for_another_name(
    runner: asyncio.Runner, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[1]))

    async def main() -> None:
        async with serving(certificate) as port:
            with pytest.raises(Unavailable, match="IP address mismatch"):
                await fetch(f"127.0.0.1:{port}")

    runner.run(main())


def test_through_a_proxy(
    runner: asyncio.Runner, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[1]))
    seen: list[str] = []

    async def main() -> None:
        async with serving(certificate) as port, proxying(port, seen) as url:
            monkeypatch.setenv("https_proxy", url)
            assert await fetch(NAME) == BODY
            with pytest.raises(Unavailable, match="status 403"):
                await fetch("refused.test")
            monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:1")
            with pytest.raises(InvalidArgument, match="only http://"):
                await fetch(NAME)

    runner.run(main())
    assert seen == [f"CONNECT {NAME}:443 HTTP/1.1", "CONNECT refused.test:443 HTTP/1.1"]
