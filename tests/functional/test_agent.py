"""The agent alone: a real guest on QEMU, its RPCs and streams, and its budgets."""

import hashlib
import json
import os
import re
import select
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hypercore import guest
from hypercore.guest import GuestAssets
from hypercore.proto import agent_pb, types_pb
from tests.functional import instance
from tests.functional.agent_guest import CallError, Control, Guest, read_bytes

pytestmark = pytest.mark.timeout(600)  # the first test builds the guest if it has changed

NOT_FOUND, PERMISSION_DENIED, FAILED_PRECONDITION, INVALID = 5, 7, 9, 3
ANON_BUDGET_KIB = 3072
ELF_BUDGET = 8_000_000
INSTRUCTION_BUDGET = 50_000_000
MAC = "52:54:00:12:34:56"

BUSYBOX = Path("/bin/busybox")


@pytest.fixture(scope="session")
def assets() -> Iterator[GuestAssets]:
    """The guest of this tree, built if it has changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYPERCORE_DATA_DIR", str(instance.shared_data_dir()))
        yield guest.build(print)


@pytest.fixture(scope="session")
def root_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A read-only root: busybox and a few files."""
    directory = tmp_path_factory.mktemp("root")
    tree = directory / "tree"
    for name in ("bin", "etc", "proc", "sys", "dev", "tmp"):
        (tree / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, tree / "bin" / "busybox")
    applets = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True)
    for name in applets.stdout.split():
        if name != "busybox":
            (tree / "bin" / name).symlink_to("busybox")
    (tree / "etc" / "passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    (tree / "etc" / "resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    (tree / "etc" / "plain").write_text("no program\n")
    return make_ext4(directory / "root.ext4", "16M", tree)


def make_ext4(path: Path, size: str, tree: Path | None = None) -> Path:
    source = ["-d", str(tree)] if tree else []
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", *source, str(path), size], check=True)
    return path


@contextmanager
def booted(
    assets: GuestAssets, disks: list[tuple[Path, str, bool]], **kwargs: Any
) -> Iterator[Guest]:
    # /run: a unix socket's path may not be long.
    with (
        tempfile.TemporaryDirectory(dir="/run", prefix="hc-agent-") as directory,
        Guest(Path(directory), assets, disks, **kwargs) as vm,
    ):
        yield vm


@pytest.fixture(scope="module")
def vm(assets: GuestAssets, root_image: Path) -> Iterator[Guest]:
    """One guest for all tests that leave it as it was."""
    nic = (
        "-netdev",
        "user,id=n0,restrict=on",
        "-device",
        f"virtio-net-device,netdev=n0,mac={MAC}",
    )
    with booted(assets, [(root_image, "root", True)], extra=nic) as made:
        made.control.call("Hello", hello())
        yield made


def hello() -> agent_pb.HelloRequest:
    return agent_pb.HelloRequest(
        version=1,
        unix_ns=time.time_ns(),
        hostname="guest1",
        interfaces=[
            agent_pb.Interface(
                name="eth0",
                mac=MAC,
                addresses=["192.0.2.2/30", "2001:db8::2/64"],
                gateways=["192.0.2.1", "2001:db8::1"],
                mtu=1400,
            )
        ],
        dns_servers=["192.0.2.53"],
        dns_search=["example.test"],
        poweroff="poweroff",
    )


def config(
    container_id: str,
    args: list[str],
    *,
    terminal: bool = False,
    namespaces: tuple[str, ...] = ("pid", "ipc", "uts", "mount", "cgroup"),
) -> bytes:
    def mounted(target: str, kind: str, *options: str) -> dict[str, Any]:
        return {"destination": target, "type": kind, "source": kind, "options": list(options)}

    document = {
        "ociVersion": "1.0.2",
        "process": process(args, terminal=terminal),
        "root": {"path": "rootfs"},
        "hostname": "box",
        "mounts": [
            mounted("/proc", "proc"),
            mounted("/dev", "tmpfs", "nosuid", "mode=755"),
            mounted("/dev/pts", "devpts", "newinstance", "ptmxmode=0666", "mode=0620"),
            mounted("/sys/fs/cgroup", "cgroup", "ro"),
        ],
        "linux": {
            "cgroupsPath": f"/hc/{container_id}",
            "namespaces": [{"type": name} for name in namespaces],
        },
    }
    return json.dumps(document).encode()


def process(args: list[str], *, terminal: bool = False) -> dict[str, Any]:
    capabilities = ["CAP_SYS_PTRACE", "CAP_KILL"]
    return {
        "terminal": terminal,
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
        "user": {"uid": 0, "gid": 0},
        "args": args,
        "env": ["PATH=/bin", "TERM=xterm"],
        "cwd": "/",
    }


READ_ONLY_ROOT = agent_pb.RootDisks(read_only=[agent_pb.RootDisk(serial="root", fs_type="ext4")])


class Running:
    """A process in the guest and its three streams (None where it has none)."""

    def __init__(self, vm: Guest, container_id: str, exec_id: str = "") -> None:
        self.vm = vm
        self.ids = {"container_id": container_id, "exec_id": exec_id}
        self.tokens = [b"", b"", b""]
        self.streams: list[socket.socket | None] = [None, None, None]

    def open(self, *numbers: int) -> None:
        for number in numbers:
            self.tokens[number] = os.urandom(16)
            self.streams[number] = self.vm.open_stream(self.tokens[number])

    def stdio(self, terminal: bool) -> agent_pb.Stdio:
        stdin, stdout, stderr = self.tokens
        size = {"rows": 40, "columns": 100} if terminal else {}
        return agent_pb.Stdio(
            terminal=terminal, stdin_token=stdin, stdout_token=stdout, stderr_token=stderr, **size
        )

    def call(self, method: str, **values: Any) -> Any:
        request = agent_pb.Agent.METHODS[method][0]
        return self.vm.control.call(method, request(**self.ids, **values))

    def feed(self, data: bytes) -> None:
        stdin = self.streams[0]
        assert stdin is not None
        stdin.sendall(data)
        self.call("CloseIO", stdin_bytes=len(data))

    def ended(self) -> tuple[agent_pb.WaitResponse, bytes, bytes]:
        """The exit record and all output."""
        end = self.call("Wait")
        stdout, stderr = self.streams[1:]
        out = read_bytes(stdout, end.stdout_bytes) if stdout else b""
        err = read_bytes(stderr, end.stderr_bytes) if stderr else b""
        return end, out, err

    def end(self) -> None:
        """Kill and delete it; a container that was not made is fine."""
        try:
            self.call("Kill", signal=9, all=True)
            self.call("Wait")
            self.call("Delete")
        except CallError as exc:
            if exc.code != NOT_FOUND:
                raise
        finally:
            self.close()

    def close(self) -> None:
        for stream in self.streams:
            if stream is not None:
                stream.close()


@pytest.fixture
def container(vm: Guest) -> Iterator[Callable[..., Running]]:
    """Makes containers, started unless told otherwise; kills and deletes them in the end."""
    made: list[Running] = []

    def make(
        args: list[str],
        *,
        terminal: bool = False,
        streams: tuple[int, ...] = (0, 1, 2),
        start: bool = True,
        namespaces: tuple[str, ...] = ("pid", "ipc", "uts", "mount", "cgroup"),
        files: list[agent_pb.InjectedFile] | None = None,
        runtime: str = "",
    ) -> Running:
        container_id = f"c{os.urandom(4).hex()}"
        running = Running(vm, container_id)
        running.open(*streams)
        made.append(running)
        request = agent_pb.CreateRequest(
            container_id=container_id,
            root_disks=READ_ONLY_ROOT,
            config_json=config(container_id, args, terminal=terminal, namespaces=namespaces),
            stdio=running.stdio(terminal),
            files=files or [],
            runtime=runtime,
        )
        vm.control.call("Create", request)
        if start:
            running.call("Start")
        return running

    yield make
    for running in made:
        running.end()


@pytest.fixture
def execute(vm: Guest) -> Iterator[Callable[..., Running]]:
    """Starts execs; forgets them in the end."""
    made: list[Running] = []

    def make(
        inside: Running,
        args: list[str],
        *,
        terminal: bool = False,
        streams: tuple[int, ...] = (0, 1, 2),
    ) -> Running:
        running = Running(vm, inside.ids["container_id"], f"e{os.urandom(4).hex()}")
        running.open(*streams)
        made.append(running)
        request = agent_pb.ExecRequest(
            **running.ids,
            process_json=json.dumps(process(args, terminal=terminal)).encode(),
            stdio=running.stdio(terminal),
        )
        vm.control.call("Exec", request)
        return running

    yield make
    for running in made:
        running.close()


def test_shell_reads_stdin_and_gives_output_and_exit_code(container: Any) -> None:
    shell = container(["sh"])
    shell.feed(b"echo out; echo err >&2; hostname; exit 7\n")
    end, out, err = shell.ended()
    assert (end.exit_status, out, err) == (7, b"out\nbox\n", b"err\n")
    assert abs(end.exited_unix_ns - time.time_ns()) < 30e9
    assert not end.oom_killed


def test_files_from_hello_and_from_the_request(container: Any) -> None:
    injected = agent_pb.InjectedFile(path="/etc/app/key", mode=0o600, content=b"secret\n")
    shell = container(["sh"], files=[injected])
    shell.feed(
        b"cat /etc/resolv.conf /etc/hostname /etc/app/key; grep guest1 /etc/hosts; "
        b"stat -c %a /etc/app/key; ls / | grep lost\n"
    )
    _, out, _ = shell.ended()
    assert out.decode().split("\n") == [
        "nameserver 192.0.2.53",
        "search example.test",
        "guest1",
        "secret",
        "192.0.2.2\tguest1",
        "2001:db8::2\tguest1",
        "600",
        "",
    ]


def test_network_is_as_hello_says(container: Any, vm: Guest) -> None:
    vm.control.call("Hello", hello())  # a second one changes nothing
    shell = container(["sh"])
    shell.feed(b"ip addr show eth0; ip route; ip -6 route; ip addr show lo\n")
    out = shell.ended()[1].decode()
    assert "mtu 1400" in out
    assert "inet 192.0.2.2/30" in out
    assert "inet6 2001:db8::2/64 scope global" in out
    assert "scope global tentative" not in out
    assert "default via 192.0.2.1 dev eth0" in out
    assert "default via 2001:db8::1 dev eth0" in out
    assert "inet 127.0.0.1/8" in out


def test_stdin_of_an_exec_arrives_whole(container: Any, execute: Any) -> None:
    shell = container(["sleep", "1000"], streams=())
    data = os.urandom(3_000_000)
    cat = execute(shell, ["md5sum"])
    cat.feed(data)
    end, out, _ = cat.ended()
    assert end.exit_status == 0
    assert out.split()[0].decode() == hashlib.md5(data).hexdigest()
    cat.call("Delete")
    with pytest.raises(CallError) as error:
        cat.call("Wait")
    assert error.value.code == NOT_FOUND


def test_much_output_arrives_whole(container: Any) -> None:
    size = 64 << 20
    shell = container(["sh", "-c", "dd if=/dev/zero bs=1048576 count=64 | tr '\\0' x"])
    stdout = shell.streams[1]
    out = read_bytes(stdout, size)
    end = shell.call("Wait")
    assert end.stdout_bytes == size
    assert out == b"x" * size


def test_a_reader_that_waits_loses_nothing(container: Any) -> None:
    shell = container(["sh", "-c", "dd if=/dev/zero bs=1024 count=3000 2>/dev/null; echo end"])
    waiting = shell.vm.control.send("Wait", agent_pb.ProcessRequest(**shell.ids))
    time.sleep(0.5)
    out = read_bytes(shell.streams[1], 3000 * 1024 + 4)
    end = shell.vm.control.receive("Wait", waiting)
    assert end.stdout_bytes == len(out)
    assert out.endswith(b"\0end\n")


def test_terminal(container: Any) -> None:
    shell = container(["sh"], terminal=True, streams=(0, 1))
    shell.streams[0].sendall(b"stty size; tty; exit 5\n")
    end, out, _ = shell.ended()
    assert end.exit_status == 5
    assert b"\r\n40 100\r\n" in out
    assert b"\r\n/dev/console\r\n" in out or b"\r\n/dev/pts/0\r\n" in out


def test_terminal_of_an_exec_is_resized(container: Any, execute: Any) -> None:
    shell = container(["sleep", "1000"], streams=())
    tty = execute(shell, ["sh"], terminal=True, streams=(0, 1))
    tty.call("ResizePty", rows=24, columns=132)
    tty.streams[0].sendall(b"stty size; exit 3\n")
    end, out, _ = tty.ended()
    assert end.exit_status == 3
    assert b"\r\n24 132\r\n" in out
    with pytest.raises(CallError) as error:
        shell.call("ResizePty", rows=1, columns=1)
    assert error.value.code == FAILED_PRECONDITION


def test_kill_one_and_all(container: Any, execute: Any) -> None:
    shell = container(["sh", "-c", "trap 'exit 21' TERM; while :; do sleep 0.1; done"])
    other = execute(shell, ["sleep", "1000"])
    other.call("Kill", signal=15)
    assert other.call("Wait").exit_status == 128 + 15
    with pytest.raises(CallError) as error:
        other.call("Kill", signal=15)
    assert error.value.code == NOT_FOUND
    third = execute(shell, ["sleep", "1000"])
    assert len(shell.call("Pids").pids) >= 2
    shell.call("Kill", signal=9, all=True)
    assert third.call("Wait").exit_status == 137
    assert shell.call("Wait").exit_status == 137
    assert shell.call("Pids").pids == []


def test_init_gets_its_signal(container: Any) -> None:
    shell = container(["sh", "-c", "trap 'exit 21' TERM; echo set; while :; do sleep 0.1; done"])
    assert read_bytes(shell.streams[1], 4) == b"set\n"
    shell.call("Kill", signal=15)
    assert shell.call("Wait").exit_status == 21


@pytest.mark.parametrize(
    ("command", "code"),
    [("nosuch", NOT_FOUND), ("/nosuch", NOT_FOUND), ("/etc/plain", PERMISSION_DENIED)],
)
def test_a_command_that_cannot_run(container: Any, execute: Any, command: str, code: int) -> None:
    with pytest.raises(CallError) as error:
        container([command])
    assert error.value.code == code, error.value.message
    shell = container(["sleep", "1000"], streams=())
    with pytest.raises(CallError) as error:
        execute(shell, [command])
    assert error.value.code == code, error.value.message
    assert command in error.value.message or "executable" in error.value.message


def test_runc_serves_too(container: Any, execute: Any) -> None:
    shell = container(["sh"], runtime="runc")
    inner = execute(shell, ["sh", "-c", "tty; exit 6"], terminal=True, streams=(1,))
    end, out, _ = inner.ended()
    assert (end.exit_status, out[:5]) == (6, b"/dev/")
    shell.feed(b"hostname; exit 7\n")
    end, out, _ = shell.ended()
    assert (end.exit_status, out) == (7, b"box\n")
    with pytest.raises(CallError) as error:
        container(["nosuch"], runtime="runc")
    assert error.value.code == NOT_FOUND, error.value.message


@pytest.mark.parametrize("child", ["sleep 30", "yes more"])
def test_a_child_that_holds_the_output_does_not_hold_the_exit(container: Any, child: str) -> None:
    shell = container(["sleep", "1000"], streams=())
    started = time.monotonic()
    inner = Running(shell.vm, shell.ids["container_id"], "holder")
    inner.open(1)
    request = agent_pb.ExecRequest(
        **inner.ids,
        process_json=json.dumps(process(["sh", "-c", f"{child} & echo told; exit 4"])).encode(),
        stdio=inner.stdio(False),
    )
    stdout, out = inner.streams[1], b""
    assert stdout is not None
    with ThreadPoolExecutor(1) as pool:  # one that writes on is read on, as the shim does
        shell.vm.control.call("Exec", request)
        waiting = pool.submit(inner.call, "Wait")
        while not waiting.done():
            if select.select((stdout,), (), (), 0.1)[0]:
                out += stdout.recv(1 << 20)
        end = waiting.result()
    out += read_bytes(stdout, max(0, end.stdout_bytes - len(out)))
    inner.close()
    assert end.exit_status == 4
    assert b"told\n" in out[: end.stdout_bytes]
    assert time.monotonic() - started < 25


def test_pause_stats_and_update(container: Any) -> None:
    shell = container(["sh", "-c", "while :; do echo x; sleep 0.05; done"])
    assert read_bytes(shell.streams[1], 2) == b"x\n"
    shell.call("Pause")
    stdout = shell.streams[1]
    stdout.settimeout(0.5)
    with pytest.raises(TimeoutError):
        read_bytes(stdout, 1 << 20)
    shell.call("Resume")
    stdout.settimeout(30)
    assert stdout.recv(2)
    shell.vm.control.call(
        "Update",
        agent_pb.UpdateRequest(
            container_id=shell.ids["container_id"],
            resources_json=b'{"memory": {"limit": 33554432}, "pids": {"limit": 50}}',
        ),
    )
    stats = shell.call("Stats")
    assert stats.memory_limit_bytes == 32 << 20
    assert stats.pids_limit == 50
    assert 0 < stats.memory_current_bytes < 32 << 20
    assert stats.cpu_usage_us > 0
    assert stats.pids_current >= 1


def test_out_of_memory_is_told(container: Any) -> None:
    shell = container(["sh"])
    shell.vm.control.call(
        "Update",
        agent_pb.UpdateRequest(
            container_id=shell.ids["container_id"],
            resources_json=b'{"memory": {"limit": 8388608, "swap": 8388608}}',
        ),
    )
    shell.feed(b"a=xxxxxxxx; while :; do a=$a$a; done\n")
    end = shell.call("Wait")
    assert end.exit_status == 137
    assert end.oom_killed
    assert shell.call("Stats").oom_kills >= 1
    assert "out of memory" in shell.vm.console_text()


def test_a_successor_takes_the_vm_over(container: Any, vm: Guest) -> None:
    shell = container(["sh"])
    shell.streams[0].sendall(b"echo one\n")
    assert read_bytes(shell.streams[1], 4) == b"one\n"
    for number in (0, 1):
        shell.streams[number].close()
        shell.streams[number] = vm.open_stream(shell.tokens[number])
    second = Control(vm.dial(10789))
    try:
        ids = agent_pb.ProcessRequest(**shell.ids)
        waiting = second.send("Wait", ids)
        text = b"echo two; exit 9\n"
        shell.streams[0].sendall(text)
        assert read_bytes(shell.streams[1], 4) == b"two\n"
        assert second.receive("Wait", waiting).exit_status == 9
    finally:
        second.sock.close()


def test_what_is_refused(vm: Guest, container: Any) -> None:
    def refused(method: str, request: Any) -> int:
        with pytest.raises(CallError) as error:
            vm.control.call(method, request)
        return error.value.code

    def create(**values: Any) -> agent_pb.CreateRequest:
        whole = {
            "container_id": "refused",
            "root_disks": READ_ONLY_ROOT,
            "config_json": config("refused", ["true"]),
            "stdio": agent_pb.Stdio(),
        }
        return agent_pb.CreateRequest(**{**whole, **values})

    assert refused("Hello", agent_pb.HelloRequest(version=2)) == FAILED_PRECONDITION
    for bad in ("", "../x", "a/b", ".", "x" * 200, "ä"):
        assert refused("Create", create(container_id=bad)) == INVALID
    assert refused("Create", create(runtime="docker")) == INVALID
    assert refused("Create", create(root_disks=agent_pb.RootDisks())) == INVALID
    assert refused("Create", create(files=[agent_pb.InjectedFile(path="/../x")])) == INVALID
    unknown = agent_pb.Stdio(stdout_token=bytes(16))
    assert refused("Create", create(stdio=unknown)) == FAILED_PRECONDITION
    assert refused("Create", create(stdio=agent_pb.Stdio(stdout_token=b"short"))) == INVALID
    assert refused("Wait", agent_pb.ProcessRequest(container_id="refused")) == NOT_FOUND
    assert refused("Delete", agent_pb.ProcessRequest(container_id="refused")) == NOT_FOUND
    shell = container(["sleep", "1000"], streams=())
    assert refused("Delete", agent_pb.ProcessRequest(**shell.ids)) == FAILED_PRECONDITION
    assert refused("Start", agent_pb.ProcessRequest(**shell.ids)) == FAILED_PRECONDITION
    assert refused("Kill", agent_pb.KillRequest(**shell.ids, signal=0)) == INVALID
    missing = agent_pb.RootDisks(read_only=[agent_pb.RootDisk(serial="no", fs_type="ext4")])
    assert refused("Create", create(root_disks=missing)) == FAILED_PRECONDITION


def test_a_failed_create_leaves_nothing(container: Any, vm: Guest) -> None:
    for _ in range(3):
        with pytest.raises(CallError):
            container(["nosuch"])
    shell = container(["sh"], namespaces=("ipc", "uts", "mount"))
    shell.feed(b"grep -c /run/hc/ /proc/1/mounts; ls /proc/1/fd | wc -l\n")
    mounts, fds = shell.ended()[1].split()
    assert int(mounts) == 3  # this container's: lower, upper, overlay
    assert int(fds) < 40


def test_budgets(container: Any, execute: Any, assets: GuestAssets) -> None:
    """Anonymous memory of PID 1 after some work, seen from a container in its pid namespace."""
    shell = container(["sleep", "1000"], streams=(), namespaces=("ipc", "uts", "mount"))
    for _ in range(10):
        done = execute(shell, ["true"])
        assert done.ended()[0].exit_status == 0
        done.call("Delete")
    look = execute(shell, ["cat", "/proc/1/smaps_rollup"])
    out = look.ended()[1].decode()
    anonymous = next(line.split()[1] for line in out.splitlines() if line.startswith("Anonymous"))
    print(f"agent: anonymous {anonymous} KiB")
    assert int(anonymous) <= ANON_BUDGET_KIB
    manifest = json.loads((assets.drive_path.parent / guest.MANIFEST).read_text())
    assert manifest["agent_size"] < ELF_BUDGET


def test_instructions_from_disk_to_ready(assets: GuestAssets, root_image: Path) -> None:
    """With -icount the guest's CPU time counts instructions: 1,000 a microsecond.

    CPU time, because waiting for the disk depends on what else the host does.
    """
    counted = ("-icount", "shift=0,sleep=on")
    with booted(assets, [(root_image, "root", True)], extra=counted) as vm:
        assert vm.control.call("Hello", agent_pb.HelloRequest(version=1)).ready_us
        text = vm.console_text()
    found = re.search(r"ready after \d+ us, \d+ us with its disk, (\d+) us of them on", text)
    assert found, text
    print(f"agent: {int(found[1]) / 1000:.1f} M instructions from its disk to ready")
    assert int(found[1]) * 1000 <= INSTRUCTION_BUDGET


def test_disks_of_its_own_and_power_off(
    assets: GuestAssets, root_image: Path, tmp_path: Path
) -> None:
    """A private upper and a single writable disk; both are clean after power-off."""
    upper = make_ext4(tmp_path / "upper.ext4", "32M")
    single = tmp_path / "single.ext4"
    shutil.copy(root_image, single)
    disks = [(root_image, "root", True), (upper, "upper", False), (single, "single", False)]
    layered = agent_pb.RootDisks(
        read_only=[agent_pb.RootDisk(serial="root", fs_type="ext4")],
        writable=agent_pb.RootDisk(serial="upper", fs_type="ext4", writable=True),
    )
    alone = agent_pb.RootDisks(
        writable=agent_pb.RootDisk(serial="single", fs_type="ext4", writable=True)
    )
    with booted(assets, disks) as vm:
        request = hello()
        request.interfaces = []
        vm.control.call("Hello", request)
        for name, root_disks in (("a", layered), ("b", alone)):
            for round_number in ("1", "2"):
                command = ["sh", "-c", f"echo {round_number} >> /kept; exec cat /kept"]
                shell = Running(vm, name)
                shell.open(1)
                vm.control.call(
                    "Create",
                    agent_pb.CreateRequest(
                        container_id=name,
                        root_disks=root_disks,
                        config_json=config(name, command),
                        stdio=shell.stdio(False),
                    ),
                )
                shell.call("Start")
                _, out, _ = shell.ended()
                assert out.split()[-1].decode() == round_number
                shell.call("Delete")
                shell.close()
            assert out == b"1\n2\n"
        # One that still writes, and ignores all but SIGKILL.
        busy = Running(vm, "c")
        busy.open(1)
        command = ["sh", "-c", "trap '' TERM; echo up; while :; do echo x >> /kept; done"]
        request = agent_pb.CreateRequest(
            container_id="c",
            root_disks=layered,
            config_json=config("c", command),
            stdio=busy.stdio(False),
        )
        vm.control.call("Create", request)
        busy.call("Start")
        assert read_bytes(busy.streams[1], 3) == b"up\n"
        vm.control.call("PowerOff", types_pb.Empty())
        assert vm.wait_off() == 0
        busy.close()
        assert "busy" not in vm.console_text()
    for path in (upper, single):
        subprocess.run(["e2fsck", "-fn", str(path)], check=True, capture_output=True)
