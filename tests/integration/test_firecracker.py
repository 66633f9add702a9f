"""Provider firecracker's control plane: with the real VMM, and with one that fails to order.

A guest of 60 bytes runs on any KVM, also on a software one; so nothing here needs hardware. What
needs a real guest is in lab/.
"""

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from shutil import rmtree

import pytest

from hypercore import boot_files, paths, processes, slots, vm_snapshot, vmm, vmm_api
from hypercore.config import HostConfig
from hypercore.errors import DeadlineExceeded, InvalidArgument, Unavailable, VmmError
from hypercore.microvm import MicroVM
from hypercore.paths import MicroVMPaths
from hypercore.providers import kvm_probe
from hypercore.providers.base import BootSpec, Probe, VmSnapshot
from hypercore.providers.firecracker import FirecrackerProvider, render_requests
from hypercore.spec import Disk, DiskLimits, HardwareSpec, MicroVMSpec, NetworkSpec, RootDisks
from hypercore.vmm_group import VmmGroup
from tests import fake_firecracker, tinyguest
from tests.lab.get_firecracker import firecracker

DEADLINE_S = 20.0
HOPELESS_S = 2.0
"""For what never comes; all before it has to fit in, also on a busy machine."""
ID = "fc-test"
UID = HostConfig().uid_base
TEXT = "hello from the guest\n"

pytestmark = pytest.mark.usefixtures("root")


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Iterator[MicroVMPaths]:
    """Paths of a microVM in an instance of its own, which must not be running at the end."""
    run = Path(tempfile.mkdtemp(prefix="hct-", dir="/run"))
    data = Path(tempfile.mkdtemp(prefix="hct-", dir="/var/tmp"))
    for directory in (run, data):
        directory.chmod(0o711)
    monkeypatch.setenv("HYPERCORE_RUN_DIR", str(run))
    monkeypatch.setenv("HYPERCORE_DATA_DIR", str(data))
    monkeypatch.setenv("HYPERCORE_SLOTS_DIR", str(run / "slots"))
    yield MicroVMPaths(ID)
    assert not processes.find_marked(ID)
    rmtree(run)
    rmtree(data)


@pytest.fixture(params=["real", "fake"])
def binary(request: pytest.FixtureRequest, files: MicroVMPaths) -> Path:
    """Firecracker, and the program that passes for it."""
    if request.param == "fake":
        return fake_firecracker.install(paths.data_dir() / "fake-firecracker")
    return real_firecracker()


def real_firecracker() -> Path:
    if not kvm_probe.DEVICE.exists():
        pytest.skip(f"no {kvm_probe.DEVICE}")
    return firecracker()


def boot_spec(files: MicroVMPaths, ending: str = "halt") -> BootSpec:
    kernel = tinyguest.write(paths.data_dir() / "kernel", TEXT, ending)
    shared, private = paths.data_dir() / "shared.img", paths.data_dir() / "private.img"
    for path, mode in ((shared, 0o644), (private, 0o600)):
        path.write_bytes(bytes(1 << 20))
        path.chmod(mode)
    return BootSpec(
        microvm_id=ID,
        cores=1,
        memory_mib=64,
        kernel_path=kernel,
        initrd_path=None,
        cmdline="console=ttyS0",
        disks=(Disk(shared, "hc0", read_only=True), Disk(private, "hc1", read_only=False)),
        guest_mac="",
        tap_name="",
        cid=3,
        control_port=10788,
        paths=files,
        jail=True,
    )


@asynccontextmanager
async def running(boot: BootSpec, binary: Path) -> AsyncIterator[VmmGroup]:
    """The VMM of `boot`, started and configured as microvm.py does it; no guest runs yet."""
    files = boot.paths
    for directory in (files.snapshot_dir, files.vmm_dir, files.jail_root):
        directory.mkdir(parents=True, exist_ok=True)
    group = VmmGroup(files)
    provider = FirecrackerProvider()
    try:
        fds = {"console": group.open_console()}
        (command,) = provider.render(boot, Probe(binary, "1.12.1", "kvm"))
        await group.spawn(
            command,
            fds=fds,
            confinement=vmm.Confinement(UID, UID, files.jail_root, files.data),
            cgroup_fds=(),
        )
        group.all_started()
        await (provider.restore if boot.snapshot else provider.configure)(boot, in_time())
        group.configured()
        yield group
    finally:
        await group.close()


def in_time() -> float:
    return asyncio.get_running_loop().time() + DEADLINE_S


def run(coro: Awaitable[None]) -> None:
    asyncio.run(asyncio.wait_for(coro, DEADLINE_S))


async def state_of(boot: BootSpec) -> object:
    answer = await vmm_api.request(boot.paths.api_socket, "GET", "/", deadline=in_time())
    assert isinstance(answer, dict)
    return answer["state"]


async def console_says(files: MicroVMPaths, text: str) -> None:
    """Until the log has it; the caller has a deadline."""
    log = files.console_log
    while not (log.exists() and text in log.read_text()):  # noqa: ASYNC110 (a file tells nobody)
        await asyncio.sleep(0.01)


def test_a_guest_starts_pauses_resumes_and_is_killed(files: MicroVMPaths, binary: Path) -> None:
    async def body() -> None:
        boot = boot_spec(files)
        provider = FirecrackerProvider()
        async with running(boot, binary) as group:
            assert await state_of(boot) == "Not started"
            assert files.console_log.read_text() == ""
            await provider.launch(boot, in_time())
            await console_says(files, TEXT)
            assert await state_of(boot) == "Running"
            await provider.pause(boot, in_time())
            assert await state_of(boot) == "Paused"
            await provider.resume(boot, in_time())
            assert await state_of(boot) == "Running"
            os.kill(group.vmm_pid, signal.SIGKILL)
            ended = await asyncio.shield(group.exited)
            assert str(ended) == "vmm was killed by SIGKILL"
            with pytest.raises(Unavailable, match="PATCH /vm"):
                await provider.pause(boot, in_time())

    run(body())


def test_a_guest_that_resets_ends_its_vmm(files: MicroVMPaths, binary: Path) -> None:
    async def body() -> None:
        boot = boot_spec(files, "reset")
        async with running(boot, binary) as group:
            await FirecrackerProvider().launch(boot, in_time())
            ended = await asyncio.shield(group.exited)
            assert (ended.role, ended.status) == ("vmm", 0)
            assert files.console_log.read_text() == TEXT

    run(body())


def test_a_vm_snapshot_goes_on_in_another_process(files: MicroVMPaths, binary: Path) -> None:
    kept = VmSnapshot(paths.data_dir() / "state", paths.data_dir() / "memory")

    async def body() -> None:
        boot = boot_spec(files, "tick")
        provider = FirecrackerProvider()
        async with running(boot, binary) as group:
            await provider.launch(boot, in_time())
            await console_says(files, TEXT)
            taken = vm_snapshot.prepare(files, UID)
            with pytest.raises(VmmError, match=r"PUT /snapshot/create \(400\)"):
                await provider.take_snapshot(boot, taken, in_time())  # it is not paused
            await provider.pause(boot, in_time())
            await provider.take_snapshot(boot, taken, in_time())
            await provider.resume(boot, in_time())
            assert await state_of(boot) == "Running"
            await group.kill()
        vm_snapshot.seal(taken, kept)
        assert kept.memory.stat().st_uid == 0
        rmtree(files.run)
        files.console_log.unlink()
        boot = replace(boot, snapshot=kept)
        async with running(boot, binary):
            assert await state_of(boot) == "Paused"
            assert files.vsock.is_socket()
            await provider.resume(boot, in_time())
            if "fake" not in binary.name:
                await console_says(files, "....")
            assert await state_of(boot) == "Running"
            assert TEXT not in files.console_log.read_text()

    run(body())


def test_a_damaged_vm_snapshot_is_refused(files: MicroVMPaths, binary: Path) -> None:
    kept = VmSnapshot(paths.data_dir() / "state", paths.data_dir() / "memory")
    for path in (kept.state, kept.memory):
        path.write_bytes(b"not what it was")
        path.chmod(0o644)

    async def body() -> None:
        async with running(replace(boot_spec(files), snapshot=kept), binary):
            pass

    with pytest.raises(VmmError, match=r"PUT /snapshot/load \(400\): .*[Ss]napshot"):
        run(body())


def test_limits_balloon_and_metrics(files: MicroVMPaths, binary: Path) -> None:
    async def body() -> None:
        limits = DiskLimits(mib_per_s=100, ops_per_s=1000)
        boot = replace(boot_spec(files), disk_limits=limits, balloon_mib=16)
        provider = FirecrackerProvider()
        async with running(boot, binary):
            await provider.launch(boot, in_time())
            await provider.set_disk_limits(boot, DiskLimits(ops_per_s=5), in_time())
            await provider.set_disk_limits(boot, DiskLimits(), in_time())
            if "fake" in binary.name:
                await provider.set_balloon(boot, 32, in_time())
            else:  # this guest has no driver
                with pytest.raises(VmmError, match="balloon device: Device not activated yet"):
                    await provider.set_balloon(boot, 32, in_time())
            for _ in range(2):
                assert "block" in await provider.metrics(boot, in_time())
            if "fake" not in binary.name:
                seen = await vmm_api.request(
                    boot.paths.api_socket, "GET", "/vm/config", deadline=in_time()
                )
                assert isinstance(seen, dict)
                assert seen["balloon"]["amount_mib"] == 16

    run(body())


def test_its_directory_is_locked_once_it_is_configured(files: MicroVMPaths, binary: Path) -> None:
    async def body() -> None:
        async with running(boot_spec(files), binary):
            status = files.vmm_dir.stat()
            assert (status.st_uid, status.st_gid) == (0, UID)
            assert status.st_mode & 0o777 == 0o710
            assert files.vsock.is_socket()

    run(body())


def test_only_private_disks_become_its_own(files: MicroVMPaths, binary: Path) -> None:
    async def body() -> None:
        boot = boot_spec(files)
        async with running(boot, binary):
            shared, private = (disk.path.stat() for disk in boot.disks)
            assert (shared.st_uid, shared.st_mode & 0o777) == (0, 0o644)
            assert (private.st_uid, private.st_mode & 0o777) == (UID, 0o600)
            assert boot.kernel_path.stat().st_uid == 0

    run(body())


def test_the_real_one_is_confined(files: MicroVMPaths) -> None:
    async def body() -> None:
        boot = boot_spec(files)
        async with running(boot, real_firecracker()) as group:
            await FirecrackerProvider().launch(boot, in_time())
            await console_says(files, TEXT)
            proc = Path(f"/proc/{group.vmm_pid}")
            status = dict(
                line.split(":\t", 1) for line in (proc / "status").read_text().splitlines()
            )
            assert status["Uid"].split() == [str(UID)] * 4
            assert status["Gid"].split() == [str(UID)] * 4
            assert status["Groups"].strip() == ""
            for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                assert int(status[name], 16) == 0, name
            assert status["NoNewPrivs"] == "1"
            for name in ("net", "mnt", "pid", "ipc", "uts"):
                assert os.readlink(proc / "ns" / name) != os.readlink(f"/proc/self/ns/{name}")
            for task in (proc / "task").iterdir():  # the API's thread, and each vCPU's
                assert "Seccomp:\t2" in (task / "status").read_text(), task
            root = proc / "root"
            assert not (root / "etc/passwd").exists()
            assert sorted(path.name for path in (root / "dev").iterdir()) == [
                "kvm",
                "null",
                "urandom",
            ]
            held = [os.readlink(path) for path in (proc / "fd").iterdir()]
            assert str(boot.disks[1].path) in held

    run(body())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"kernel_path": Path("/etc/hostname")}, r"PUT /actions \(400\): .*[Kk]ernel"),
        ({"cores": 99}, r"PUT /machine-config \(400\): .*CPU"),
    ],
    ids=["kernel", "cores"],
)
def test_what_the_real_one_refuses_is_told_in_its_words(
    files: MicroVMPaths, change: dict[str, object], named: str
) -> None:
    async def body() -> None:
        boot = replace(boot_spec(files), **change)  # type: ignore[arg-type]
        async with running(boot, real_firecracker()):
            await FirecrackerProvider().launch(boot, in_time())

    with pytest.raises(VmmError, match="the VMM refused " + named):
        run(body())


@pytest.mark.parametrize(
    ("fault", "error", "named"),
    [
        ("refuse", VmmError, r"refused PUT /vsock \(400\): no luck today"),
        ("garbage", Unavailable, "no HTTP answer"),
        ("short", Unavailable, "1 bytes read on a total of 100"),
        ("huge", Unavailable, "Content-Length"),
        ("endless", Unavailable, "limit"),
    ],
)
def test_a_vmm_that_answers_badly(
    files: MicroVMPaths, fault: str, error: type[Exception], named: str
) -> None:
    binary = fake_firecracker.install(paths.data_dir() / "fake", {"PUT /vsock": fault})

    async def body() -> None:
        async with running(boot_spec(files), binary):
            pass

    with pytest.raises(error, match=named):
        run(body())


# -- as part of a microVM --


@pytest.fixture
def microvm(files: MicroVMPaths, monkeypatch: pytest.MonkeyPatch) -> Callable[..., MicroVM]:
    """Makes a microVM of the tiny guest; its provider takes this host's KVM as it is.

    Where KVM runs no stock kernel, so that no provider takes it, this guest still runs.
    """

    def make(binary: Path, ending: str = "halt") -> MicroVM:
        boot = boot_spec(files, ending)
        chosen = boot_files.BootFiles(boot.kernel_path, None, boot.disks[0])
        monkeypatch.setattr(boot_files, "choose", lambda _: chosen)
        monkeypatch.setattr(kvm_probe, "probe", lambda: "")
        spec = MicroVMSpec(ID, "firecracker", HardwareSpec(memory_mib=64), NetworkSpec("none"))
        config = HostConfig(binaries={"firecracker": binary})
        return MicroVM(spec, RootDisks(writable=boot.disks[1]), config)

    return make


async def started(
    microvm: Callable[..., MicroVM],
    binary: Path,
    ending: str = "halt",
    timeout_s: float | None = None,
) -> None:
    await microvm(binary, ending).start(timeout_s)


def assert_nothing_left(files: MicroVMPaths) -> None:
    assert not files.run.exists()
    assert slots.owners() == {}
    assert not processes.find_marked(ID)


def test_a_guest_that_ends_at_once_is_told_with_its_last_words(
    files: MicroVMPaths, binary: Path, microvm: Callable[..., MicroVM]
) -> None:
    with pytest.raises(VmmError, match=f"{ID}: vmm ended with status 0") as caught:
        run(started(microvm, binary, "reset"))
    assert TEXT.strip() in caught.value.detail
    assert_nothing_left(files)


def test_a_guest_without_an_agent_is_given_up(
    files: MicroVMPaths, binary: Path, microvm: Callable[..., MicroVM]
) -> None:
    with pytest.raises(DeadlineExceeded, match=f"its agent did not call within {HOPELESS_S:g} s"):
        run(started(microvm, binary, timeout_s=HOPELESS_S))
    assert_nothing_left(files)


def test_a_vmm_killed_in_boot_is_noticed(
    files: MicroVMPaths, binary: Path, microvm: Callable[..., MicroVM]
) -> None:
    async def body() -> None:
        made = microvm(binary)
        starting = asyncio.create_task(made.start())
        await console_says(files, TEXT)
        os.kill(made.pid, signal.SIGKILL)
        with pytest.raises(VmmError, match="vmm was killed by SIGKILL"):
            await starting

    run(body())
    assert_nothing_left(files)


@pytest.mark.parametrize(
    ("fault", "error", "named"),
    [
        ("die", VmmError, "vmm ended with status 3: out of luck"),
        ("hang", DeadlineExceeded, "did not take its configuration in time|in time"),
    ],
)
@pytest.mark.parametrize("request_line", ["PUT /machine-config", "PUT /actions"])
def test_a_vmm_that_does_not_answer(
    files: MicroVMPaths,
    microvm: Callable[..., MicroVM],
    request_line: str,
    fault: str,
    error: type[Exception],
    named: str,
) -> None:
    binary = fake_firecracker.install(paths.data_dir() / "fake", {request_line: fault})
    with pytest.raises(error, match=named):
        run(started(microvm, binary, timeout_s=HOPELESS_S if fault == "hang" else None))
    assert_nothing_left(files)


def test_a_disk_the_vmm_cannot_read_is_named(
    files: MicroVMPaths, microvm: Callable[..., MicroVM]
) -> None:
    async def body() -> None:
        made = microvm(fake_firecracker.install(paths.data_dir() / "fake"))
        (paths.data_dir() / "shared.img").chmod(0o600)
        await made.start()

    with pytest.raises(InvalidArgument, match=r"disk = .*shared\.img' cannot be read by the VMM"):
        run(body())
    assert_nothing_left(files)


# -- the probe --


def test_the_real_binary_is_taken_and_others_are_named(
    files: MicroVMPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kvm_probe, "probe", lambda: "")
    provider = FirecrackerProvider()
    found = provider.probe(HostConfig(binaries={"firecracker": firecracker()}))
    assert (found.version, found.accelerator) == ("1.12.1", "kvm")
    stranger = paths.data_dir() / "stranger"
    for output, named in (
        ("Firecracker v1.6.0", "Firecracker 1.6.0, hypercore needs 1.7"),
        ("something else", "names no version of Firecracker"),
    ):
        stranger.write_text(f"#!/bin/sh\necho '{output}'\n")
        stranger.chmod(0o755)
        with pytest.raises(Unavailable, match=named):
            provider.probe(HostConfig(binaries={"firecracker": stranger}))
        stranger.unlink()


def test_kvm_that_runs_no_guests_is_named(
    files: MicroVMPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kvm_probe, "probe", lambda: "it is emulated")
    with pytest.raises(Unavailable, match="needs KVM: it is emulated") as caught:
        FirecrackerProvider().probe(HostConfig(binaries={"firecracker": firecracker()}))
    assert "qemu" in caught.value.hint


def test_every_put_names_a_resource_of_the_vm(files: MicroVMPaths) -> None:
    boot = replace(boot_spec(files), guest_mac="02:00:00:00:00:01", tap_name="hc4")
    assert [target for target, _ in render_requests(boot)] == [
        "/metrics",
        "/machine-config",
        "/boot-source",
        "/drives/disk0",
        "/drives/disk1",
        "/network-interfaces/eth0",
        "/vsock",
        "/entropy",
    ]
