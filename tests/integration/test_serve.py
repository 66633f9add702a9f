"""`hypercore serve` over a real containerd, without a guest: who may do what, and bad manners."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from hypercore import paths
from hypercore.api import METHODS, Method, Scope, Shape
from hypercore.client import Client, address
from hypercore.client.async_client import _transport
from hypercore.config import HostConfig
from hypercore.containerd import client as containerd_client
from hypercore.containerd import containers
from hypercore.errors import (
    AlreadyExists,
    HypercoreError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from hypercore.proto import hypercore_pb as pb
from hypercore.serve.tokens import Grants
from tests.integration import own_containerd
from tests.integration.serve_lab import Daemon, daemon, wait_until

WATCHERS = 200
TRANSPORTS = ("http-unix", "grpc-unix", "http-tcp", "grpc-tcp")


@pytest.fixture(scope="module")
def host(root: None) -> Iterator[HostConfig]:
    with own_containerd.running() as config:
        yield config


class Identity:
    """A CA and what it has signed."""

    def __init__(self, directory: Path) -> None:
        self.ca, self._ca_key = directory / "ca.crt", directory / "ca.key"
        self.directory = directory
        ec = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        self._ec = ec
        subject = ["-days", "2", "-subj", "/CN=test CA"]
        self._openssl("req", "-x509", *ec, *subject, "-keyout", self._ca_key, "-out", self.ca)

    def _openssl(self, *args: str | Path) -> None:
        subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True)

    def sign(self, name: str) -> tuple[Path, Path]:
        """Certificate and key of `name`, which is also good for 127.0.0.1."""
        certificate, key = self.directory / f"{name}.crt", self.directory / f"{name}.key"
        request = self.directory / f"{name}.csr"
        self._openssl("req", "-new", *self._ec, "-subj", f"/CN={name}", "-keyout", key,
                      "-out", request)  # fmt: skip
        extensions = self.directory / "ext"
        extensions.write_text(f"subjectAltName=IP:127.0.0.1,DNS:{name}\n")
        self._openssl(
            "x509",
            "-req",
            "-in",
            request,
            "-CA",
            self.ca,
            "-CAkey",
            self._ca_key,
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            extensions,
            "-out",
            certificate,
        )
        return certificate, key


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return Identity(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def tokens(host: HostConfig) -> dict[str, str]:
    grants = Grants(paths.tokens_file())
    return {scope.value: grants.create(f"t-{scope}", scope) for scope in Scope}


@pytest.fixture(scope="module")
def served(host: HostConfig, identity: Identity, tokens: dict[str, str]) -> Iterator[Daemon]:
    certificate, key = identity.sign("localhost")
    args = ("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")
    with daemon(*args, "--tls-cert", certificate, "--tls-key", key) as running:
        with Client(running.address("http-unix")) as client:
            wait_until(lambda: ready(running))
            client.info()
        yield running


def ready(running: Daemon) -> bool:
    return raw(running, b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")[0] == 200


def raw(running: Daemon, request: bytes) -> tuple[int, bytes, bytes]:
    """Status, head and body of what bytes on the HTTP socket are answered with."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(running.http_socket))
        # An answer may be there though the rest is not wanted.
        with suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(request)
        answer = b""
        with suppress(ConnectionResetError):
            while data := sock.recv(1 << 16):
                answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 0, head, body


def call(
    running: Daemon, verb: str, path: str, body: object = None, **headers: str
) -> tuple[int, Any]:
    """Status and JSON of one request."""
    data = b"" if body is None else json.dumps(body).encode()
    lines = [f"{verb} {path} HTTP/1.1", "host: x", "connection: close"]
    if body is not None:
        headers.setdefault("content_type", "application/json")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines.append(f"content-length: {len(data)}")
    status, head, answer = raw(running, "\r\n".join([*lines, "", ""]).encode() + data)
    if b"transfer-encoding: chunked" in head.lower():
        return status, answer
    return status, json.loads(answer) if answer.startswith((b"{", b"[")) else answer


# who may do what


REQUESTS: dict[str, Any] = {
    "List": pb.ListRequest(),
    "Info": pb.InfoRequest(),
    "Check": pb.CheckRequest(),
    "ListImages": pb.ListImagesRequest(),
    "Events": pb.EventsRequest(),
    "Spawn": pb.SpawnRequest(hardware=pb.Hardware(ref="a", cores=0)),
    "PullImage": pb.PullImageRequest(ref="no image"),
    "RemoveImage": pb.RemoveImageRequest(ref="nope"),
    "ImportImage": pb.ImportImageStart(),
    "CopyTo": pb.CopyToStart(id="nope", path="/"),
    "CopyFrom": pb.CopyFromRequest(id="nope", path="/"),
}


def request_of(method: Method) -> Any:
    """A request that changes nothing, whoever sends it."""
    made = REQUESTS.get(method.name)
    return method.start(id="nope") if made is None else made


async def attempt(transport: Any, method: Method) -> HypercoreError | None:
    """What a call is refused with."""

    async def nothing() -> Any:
        for piece in ():
            yield piece

    request = request_of(method)
    try:
        async with asyncio.timeout(30):
            if method.shape is Shape.UPLOAD:
                await transport.upload(method, request, nothing(), None)
            elif method.shape is Shape.SOCKET:
                async with transport.duplex(method, request) as duplex:
                    await anext(duplex.answers())
            elif method.shape is Shape.UNARY:
                await transport.unary(method, request, None)
            else:
                async with transport.stream(method, request, None) as answers:
                    if method.name != "Events":
                        await anext(answers)
    except HypercoreError as exc:
        return exc
    return None


@pytest.mark.parametrize("role", ["none", "wrong", "read", "operate", "admin"])
@pytest.mark.parametrize("kind", TRANSPORTS)
def test_every_method_by_every_role_over_every_transport(
    served: Daemon, identity: Identity, tokens: dict[str, str], kind: str, role: str
) -> None:
    token = {"none": "", "wrong": "hct_wrong"}.get(role, "") or tokens.get(role, "")
    scope = Scope(role) if role in tokens else None
    if kind.endswith("unix"):
        scope = Scope.ADMIN  # whatever they send: the socket's mode has decided

    async def all_methods() -> dict[str, HypercoreError | None]:
        transport = _transport(
            address.parse(served.address(kind), token=token, ca=identity.ca), None
        )
        await transport.open()
        try:
            return {name: await attempt(transport, METHODS[name]) for name in METHODS
                    if name != "Check" or scope is not Scope.ADMIN}  # fmt: skip
        finally:
            await transport.close()

    for name, error in asyncio.run(all_methods()).items():
        if scope is None:
            assert isinstance(error, Unauthenticated), (name, error)
        elif not scope.allows(METHODS[name].scope):
            assert isinstance(error, PermissionDenied), (name, error)
            assert str(METHODS[name].scope) in error.message
        else:
            assert not isinstance(error, PermissionDenied), (name, error)
            if error is not None:
                assert isinstance(error, NotFound | InvalidArgument), (name, error)


def test_a_removed_token_works_no_more(
    served: Daemon, identity: Identity, tokens: dict[str, str]
) -> None:
    grants = Grants(paths.tokens_file())
    token = grants.create("brief", Scope.READ)
    for kind in ("http-tcp", "grpc-tcp"):
        with Client(served.address(kind), token=token, ca=identity.ca) as client:
            assert client.list() == []
    grants.remove("brief")
    for kind in ("http-tcp", "grpc-tcp"):
        client = Client(served.address(kind), token=token, ca=identity.ca)
        with client, pytest.raises(Unauthenticated):
            client.list()


def test_remote_callers_name_no_files(
    served: Daemon, identity: Identity, tokens: dict[str, str]
) -> None:
    hac = '[hardware]\nref = "a"\ndrive = "/etc/shadow"\n'
    for kind in ("http-tcp", "grpc-tcp"):
        with Client(served.address(kind), token=tokens["admin"], ca=identity.ca) as client:
            with pytest.raises(PermissionDenied) as raised:
                client.spawn(hac=hac)
            assert raised.value.field == "hardware.drive"


def test_the_sockets_are_for_root_and_the_group(served: Daemon) -> None:
    for path in (served.http_socket, served.grpc_socket):
        status = path.stat()
        assert status.st_mode & 0o777 == 0o660
        assert status.st_uid == 0


def test_client_certificates(host: HostConfig, identity: Identity) -> None:
    certificate, key = identity.sign("server")
    grants = Grants(paths.tokens_file())
    grants.create("by-cert", Scope.READ, certificate="reader.example")
    args = ("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--client-ca", identity.ca)
    try:
        with daemon(*args, "--tls-cert", certificate, "--tls-key", key) as running:
            for kind in ("http-tcp", "grpc-tcp"):
                where = running.address(kind)
                for name, expected in (("reader.example", None), ("other", Unauthenticated)):
                    mine = identity.sign(name)
                    with Client(
                        where, token="", ca=identity.ca, certificate=mine[0], key=mine[1]
                    ) as client:
                        if expected is None:
                            client.list()
                            with pytest.raises(PermissionDenied):
                                client.remove_image("x")
                        else:
                            with pytest.raises(expected):
                                client.list()
                with Client(where, token="", ca=identity.ca) as client:
                    with pytest.raises(HypercoreError) as raised:
                        client.list()
                    assert not isinstance(raised.value, NotFound)
    finally:
        grants.remove("by-cert")


def test_tcp_in_the_clear_is_refused(host: HostConfig) -> None:
    for args in (["--http", "127.0.0.1:0"], ["--grpc", "0.0.0.0:0", "--plaintext"]):
        done = subprocess.run(
            [sys.executable, "-m", "hypercore", "serve", *args],
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 64, done.stderr
        assert "--tls-cert" in done.stderr


# bad input


def test_unknown_and_wrong_fields_are_named(served: Daemon) -> None:
    for body, field in (
        ({"hardwear": {}}, "hardwear"),
        ({"hardware": {"ref": "a", "cores": 0}}, "hardware.cores"),
        ({"hardware": {"ref": "a"}, "network": {"mode": "x"}}, "network.mode"),
        ({"hardware": {}}, "hardware.ref"),
    ):
        status, problem = call(served, "POST", "/v1/microvms", body)
        assert (status, problem["field"]) == (400, field)
        assert problem["type"] == "urn:hypercore:error:InvalidArgument"
    status, problem = call(served, "GET", "/v1/microvms?nope=1")
    assert (status, problem["field"]) == (400, "nope")


@pytest.mark.parametrize(
    "path",
    ["/v1/microvms/..%2f..%2fetc%2fpasswd", "/v1/microvms/%2e%2e", "/v1/microvms/a%00b",
     "/v1/microvms/../../etc/passwd", "//v1/microvms", "/v1/microvms/%ff", "/v1/microvms/-x",
     "/v1/microvms/" + "a" * 200 + "/logs", "/etc/passwd", "/v1/microvms/a b"],
)  # fmt: skip
def test_path_like_ids_reach_nothing(served: Daemon, path: str) -> None:
    status, _answer = call(served, "GET", path)
    assert 400 <= status < 500


def test_bodies_have_a_limit_a_type_and_a_form(served: Daemon) -> None:
    big = {"hac": "x" * (2 << 20)}
    assert call(served, "POST", "/v1/microvms", big)[0] == 413
    assert call(served, "POST", "/v1/microvms", {}, content_type="text/plain")[0] == 415
    assert call(served, "PUT", "/v1/microvms")[0] == 405
    head = b"POST /v1/microvms HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    endless = b"%x\r\n" % (1 << 20) + b" " * (1 << 20) + b"\r\n"
    chunked = head + b"transfer-encoding: chunked\r\n\r\n" + endless + endless
    assert raw(served, chunked)[0] == 413
    assert raw(served, b"rubbish\r\n\r\n")[0] == 400
    assert raw(served, b"GET / HTTP/1.1\r\nx: " + b"y" * (1 << 20))[0] == 431


def test_timeouts_and_keys_are_checked(served: Daemon) -> None:
    for value in ("-1", "0", "0.001", "x", "nan", "1e99"):
        status, problem = call(served, "GET", "/v1/microvms/a/wait", hypercore_timeout=value)
        assert (status, problem["field"]) == (400, "hypercore-timeout")
    key = {"idempotency_key": "a b"}
    assert call(served, "POST", "/v1/microvms", {"hardware": {"ref": "a"}, **key})[0] == 400


def test_what_leaves_half_way_leaves_nothing(served: Daemon) -> None:
    before = served.descriptors()
    for _ in range(20):
        with ExitStack() as stack:
            for path in (served.http_socket, served.grpc_socket):
                sock = stack.enter_context(socket.socket(socket.AF_UNIX))
                sock.connect(str(path))
                half = (
                    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
                    if path == served.grpc_socket
                    else (b"GET /v1/microvms/x/exec HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\n")
                )
                sock.sendall(half)
    wait_until(lambda: served.descriptors() <= before)


def test_grpc_rubbish_is_the_callers_fault(served: Daemon) -> None:
    import grpc

    channel = grpc.insecure_channel(f"unix:{served.grpc_socket}")
    with channel:
        get = channel.unary_unary("/hypercore.v1.Hypercore/Get")
        with pytest.raises(grpc.RpcError) as raised:
            get(b"\xff\xff\xff", timeout=10)
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.RpcError) as raised:
            get(b"\x0a\x80\x80\x80\x02" + b"a" * (4 << 20), timeout=10)
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary("/hypercore.v1.Hypercore/Nope")(b"", timeout=10)
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_standard_health_and_reflection(served: Daemon) -> None:
    import grpc

    from hypercore.proto.health_pb import HealthCheckRequest, HealthCheckResponse

    with grpc.insecure_channel(f"unix:{served.grpc_socket}") as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=HealthCheckRequest.encode,
            response_deserializer=HealthCheckResponse.decode,
        )
        for name in ("", "hypercore.v1.Hypercore"):
            assert check(HealthCheckRequest(service=name), timeout=10).status == 1
        with pytest.raises(grpc.RpcError) as raised:
            check(HealthCheckRequest(service="nope"), timeout=10)
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND


# watching


def record_microvm(host: HostConfig, name: str) -> None:
    """A record of a microVM in containerd, without any."""

    async def make() -> None:
        socket_path = host.containerd_socket
        async with containerd_client.Client(socket_path, host.namespace) as client:
            await containers.create(
                client, name, image="x", spec={}, snapshotter="", snapshot_key="",
                labels={"io.hypercore.owner": "engine", "io.hypercore.name": f"name-{name}"},
            )  # fmt: skip

    asyncio.run(make())


def forget_microvm(host: HostConfig, name: str) -> None:
    async def forget() -> None:
        async with containerd_client.Client(host.containerd_socket, host.namespace) as client:
            await containers.delete(client, name)

    asyncio.run(forget())


@pytest.mark.parametrize("kind", ["http-unix", "grpc-unix"])
def test_many_idle_watchers_all_hear_and_all_leave(
    served: Daemon, host: HostConfig, kind: str
) -> None:
    with Client(served.address(kind)) as warm:
        warm.list()
    before = served.descriptors()
    memory = served.rss_bytes()

    async def watch() -> list[str]:
        from hypercore.client import AsyncClient

        async with AsyncClient(served.address(kind)) as client:
            opened = asyncio.Semaphore(0)

            async def one() -> str:
                async with client.events(kinds=["created"]) as events:
                    opened.release()
                    async for event in events:
                        return event.microvm_id
                raise AssertionError("the stream ended")

            tasks = [asyncio.create_task(one()) for _ in range(WATCHERS)]
            for _ in range(WATCHERS):
                await opened.acquire()
            assert served.rss_bytes() - memory < 40 << 20
            assert await client.list() == []  # nobody is in the others' way
            await asyncio.to_thread(record_microvm, host, f"watched-{kind}")
            return await asyncio.wait_for(asyncio.gather(*tasks), 30)

    try:
        assert set(asyncio.run(watch())) == {f"watched-{kind}"}
    finally:
        forget_microvm(host, f"watched-{kind}")
    wait_until(lambda: served.descriptors() <= before + 4)


def test_lists_follow_what_others_do(served: Daemon, host: HostConfig) -> None:
    names = [f"listed-{number:02}" for number in range(7)]
    for name in names:
        record_microvm(host, name)
    try:
        with (
            Client(served.address("http-unix")) as http,
            Client(served.address("grpc-unix")) as grpc_client,
        ):
            wait_until(lambda: len(http.list()) == len(names))
            assert [r.microvm_id for r in http.list()] == names[::-1]
            assert http.list() == grpc_client.list()
            assert http.get("name-listed-03") == grpc_client.get("listed-03")
            assert [r.name for r in http.list(name="name-listed-02")] == ["name-listed-02"]
            assert http.list(running=True) == http.list(state="running") == []
            for client in (http, grpc_client):
                with pytest.raises(InvalidArgument, match="ambiguous"):
                    client.get("listed")
                with pytest.raises(NotFound):
                    client.get("nope")
        pages, token = [], ""
        while True:
            _status, page = call(served, "GET", f"/v1/microvms?page_size=3&page_token={token}")
            pages.append([vm["id"] for vm in page["microvms"]])
            token = page["next_page_token"]
            if not token:
                break
        assert [len(page) for page in pages] == [3, 3, 1]
        assert [microvm_id for page in pages for microvm_id in page] == names[::-1]
        assert call(served, "GET", "/v1/microvms?page_token=x")[0] == 400
        assert call(served, "GET", "/v1/microvms?page_size=1001")[0] == 400
    finally:
        for name in names:
            forget_microvm(host, name)
    wait_until(lambda: call(served, "GET", "/v1/microvms")[1]["microvms"] == [])


# life cycle


def test_metrics_docs_and_openapi_are_served(
    served: Daemon, identity: Identity, tokens: dict[str, str]
) -> None:
    status, text = call(served, "GET", "/metrics")
    assert status == 200
    assert b"hypercore_containerd_followed 1" in text
    assert b'hypercore_denied_total{reason="unknown token"}' in text
    assert call(served, "GET", "/v1/openapi.json")[1]["openapi"].startswith("3.1")
    status, page = call(served, "GET", "/docs")
    assert status == 200
    assert b"http://" not in page
    assert b"https://" not in page


def test_sockets_of_systemd_are_served_and_outlive_the_daemon(
    host: HostConfig, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        made = {}
        for name in ("http", "grpc"):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.bind(str(tmp_path / name))
            sock.listen(16)
            made[name] = sock
        for _ in range(2):
            with daemon(listeners=list(made.items())) as running:
                assert "systemd" in running.output
                assert not running.http_socket.exists()
                for text in (f"unix://{tmp_path / 'http'}", f"grpc+unix://{tmp_path / 'grpc'}"):
                    with Client(text) as client:
                        wait_until(lambda: client.list() == [])
                        with client.events() as events:
                            record_microvm(host, "passed")
                            assert next(events).kind == "created"
                            forget_microvm(host, "passed")
        assert (tmp_path / "http").exists()
        assert not paths.grpc_inner_socket().exists()


def test_the_watchdog_is_fed(host: HostConfig) -> None:
    with daemon(env={"WATCHDOG_USEC": "400000"}) as running:
        running.told("WATCHDOG=1")
        running.told("WATCHDOG=1")


def test_hangup_reads_certificates_anew(
    host: HostConfig, identity: Identity, tmp_path: Path
) -> None:
    import ssl

    certificate, key = tmp_path / "c", tmp_path / "k"

    def use(name: str) -> None:
        found = identity.sign(name)
        certificate.write_bytes(found[0].read_bytes())
        key.write_bytes(found[1].read_bytes())

    def name_served(port: int) -> str:
        context = ssl.create_default_context(cafile=str(identity.ca))
        with (
            socket.create_connection(("127.0.0.1", port), 10) as sock,
            context.wrap_socket(sock, server_hostname="127.0.0.1") as wrapped,
        ):
            subject = wrapped.getpeercert()["subject"]  # type: ignore[index]
        return str(subject[0][0][1])

    use("first")
    args = ("--http", "127.0.0.1:0", "--tls-cert", certificate, "--tls-key", key)
    with daemon(*args) as running:
        port = int(running.address("http-tcp").rpartition(":")[2])
        assert name_served(port) == "first"
        use("second")
        running.process.send_signal(signal.SIGHUP)
        running.told("RELOADING=1")
        running.told("READY=1")
        assert name_served(port) == "second"
        key.write_text("rubbish")
        running.process.send_signal(signal.SIGHUP)
        running.told("READY=1")
        assert name_served(port) == "second"
        assert "reload:" in running.errors


def test_stopping_lets_calls_end_and_takes_the_sockets_away(host: HostConfig) -> None:
    with daemon() as running:
        client = Client(running.address("http-unix"))
        with client, client.events() as events:
            running.process.send_signal(signal.SIGTERM)
            running.told("STOPPING=1")
            with pytest.raises(Unavailable):
                next(events)
        assert running.process.wait(30) == 0, running.errors
        assert not running.http_socket.exists()
        assert not running.grpc_socket.exists()


def test_a_second_daemon_does_not_take_the_first_ones_sockets(served: Daemon) -> None:
    for option, path in (
        ("--http-socket", served.http_socket),
        ("--grpc-socket", served.grpc_socket),
    ):
        spare = served.directory / "spare"
        other = "--grpc-socket" if option == "--http-socket" else "--http-socket"
        done = subprocess.run(
            [sys.executable, "-m", "hypercore", "serve", option, path, other, spare],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == AlreadyExists.exit_code, done.stderr
        assert not spare.exists()
    with Client(served.address("grpc-unix")) as client:
        client.list()


def test_it_starts_without_containerd_and_follows_it_once_it_is_there(root: None) -> None:
    from hypercore.containerd import daemon as containerd_daemon

    with (
        own_containerd.directories() as config,
        daemon() as running,
        Client(running.address("http-unix")) as client,
    ):
        with pytest.raises(Unavailable, match="containerd is not running"):
            client.list()
        assert call(running, "GET", "/healthz")[0] == 200
        assert call(running, "GET", "/readyz")[0] == 503
        asyncio.run(containerd_daemon.start(config))
        wait_until(lambda: ready(running))
        assert client.list() == []
        asyncio.run(containerd_daemon.stop())
        wait_until(lambda: not ready(running))
        with pytest.raises(Unavailable):
            client.list()
