"""The main path end to end: spawn, and everything one does with a running microVM."""

import hashlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.functional.conftest import SHELL_REF, SharedVM
from tests.functional.instance import (
    BOOT_DEADLINE_S,
    HYPERCORE,
    ROOT,
    Instance,
    shim_servers,
)

pytestmark = pytest.mark.timeout(4 * BOOT_DEADLINE_S)

EXAMPLE = ROOT / "examples" / "hello" / "hac.toml"


def listed(made: Instance, microvm_id: str) -> dict[str, object] | None:
    """The line of `list --all` for a microVM, if there is one."""
    lines = json.loads(made.run("list", "--all", "--format", "json").out)
    return next((line for line in lines if line["id"] == microvm_id), None)


def wait_for_state(made: Instance, microvm_id: str, state: str) -> dict[str, object]:
    deadline = time.monotonic() + 30
    while True:
        line = listed(made, microvm_id)
        assert line is not None, f"{microvm_id} is gone"
        if line["state"] == state:
            return line
        assert time.monotonic() < deadline, f"{microvm_id} is {line['state']}, not {state}"
        time.sleep(0.2)


def wait_for_log(made: Instance, microvm_id: str, text: str) -> None:
    deadline = time.monotonic() + 30
    while text not in made.run("logs", microvm_id).out:
        assert time.monotonic() < deadline, f"{microvm_id} has not printed {text!r}"
        time.sleep(0.2)


def lives(pid: int) -> bool:
    """Whether the process runs; an orphan that init has not reaped yet does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def processes_of(made: Instance, microvm_id: str) -> dict[str, int]:
    """Role → pid of a microVM's processes, from its records."""
    lines = (made.run_dir / "vm" / microvm_id / "processes").read_text().splitlines()
    return {line.split()[0]: int(line.split()[1]) for line in lines if len(line.split()) == 3}


def test_hello_in_the_foreground(hypercore: Instance) -> None:
    """What `make run` does: output and exit code come through, nothing stays."""
    before = hypercore.run("list", "--all", "--quiet").out
    result = hypercore.boot("spawn", "--rm", "--hac", EXAMPLE)
    assert "Hello" in result.out
    assert hypercore.run("list", "--all", "--quiet").out == before


def test_exit_code_and_all_output_of_a_foreground_spawn(
    hypercore: Instance, shell_image: str
) -> None:
    script = "seq 1 20000; echo on stderr >&2; exit 7"
    result = hypercore.boot("spawn", "--rm", shell_image, "sh", "-c", script, check=False)
    assert result.code == 7, result
    assert result.out == "".join(f"{n}\n" for n in range(1, 20001))
    assert "on stderr\n" in result.err


def test_session_of_spawn_and_attach(hypercore: Instance, shell_image: str) -> None:
    """The first hypercore's session, and what attach adds: replay, sharing, the exit code."""
    microvm_id = hypercore.spawn(shell_image)
    try:
        first = hypercore.popen("attach", microvm_id)
        second = hypercore.popen("attach", microvm_id, stdin=subprocess.DEVNULL)
        try:
            first.stdin.write(b"whoami\necho $$\ncat /etc/os-release\nexit 5\n")
            first.stdin.flush()
            out, err = first.communicate(timeout=60)
            shared, _ = second.communicate(timeout=60)
        finally:
            first.kill()
            second.kill()
            first.communicate()
            second.communicate()
        assert first.returncode == 5, err
        lines = out.decode().splitlines()
        assert lines[:2] == ["root", "1"]
        assert 'NAME="Hypercore Test"' in lines
        assert shared == out
        assert second.returncode == 5

        wait_for_state(hypercore, microvm_id, "exited")
        assert hypercore.run("logs", microvm_id).out == out.decode()
        late = hypercore.run("attach", microvm_id, check=False)
        assert (late.code, late.out) == (5, out.decode())
    finally:
        hypercore.run("rm", "--force", microvm_id)


def test_attach_shows_what_was_printed_before_unless_told_not_to(
    hypercore: Instance, shell_image: str
) -> None:
    microvm_id = hypercore.spawn(shell_image, "sh", "-c", "echo early; read line; echo $line")
    try:
        wait_for_log(hypercore, microvm_id, "early")
        without = hypercore.popen("attach", "--no-logs", microvm_id, stdin=subprocess.DEVNULL)
        try:
            result = hypercore.run("attach", microvm_id, stdin=b"late\n")
            out, _ = without.communicate(timeout=60)
        finally:
            without.kill()
            without.communicate()
        assert result.out == "early\nlate\n"
        assert out in (b"late\n", b"")  # empty when the task ended before it was attached
    finally:
        hypercore.run("rm", "--force", microvm_id)


def test_logs_follow_until_the_end(hypercore: Instance, shell_image: str) -> None:
    script = "for n in 1 2 3; do echo line $n; sleep 1; done"
    microvm_id = hypercore.spawn(shell_image, "sh", "-c", script)
    try:
        result = hypercore.run("logs", "--follow", microvm_id)
        assert result.out == "line 1\nline 2\nline 3\n"
    finally:
        hypercore.run("rm", "--force", microvm_id)


class TestSharedVM:
    """Looking at, and executing in, one VM that stays."""

    def test_list(self, hypercore: Instance, shared_vm: SharedVM, shell_image: str) -> None:
        line = listed(hypercore, shared_vm.microvm_id)
        assert line is not None
        assert (line["image"], line["state"]) == (shell_image, "running")
        assert shared_vm.microvm_id[:12] in hypercore.run("ps").out
        assert hypercore.run("list", "--quiet").out.split() == [shared_vm.microvm_id]

    @pytest.mark.parametrize(
        ("command", "code"),
        [
            (("true",), 0),
            (("sh", "-c", "exit 7"), 7),
            (("sh", "-c", "kill -9 $$"), 137),
            (("/no/such/command",), 127),
            (("/etc/passwd",), 126),
        ],
    )
    def test_exit_codes_of_exec(
        self, hypercore: Instance, shared_vm: SharedVM, command: tuple[str, ...], code: int
    ) -> None:
        result = shared_vm.exec(*command, check=False)
        assert result.code == code, result

    def test_exec_keeps_stdout_and_stderr_apart(
        self, hypercore: Instance, shared_vm: SharedVM
    ) -> None:
        result = shared_vm.exec("sh", "-c", "echo out; echo err >&2")
        assert (result.out, result.err) == ("out\n", "err\n")

    def test_a_detached_exec_runs_on(self, hypercore: Instance, shared_vm: SharedVM) -> None:
        script = "echo $$ >/tmp/pid; mv /tmp/pid /tmp/detached; exec sleep 1000"
        result = hypercore.run("exec", "-d", shared_vm.microvm_id, "sh", "-c", script)
        assert result.out == ""
        deadline = time.monotonic() + 30
        while not (pid := shared_vm.exec("cat", "/tmp/detached", check=False).out.strip()):
            assert time.monotonic() < deadline
        shared_vm.exec("kill", pid)
        refused = hypercore.run("exec", "-d", "-i", shared_vm.microvm_id, "true", check=False)
        assert refused.code == 64, refused
        missing = hypercore.run("exec", "-d", shared_vm.microvm_id, "/no/such", check=False)
        assert missing.code == 127, missing

    @pytest.mark.parametrize("size", [0, 1, 65_537, 3_000_001])
    def test_stdin_reaches_exec_and_comes_back_whole(
        self, hypercore: Instance, shared_vm: SharedVM, size: int
    ) -> None:
        data = random.Random(size).randbytes(size)
        argv = [HYPERCORE, "exec", "-i", shared_vm.microvm_id]
        there = subprocess.run(
            [*argv, "sha256sum"], input=data, capture_output=True, env=hypercore.env, timeout=60
        )
        assert there.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest(), there.stderr
        back = subprocess.run(
            [*argv, "cat"], input=data, capture_output=True, env=hypercore.env, timeout=60
        )
        assert hashlib.sha256(back.stdout).digest() == hashlib.sha256(data).digest()
        assert back.returncode == 0, back.stderr

    def test_many_execs_at_once_get_their_own_output(
        self, hypercore: Instance, shared_vm: SharedVM
    ) -> None:
        with ThreadPoolExecutor(6) as pool:
            results = list(
                pool.map(
                    lambda n: shared_vm.exec("sh", "-c", f"seq {n} 3000; exit {n}", check=False),
                    range(12),
                )
            )
        for n, result in enumerate(results):
            assert result.code == n, result
            assert result.out == "".join(f"{i}\n" for i in range(n, 3001))

    def test_nat_gives_address_route_and_resolver(
        self, hypercore: Instance, shared_vm: SharedVM
    ) -> None:
        assert re.search(r"inet 10\.\d+\.\d+\.\d+/30", shared_vm.exec("ip", "addr").out)
        assert "default via 10." in shared_vm.exec("ip", "route").out
        assert "nameserver" in shared_vm.exec("cat", "/etc/resolv.conf").out

    def test_guest_cannot_reach_a_service_of_the_host(
        self, hypercore: Instance, shared_vm: SharedVM
    ) -> None:
        gateway = re.search(r"default via (\S+)", shared_vm.exec("ip", "route").out).group(1)
        with socket.create_server(("0.0.0.0", 0)) as server:
            port = str(server.getsockname()[1])
            result = shared_vm.exec("nc", "-w", "2", gateway, port, check=False)
            server.setblocking(False)
            with pytest.raises(BlockingIOError):
                server.accept()
        assert result.code != 0

    def test_guest_clock_runs_as_fast_as_the_host_s(
        self, hypercore: Instance, shared_vm: SharedVM
    ) -> None:
        def uptime() -> tuple[float, float, float]:
            before = time.monotonic()
            guest = float(shared_vm.exec("cat", "/proc/uptime").out.split()[0])
            return before, guest, time.monotonic()

        first = uptime()
        time.sleep(10)
        last = uptime()
        passed = last[1] - first[1]
        assert (last[0] - first[2]) * 0.995 <= passed <= (last[2] - first[0]) * 1.005

    def test_the_vmm_is_confined(self, hypercore: Instance, shared_vm: SharedVM) -> None:
        for role, pid in processes_of(hypercore, shared_vm.microvm_id).items():
            status = Path(f"/proc/{pid}/status").read_text()
            assert not re.search(r"^Uid:\t0\t", status, re.MULTILINE), role
            assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE), role
            assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE), role
            assert os.readlink(f"/proc/{pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt"), role


def test_stop_keeps_logs_until_rm(hypercore: Instance, shell_image: str) -> None:
    script = "trap 'echo stopping; exit 3' TERM; echo ready; while :; do sleep 1; done"
    microvm_id = hypercore.spawn(shell_image, "sh", "-c", script)
    try:
        wait_for_log(hypercore, microvm_id, "ready")
        refused = hypercore.run("rm", microvm_id, check=False)
        assert refused.code == 70, refused
        assert "rm -f" in refused.err
        vmm = processes_of(hypercore, microvm_id)["vmm"]

        hypercore.run("stop", microvm_id)
        line = wait_for_state(hypercore, microvm_id, "exited")
        assert line["exit_code"] == 3
        assert hypercore.run("logs", microvm_id).out == "ready\nstopping\n"
        assert not lives(vmm)
    finally:
        hypercore.run("rm", "--force", microvm_id)
    assert listed(hypercore, microvm_id) is None
    gone = hypercore.run("logs", microvm_id, check=False)
    assert gone.code == 66, gone
    assert microvm_id in gone.err


def test_stop_kills_what_ignores_it(hypercore: Instance, shell_image: str) -> None:
    script = "trap '' TERM; trap 'echo asked' USR1; echo ready; while :; do sleep 0.1; done"
    microvm_id = hypercore.spawn(shell_image, "sh", "-c", script)
    try:
        wait_for_log(hypercore, microvm_id, "ready")
        hypercore.run("stop", "--signal", "USR1", "--time", "1", microvm_id)
        assert hypercore.run("logs", microvm_id).out == "ready\nasked\n"
        assert wait_for_state(hypercore, microvm_id, "exited")["exit_code"] == 137
    finally:
        hypercore.run("rm", "--force", microvm_id)


def test_rm_of_what_is_just_ending_forgets_its_task(expendable: Instance) -> None:
    """A shim server that still counts a task would not end when asked to."""
    for _ in range(3):
        expendable.run("rm", "--force", expendable.spawn(SHELL_REF, "true"))
    (server,) = shim_servers(expendable)
    os.kill(server, signal.SIGTERM)
    deadline = time.monotonic() + 15
    while lives(server):
        assert time.monotonic() < deadline, "the shim server still counts a task"
        time.sleep(0.1)
    expendable.boot("spawn", "--rm", SHELL_REF, "true")


def test_kill_sends_any_signal(hypercore: Instance, shell_image: str) -> None:
    microvm_id = hypercore.spawn(shell_image, "sh", "-c", "trap 'exit 9' USR1; read line")
    try:
        hypercore.run("kill", "--signal", "USR1", microvm_id)
        assert wait_for_state(hypercore, microvm_id, "exited")["exit_code"] in (9, 138)
    finally:
        hypercore.run("rm", "--force", microvm_id)


def test_death_of_the_vmm_is_seen_and_reclaimed(hypercore: Instance, shell_image: str) -> None:
    microvm_id = hypercore.spawn(shell_image)
    pid = processes_of(hypercore, microvm_id)["vmm"]
    attached = hypercore.popen("attach", microvm_id)
    try:
        os.kill(pid, signal.SIGKILL)
        _, err = attached.communicate(timeout=30)
    finally:
        attached.kill()
        attached.communicate()
    assert attached.returncode == 137, err
    assert wait_for_state(hypercore, microvm_id, "exited")["exit_code"] == 137
    hypercore.run("rm", microvm_id)


def test_death_of_the_shim_server_is_reclaimed(expendable: Instance) -> None:
    microvm_id = expendable.spawn(SHELL_REF)
    vmm = processes_of(expendable, microvm_id)["vmm"]
    expendable.run("exec", microvm_id, "sh", "-c", "echo kept >/kept; sync")
    for pid in shim_servers(expendable):
        os.kill(pid, signal.SIGKILL)
    expendable.run("cleanup")
    assert not lives(vmm)
    expendable.boot("start", microvm_id)
    assert expendable.run("exec", microvm_id, "cat", "/kept").out == "kept\n"
    vmm = processes_of(expendable, microvm_id)["vmm"]
    for pid in shim_servers(expendable):
        os.kill(pid, signal.SIGKILL)
    expendable.run("cleanup", microvm_id)
    assert not lives(vmm)
    assert listed(expendable, microvm_id) is None
    assert expendable.run("cleanup", microvm_id).code == 0
    # Life goes on, with a new server.
    expendable.boot("spawn", "--rm", SHELL_REF, "true")


def test_five_at_once_leave_nothing(hypercore: Instance, shell_image: str) -> None:
    """The fixture compares the host before and after."""
    with ThreadPoolExecutor(5) as pool:
        ids = list(pool.map(lambda _: hypercore.spawn(shell_image), range(5)))
        names = [f"echo I am {microvm_id}" for microvm_id in ids]
        results = list(
            pool.map(
                lambda pair: hypercore.run("exec", pair[0], "sh", "-c", pair[1]),
                zip(ids, names, strict=True),
            )
        )
        list(pool.map(lambda microvm_id: hypercore.run("rm", "--force", microvm_id), ids))
    assert [result.out for result in results] == [f"I am {microvm_id}\n" for microvm_id in ids]
    assert len(set(ids)) == 5


def test_cleanup_all_removes_what_runs(expendable: Instance) -> None:
    ids = {expendable.spawn(SHELL_REF) for _ in range(2)}
    assert set(expendable.run("list", "--quiet").out.split()) == ids
    (server,) = shim_servers(expendable)
    expendable.run("cleanup", "--all")
    assert expendable.run("list", "--all", "--quiet").out == ""
    deadline = time.monotonic() + 15
    while lives(server):
        assert time.monotonic() < deadline, "the idle shim server stays"
        time.sleep(0.1)
    expendable.run("cleanup", "--all")

    # A new server; what is spawned with --rm in the background goes without another command.
    microvm_id = expendable.spawn("--rm", "--detach", SHELL_REF, "true")
    deadline = time.monotonic() + 30
    while (expendable.data_dir / "vm" / microvm_id).exists():
        assert time.monotonic() < deadline, f"{microvm_id} is not removed"
        time.sleep(0.1)
    assert listed(expendable, microvm_id) is None
