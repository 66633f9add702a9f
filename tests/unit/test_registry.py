"""The registry client against a server on loopback that misbehaves on purpose."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hypercore.containerd import registry as registry_module
from hypercore.containerd.http_client import request
from hypercore.containerd.manifest import OCI_MANIFEST, digest_of
from hypercore.containerd.reference import parse
from hypercore.containerd.registry import Registry
from hypercore.containerd.registry_auth import (
    Challenge,
    Credentials,
    parse_challenge,
    stored_credentials,
)
from hypercore.errors import InvalidArgument, NotFound, PermissionDenied, Unavailable

BLOB = bytes(range(256)) * 16384  # 4 MiB
DIGEST = digest_of(BLOB)


@dataclass
class Server:
    """Answers each request by `answer(method, target, headers)` → raw bytes; closes then."""

    answer: Callable[[str, str, dict[str, str]], bytes]
    host: str = ""
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            first = await reader.read(1)
            if first not in (b"G", b"P"):  # as real servers do for TLS on their plain port
                writer.write(response(400))
                return
            head = (first + await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            method, target, _ = head[0].split(" ")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            self.seen.append((target, headers))
            writer.write(self.answer(method, target, headers))
            await writer.drain()
        finally:
            writer.close()


def response(status: int, body: bytes = b"", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


@asynccontextmanager
async def serving(
    answer: Callable[[str, str, dict[str, str]], bytes],
) -> AsyncIterator[tuple[Server, Registry]]:
    made = Server(answer)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.host = "{}:{}".format(*server.sockets[0].getsockname())
    try:
        yield made, Registry(parse(f"{made.host}/team/app:1"))
    finally:
        server.close()
        await server.wait_closed()


async def blob(registry: Registry, size: int = len(BLOB)) -> tuple[bytes, list[int]]:
    counts: list[int] = []
    data = b"".join([piece async for piece in registry.blob(DIGEST, size, counts.append)])
    return data, counts


def run(
    answer: Callable[[str, str, dict[str, str]], bytes],
    work: Callable[[Server, Registry], Awaitable[None]],
) -> None:
    async def main() -> None:
        async with serving(answer) as (server, registry):
            await work(server, registry)

    asyncio.run(main())


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setenv("DOCKER_CONFIG", "/nonexistent")
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_manifest_by_tag_and_its_type() -> None:
    def answer(method: str, target: str, headers: dict[str, str]) -> bytes:
        assert OCI_MANIFEST in headers["accept"]
        return response(200, b"{}", Content_Type=OCI_MANIFEST)

    async def work(server: Server, registry: Registry) -> None:
        assert await registry.manifest("1") == (b"{}", OCI_MANIFEST)
        assert server.seen[0][0] == "/v2/team/app/manifests/1"

    run(answer, work)


def test_manifest_with_another_digest_is_refused() -> None:
    async def work(server: Server, registry: Registry) -> None:
        with pytest.raises(InvalidArgument, match=digest_of(b"evil")):
            await registry.manifest(DIGEST)

    run(lambda *_: response(200, b"evil"), work)


def test_blob_is_taken_up_where_it_broke() -> None:
    def answer(method: str, target: str, headers: dict[str, str]) -> bytes:
        start = int(headers.get("range", "bytes=0-")[6:-1])
        whole = response(206 if start else 200, BLOB[start:])
        return whole[: 3 << 19]  # a megabyte and a half at a time

    async def work(server: Server, registry: Registry) -> None:
        data, counts = await blob(registry)
        assert data == BLOB
        assert counts == sorted(counts)
        assert counts[-1] == len(BLOB)
        assert len(server.seen) > 2

    run(answer, work)


def test_blob_of_a_server_without_ranges() -> None:
    broken = iter([True])

    def answer(method: str, target: str, headers: dict[str, str]) -> bytes:
        whole = response(200, BLOB)
        return whole[: 3 << 19] if next(broken, False) else whole

    async def work(server: Server, registry: Registry) -> None:
        assert (await blob(registry))[0] == BLOB

    run(answer, work)


def test_blob_in_chunked_encoding() -> None:
    def answer(method: str, target: str, headers: dict[str, str]) -> bytes:
        body = b"".join(
            b"%x;note=1\r\n%b\r\n" % (len(part), part)
            for part in (BLOB[start : start + 99_999] for start in range(0, len(BLOB), 99_999))
        )
        return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"

    async def work(server: Server, registry: Registry) -> None:
        assert (await blob(registry))[0] == BLOB

    run(answer, work)


def test_blob_that_never_comes_whole_ends_in_an_error() -> None:
    async def work(server: Server, registry: Registry) -> None:
        with pytest.raises(Unavailable):
            await blob(registry)
        assert len(server.seen) == registry_module.ATTEMPTS

    run(lambda *_: b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", work)


def test_blob_longer_than_said_is_refused() -> None:
    async def work(server: Server, registry: Registry) -> None:
        with pytest.raises(InvalidArgument, match="longer"):
            await blob(registry, size=5)

    run(lambda *_: response(200, BLOB), work)


def test_server_error_is_tried_again() -> None:
    answers = iter([response(503), response(502), response(200, b"{}")])

    async def work(server: Server, registry: Registry) -> None:
        assert (await registry.manifest("1"))[0] == b"{}"

    run(lambda *_: next(answers), work)


@pytest.mark.parametrize(
    ("status", "error"),
    [(404, NotFound), (403, PermissionDenied), (429, Unavailable), (418, Unavailable)],
)
def test_refusals(status: int, error: type[Exception]) -> None:
    words = json.dumps({"errors": [{"code": "X", "message": "says why"}]}).encode()

    async def work(server: Server, registry: Registry) -> None:
        with pytest.raises(error, match="says why"):
            await registry.manifest("1")
        assert len(server.seen) == 1

    run(lambda *_: response(status, words), work)


def test_bearer_token_is_fetched_once() -> None:
    login = Credentials("me", "secret")

    def answer(method: str, target: str, headers: dict[str, str]) -> bytes:
        if target.startswith("/token"):
            assert target == "/token?service=reg&scope=repository%3Ateam%2Fapp%3Apull"
            assert headers["authorization"] == login.basic().lower()
            return response(200, b'{"token": "T"}')
        if headers.get("authorization") == "bearer t":
            return response(200, b"{}")
        realm = f'Bearer realm="http://{headers["host"]}/token",service="reg"'
        return response(401, WWW_Authenticate=realm)

    async def main() -> None:
        async with serving(answer) as (server, _):
            registry = Registry(parse(f"{server.host}/team/app"), credentials=login)
            await registry.manifest("1")
            await asyncio.gather(registry.manifest("2"), registry.manifest("3"))
            assert sum(target.startswith("/token") for target, _ in server.seen) == 1

    asyncio.run(main())


def test_refused_login_names_the_user() -> None:
    def answer(method: str, target: str, headers: dict[str, str]) -> bytes:
        if target.startswith("/token"):
            return response(401)
        return response(401, WWW_Authenticate=f'Bearer realm="http://{headers["host"]}/token"')

    async def work(server: Server, registry: Registry) -> None:
        with pytest.raises(PermissionDenied, match="anonymous") as caught:
            await registry.manifest("1")
        assert "docker login" in caught.value.hint

    run(answer, work)


def test_redirect_to_another_host_gets_no_token() -> None:
    async def main() -> None:
        async with serving(lambda *_: response(200, BLOB)) as (storage, _):

            def answer(method: str, target: str, headers: dict[str, str]) -> bytes:
                if "authorization" not in headers:
                    return response(401, WWW_Authenticate='Basic realm="x"')
                return response(307, Location=f"http://{storage.host}/blob")

            async with serving(answer) as (server, _):
                login = Credentials("me", "secret")
                registry = Registry(parse(f"{server.host}/team/app"), credentials=login)
                assert (await blob(registry))[0] == BLOB
                assert "authorization" not in storage.seen[0][1]

    asyncio.run(main())


def test_endless_redirect() -> None:
    async def work(server: Server, registry: Registry) -> None:
        with pytest.raises(Unavailable, match="without an end"):
            await registry.manifest("1")

    run(lambda _m, _t, headers: response(302, Location=f"http://{headers['host']}/again"), work)


def test_registry_that_is_down_is_named_at_once() -> None:
    async def main() -> None:
        async with serving(lambda *_: b"") as (server, _):
            host = server.host
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1 does not answer"):
            await Registry(parse(f"{host}/app")).manifest("1")

    asyncio.run(main())


def test_tls_against_plain_http_says_so() -> None:
    async def main() -> None:
        async with serving(lambda *_: b"") as (server, _):
            with pytest.raises(Unavailable) as caught:
                await Registry(parse(f"{server.host}/app"), plain_http=False).manifest("1")
            assert "--plain-http" in caught.value.hint

    asyncio.run(main())


def test_what_is_no_http_is_named() -> None:
    async def work(server: Server, registry: Registry) -> None:
        with pytest.raises(Unavailable, match="does not speak HTTP"):
            await registry.manifest("1")

    run(lambda *_: b"SSH-2.0-x\r\n\r\n", work)


def test_header_injection_is_refused() -> None:
    async def work(server: Server, registry: Registry) -> None:
        with pytest.raises(InvalidArgument, match="line break"):
            async with request("GET", f"http://{server.host}/", {"X": "a\r\nB: c"}):
                pass

    run(lambda *_: response(200), work)


def test_challenge() -> None:
    header = 'Bearer realm="https://a/b?c",service="s",scope="repository:x:pull,push"'
    assert parse_challenge(header) == Challenge(
        "bearer", "https://a/b?c", "s", "repository:x:pull,push"
    )
    assert parse_challenge("Basic realm=x") == Challenge("basic", "x")


def stored(tmp_path: Path, document: object, host: str) -> Credentials | None:
    (tmp_path / "config.json").write_text(json.dumps(document))
    environ = {"DOCKER_CONFIG": str(tmp_path), "PATH": str(tmp_path)}
    return asyncio.run(stored_credentials(host, environ))


def test_login_of_docker(tmp_path: Path) -> None:
    packed = base64.b64encode(b"me:se:cret").decode()
    document = {
        "auths": {
            "https://index.docker.io/v1/": {"auth": packed},
            "r.example:5000": {"identitytoken": "T"},
        }
    }
    assert stored(tmp_path, document, "docker.io") == Credentials("me", "se:cret")
    assert stored(tmp_path, document, "r.example:5000") == Credentials(identity_token="T")
    assert stored(tmp_path, document, "other.example") is None
    assert "cret" not in repr(stored(tmp_path, document, "docker.io"))


def test_login_by_credential_helper(tmp_path: Path) -> None:
    helper = tmp_path / "docker-credential-test"
    helper.write_text(
        '#!/bin/sh\nread -r server\n[ "$server" = r.example ] || exit 1\n'
        'echo "{\\"Username\\": \\"me\\", \\"Secret\\": \\"s\\"}"\n'
    )
    helper.chmod(0o755)
    assert stored(tmp_path, {"credsStore": "test"}, "r.example") == Credentials("me", "s")
    assert stored(tmp_path, {"credHelpers": {"r.example": "test"}}, "r.example") is not None
    assert stored(tmp_path, {"credsStore": "test"}, "other.example") is None
    with pytest.raises(Unavailable, match="'absent'"):
        stored(tmp_path, {"credsStore": "absent"}, "r.example")


def test_unreadable_login_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="not base64"):
        stored(tmp_path, {"auths": {"r.example": {"auth": "!"}}}, "r.example")
