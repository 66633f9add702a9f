"""The API's table, messages as JSON, the OpenAPI document, and what servers decide alone."""

import asyncio
import base64
import json as stdlib_json
import math
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hypercore import errors
from hypercore.api import METHODS, Scope, Shape, checked_id
from hypercore.client import address
from hypercore.errors import HypercoreError, InvalidArgument, PermissionDenied, Unauthenticated
from hypercore.proto import hypercore_pb as pb
from hypercore.proto import reflection_pb
from hypercore.serve import listeners, openapi, reflection, requests, systemd
from hypercore.serve.callers import LOCAL, Caller
from hypercore.serve.figures import Figures
from hypercore.serve.tokens import Grants
from hypercore.wire import json
from hypercore.wire.codec import Message

ROOT = Path(__file__).resolve().parents[2]
REMOTE = Caller("somebody", Scope.ADMIN, local=False)


# the table


def test_every_method_of_the_proto_is_in_the_table_with_its_streams() -> None:
    described = reflection.descriptors()["hypercore.proto"]["methods"]
    assert set(described) == set(METHODS)
    for name, method in METHODS.items():
        streams_in = method.shape in (Shape.SOCKET, Shape.UPLOAD)
        streams_out = method.shape in (Shape.SOCKET, Shape.EVENTS, Shape.DOWNLOAD)
        assert described[name]["client_streams"] == streams_in, name
        assert described[name]["server_streams"] == streams_out, name
        assert described[name]["comment"], name


def test_no_two_methods_share_a_route_and_paths_name_fields() -> None:
    routes = [(method.verb, method.path) for method in METHODS.values()]
    assert len(set(routes)) == len(routes)
    for method in METHODS.values():
        fields = {field.name for field in method.start.FIELDS}
        assert set(re.findall(r"\{(\w+)\}", method.path)) <= fields


def test_scopes_include_those_before() -> None:
    assert [s for s in Scope if Scope.OPERATE.allows(s)] == [Scope.READ, Scope.OPERATE]
    with pytest.raises(PermissionDenied, match="needs operate"):
        Caller("a", Scope.READ, local=True).require(METHODS["Spawn"])


def test_what_reads_needs_scope_read_alone() -> None:
    changing = {name for name, method in METHODS.items() if method.scope is not Scope.READ}
    assert {n for n, m in METHODS.items() if m.verb != "GET"} <= changing
    assert {"Exec", "Attach", "CopyFrom", "Check"} <= changing


@pytest.mark.parametrize(
    "text", ["", ".", "..", "../x", "a/b", "-x", "a\0b", "a" * 129, "ä", "a\n", "%2e%2e"]
)
def test_path_like_ids_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        checked_id(text)
    assert raised.value.field == "id"


# JSON


def test_json_of_all_kinds_comes_back() -> None:
    message = pb.SpawnResponse(
        microvm=pb.MicroVM(id="a", exit_code=0, created_at=1.5, tty=True),
        engine_ms={"x": 2.0},
        notices=["é", '"'],
    )
    again = json.loads(pb.SpawnResponse, json.dumps(message))
    assert again == message
    assert json.loads(pb.DataChunk, json.dumps(pb.DataChunk(data=b"\0\xff"))).data == b"\0\xff"


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('{"nope": 1}', "nope"),
        ('{"hardware": {"cores": "2"}}', "hardware.cores"),
        ('{"hardware": {"cores": -1}}', "hardware.cores"),
        ('{"hardware": {"cores": true}}', "hardware.cores"),
        ('{"hardware": {"cores": 18446744073709551616}}', "hardware.cores"),
        ('{"workload": {"args": "x"}}', "workload.args"),
        ('{"workload": {"args": [1]}}', "workload.args[0]"),
        ('{"workload": null}', "workload"),
        ('{"remove": 1}', "remove"),
        ('{"hac": "\\ud800"}', "hac"),
        ("[]", ""),
        ("{", ""),
        ("NaN", ""),
    ],
)
def test_json_that_is_wrong_names_the_field(text: str, field: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        json.loads(pb.SpawnRequest, text)
    assert raised.value.field == field


def test_infinite_numbers_are_refused() -> None:
    for text in ("1e999", "-1e999", "1" + "0" * 400):
        with pytest.raises(InvalidArgument):
            json.loads(pb.StopRequest, f'{{"grace_s": {text}}}')
    with pytest.raises(InvalidArgument):
        json.from_query(pb.StatsRequest, [("interval_s", "nan")])
    assert math.isfinite(json.loads(pb.StopRequest, '{"grace_s": 3}').grace_s or 0)


def test_deep_json_is_refused_not_recursed_into() -> None:
    with pytest.raises(InvalidArgument):
        json.loads(pb.SpawnRequest, "[" * 100_000)


def test_an_unknown_name_gets_the_nearest_known_one() -> None:
    with pytest.raises(InvalidArgument) as raised:
        json.loads(pb.SpawnRequest, '{"hardwear": {}}')
    assert raised.value.hint == "did you mean 'hardware'?"


def test_query_and_back() -> None:
    request = pb.EventsRequest(id="a b", kinds=["exited", "oom"])
    pairs = json.to_query(request)
    assert pairs == [("id", "a b"), ("kinds", "exited"), ("kinds", "oom")]
    assert json.from_query(pb.EventsRequest, pairs) == request
    for wrong in ([("tail", "x")], [("follow", "1")], [("id", "a"), ("id", "b")], [("x", "")]):
        with pytest.raises(InvalidArgument):
            json.from_query(pb.LogsRequest, wrong)
    for big in ("9" * 30, "٣", "-1"):
        with pytest.raises(InvalidArgument):
            json.from_query(pb.LogsRequest, [("tail", big)])


# OpenAPI


def test_openapi_refers_to_nothing_that_is_not_there() -> None:
    document = stdlib_json.loads(openapi.document())
    text = openapi.document().decode()
    for name in re.findall(r'"\$ref":"#/components/schemas/(\w+)"', text):
        assert name in document["components"]["schemas"]
    names = [op["operationId"] for p in document["paths"].values() for op in p.values()
             if "operationId" in op]  # fmt: skip
    assert sorted(names) == sorted(METHODS)
    assert document["openapi"].startswith("3.1")


def test_the_schemas_allow_what_the_messages_are() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    document = stdlib_json.loads(openapi.document())
    found: list[Message] = [
        pb.SpawnRequest(hardware=pb.Hardware(ref="x", cores=1), workload=pb.Workload(args=["a"])),
        pb.ListResponse(microvms=[pb.MicroVM(id="a", state="running", exit_code=3)]),
        pb.SpawnResponse(engine_ms={"a": 1.0}),
    ]
    for message in found:
        schema = {
            "$ref": f"#/components/schemas/{type(message).__name__}",
            "components": document["components"],
        }
        jsonschema.validate(stdlib_json.loads(json.dumps(message)), schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"nope": 1}, schema)


# reflection


def _ask(**request: str) -> reflection_pb.ServerReflectionResponse:
    return reflection.answer(reflection_pb.ServerReflectionRequest(**request))  # type: ignore[arg-type]


def test_reflection_finds_files_by_name_symbol_and_method() -> None:
    from google.protobuf import descriptor_pb2

    for request in (
        {"file_by_filename": "hypercore.proto"},
        {"file_containing_symbol": "hypercore.v1.Hypercore"},
        {"file_containing_symbol": "hypercore.v1.Hypercore.Spawn"},
        {"file_containing_symbol": "hypercore.v1.MicroVM"},
    ):
        found = _ask(**request).file_descriptor_response
        assert found is not None
        file = descriptor_pb2.FileDescriptorProto.FromString(found.file_descriptor_proto[0])
        assert file.package == "hypercore.v1"
        assert not file.dependency
    error = _ask(file_containing_symbol="hypercore.v1.Hypercore.Nope").error_response
    assert error is not None
    assert error.error_code == 5
    listed = _ask(list_services="").list_services_response
    assert listed is not None
    assert "hypercore.v1.Hypercore" in [service.name for service in listed.service]


# requests


def test_a_request_is_judged_by_the_rules_of_hac_toml() -> None:
    request = pb.SpawnRequest(
        hardware=pb.Hardware(ref="alpine", cores=2, memory=256),
        workload=pb.Workload(args=["ls"], env=["A=b"]),
    )
    spec = requests.spawn_spec(request, REMOTE)
    assert (spec.ref, spec.hardware.cores, spec.hardware.memory_mib) == ("alpine", 2, 256)
    assert spec.workload.args == ("ls",)
    with pytest.raises(InvalidArgument) as raised:
        requests.spawn_spec(pb.SpawnRequest(hardware=pb.Hardware(ref="a", cores=0)), REMOTE)
    assert raised.value.field == "hardware.cores"


def test_tables_are_laid_over_the_text_of_a_hac_toml() -> None:
    text = '[hardware]\nref = "one"\ncores = 2\n[workload]\nargs = ["a"]\n'
    request = pb.SpawnRequest(hac=text, hardware=pb.Hardware(ref="two"))
    spec = requests.spawn_spec(request, REMOTE)
    assert (spec.ref, spec.hardware.cores, spec.workload.args) == ("two", 2, ("a",))


@pytest.mark.parametrize(
    "hac",
    [
        '[hardware]\nref = "a"\nkernel = "/etc/shadow"',
        '[hardware]\nref = "a"\ndrive = "/etc/shadow"',
        '[hardware]\nref = "a"\n[vm]\ninitrd = "/etc/shadow"',
        '[hardware]\nref = "a"\n[network]\nmode = "netns"\nnetns = "/proc/1/ns/net"',
        '[hardware]\nref = "a"\n[[volumes]]\nsource = "/etc"\ntarget = "/x"',
        '[hardware]\nref = "a"\n[network]\nallow_host = [22]',
        'top = "/etc/shadow"',
    ],
)
def test_remote_callers_name_nothing_of_the_host(hac: str) -> None:
    with pytest.raises(PermissionDenied, match="only callers on this host"):
        requests.spawn_spec(pb.SpawnRequest(hac=hac), REMOTE)


def test_local_callers_name_files_by_absolute_paths() -> None:
    hac = '[hardware]\nref = "a"\nkernel = "vmlinux"'
    with pytest.raises(InvalidArgument, match="absolute path"):
        requests.spawn_spec(pb.SpawnRequest(hac=hac), LOCAL)


# tokens


def test_tokens_are_kept_as_digests_and_work_until_removed(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    grants = Grants(path)
    token = grants.create("ci", Scope.OPERATE)
    assert token.encode() not in path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    caller = Grants(path).caller(token, ())
    assert (caller.name, caller.scope, caller.local) == ("ci", Scope.OPERATE, False)
    for wrong in ("", token[:-1], token + "x", "hct_"):
        with pytest.raises(Unauthenticated):
            grants.caller(wrong, ())
    other = Grants(path)
    other.remove("ci")
    with pytest.raises(Unauthenticated):
        grants.caller(token, ())


def test_certificates_and_expiry(tmp_path: Path) -> None:
    denied = Figures().denied
    grants = Grants(tmp_path / "tokens.json", denied)
    assert grants.create("host", Scope.READ, certificate="a.example") == ""
    assert grants.caller("", ["x", "a.example"]).name == "host"
    with pytest.raises(Unauthenticated):
        grants.caller("wrong", ["a.example"])
    old = grants.create("old", Scope.ADMIN, expires_at=1.0)
    with pytest.raises(Unauthenticated, match="expired"):
        grants.caller(old, ())
    assert denied == {"unknown token": 1, "expired": 1}


def test_a_tokens_file_that_others_can_read_or_write_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    Grants(path).create("a", Scope.READ)
    path.chmod(0o644)
    with pytest.raises(HypercoreError, match="by others"):
        Grants(path).all()


# where it listens


def _settings(tmp_path: Path, **values: object) -> listeners.Settings:
    made = listeners.Settings(tmp_path / "a", tmp_path / "b", **values)  # type: ignore[arg-type]
    made.check()
    return made


def test_tcp_without_tls_is_refused_but_on_loopback_when_told_so(tmp_path: Path) -> None:
    outside = listeners.parse_address("0.0.0.0:80")
    inside = listeners.parse_address("[::1]:80")
    with pytest.raises(InvalidArgument, match="--tls-cert"):
        _settings(tmp_path, http_tcp=inside)
    with pytest.raises(InvalidArgument, match="loopback"):
        _settings(tmp_path, grpc_tcp=outside, plaintext=True)
    _settings(tmp_path, http_tcp=inside, plaintext=True)
    for text in ("80", "host:80", "1.2.3.4", "1.2.3.4:x", "1.2.3.4:70000"):
        with pytest.raises(InvalidArgument):
            listeners.parse_address(text)


def test_a_socket_in_use_is_left_alone_and_a_dead_one_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(str(path))
        living.listen()
        with pytest.raises(errors.AlreadyExists):
            listeners.free_socket_path(path)
    listeners.free_socket_path(path)
    assert not path.exists()
    path.write_text("mine")
    with pytest.raises(InvalidArgument, match="no socket"):
        listeners.free_socket_path(path)
    assert path.read_text() == "mine"


def test_sockets_of_systemd_are_taken_once_and_only_if_they_are_ours() -> None:
    code = """
import os, sys
from hypercore.serve import systemd
environ = {"LISTEN_PID": sys.argv[1] or str(os.getpid()), "LISTEN_FDS": "2",
           "LISTEN_FDNAMES": "http:grpc"}
found = systemd.listen_fds(environ)
print(sorted(found), sorted(environ), [os.get_inheritable(s[0].fileno()) for s in found.values()])
"""
    for pid, expected in (("", "['grpc', 'http'] [] [False, False]"), ("1", "[] [] []")):
        with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:

            def place(fds: tuple[int, int] = (one.fileno(), two.fileno())) -> None:
                high = [os.dup(fd) for fd in fds]
                for number, fd in enumerate(high):
                    os.dup2(fd, systemd.FIRST_FD + number)

            done = subprocess.run(
                [sys.executable, "-c", code, pid],
                capture_output=True,
                text=True,
                timeout=30,
                cwd=ROOT,
                close_fds=False,
                preexec_fn=place,
            )
        assert done.stdout.strip() == expected, done.stderr


def test_notify_and_watchdog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "n"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n"))
        systemd.notify(systemd.reloading())
        assert sock.recv(200).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    systemd.notify("READY=1")  # nobody listens any more
    assert systemd.watchdog_s({"WATCHDOG_USEC": "10000000"}) == 5.0
    assert systemd.watchdog_s({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "1"}) == 0.0
    assert systemd.watchdog_s({}) == 0.0


# clients


@pytest.mark.parametrize(
    ("text", "protocol", "place"),
    [
        ("unix:///run/x.sock", "http", "/run/x.sock"),
        ("/run/x.sock", "http", "/run/x.sock"),
        ("grpc+unix:///x", "grpc", "/x"),
        ("https://h:1", "http", "h:1"),
        ("grpcs://[::1]", "grpc", "[::1]:443"),
        ("http://127.0.0.1:8", "http", "127.0.0.1:8"),
        ("local:", "local", ""),
    ],
)
def test_addresses(text: str, protocol: str, place: str) -> None:
    found = address.parse(text, token="")
    shown = str(found.path) if found.path else found.host_port if found.host else ""
    assert (found.protocol, shown) == (protocol, place)


@pytest.mark.parametrize(
    "text",
    ["http://example.com", "grpc://10.0.0.1:1", "unix://x", "ftp://a", "x", "https://h/p",
     "https://h:99999", "https://"],
)  # fmt: skip
def test_addresses_that_are_none_or_unsafe(text: str) -> None:
    with pytest.raises(InvalidArgument):
        address.parse(text, token="")


def test_a_token_cannot_smuggle_a_header() -> None:
    with pytest.raises(InvalidArgument):
        address.parse("https://h", token="a\r\nX: y")


def test_the_sync_library_is_what_the_generator_makes() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "syncgen.py", "--check"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_sync_calls_are_refused_outside_the_block_and_errors_pass() -> None:
    from hypercore.client import Client

    client = Client("unix:///nonexistent/hypercore.sock", token="")
    with pytest.raises(RuntimeError, match="not open"):
        client.list()
    with client, pytest.raises(errors.Unavailable) as raised:
        client.list()
    assert raised.value.retryable
    with pytest.raises(RuntimeError, match="not open"):
        client.list()


# errors


@pytest.mark.parametrize(
    "kind",
    ["InvalidArgument", "NotFound", "AlreadyExists", "StateError", "Unavailable",
     "DeadlineExceeded", "PermissionDenied", "Unauthenticated", "ResourceExhausted", "VmmError",
     "OutcomeUnknown", "HypercoreError"],
)  # fmt: skip
def test_errors_travel_by_their_kind(kind: str) -> None:
    cls = getattr(errors, kind)
    sent = cls("m", hint="h", detail="d", field="f")
    assert errors.kind_of(sent) == kind
    came = errors.from_kind(kind, "m", hint="h", detail="d", field="f")
    assert type(came) is cls
    assert (came.hint, came.detail, came.field) == ("h", "d", "f")


def test_task_errors_keep_their_exit_code_and_unknown_kinds_are_errors() -> None:
    came = errors.from_kind("TaskError", "m", exit_code=127)
    assert isinstance(came, errors.TaskError)
    assert came.exit_code == 127
    assert type(errors.from_kind("Whatever", "m")) is HypercoreError


def test_broken_connections_by_what_may_have_happened() -> None:
    from hypercore.client.transport import broken, silent

    assert isinstance(broken(METHODS["Spawn"], True, "x"), errors.OutcomeUnknown)
    assert isinstance(broken(METHODS["Spawn"], False, "x"), errors.Unavailable)
    assert isinstance(broken(METHODS["Get"], True, "x"), errors.Unavailable)
    assert isinstance(silent(METHODS["Kill"], 1), errors.OutcomeUnknown)
    assert isinstance(silent(METHODS["Wait"], 1), errors.DeadlineExceeded)


# figures


def test_figures_are_prometheus_text() -> None:
    figures = Figures()
    figures.calls["Get", "http", ""] += 2
    figures.spawned({"engine": {"image": 20.0}, "shim": {"boot": 40_000.0}})
    text = figures.text({("running", 'a"b\n'): 3}, synced=True, rss_bytes=7)
    assert 'hypercore_microvms{state="running",provider="a\\"b\\n"} 3' in text
    assert 'phase_seconds_bucket{room="engine",phase="image",le="0.03"} 1' in text
    assert 'phase_seconds_bucket{room="shim",phase="boot",le="30"} 0' in text
    assert 'phase_seconds_bucket{room="shim",phase="boot",le="+Inf"} 1' in text
    for line in text.splitlines():
        assert re.fullmatch(r'#.*|[a-z_]+(\{([a-z_]+="(\\.|[^"\\])*",?)+\})? [0-9.]+', line), line


# a process's streams


def test_a_session_passes_bytes_and_tells_the_end() -> None:
    from contextlib import asynccontextmanager

    from hypercore.attach import ExitStatus
    from hypercore.engine_session import session

    payload = os.urandom(3 << 20)

    class Echo:
        """Reads its stdin to the end in a thread, writes it to both outputs."""

        terminal = False

        def __init__(self, fds: tuple[int, int, int]) -> None:
            self.fds = [os.dup(fd) for fd in fds]
            self.eof = asyncio.Event()
            self.work = asyncio.get_running_loop().run_in_executor(None, self.copy)

        def copy(self) -> None:
            with os.fdopen(self.fds[0], "rb") as source:
                data = source.read()
            for fd in self.fds[1:]:
                with os.fdopen(fd, "wb") as target:
                    target.write(data)

        async def resize(self, rows: int, columns: int) -> None: ...

        async def close_stdin(self) -> None: ...

        async def wait(self) -> ExitStatus:
            await self.work
            return ExitStatus(5)

    @asynccontextmanager
    async def attach(*fds: int | None):  # type: ignore[no-untyped-def]
        yield Echo((fds[0] or 0, fds[1] or 0, fds[2] or 0))

    async def talk() -> None:
        got = {1: bytearray(), 2: bytearray()}
        async with session(attach, stdin=True, tty=False) as joined:

            async def feed() -> None:
                await joined.write(payload)
                await joined.close_stdin()

            feeding = asyncio.create_task(feed())
            async for fd, data in joined.outputs():
                got[fd] += data
            await feeding
            assert (await joined.wait()).exit_code == 5
        assert bytes(got[1]) == bytes(got[2]) == payload

    asyncio.run(talk())


def test_base64_with_rubbish_is_refused() -> None:
    good = base64.b64encode(b"x").decode()
    assert json.loads(pb.DataChunk, f'{{"data": "{good}"}}').data == b"x"
    with pytest.raises(InvalidArgument):
        json.loads(pb.DataChunk, '{"data": "!!!!"}')
