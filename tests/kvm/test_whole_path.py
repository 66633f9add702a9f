"""Every provider on real KVM, from the command line to the guest's shell and back."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.functional.conftest import SHELL_REF
from tests.functional.instance import BOOT_DEADLINE_S, Instance
from tests.functional.test_cli import terminal
from tests.functional.test_spawn import lives, processes_of, wait_for_state
from tests.integration.netlab import OUTSIDE4
from tests.kvm.conftest import PROVIDERS

pytestmark = pytest.mark.timeout(4 * BOOT_DEADLINE_S)


@dataclass(frozen=True, slots=True)
class VM:
    provider: str
    microvm_id: str
    made: Instance

    def exec(self, *command: str, **options: object) -> str:
        return self.made.run("exec", self.microvm_id, *command, **options).out

    @property
    def pid(self) -> int:
        return processes_of(self.made, self.microvm_id)["vmm"]

    @property
    def argv(self) -> list[str]:
        path = self.made.data_dir / "vm" / self.microvm_id / "vmm.argv"
        argv: list[str] = json.loads(path.read_text())["vmm"]
        return argv


@pytest.fixture(scope="module", params=PROVIDERS)
def vm(request: pytest.FixtureRequest, hypercore: Instance) -> Iterator[VM]:
    """A VM of each provider whose shell waits for input; the first is chosen without a name."""
    provider = ("--provider", request.param) if request.param != PROVIDERS[0] else ()
    begun = time.monotonic()
    microvm_id = hypercore.spawn(*provider, SHELL_REF)
    print(f"\n{request.param}: spawned in {time.monotonic() - begun:.1f} s; the shim's phases:")
    print((hypercore.data_dir / "vm" / microvm_id / "timings.json").read_text())
    yield VM(request.param, microvm_id, hypercore)
    hypercore.run("rm", "--force", microvm_id)


def status_of(pid: int | str) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_the_guest_runs_on_kvm(vm: VM) -> None:
    assert vm.provider in vm.argv[0]
    held = [os.readlink(path) for path in Path(f"/proc/{vm.pid}/fd").iterdir()]
    assert any("kvm-vcpu" in target for target in held), held
    if vm.provider == "qemu":
        assert any(word.startswith("vhost-vsock-device") for word in vm.argv)
        assert list(processes_of(vm.made, vm.microvm_id)) == ["vmm"]


def test_exec(vm: VM) -> None:
    script = "whoami; dd if=/dev/zero of=/tmp/file bs=1M count=8 && sync && stat -c %s /tmp/file"
    result = vm.made.run(
        "exec", vm.microvm_id, "sh", "-c", f"{script} 2>/dev/null; exit 5", check=False
    )
    lines = [line for line in result.out.splitlines() if "records" not in line]
    assert (result.code, lines) == (5, ["root", str(8 << 20)]), result


def test_stdin_of_exec_comes_back_whole(vm: VM) -> None:
    data = os.urandom(300_000).hex()
    result = vm.made.run("exec", "-i", vm.microvm_id, "cat", stdin=data.encode())
    assert result.out == data


def test_exec_on_a_terminal(vm: VM) -> None:
    # The size may come a moment after the process.
    script = 'until [ "$(stty size)" = "33 101" ]; do sleep 0.1; done; echo sized; read x'
    with terminal(vm.made, "exec", "-it", vm.microvm_id, "sh", "-c", script) as tty:
        tty.expect("sized")
        tty.type("\x03")
        assert tty.wait() == 130


def test_the_guest_reaches_out_and_not_the_host(vm: VM) -> None:
    script = """
        ping -c 1 -W 20 "$0" | grep -o '1 packets received'
        host=$(ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p')
        nc -w 5 "$host" "$1" < /dev/null > /dev/null 2>&1 || echo refused by "$host"
    """
    with socket.create_server(("", 0)) as server:
        port = str(server.getsockname()[1])
        said = vm.exec("sh", "-c", script, OUTSIDE4, port).splitlines()
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert said[0] == "1 packets received"
    assert said[1].startswith("refused by 10.")


def test_pauses_and_resumes(vm: VM) -> None:
    """The processes of its container: the guest's agent, and the way to it, go on."""
    program = next((vm.made.data_dir / "tools").rglob("bin/ctr"), None)
    assert program, "no ctr among our tools: run make setup"
    ctr = [program, "-a", vm.made.run_dir / "containerd.sock", "-n", "hypercore"]
    subprocess.run([*ctr, "task", "pause", vm.microvm_id], check=True, timeout=BOOT_DEADLINE_S)
    assert wait_for_state(vm.made, vm.microvm_id, "paused")
    subprocess.run([*ctr, "task", "resume", vm.microvm_id], check=True, timeout=BOOT_DEADLINE_S)
    assert vm.exec("echo", "awake") == "awake\n"


def test_the_vmm_is_confined(vm: VM) -> None:
    status = status_of(vm.pid)
    assert all(int(uid) >= 1_900_000_000 for uid in status["Uid"].split())
    assert status["Gid"] == status["Uid"]
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert status["NoNewPrivs"] == "1"
    tasks = list(Path(f"/proc/{vm.pid}/task").iterdir())
    if vm.provider == "cloud-hypervisor":  # its first thread only waits for the others' end
        tasks = [task for task in tasks if task.name != str(vm.pid)]
    assert all(status_of(f"{vm.pid}/task/{task.name}")["Seccomp"] == "2" for task in tasks)
    for name in ("net", "mnt", "pid", "ipc", "uts"):
        assert os.readlink(f"/proc/{vm.pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}")
    group = Path(f"/proc/{vm.pid}/cgroup").read_text().strip().rpartition(":")[2]
    assert vm.microvm_id in group
    limit = Path(f"/sys/fs/cgroup{group}/memory.max")
    if limit.exists():
        assert int(limit.read_text()) > 128 << 20
    named = ("Uid", "Gid", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp", "Threads")
    facts = [f"{name} {' '.join(status[name].split())}" for name in named]
    facts += [os.readlink(f"/proc/{vm.pid}/ns/{name}") for name in ("net", "mnt", "pid")]
    print(f"\n{vm.provider}: {', '.join(facts)}, cgroup {group}")


def test_attach(vm: VM) -> None:
    with vm.made.popen("attach", vm.microvm_id) as attached:
        try:
            assert attached.stdin is not None
            attached.stdin.write(b"echo one; echo two\n")
            attached.stdin.flush()
            assert attached.stdout is not None
            assert attached.stdout.readline() + attached.stdout.readline() == b"one\ntwo\n"
        finally:
            attached.kill()
            attached.communicate()


def test_a_vmm_that_is_killed(vm: VM) -> None:
    """The last test of each provider's VM."""
    pid = vm.pid
    os.kill(pid, signal.SIGKILL)
    line = wait_for_state(vm.made, vm.microvm_id, "exited")
    assert line["exit_code"] == 137, line
    assert not lives(pid)
