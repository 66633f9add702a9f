"""A microVM without an agent on each VMM: console, input, end, what is left.

The guest of tinyguest.py runs on any KVM, also on a software one, and on QEMU's emulation; so
nothing here needs hardware. The command line's side is in tests/functional.
"""

import asyncio
import contextlib
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree

import pytest

from hypercore import paths, processes, slots
from hypercore.config import HostConfig
from hypercore.errors import HypercoreError, InvalidArgument, VmmError
from hypercore.providers import kvm_probe
from hypercore.spec import HardwareSpec, MicroVMSpec, NetworkSpec
from hypercore.unikernel import UnikernelVM, open_terminal
from hypercore.unikernel_spec import UnikernelDisk, UnikernelSpec
from tests import fake_cloud_hypervisor, tinyguest
from tests.functional import instance
from tests.lab.get_firecracker import firecracker

DEADLINE_S = 30.0
ID = "uk-test"
TEXT = "hello from the guest\n"
RESET = {"qemu": "triple", "firecracker": "reset", "cloud-hypervisor": "reset"}
"""How a guest ends its VM: QEMU's microvm has no keyboard controller."""

FAKE = "fake cloud-hypervisor"
# No registry has Cloud Hypervisor: a run that is given none promises nothing of the real one.
REAL = ("qemu", "firecracker") + (
    ("cloud-hypervisor",) if os.environ.get("HYPERCORE_CLOUD_HYPERVISOR") else ()
)

pytestmark = pytest.mark.usefixtures("root")


@dataclass(frozen=True, slots=True)
class Host:
    """One provider, ready to run."""

    provider: str
    config: HostConfig

    @property
    def reset(self) -> str:
        return RESET[self.provider]


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Iterator[paths.MicroVMPaths]:
    """Paths of a microVM in an instance of its own, of which nothing runs at the end."""
    run = Path(tempfile.mkdtemp(prefix="hct-", dir="/run"))
    data = Path(tempfile.mkdtemp(prefix="hct-", dir="/var/tmp"))
    for directory in (run, data):
        directory.chmod(0o711)
    (data / "tools").symlink_to(instance.shared_data_dir() / "tools")
    monkeypatch.setenv("HYPERCORE_RUN_DIR", str(run))
    monkeypatch.setenv("HYPERCORE_DATA_DIR", str(data))
    monkeypatch.setenv("HYPERCORE_SLOTS_DIR", str(run / "slots"))
    found = paths.MicroVMPaths(ID)
    yield found
    assert not found.run.exists()
    assert slots.owners() == {}
    assert not processes.find_marked(ID)
    rmtree(run)
    rmtree(data)


@pytest.fixture(params=[*REAL, FAKE])
def host(
    request: pytest.FixtureRequest, files: paths.MicroVMPaths, monkeypatch: pytest.MonkeyPatch
) -> Host:
    binaries: dict[str, Path] = {}
    if request.param != "qemu":
        # Where KVM runs no stock kernel, so that no provider takes it, this guest still runs.
        monkeypatch.setattr(kvm_probe, "probe", lambda: "")
        if "fake" not in request.param and not kvm_probe.DEVICE.exists():
            pytest.skip(f"no {kvm_probe.DEVICE}")
    provider = request.param.split()[-1]
    match request.param:
        case "firecracker":
            binaries[provider] = firecracker()
        case "cloud-hypervisor":
            binaries[provider] = Path(os.environ["HYPERCORE_CLOUD_HYPERVISOR"])
        case "fake cloud-hypervisor":
            binaries[provider] = fake_cloud_hypervisor.install(paths.data_dir() / "fake")
    return Host(provider, HostConfig(binaries=binaries))


class Console:
    """Both of our ends of a guest's console."""

    def __init__(self) -> None:
        self.said = b""
        self.read_fd, self._write_fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.read_fd, False)
        self.input_fd, self._terminal_fd = open_terminal()

    @property
    def theirs(self) -> dict[str, int]:
        return {"console_fd": self._write_fd, "stdin_fd": self._terminal_fd}

    def lend(self) -> None:
        """The VMM has its ends."""
        os.close(self._write_fd)
        os.close(self._terminal_fd)

    async def says(self, text: str) -> None:
        """Until it does; the caller has a deadline."""
        while text.encode() not in self.said:
            try:
                chunk = os.read(self.read_fd, 4096)
            except BlockingIOError:
                await asyncio.sleep(0.005)
                continue
            assert chunk, f"the console ended with {self.said!r}"
            self.said += chunk

    def close(self) -> None:
        os.close(self.read_fd)
        os.close(self.input_fd)


def spec(host: Host, kernel: Path, **changes: object) -> MicroVMSpec:
    made = MicroVMSpec(
        ID,
        host.provider,
        HardwareSpec(memory_mib=64, kernel_path=kernel),
        NetworkSpec("none"),
        unikernel=UnikernelSpec(),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


@asynccontextmanager
async def made(host: Host, wanted: MicroVMSpec) -> AsyncIterator[tuple[UnikernelVM, Console]]:
    console = Console()
    vm = UnikernelVM(wanted, host.config, **console.theirs)
    try:
        try:
            await vm.start()
        finally:
            console.lend()
        yield vm, console
    finally:
        await vm.delete()
        console.close()


def guest(*endings: str) -> Path:
    return tinyguest.write(paths.data_dir() / "kernel", TEXT, *endings)


def held_files(pid: int) -> list[str]:
    return [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]


def run(coro: Awaitable[None]) -> None:
    asyncio.run(asyncio.wait_for(coro, DEADLINE_S))


def test_it_speaks_and_its_end_is_the_guests(host: Host) -> None:
    async def body() -> None:
        async with made(host, spec(host, guest(host.reset))) as (vm, console):
            await vm.run()
            ended = await vm.wait()
            assert ended.clean, ended
            await console.says(TEXT)
            assert console.said.decode() == TEXT

    run(body())


def test_the_guest_waits_for_run(host: Host) -> None:
    async def body() -> None:
        async with made(host, spec(host, guest(host.reset))) as (vm, console):
            with pytest.raises(BlockingIOError):
                os.read(console.read_fd, 1)
            assert not vm.exited.done()

    run(body())


@pytest.mark.parametrize("host", REAL, indirect=True)  # the fake runs no guest
def test_its_console_takes_input(host: Host) -> None:
    async def body() -> None:
        async with made(host, spec(host, guest("echo", host.reset))) as (vm, console):
            await vm.run()
            await console.says(TEXT)
            os.write(console.input_fd, b"a\x03\x04z")  # to a terminal in its usual mode: signals
            await console.says(TEXT + "a\x03\x04z")
            os.write(console.input_fd, b"q")
            assert (await vm.wait()).clean

    run(body())


def test_it_pauses_and_resumes(host: Host) -> None:
    async def body() -> None:
        async with made(host, spec(host, guest())) as (vm, console):
            await vm.run()
            await console.says(TEXT)
            await vm.pause()
            await vm.resume()
            await vm.press_power_button()  # this guest does not care
            assert not vm.exited.done()

    run(body())


def test_a_killed_vmm_is_no_clean_end(host: Host) -> None:
    async def body() -> None:
        async with made(host, spec(host, guest())) as (vm, console):
            await vm.run()
            await console.says(TEXT)
            os.kill(vm.pid, signal.SIGKILL)
            assert str(await vm.wait()) == "vmm was killed by SIGKILL"
            assert not vm.exited.result().clean

    run(body())


def test_stop_ends_a_guest_that_does_not_listen(host: Host) -> None:
    async def body() -> None:
        async with made(host, spec(host, guest())) as (vm, _):
            await vm.run()
            assert not (await vm.stop(0.2)).clean

    run(body())


# The emulated guest just runs on, through whatever is there.
@pytest.mark.parametrize("host", [*REAL[1:], FAKE], indirect=True)
def test_a_guest_that_crashes(host: Host) -> None:
    async def body() -> None:
        async with made(host, spec(host, guest("crash"))) as (vm, _):
            with contextlib.suppress(VmmError):  # it may be over before the start has returned
                await vm.run()
            assert not (await vm.wait()).clean

    run(body())


def test_its_disks_are_what_it_gets(host: Host) -> None:
    shared, private = paths.data_dir() / "shared.img", paths.data_dir() / "private.img"
    for path in (shared, private):
        path.write_bytes(bytes(1 << 20))
        path.chmod(0o644)
    disks = UnikernelSpec((UnikernelDisk(shared, read_only=True), UnikernelDisk(private)))

    async def body() -> None:
        wanted = spec(host, guest(), unikernel=disks)
        async with made(host, wanted) as (vm, console):
            await vm.run()
            await console.says(TEXT)
            if host.config.binaries.get(host.provider, Path()).name != "fake":
                assert str(private) in held_files(vm.pid)
            assert shared.stat().st_uid == 0
        assert private.stat().st_uid == 0  # as before, whoever it was lent to

    run(body())


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        ({"kernel_path": Path("/etc/hostname")}, InvalidArgument, "no kernel"),
        ({"kernel_path": Path("/nowhere")}, InvalidArgument, "No such file"),
        ({"kernel_path": None}, InvalidArgument, "needs its kernel"),
        ({"initrd_path": Path("/nowhere")}, HypercoreError, "/nowhere"),
    ],
    ids=["format", "missing", "none", "initrd"],
)
def test_what_it_cannot_boot_is_named(
    host: Host,
    change: dict[str, Path | None],
    error: type[Exception],
    named: str,
) -> None:
    async def body() -> None:
        hardware = replace(HardwareSpec(memory_mib=64, kernel_path=guest()), **change)  # type: ignore[arg-type]
        async with made(host, spec(host, guest(), hardware=hardware)):
            pass

    with pytest.raises(error, match=named):
        run(body())


def test_networks_are_refused(host: Host) -> None:
    async def body() -> None:
        async with made(host, spec(host, guest(), network=NetworkSpec("nat"))):
            pass

    with pytest.raises(InvalidArgument, match="no network yet"):
        run(body())


@pytest.mark.parametrize("fault", ["refuse", "hang", "die", "garbage"])
def test_a_vmm_that_fails_at_its_stop(
    files: paths.MicroVMPaths, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(kvm_probe, "probe", lambda: "")
    faults = {"vm.power-button": fault}
    binary = fake_cloud_hypervisor.install(paths.data_dir() / "fake", faults)
    host = Host("cloud-hypervisor", HostConfig(binaries={"cloud-hypervisor": binary}))

    async def body() -> None:
        async with made(host, spec(host, guest())) as (vm, _):
            await vm.run()
            assert not (await vm.stop(0.5)).clean

    run(body())
