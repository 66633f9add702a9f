"""MicroVM with real guests, without containerd: boot, confinement, death of each part, reclaim."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from hypercore import processes, slots
from hypercore.config import HostConfig
from hypercore.errors import (
    AlreadyExists,
    DeadlineExceeded,
    HypercoreError,
    InvalidArgument,
    StateError,
    Unavailable,
    VmmError,
)
from hypercore.microvm import MicroVM, State
from hypercore.paths import MicroVMPaths
from hypercore.proto import agent_pb
from hypercore.reclaim import reclaim
from hypercore.spec import Disk, HardwareSpec, MicroVMSpec, NetworkSpec, RootDisks
from tests.functional import instance

VM_ID = "vm-functional"
CONFIG = HostConfig(boot_timeout_s=instance.BOOT_DEADLINE_S)
TEST_DEADLINE_S = 2 * instance.BOOT_DEADLINE_S
CLOCK_SPAN_S = 10
CLOCK_TOLERANCE = 0.005

pytestmark = [pytest.mark.usefixtures("place"), pytest.mark.timeout(TEST_DEADLINE_S + 30)]

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture
def place(root: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """State directories of this test's own; afterwards nothing of a microVM is on the host."""
    shared = instance.shared_data_dir()
    if not (shared / "guest" / "current").exists():
        pytest.fail(f"no guest assets in {shared}: run make setup")
    data_dir = Path(tempfile.mkdtemp(prefix="hct-", dir="/var/tmp"))
    run_dir = Path(tempfile.mkdtemp(prefix="hct-", dir="/run"))
    monkeypatch.setenv("HYPERCORE_DATA_DIR", str(data_dir))
    monkeypatch.setenv("HYPERCORE_RUN_DIR", str(run_dir))
    try:
        for name in instance.SHARED:
            (data_dir / name).symlink_to(shared / name)
        yield
        left = [str(path) for path in (run_dir / "vm").glob("*")]
        left += [f"slot {slot}" for slot, owner in slots.owners().items() if owner == VM_ID]
        left += [f"process {process.pid}" for process in processes.find_marked(VM_ID)]
        left += [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/hypercore/{VM_ID}*")]
        left += [str(path) for path in Path("/sys/fs/cgroup").glob(f"hypercore/{VM_ID}*")]
        assert not left, "left behind: " + ", ".join(left)
    finally:
        reclaim(VM_ID)
        shutil.rmtree(run_dir)
        shutil.rmtree(data_dir)


@pytest.fixture
def run() -> Run:
    def runner(coro: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
            loop.run(asyncio.wait_for(coro, TEST_DEADLINE_S))

    return runner


def _spec(**changes: Any) -> MicroVMSpec:
    values: dict[str, Any] = {
        "microvm_id": VM_ID,
        "provider": "qemu",
        "hardware": HardwareSpec(),
        "network": NetworkSpec(mode="none"),
        "hostname": "guest",
    }
    return MicroVMSpec(**{**values, **changes})


@contextlib.asynccontextmanager
async def _booted(disks: RootDisks | None = None, **changes: Any) -> AsyncIterator[MicroVM]:
    microvm = MicroVM(_spec(**changes), disks or RootDisks(), CONFIG)
    try:
        await microvm.start()
        yield microvm
    finally:
        await microvm.delete()
        assert microvm.state == State.DELETED


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _recorded() -> dict[str, processes.Process]:
    found, more = processes.read(MicroVMPaths(VM_ID).processes)
    assert not more
    return {process.role: process for process in found}


def _end_process(role: str) -> None:
    os.kill(_recorded()[role].pid, signal.SIGKILL)


def test_a_vmm_is_confined(run: Run) -> None:
    async def body() -> None:
        async with _booted() as microvm:
            assert microvm.state == State.RUNNING
            assert microvm.hello.version == 1
            for role, process in _recorded().items():
                _check_confinement(role, process.pid)
            for listener in microvm.files.vmm_dir.glob("v.sock_*"):
                with (
                    socket.socket(socket.AF_UNIX) as dial,
                    pytest.raises(ConnectionRefusedError),
                ):
                    dial.connect(str(listener))

    run(body())


def _check_confinement(role: str, pid: int) -> None:
    status = _status(pid)
    (slot,) = (slot for slot, owner in slots.owners().items() if owner == VM_ID)
    uid = str(CONFIG.uid_base + slot)
    assert status["Uid"].split() == [uid] * 4, role
    assert status["Gid"].split() == [uid] * 4, role
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[capabilities], 16) == 0, (role, capabilities)
    assert status["NoNewPrivs"] == "1", role
    if role == "vmm":
        assert status["Seccomp"] == "2"
    for name in ("net", "mnt", "pid", "ipc", "uts"):
        own = os.readlink(f"/proc/{pid}/ns/{name}")
        assert own != os.readlink(f"/proc/self/ns/{name}"), (role, name)
    root = Path(f"/proc/{pid}/root")
    assert not (root / "root").exists()
    assert not (root / "proc").exists()
    with pytest.raises(OSError, match="Read-only"):
        (root / "x").touch()
    devices = [name for name in ("lo", "eth0") if f"{name}:" in _net_devices(pid)]
    assert devices == ["lo"], role


def _net_devices(pid: int) -> str:
    return Path(f"/proc/{pid}/net/dev").read_text()


@pytest.mark.parametrize("cores", [1, 2])
def test_guest_time_runs_at_the_hosts_rate(run: Run, tmp_path: Path, cores: int) -> None:
    async def body() -> None:
        disks = RootDisks(writable=Disk(_busybox_disk(tmp_path), "hc1", read_only=False))
        hardware = HardwareSpec(cores=cores)
        async with _booted(disks, hardware=hardware) as microvm, _shell(microvm) as shell:
            first = await _uptime(shell)
            await asyncio.sleep(CLOCK_SPAN_S)
            last = await _uptime(shell)
            rate = (last[1] - first[1]) / (last[0] - first[0])
            assert rate == pytest.approx(1.0, abs=CLOCK_TOLERANCE)

    run(body())


def test_output_and_exit_code_of_a_container_arrive(run: Run, tmp_path: Path) -> None:
    async def body() -> None:
        disks = RootDisks(writable=Disk(_busybox_disk(tmp_path), "hc1", read_only=False))
        async with _booted(disks) as microvm, _shell(microvm) as shell:
            assert await shell.ask("hostname") == "guest"
            assert await shell.ask("echo $$") == "1"
            waiting = asyncio.ensure_future(microvm.agent.wait(shell.container_id))
            await shell.tell("exit 7")
            ended = await waiting
            assert ended.exit_status == 7
            assert ended.stdout_bytes == shell.received
            await microvm.agent.delete(shell.container_id)
            assert str(await microvm.stop(10)) == "vmm ended with status 0"
            assert microvm.state == State.STOPPED
            assert str(await microvm.stop(10)) == "vmm ended with status 0"

    run(body())


def test_pauses_and_resumes(run: Run) -> None:
    async def body() -> None:
        async with _booted() as microvm:
            await microvm.pause()
            assert microvm.state == State.PAUSED
            with pytest.raises(StateError, match="is paused, not running"):
                await microvm.open_stream(os.urandom(16))
            # What reaches a paused guest, such as typed input, must wait for it.
            asked = asyncio.ensure_future(microvm.agent.set_clock())
            await asyncio.sleep(0)
            await microvm.resume()
            await asked
            os.close(await microvm.open_stream(os.urandom(16)))
            await microvm.pause()
            ended = await microvm.stop(10)
            assert str(ended) == "vmm ended with status 0"

    run(body())


def test_a_killed_vmm_is_seen_and_cleaned_up(run: Run) -> None:
    async def body() -> None:
        async with _booted() as microvm:
            waiting = asyncio.ensure_future(microvm.agent.wait("no-such-container"))
            with pytest.raises(HypercoreError):
                await waiting
            _end_process("vmm")
            ended = await microvm.wait()
            assert str(ended) == "vmm was killed by SIGKILL"
            assert microvm.state == State.STOPPED
            with pytest.raises(Unavailable):
                await microvm.agent.set_clock()
            with pytest.raises(StateError, match="is stopped"):
                await microvm.open_stream(os.urandom(16))

    run(body())


def test_a_killed_vsock_helper_ends_the_microvm(run: Run) -> None:
    async def body() -> None:
        async with _booted() as microvm:
            helpers = [role for role in _recorded() if role != "vmm"]
            if not helpers:
                pytest.skip("the kernel serves vsock here: there is no helper")
            _end_process(helpers[0])
            ended = await microvm.wait()
            assert str(ended) == f"{helpers[0]} was killed by SIGKILL"

    run(body())


def test_a_guest_that_panics_fails_the_start_early(run: Run) -> None:
    async def body() -> None:
        microvm = MicroVM(_spec(cmdline="rdinit=/nonexistent root=/dev/none"), RootDisks(), CONFIG)
        with pytest.raises(VmmError, match="vmm ended with status 0") as caught:
            await microvm.start()
        assert "Kernel panic" in caught.value.detail
        assert microvm.state == State.DELETED

    run(body())


def test_a_vmm_that_refuses_its_kernel_is_quoted(run: Run, tmp_path: Path) -> None:
    async def body() -> None:
        kernel = tmp_path / "vmlinux"
        assets = instance.shared_data_dir() / "guest" / "current" / "vmlinux"
        kernel.write_bytes(assets.read_bytes()[: 1 << 20])  # its headers, and no more
        spec = _spec(hardware=HardwareSpec(kernel_path=kernel))
        with pytest.raises((VmmError, InvalidArgument)) as caught:
            await MicroVM(spec, RootDisks(), CONFIG).start()
        assert str(kernel) in str(caught.value) or "qemu" in str(caught.value)

    run(body())


def test_a_kernel_the_vmm_may_not_read_is_named(run: Run, tmp_path: Path) -> None:
    async def body() -> None:
        kernel = tmp_path / "vmlinux"
        shutil.copy(instance.shared_data_dir() / "guest" / "current" / "vmlinux", kernel)
        kernel.chmod(0o600)
        spec = _spec(hardware=HardwareSpec(kernel_path=kernel))
        with pytest.raises(InvalidArgument, match="cannot be read by the VMM") as caught:
            await MicroVM(spec, RootDisks(), CONFIG).start()
        assert caught.value.hint == f"chmod o+r {kernel}"

    run(body())


def test_a_guest_that_never_calls_meets_the_deadline(run: Run) -> None:
    async def body() -> None:
        microvm = MicroVM(_spec(), RootDisks(), CONFIG)
        with pytest.raises(DeadlineExceeded, match=r"did not call within 0\.05 s"):
            await microvm.start(0.05)

    run(body())


def test_a_cancelled_start_leaves_nothing(run: Run) -> None:
    async def body() -> None:
        for delay_s in (0.0, 0.02, 0.2):
            microvm = MicroVM(_spec(), RootDisks(), CONFIG)
            starting = asyncio.ensure_future(microvm.start())
            await asyncio.sleep(delay_s)
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
            assert not processes.find_marked(VM_ID)
            assert microvm.state == State.DELETED

    run(body())


def test_a_second_microvm_of_the_same_id_leaves_the_first_alone(run: Run) -> None:
    async def body() -> None:
        async with _booted() as first:
            with pytest.raises(AlreadyExists, match=VM_ID):
                await MicroVM(_spec(), RootDisks(), CONFIG).start()
            await first.agent.set_clock()
            assert first.state == State.RUNNING

    run(body())


def test_boots_without_a_jail_and_on_asyncios_own_loop() -> None:
    async def body() -> None:
        async with _booted(jail=False):
            assert _status(_recorded()["vmm"].pid)["Uid"].split()[0] == "0"

    asyncio.run(asyncio.wait_for(body(), TEST_DEADLINE_S))


def test_the_command_line_outlives_the_vmm(run: Run) -> None:
    async def body() -> None:
        async with _booted(cmdline="hypercore.test=1"):
            pass
        saved = json.loads(MicroVMPaths(VM_ID).vmm_argv.read_text())
        assert any("hypercore.test=1" in argument for argument in saved["vmm"])
        assert "ready" in MicroVMPaths(VM_ID).console_log.read_text()

    run(body())


OWNER = """
import asyncio, sys
from hypercore.config import HostConfig
from hypercore.microvm import MicroVM
from hypercore.spec import HardwareSpec, MicroVMSpec, NetworkSpec, RootDisks

async def main():
    spec = MicroVMSpec(sys.argv[1], "qemu", HardwareSpec(), NetworkSpec(mode="none"))
    starting = asyncio.ensure_future(MicroVM(spec, RootDisks(), HostConfig()).start())
    if sys.argv[2] == "booting":
        await asyncio.sleep(0.3)
    else:
        await starting
    print("now", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("moment", ["booting", "running"])
def test_reclaims_the_microvm_of_a_killed_owner(moment: str) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, VM_ID, moment], stdout=subprocess.PIPE, cwd=instance.ROOT
    )
    with owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"now\n"
        owner.kill()
    assert processes.find_marked(VM_ID), "a VMM outlives its owner: that is what reclaim is for"

    begun = time.monotonic()
    reclaim(VM_ID)

    assert time.monotonic() - begun < 2.0
    assert not processes.find_marked(VM_ID)
    reclaim(VM_ID)


SHELL_CONFIG = {
    "ociVersion": "1.0.2",
    "process": {
        "args": ["/bin/sh"],
        "env": ["PATH=/bin"],
        "cwd": "/",
        "user": {"uid": 0, "gid": 0},
    },
    "root": {"path": "rootfs"},
    "hostname": "guest",
    "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
    "linux": {
        "cgroupsPath": "/hc/c1",
        "namespaces": [{"type": name} for name in ("pid", "ipc", "uts", "mount")],
    },
}


class _Shell:
    """A container whose init is a shell on two streams."""

    def __init__(self, container_id: str, stdin_fd: int, stdout_fd: int) -> None:
        self.container_id = container_id
        self.received = 0
        self._stdin = socket.socket(fileno=stdin_fd)
        self._stdout = socket.socket(fileno=stdout_fd)
        self._buffer = b""

    async def tell(self, line: str) -> None:
        await asyncio.get_running_loop().sock_sendall(self._stdin, line.encode() + b"\n")

    async def ask(self, line: str) -> str:
        await self.tell(line)
        while b"\n" not in self._buffer:
            data = await asyncio.get_running_loop().sock_recv(self._stdout, 4096)
            assert data, "the shell's output ended"
            self.received += len(data)
            self._buffer += data
        answer, _, self._buffer = self._buffer.partition(b"\n")
        return answer.decode()

    def close(self) -> None:
        self._stdin.close()
        self._stdout.close()


@contextlib.asynccontextmanager
async def _shell(microvm: MicroVM) -> AsyncIterator[_Shell]:
    tokens = [os.urandom(16), os.urandom(16)]
    shell = _Shell("c1", *[await microvm.open_stream(token) for token in tokens])
    try:
        disk = agent_pb.RootDisk(serial="hc1", fs_type="ext4", writable=True)
        await microvm.agent.create(
            agent_pb.CreateRequest(
                container_id="c1",
                root_disks=agent_pb.RootDisks(writable=disk),
                config_json=json.dumps(SHELL_CONFIG).encode(),
                stdio=agent_pb.Stdio(stdin_token=tokens[0], stdout_token=tokens[1]),
            )
        )
        await microvm.agent.start("c1")
        yield shell
    finally:
        shell.close()


async def _uptime(shell: _Shell) -> tuple[float, float]:
    """Host's and guest's clock at one moment: of several tries, the one that took least."""
    tries = []
    for _ in range(10):
        before = time.monotonic()
        answer = await shell.ask("read up idle < /proc/uptime; echo $up")
        after = time.monotonic()
        tries.append((after - before, (before + after) / 2, float(answer)))
    _, host, guest = min(tries)
    return host, guest


def _busybox_disk(directory: Path) -> Path:
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("busybox is not installed")
    tree = directory / "root"
    (tree / "bin").mkdir(parents=True)
    shutil.copy(busybox, tree / "bin" / "busybox")
    for name in ("sh", "hostname"):
        (tree / "bin" / name).symlink_to("busybox")
    for name in ("proc", "sys", "dev", "etc", "tmp"):
        (tree / name).mkdir()
    disk = directory / "disk.ext4"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", tree, disk, "32M"], check=True)
    return disk
