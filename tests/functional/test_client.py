"""One contract for the library over an engine in process, HTTP and gRPC, sync and async: the same
words, results and errors, of real guests.
"""

import io
import os
import random
import re
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hypercore.client import Client, RunResult
from hypercore.errors import (
    AlreadyExists,
    DeadlineExceeded,
    HypercoreError,
    InvalidArgument,
    NotFound,
    StateError,
    TaskError,
)
from hypercore.inventory import State
from tests.functional.api_clients import STYLES, TRANSPORTS, opened
from tests.functional.conftest import SHELL_REF, SharedVM
from tests.functional.instance import BOOT_DEADLINE_S, ROOT, Instance
from tests.integration.serve_lab import Daemon, daemon, wait_until

pytestmark = pytest.mark.timeout(3 * BOOT_DEADLINE_S)


@pytest.fixture(scope="module")
def served(hypercore: Instance, shell_image: str) -> Iterator[Daemon]:
    """A daemon of the instance; the environment leads this process there too."""
    kept = dict(os.environ)
    os.environ.update(hypercore.env)
    try:
        with daemon(env=hypercore.env) as running:
            yield running
    finally:
        os.environ.clear()
        os.environ.update(kept)


def address(served: Daemon, transport: str) -> str:
    return "local:" if transport == "local" else served.address(f"{transport}-unix")


@pytest.fixture(params=[f"{t}-{s}" for t in TRANSPORTS for s in STYLES])
def client(request: pytest.FixtureRequest, served: Daemon) -> Iterator[Any]:
    transport, style = request.param.split("-")
    with opened(address(served, transport), style) as made:
        yield made


def refused(kind: type[HypercoreError], call: Any, *args: Any, **options: Any) -> HypercoreError:
    """The error of a call, which is exactly of this kind."""

    def whole() -> None:
        result = call(*args, **options)
        if hasattr(result, "__next__"):
            next(result)

    with pytest.raises(HypercoreError) as raised:
        whole()
    assert type(raised.value) is kind, raised.value
    assert raised.value.message
    return raised.value


def test_what_there_is(client: Any, served: Daemon, shared_vm: SharedVM) -> None:
    record = client.get(shared_vm.microvm_id)
    assert (record.state, record.image, record.owned) == (State.RUNNING, SHELL_REF, True)
    assert client.get(shared_vm.microvm_id[:10]) == record
    assert client.vm(shared_vm.microvm_id).record() == record
    assert [r for r in client.list() if r.microvm_id == record.microvm_id] == [record]
    assert client.list(image="test/shell:1", running=True, provider=record.provider)
    assert client.list(image="other") == []
    document = client.inspect(record.microvm_id)
    assert document["id"] == record.microvm_id
    assert document["config"]["process"]["args"]
    assert client.info().running >= 1
    with Client(served.address("http-unix"), token="") as other:
        assert other.get(record.microvm_id) == record


def test_run(client: Any, shared_vm: SharedVM) -> None:
    vm = client.vm(shared_vm.microvm_id)
    result: RunResult = vm.run("echo out; echo err >&2; exit 3")
    assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 3)
    assert result.elapsed_ms > 0
    result = vm.run(["/bin/sh", "-c", 'echo "$0 $A $PWD"'], env={"A": "x y"}, workdir="/tmp")
    assert result.stdout == "/bin/sh x y /tmp\n"
    data = random.Random(1).randbytes(1 << 20)
    assert vm.run(["cat"], input=data).stdout_bytes == data
    assert vm.run("true", check=True).exit_code == 0
    failed = refused(TaskError, vm.run, "echo why >&2; exit 5", check=True)
    assert (failed.exit_code, failed.detail) == (5, "why\n")


def test_errors(client: Any, shared_vm: SharedVM) -> None:
    known = shared_vm.microvm_id
    vm = client.vm(known)
    assert refused(NotFound, client.get, "nope").hint
    assert refused(InvalidArgument, client.get, "../etc").field == "id"
    assert refused(InvalidArgument, client.get, "").field == "id"
    assert refused(StateError, client.delete, known).hint
    assert refused(InvalidArgument, client.kill, known, signal="NOPE").field == "signal"
    assert refused(TaskError, vm.run, ["/no/such/command"]).exit_code == 127
    assert refused(TaskError, vm.run, ["/etc"]).exit_code == 126
    assert refused(InvalidArgument, vm.run, []).field == "args"
    assert refused(InvalidArgument, vm.run, "id", user="a b").field == "user"
    refused(InvalidArgument, vm.run, "id", user="nobody-of-that-name")
    assert refused(InvalidArgument, client.logs, known, source="x").field == "source"
    refused(NotFound, client.logs, "nope")
    refused(NotFound, client.stats, "nope")
    refused(NotFound, client.remove_image, "no/such:image")
    assert refused(InvalidArgument, client.spawn, SHELL_REF, cores=0).field == "hardware.cores"
    assert refused(InvalidArgument, client.spawn).field == "hardware.ref"
    assert refused(InvalidArgument, client.spawn, SHELL_REF, env={"": "x"}).field == "workload.env"
    refused(InvalidArgument, client.spawn, "UPPER CASE")
    assert refused(DeadlineExceeded, client.wait, known, timeout_s=0.3).retryable


def test_a_command_that_takes_too_long_is_killed(client: Any, shared_vm: SharedVM) -> None:
    vm = client.vm(shared_vm.microvm_id)
    mark = f"{random.randrange(10**6, 10**7)}"
    refused(DeadlineExceeded, vm.run, ["sleep", mark], timeout_s=1.5)
    wait_until(lambda: mark not in vm.run("ps").stdout, 30)


def test_a_process_whose_streams_are_in_our_hands(client: Any, shared_vm: SharedVM) -> None:
    vm = client.vm(shared_vm.microvm_id)
    with vm.exec(["cat"], stdin=True) as process:
        outputs = process.outputs()
        for word in (b"one", b"two"):
            process.write(word)
            assert next(outputs).data == word
        process.close_stdin()
        assert list(outputs) == []
        assert process.wait().exit_code == 0
    with vm.exec(["sleep", "100"]) as process:
        process.kill("TERM")
        assert process.wait().exit_code == 128 + 15
    # A size comes on its own way, not among the bytes, as docker's does.
    script = "".join(
        f'until [ "$(stty size)" = "{size}" ]; do sleep 0.1; done; echo now {size}; '
        for size in ("33 44", "55 66")
    )
    with vm.exec(
        ["sh", "-c", script + "read x; echo got $x"], tty=True, stdin=True, rows=33, columns=44
    ) as process:
        assert process.tty
        text, is_resized = "", False
        for output in process.outputs():
            text += output.text
            if "now 33 44" in text and not is_resized:
                is_resized = True
                process.resize(55, 66)
                process.write(b"line\n")
        assert "now 55 66" in text
        assert "got line" in text
        assert process.wait().exit_code == 0


def test_attach_and_logs(client: Any, shared_vm: SharedVM) -> None:
    vm = client.vm(shared_vm.microvm_id)
    mark = f"mark-{random.randrange(10**9)}"
    with vm.attach(stdin=True, replay=False) as process:
        process.write(f"echo {mark}; echo {mark} >&2\n".encode())
        seen: dict[str, str] = {"stdout": "", "stderr": ""}
        for output in process.outputs():
            seen[output.stream] += output.text
            if all(mark in text for text in seen.values()):
                break
    assert [r for r in client.list() if r.microvm_id == vm.id][0].state is State.RUNNING  # noqa: RUF015
    tail = list(vm.logs(tail=1))
    assert {output.stream for output in tail} == {"stdout", "stderr"}
    assert all(output.text == f"{mark}\n" for output in tail)
    assert list(vm.logs(source="console"))
    with vm.attach() as process:
        replayed = ""
        for output in process.outputs():
            replayed += output.text
            if mark in replayed:
                break


def test_pause_resume_and_events(client: Any, shared_vm: SharedVM) -> None:
    vm = client.vm(shared_vm.microvm_id)
    with client.events(vm.id, kinds=["paused", "resumed"]) as events:
        assert vm.pause().state is State.PAUSED
        assert vm.pause().state is State.PAUSED
        refused(StateError, vm.stats)
        assert vm.resume().state is State.RUNNING
        found = [next(events), next(events)]
    assert [(event.kind, event.microvm_id) for event in found] == [
        ("paused", vm.id), ("resumed", vm.id)
    ]  # fmt: skip
    assert vm.run("echo on").stdout == "on\n"


def test_stats(client: Any, shared_vm: SharedVM) -> None:
    usage = client.stats(shared_vm.microvm_id)
    assert usage.memory_bytes > 0
    assert usage.processes >= 1
    assert usage.cpu_us > 0
    series = client.watch_stats(shared_vm.microvm_id, interval_s=0.2)
    first, second = next(series), next(series)
    assert second.at > first.at


def test_files(client: Any, shared_vm: SharedVM) -> None:
    vm = client.vm(shared_vm.microvm_id)
    directory = f"/tmp/files-{random.randrange(10**9)}"
    vm.run(f"mkdir {directory} && ln -s one {directory}/link && mkdir {directory}/sub", check=True)
    data = random.Random(2).randbytes(300_000)
    vm.files.write(f"{directory}/one", data, mode=0o640)
    assert vm.files.read(f"{directory}/one") == data
    assert vm.files.read(f"{directory}/link") == data
    listing = vm.files.list(directory)
    assert [(f.name, f.kind) for f in listing] == [
        ("link", "link"), ("one", "file"), ("sub", "directory")
    ]  # fmt: skip
    assert (listing[1].size, listing[1].mode) == (300_000, 0o640)
    refused(NotFound, vm.files.read, f"{directory}/none")
    refused(InvalidArgument, vm.files.read, directory)
    refused(InvalidArgument, vm.files.list, f"{directory}/one")
    refused(InvalidArgument, vm.files.write, "relative", b"")
    refused(NotFound, vm.files.write, f"{directory}/no/such", b"")
    with tarfile.open(
        fileobj=io.BytesIO(b"".join(client.copy_from(vm.id, f"{directory}/one")))
    ) as archive:
        assert archive.getnames() == ["one"]
    vm.run(f"rm -r {directory}", check=True)


def test_images(client: Any, shell_archive: Path, tmp_path: Path) -> None:
    ref = f"docker.io/test/imported:{random.randrange(10**6)}"
    assert list(client.import_image(shell_archive, name=ref)) == [ref]
    found = {image.ref: image for image in client.list_images()}
    assert found[ref].digest == found[SHELL_REF].digest
    assert client.remove_image(ref).digest == found[ref].digest
    assert ref not in {image.ref for image in client.list_images()}
    refused(InvalidArgument, client.import_image, b"no archive at all" * 100)
    refused(InvalidArgument, client.import_image, b"")


def test_a_life_with_an_end(served: Daemon, shell_image: str) -> None:
    """One VM: two requests with one key, its output to the last byte, its exit, its removal."""
    addresses = [served.address("http-unix"), served.address("grpc-unix")]
    key = f"key-{random.randrange(10**9)}"
    script = "echo first; read x; echo second $x; exit 7"

    def spawn(where: str) -> Any:
        with Client(where, token="") as client:
            return client.spawn(
                SHELL_REF, "sh", "-c", script, name="life", remove=True, idempotency_key=key
            ).spawned

    with Client(addresses[0], token="") as http, Client(addresses[1], token="") as grpc:
        with http.events() as events, ThreadPoolExecutor(2) as pool:
            one, two = pool.map(spawn, addresses)
            assert one.record.microvm_id == two.record.microvm_id
            assert sorted((one.replayed, two.replayed)) == [False, True]
            assert {"boot", "vmm"} <= set(one.timings_ms["shim"])
            assert one.timings_ms["engine"]["task create"] > 0
            microvm_id = one.record.microvm_id
            other = refused(AlreadyExists, grpc.spawn, SHELL_REF, idempotency_key=key)
            assert other.field == "idempotency_key"
            refused(AlreadyExists, grpc.spawn, SHELL_REF, name="life")
            follower = pool.submit(lambda: list(grpc.logs(microvm_id, follow=True)))
            waiter = pool.submit(lambda: http.wait(microvm_id))
            with http.attach(microvm_id, stdin=True) as process:
                outputs = process.outputs()
                assert next(outputs).text == "first\n"
                process.write(b"word\n")
                assert "".join(output.text for output in outputs) == "second word\n"
                assert process.wait().exit_code == 7
            assert waiter.result(30).exit_code == 7
            log = b"".join(output.data for output in follower.result(30))
            assert log == b"first\nsecond word\n"
            kinds = []
            for event in events:
                if event.microvm_id == microvm_id:
                    kinds.append(event.kind)
                    if event.kind == "exited":
                        assert event.exit_code == 7
                if kinds[-1:] == ["deleted"]:
                    break
            assert kinds == ["created", "started", "exited", "deleted"]
        for client in (http, grpc):
            refused(NotFound, client.get, microvm_id)
        again = refused(
            StateError, http.spawn, SHELL_REF, "sh", "-c", script, name="life", remove=True,
            idempotency_key=key,
        )  # fmt: skip
        assert again.field == "idempotency_key"


def test_a_spawn_that_nobody_waits_for_is_taken_back(served: Daemon, shell_image: str) -> None:
    with Client(served.address("http-unix"), token="") as client:
        before = client.list()
        refused(DeadlineExceeded, client.spawn, SHELL_REF, name="late", timeout_s=0.5)
        wait_until(lambda: client.list() == before, 30)


def test_the_daemon_goes_and_microvms_stay(
    served: Daemon, hypercore: Instance, shared_vm: SharedVM
) -> None:
    with (
        daemon(env=hypercore.env) as brief,
        Client(brief.address("http-unix"), token="") as client,
        ThreadPoolExecutor(1) as pool,
        client.exec(shared_vm.microvm_id, ["sh", "-c", "read x; echo $x"], stdin=True) as process,
    ):
        stopping = pool.submit(brief.stop)
        brief.told("STOPPING=1")
        process.write(b"done\n")  # what was under way may end
        assert [output.text for output in process.outputs()] == ["done\n"]
        stopping.result(30)
    with Client(served.address("grpc-unix"), token="") as client:
        assert client.run(shared_vm.microvm_id, "echo here").stdout == "here\n"


def test_the_readmes_examples(
    served: Daemon, hypercore: Instance, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    text = (ROOT / "README.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 5
    monkeypatch.setenv("HYPERCORE_ADDRESS", served.address("http-unix"))
    try:
        for number, example in enumerate(examples, 1):
            exec(compile(example, f"README.md, example {number}", "exec"), {})
            printed = capsys.readouterr().out
            expected = re.findall(r"# prints: (.*)", example)
            assert expected, f"example {number} says nothing of what it prints"
            assert printed.splitlines() == expected
    finally:
        hypercore.run("rm", "--force", "box", check=False)
