"""Provider cloud-hypervisor's control plane: with a VMM that fails to order, and with the real one
where HYPERCORE_CLOUD_HYPERVISOR names it.

A guest of 60 bytes runs on any KVM, also on a software one; so nothing here needs hardware. What
needs a real guest is in tests/kvm.
"""

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from shutil import rmtree

import pytest

from hypercore import boot_files, landlock, paths, processes, slots, vmm, vmm_api, vsock
from hypercore.config import HostConfig
from hypercore.errors import DeadlineExceeded, InvalidArgument, Unavailable, VmmError
from hypercore.microvm import MicroVM
from hypercore.paths import MicroVMPaths
from hypercore.providers import kvm_probe
from hypercore.providers.base import BootSpec, Probe
from hypercore.providers.cloud_hypervisor import LANDLOCK_ABI, CloudHypervisorProvider
from hypercore.spec import Disk, HardwareSpec, MicroVMSpec, NetworkSpec, RootDisks
from hypercore.vmm_group import VmmExit, VmmGroup
from tests import fake_cloud_hypervisor, tinyguest

DEADLINE_S = 20.0
HOPELESS_S = 2.0
"""For what never comes; all before it has to fit in, also on a busy machine."""
LAST_WORD_S = 0.5
ID = "ch-test"
UID = HostConfig().uid_base
TEXT = "hello from the guest\n"

REAL = ("real",) if os.environ.get("HYPERCORE_CLOUD_HYPERVISOR") else ()
"""No registry has its binary: a run that is given none promises nothing of the real one."""

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


@pytest.fixture(params=[*REAL, "fake"])
def binary(request: pytest.FixtureRequest, files: MicroVMPaths) -> Path:
    """Cloud Hypervisor, and the program that passes for it."""
    return install_fake() if request.param == "fake" else real_cloud_hypervisor()


def install_fake(**faults: str) -> Path:
    named = {verb.replace("_", ".", 1).replace("_", "-"): fault for verb, fault in faults.items()}
    return fake_cloud_hypervisor.install(paths.data_dir() / "fake", named)


def real_cloud_hypervisor() -> Path:
    if not kvm_probe.DEVICE.exists():
        pytest.skip(f"no {kvm_probe.DEVICE}")
    return Path(os.environ["HYPERCORE_CLOUD_HYPERVISOR"])


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
    """The VMM of `boot`, started and configured as microvm.py does it, and its guest with it."""
    files = boot.paths
    for directory in (files.data, files.vmm_dir, files.jail_root):
        directory.mkdir(parents=True)
    group = VmmGroup(files)
    provider = CloudHypervisorProvider()
    try:
        with ExitStack() as lent:
            api = lent.enter_context(vsock.listen_hybrid(files.api_socket, -1))
            fds = {
                "api": api.fileno(),
                "console": group.open_console(),
                "events": group.open_events(
                    provider.guest_end, partial(provider.confirm_end, boot)
                ),
            }
            (command,) = provider.render(boot, Probe(binary, "53.0", "kvm"))
            await group.spawn(
                command,
                fds=fds,
                confinement=vmm.Confinement(UID, UID, files.jail_root, files.data),
                cgroup_fds=(),
            )
            group.all_started()
        try:
            await provider.configure(boot, in_time())
            group.configured()
        except (Unavailable, VmmError):  # a guest may be done before its VMM has answered
            await asyncio.wait({group.exited}, timeout=LAST_WORD_S)
            if not group.exited.done():
                raise
        yield group
    finally:
        await group.close()


def in_time() -> float:
    return asyncio.get_running_loop().time() + DEADLINE_S


def run(coro: Awaitable[None]) -> None:
    asyncio.run(asyncio.wait_for(coro, DEADLINE_S))


async def ask(boot: BootSpec, verb: str) -> dict[str, object]:
    answer = await vmm_api.request(
        boot.paths.api_socket, "GET", f"/api/v1/{verb}", deadline=in_time()
    )
    assert isinstance(answer, dict)
    return answer


async def console_says(files: MicroVMPaths, text: str) -> None:
    """Until the log has it; the caller has a deadline."""
    log = files.console_log
    while not (log.exists() and text in log.read_text()):  # noqa: ASYNC110 (a file tells nobody)
        await asyncio.sleep(0.01)


def test_a_guest_starts_pauses_resumes_and_is_killed(files: MicroVMPaths, binary: Path) -> None:
    async def body() -> None:
        boot = boot_spec(files)
        provider = CloudHypervisorProvider()
        async with running(boot, binary) as group:
            await console_says(files, TEXT)
            assert (await ask(boot, "vm.info"))["state"] == "Running"
            assert "disk0" in await provider.metrics(boot, in_time())
            await provider.pause(boot, in_time())
            assert (await ask(boot, "vm.info"))["state"] == "Paused"
            with pytest.raises(VmmError, match=r"refused PUT /api/v1/vm\.pause \(500\)"):
                await provider.pause(boot, in_time())
            await provider.resume(boot, in_time())
            assert (await ask(boot, "vm.info"))["state"] == "Running"
            os.kill(group.vmm_pid, signal.SIGKILL)
            ended = await asyncio.shield(group.exited)
            assert str(ended) == "vmm was killed by SIGKILL"
            assert not ended.clean
            with pytest.raises(Unavailable, match=r"PUT /api/v1/vm\.pause"):
                await provider.pause(boot, in_time())

    run(body())


@pytest.mark.parametrize(
    ("ending", "told"),
    [
        ("acpi", "vmm ended with status 0: its guest turned off"),
        ("reset", "vmm ended with status 0: its guest reset"),
        ("crash", "vmm ended with status 0: its guest crashed"),
    ],
)
def test_the_end_of_a_guest_is_told_from_a_crash(
    files: MicroVMPaths, binary: Path, ending: str, told: str
) -> None:
    """It ends with status 0 for all but the reset, after which the real one starts it again."""
    ended: list[VmmExit] = []

    async def body() -> None:
        async with running(boot_spec(files, ending), binary) as group:
            ended.append(await asyncio.shield(group.exited))

    run(body())
    assert str(ended[0]) == told
    assert ended[0].clean == (ending != "crash")
    assert files.console_log.read_text() == TEXT
    if ending == "crash":
        assert "VCPU generated error" in files.vmm_log.read_text()


def test_the_balloon(files: MicroVMPaths, binary: Path) -> None:
    async def body() -> None:
        boot = replace(boot_spec(files), balloon_mib=16)
        async with running(boot, binary):
            for memory_mib in (16, 32):
                await CloudHypervisorProvider().set_balloon(boot, memory_mib, in_time())
                config = (await ask(boot, "vm.info"))["config"]
                assert isinstance(config, dict)
                assert config["balloon"]["size"] == memory_mib << 20

    run(body())


def test_it_ends_when_asked(files: MicroVMPaths, binary: Path) -> None:
    async def body() -> None:
        boot = boot_spec(files)
        async with running(boot, binary) as group:
            await CloudHypervisorProvider().ask_to_stop(boot, in_time())
            assert (await asyncio.shield(group.exited)).clean

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


if REAL:

    @pytest.mark.parametrize("binary", REAL, indirect=True)
    def test_the_real_one_is_confined(files: MicroVMPaths, binary: Path) -> None:
        async def body() -> None:
            boot = boot_spec(files)
            async with running(boot, binary) as group:
                await console_says(files, TEXT)
                proc = Path(f"/proc/{group.vmm_pid}")
                status = dict(
                    line.split(":\t", 1) for line in (proc / "status").read_text().splitlines()
                )
                assert status["Uid"].split() == [str(UID)] * 4
                assert status["Gid"].split() == [str(UID)] * 4
                for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                    assert int(status[name], 16) == 0, name
                assert status["NoNewPrivs"] == "1"
                for name in ("net", "mnt", "pid", "ipc", "uts"):
                    assert os.readlink(proc / "ns" / name) != os.readlink(f"/proc/self/ns/{name}")
                filtered = {
                    (task / "comm").read_text().strip(): "Seccomp:\t2"
                    in (task / "status").read_text()
                    for task in (proc / "task").iterdir()
                }
                # The first thread only waits for the others; all that serve anybody are filtered.
                assert [name for name, on in filtered.items() if not on] in (
                    [],
                    ["cloud-hyperviso"],
                )
                assert filtered["vcpu0"], filtered
                assert filtered["vmm"], filtered
                dev = sorted(path.name for path in (proc / "root/dev").iterdir())
                assert dev == ["kvm", "null", "urandom"]
                assert not (proc / "root/etc/passwd").exists()
                info = await ask(boot, "vm.info")
                assert isinstance(info["config"], dict)
                assert info["config"]["landlock_enable"] == (landlock.abi() >= LANDLOCK_ABI)

        run(body())


def test_a_kernel_it_cannot_load_is_told_in_its_words(files: MicroVMPaths, binary: Path) -> None:
    async def body() -> None:
        boot = replace(boot_spec(files), kernel_path=Path("/etc/hostname"))
        async with running(boot, binary):
            pass

    with pytest.raises(
        VmmError, match=r"the VMM refused PUT /api/v1/vm\.boot \(500\): .*could not boot.*ernel"
    ):
        run(body())


@pytest.mark.parametrize(
    ("fault", "error", "named"),
    [
        ("refuse", VmmError, r"refused PUT /api/v1/vm\.create \(500\): .*no luck today"),
        ("garbage", Unavailable, "no HTTP answer"),
        ("short", Unavailable, "1 bytes read on a total of 100"),
        ("huge", Unavailable, "Content-Length"),
    ],
)
def test_a_vmm_that_answers_badly(
    files: MicroVMPaths, fault: str, error: type[Exception], named: str
) -> None:
    async def body() -> None:
        async with running(boot_spec(files), install_fake(vm_create=fault)):
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
        spec = MicroVMSpec(
            ID, "cloud-hypervisor", HardwareSpec(memory_mib=64), NetworkSpec("none")
        )
        config = HostConfig(binaries={"cloud-hypervisor": binary})
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


@pytest.mark.parametrize(
    ("ending", "told"), [("acpi", "turned off"), ("reset", "reset"), ("crash", "crashed")]
)
def test_a_guest_that_ends_at_once_is_told_with_its_last_words(
    files: MicroVMPaths, binary: Path, microvm: Callable[..., MicroVM], ending: str, told: str
) -> None:
    with pytest.raises(
        VmmError, match=f"{ID}: vmm ended with status 0: its guest {told}"
    ) as caught:
        run(started(microvm, binary, ending))
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
@pytest.mark.parametrize("verb", ["vm_create", "vm_boot"])
def test_a_vmm_that_does_not_answer(
    files: MicroVMPaths,
    microvm: Callable[..., MicroVM],
    verb: str,
    fault: str,
    error: type[Exception],
    named: str,
) -> None:
    binary = install_fake(**{verb: fault})
    with pytest.raises(error, match=named):
        run(started(microvm, binary, timeout_s=HOPELESS_S if fault == "hang" else None))
    assert_nothing_left(files)


def test_a_disk_the_vmm_cannot_read_is_named(
    files: MicroVMPaths, microvm: Callable[..., MicroVM]
) -> None:
    async def body() -> None:
        made = microvm(install_fake())
        (paths.data_dir() / "shared.img").chmod(0o600)
        await made.start()

    with pytest.raises(InvalidArgument, match=r"disk = .*shared\.img' cannot be read by the VMM"):
        run(body())
    assert_nothing_left(files)


# -- the probe --


def test_the_binary_is_taken_and_others_are_named(
    files: MicroVMPaths, binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kvm_probe, "probe", lambda: "")
    provider = CloudHypervisorProvider()
    found = provider.probe(HostConfig(binaries={"cloud-hypervisor": binary}))
    assert (found.version.split(".")[0], found.accelerator) == ("53", "kvm")
    stranger = paths.data_dir() / "stranger"
    for output, named in (
        ("cloud-hypervisor v51.1", "Cloud Hypervisor 51.1, hypercore needs 52.0"),
        ("something else", "names no version of Cloud Hypervisor"),
    ):
        stranger.write_text(f"#!/bin/sh\necho '{output}'\n")
        stranger.chmod(0o755)
        with pytest.raises(Unavailable, match=named):
            provider.probe(HostConfig(binaries={"cloud-hypervisor": stranger}))
        stranger.unlink()


def test_what_is_missing_is_named(files: MicroVMPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = CloudHypervisorProvider()
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(kvm_probe, "probe", lambda: "there is no /dev/kvm")
    binary = install_fake()
    with pytest.raises(Unavailable, match="needs KVM: there is no /dev/kvm") as caught:
        provider.probe(HostConfig(binaries={"cloud-hypervisor": binary}))
    assert "--provider qemu" in caught.value.hint
    binary.chmod(0o644)
    with pytest.raises(InvalidArgument, match="is not an executable file"):
        provider.probe(HostConfig(binaries={"cloud-hypervisor": binary}))
    with pytest.raises(Unavailable, match="cloud-hypervisor is not installed") as caught:
        provider.probe(HostConfig())
    assert "[binaries] cloud-hypervisor" in caught.value.hint
