"""The parts of a microVM with real processes, cgroups and sockets; guests are functional/'s."""

import asyncio
import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from hypercore import cgroup, processes, qmp, slots, vmm, vsock
from hypercore.bounded_log import BoundedLog, earlier_segment, last_lines
from hypercore.config import HostConfig
from hypercore.errors import (
    DeadlineExceeded,
    HypercoreError,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    VmmError,
)
from hypercore.paths import MicroVMPaths
from hypercore.providers.base import Bind, VmmCommand
from hypercore.reclaim import reclaim
from hypercore.vmm_group import VmmGroup

SLEEP = str(Path(shutil.which("sleep") or "/usr/bin/sleep").resolve())
BASH = str(Path(shutil.which("bash") or "/usr/bin/bash").resolve())
DEADLINE_S = 20.0

pytestmark = pytest.mark.usefixtures("root")


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Iterator[MicroVMPaths]:
    """State directories of one microVM in an instance of its own."""
    run = Path(tempfile.mkdtemp(prefix="hct-", dir="/run"))
    data = Path(tempfile.mkdtemp(prefix="hct-", dir="/var/tmp"))
    monkeypatch.setenv("HYPERCORE_RUN_DIR", str(run))
    monkeypatch.setenv("HYPERCORE_DATA_DIR", str(data))
    monkeypatch.setenv("HYPERCORE_SLOTS_DIR", str(run / "slots"))
    made = MicroVMPaths("vm-test")
    made.data.mkdir(parents=True)
    made.vmm_dir.mkdir(parents=True)
    made.jail_root.mkdir()
    yield made
    assert not processes.find_marked("vm-test")
    shutil.rmtree(run)
    shutil.rmtree(data)


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Awaitable[None]], None]:
    """Runs a coroutine to its end, on each of the event loops we support."""

    def runner(coro: Awaitable[None]) -> None:
        factory = uvloop.new_event_loop if request.param == "uvloop" else None
        with asyncio.Runner(loop_factory=factory) as loop:
            loop.run(asyncio.wait_for(coro, DEADLINE_S))

    return runner


def _confinement(files: MicroVMPaths) -> vmm.Confinement:
    uid = HostConfig().uid_base
    return vmm.Confinement(uid=uid, gid=uid, jail_root=files.jail_root, device_dir=files.data)


def _command(role: str, script: str, **kwargs: object) -> VmmCommand:
    return VmmCommand(role=role, argv=(BASH, "-c", script), **kwargs)  # type: ignore[arg-type]


async def _spawn(group: VmmGroup, command: VmmCommand, confinement: object = None) -> int:
    await group.spawn(command, fds={}, confinement=confinement, cgroup_fds=())  # type: ignore[arg-type]
    recorded, _ = processes.read(group.files.processes)
    return recorded[-1].pid


def _exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _environment(pid: int) -> dict[str, str]:
    # exec ends the vfork when it has the new memory, a moment before the environment is in it
    deadline = time.monotonic() + DEADLINE_S
    while not (text := Path(f"/proc/{pid}/environ").read_text()):
        assert time.monotonic() < deadline
    words = text.split("\0")
    return dict(word.split("=", 1) for word in words if word)


def _cgroups(pid: int) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text()


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_a_confined_process_has_nothing_of_the_hosts(
    files: MicroVMPaths, run: Callable[[Awaitable[None]], None]
) -> None:
    async def body() -> None:
        group = VmmGroup(files)
        try:
            command = VmmCommand(
                role="vmm",
                argv=(SLEEP, "1000"),
                binds=(Bind(files.vmm_dir, read_only=False),),
                devices=(Path("/dev/null"), Path("/dev/zero")),
            )
            pid = await _spawn(group, command, _confinement(files))
            status = _status(pid)
            uid = str(HostConfig().uid_base)
            assert status["Uid"].split() == [uid] * 4
            assert status["Gid"].split() == [uid] * 4
            assert status["Groups"] == ""
            for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                assert int(status[capabilities], 16) == 0, capabilities
            assert status["NoNewPrivs"] == "1"
            for name in ("net", "mnt", "pid", "ipc", "uts"):
                own = os.readlink(f"/proc/{pid}/ns/{name}")
                assert own != os.readlink(f"/proc/self/ns/{name}"), name
            root = Path(f"/proc/{pid}/root")
            assert not (root / "root").exists()
            assert not (root / "home").exists()
            assert (root / "usr/bin").is_dir()
            assert (root / "dev/zero").stat().st_uid == HostConfig().uid_base
            assert _environment(pid) == {
                "HYPERCORE_MICROVM": "vm-test",
                "HYPERCORE_RUN_DIR": str(files.run.parent.parent),
            }
            assert not list(files.data.glob(".zero")), "the device node was left behind"
        finally:
            await group.close()

    run(body())


def test_the_vmm_takes_its_helper_along(
    files: MicroVMPaths, run: Callable[[Awaitable[None]], None]
) -> None:
    async def body() -> None:
        group = VmmGroup(files)
        try:
            await _spawn(group, VmmCommand(role="helper", argv=(SLEEP, "1000")))
            pid = await _spawn(group, _command("vmm", "echo it is over >&2; exit 3"))
            group.all_started()
            ended = await asyncio.shield(group.exited)
            assert (ended.role, ended.status) == ("vmm", 3)
            assert str(group.error()) == "microVM vm-test: vmm ended with status 3: it is over"
            assert not _exists(pid), "not reaped"
        finally:
            await group.close()

    run(body())


def test_a_lost_helper_ends_the_vmm(
    files: MicroVMPaths, run: Callable[[Awaitable[None]], None]
) -> None:
    async def body() -> None:
        group = VmmGroup(files)
        try:
            helper = await _spawn(group, VmmCommand(role="helper", argv=(SLEEP, "1000")))
            vmm_pid = await _spawn(group, VmmCommand(role="vmm", argv=(SLEEP, "1000")))
            os.kill(helper, signal.SIGKILL)
            ended = await asyncio.shield(group.exited)
            assert str(ended) == "helper was killed by SIGKILL"
            assert not _exists(vmm_pid)
        finally:
            await group.close()

    run(body())


def test_a_vmm_that_ends_is_not_blamed_on_its_helper(
    files: MicroVMPaths, run: Callable[[Awaitable[None]], None]
) -> None:
    """A helper sees its VMM's socket close, and ends, before the VMM is gone."""

    async def body() -> None:
        group = VmmGroup(files)
        try:
            await _spawn(group, _command("helper", "exit 1"))
            await _spawn(group, _command("vmm", "read -t 0.05 < <(:); exit 7"))
            ended = await asyncio.shield(group.exited)
            assert (ended.role, ended.status) == ("vmm", 7)
        finally:
            await group.close()

    run(body())


def test_waits_for_the_sockets_and_seals_their_directory(
    files: MicroVMPaths, run: Callable[[Awaitable[None]], None]
) -> None:
    async def body() -> None:
        group = VmmGroup(files)
        sockets = (files.vhost_vsock, files.vsock)
        script = f"for f in {sockets[0]} {sockets[1]}; do read -t 0.05 < <(:); : > $f; done"
        command = _command(
            "helper",
            f"{script}; exec {SLEEP} 1000",
            sockets=sockets,
            binds=(Bind(files.vmm_dir, read_only=False),),
        )
        try:
            await _spawn(group, command, _confinement(files))
            status = files.vmm_dir.stat()
            assert all(path.exists() for path in sockets)
            assert (status.st_uid, status.st_gid) == (0, HostConfig().uid_base)
            assert status.st_mode & 0o777 == 0o710
        finally:
            await group.close()

    run(body())


def test_a_helper_that_dies_at_its_start_is_told_with_its_words(
    files: MicroVMPaths, run: Callable[[Awaitable[None]], None]
) -> None:
    async def body() -> None:
        group = VmmGroup(files)
        command = _command("helper", "echo no luck >&2; exit 9", sockets=(files.vsock,))
        try:
            with pytest.raises(VmmError, match="helper ended with status 9: no luck"):
                await _spawn(group, command)
        finally:
            await group.close()

    run(body())


def test_a_program_that_cannot_be_started_names_the_step(
    files: MicroVMPaths, run: Callable[[Awaitable[None]], None]
) -> None:
    async def body() -> None:
        group = VmmGroup(files)
        try:
            with pytest.raises(
                NotFound, match=r"start vmm of microVM vm-test \(exec /nonexistent"
            ):
                await _spawn(group, VmmCommand(role="vmm", argv=("/nonexistent",)))
        finally:
            await group.close()

    run(body())


def test_a_process_that_cannot_be_recorded_leaves_nothing(
    files: MicroVMPaths,
    run: Callable[[Awaitable[None]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[int] = []

    def disk_is_full(file: Path, role: str, pid: int) -> None:
        started.append(pid)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))

    monkeypatch.setattr(processes, "record", disk_is_full)

    async def body() -> None:
        group = VmmGroup(files)
        try:
            with pytest.raises(ResourceExhausted, match=f"cannot write {files.processes}"):
                await _spawn(group, VmmCommand(role="vmm", argv=(SLEEP, "1000")))
            assert not _exists(started[0]), "not even a zombie"
        finally:
            await group.close()

    run(body())


def test_a_log_is_bounded_whatever_its_writer_does(
    files: MicroVMPaths, run: Callable[[Awaitable[None]], None]
) -> None:
    async def body() -> None:
        log = BoundedLog(files.console_log, segment_bytes=64 * 1024)
        try:
            os.set_blocking(log.write_fd, False)
            for number in range(300):
                data = f"line {number}\n".encode() * 100
                while data:
                    try:
                        data = data[os.write(log.write_fd, data) :]
                    except BlockingIOError:
                        log.drain()
            log.drain()
        finally:
            log.close()
            log.close()
        segments = (files.console_log, earlier_segment(files.console_log))
        assert all(0 < path.stat().st_size <= 64 * 1024 for path in segments)
        assert last_lines(files.console_log, 1) == "line 299"

    run(body())


def test_the_last_words_in_a_pipe_are_not_lost(
    files: MicroVMPaths, run: Callable[[Awaitable[None]], None]
) -> None:
    async def body() -> None:
        log = BoundedLog(files.console_log)
        os.write(log.write_fd, b"Kernel panic\r\n")
        log.close()
        assert last_lines(files.console_log) == "Kernel panic"

    run(body())


def test_a_cgroup_lies_where_a_client_wants_it(files: MicroVMPaths) -> None:
    files.run.mkdir(parents=True, exist_ok=True)
    trees = cgroup.hierarchies(Path("/proc/self/mountinfo").read_text())
    made_before = [tree.root / "hctest-before" for tree in trees]
    where = f"hctest-before/made-{os.getpid()}/leaf"
    try:
        for directory in made_before:
            directory.mkdir()
        for _ in range(2):  # a second call changes nothing
            for fd in cgroup.create(files.microvm_id, memory_bytes=64 << 20, pids=8, path=where):
                os.close(fd)
    except OSError as exc:
        for directory in made_before:
            if directory.exists():
                directory.rmdir()
        pytest.skip(f"no writable cgroup tree: {exc}")
    try:
        for tree in trees:
            assert (tree.root / where / "cgroup.procs").exists()
        cgroup.delete(files.microvm_id)
        # What was there before stays, and nothing else does.
        assert not any((tree.root / where).parent.exists() for tree in trees)
        assert all(directory.exists() for directory in made_before)
        cgroup.delete(files.microvm_id)
    finally:
        for directory in made_before:
            directory.rmdir()


def test_a_cgroup_bounds_the_process_and_goes(files: MicroVMPaths) -> None:
    try:
        fds = cgroup.create("vm-test", memory_bytes=64 << 20, pids=8)
    except OSError as exc:
        pytest.skip(f"no writable cgroup tree: {exc}")
    trees = cgroup.hierarchies(Path("/proc/self/mountinfo").read_text())
    directories = [d for tree in trees for d in tree.root.glob("hypercore/vm-test*")]
    assert len(directories) == len(trees)
    command = VmmCommand(role="vmm", argv=(SLEEP, "1000"))

    async def body() -> None:
        group = VmmGroup(files)
        try:
            await group.spawn(command, fds={}, confinement=None, cgroup_fds=fds)
            (process, *_), _ = processes.read(files.processes)
            assert "/hypercore/vm-test" in _cgroups(process.pid)
        finally:
            await group.close()

    try:
        asyncio.run(body())
    finally:
        for fd in fds:
            os.close(fd)
    reclaim("vm-test")
    assert not any(directory.exists() for directory in directories)
    cgroup.delete("vm-test")


OWNER = """
import asyncio, sys
from hypercore import slots
from hypercore.paths import MicroVMPaths
from hypercore.providers.base import VmmCommand
from hypercore.vmm_group import VmmGroup

async def main():
    group = VmmGroup(MicroVMPaths("vm-test"))
    slots.acquire("vm-test")
    for role in ("helper", "vmm"):
        command = VmmCommand(role=role, argv=(sys.argv[1], "1000"))
        await group.spawn(command, fds={}, confinement=None, cgroup_fds=())
    print("started", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("record", ["whole", "unfinished", "lost"])
def test_reclaims_what_a_killed_owner_left(files: MicroVMPaths, record: str) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, SLEEP], stdout=subprocess.PIPE)
    with owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"started\n"
        owner.kill()
    running = processes.find_marked("vm-test")
    assert len(running) == 2
    if record == "unfinished":  # it died between the start and the note of it
        lines = files.processes.read_text().splitlines()
        files.processes.write_text("\n".join(lines[:-1]) + "\n")
    elif record == "lost":
        files.processes.unlink()

    reclaim("vm-test")

    for process in running:
        assert processes.start_time(process.pid) != process.start_time
    assert not files.run.exists()
    assert files.data.exists()
    assert "vm-test" not in slots.owners().values()
    reclaim("vm-test")


def test_never_kills_a_process_that_only_has_the_pid(files: MicroVMPaths) -> None:
    bystander = subprocess.Popen([SLEEP, "1000"])
    try:
        record = f"vmm 0 0\nvmm {bystander.pid} {processes.start_time(bystander.pid) + 1}\n"
        files.processes.write_text(record)
        reclaim("vm-test")
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_record_cut_short_is_not_trusted_to_be_whole(files: MicroVMPaths) -> None:
    files.processes.write_text("vmm 0 0\nvmm 12 34\nhelper 5")
    recorded, more = processes.read(files.processes)
    assert [(p.role, p.pid, p.start_time) for p in recorded] == [("vmm", 12, 34)]
    assert more


def _serve_hybrid(path: Path, reply: bytes) -> Callable[[], Awaitable[asyncio.Server]]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(reply)
        if reply.startswith(b"OK "):
            await reader.read()
        writer.close()

    return lambda: asyncio.start_unix_server(answer, path)


def test_dials_through_a_hybrid_socket(
    files: MicroVMPaths, run: Callable[[Awaitable[None]], None]
) -> None:
    async def body() -> None:
        async with await _serve_hybrid(files.vsock, b"OK 1024\n+first bytes")():
            connection = await vsock.dial_hybrid(files.vsock, 10790, os.getuid())
            with connection:
                await vsock.open_stream(connection, b"t" * 16, 0)
                rest = await asyncio.get_running_loop().sock_recv(connection, 64)
            assert rest == b"first bytes"

    run(body())


@pytest.mark.parametrize(
    ("reply", "named"), [(b"", "refused the connection"), (b"x" * 100, "refused the connection")]
)
def test_a_guest_port_that_refuses_is_unavailable(
    files: MicroVMPaths, run: Callable[[Awaitable[None]], None], reply: bytes, named: str
) -> None:
    async def body() -> None:
        async with await _serve_hybrid(files.vsock, reply)():
            with pytest.raises(Unavailable, match=named):
                await vsock.dial_hybrid(files.vsock, 10790, os.getuid())

    run(body())


def test_talks_only_to_the_vms_own_user(
    files: MicroVMPaths, run: Callable[[Awaitable[None]], None]
) -> None:
    async def body() -> None:
        async with await _serve_hybrid(files.vsock, b"OK 1\n")():
            with pytest.raises(Unavailable, match="is served by uid 0, not 12345"):
                await vsock.dial_hybrid(files.vsock, 10790, 12345)

    run(body())


def test_qmp_ends_a_real_qemu(files: MicroVMPaths, run: Callable[[Awaitable[None]], None]) -> None:
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        pytest.skip("qemu-system-x86_64 is not installed")

    async def body() -> None:
        group = VmmGroup(files)
        listener = vsock.listen_hybrid(files.api_socket, -1)
        command = VmmCommand(
            role="vmm",
            argv=(
                qemu,
                *("-M", "none", "-display", "none", "-nodefaults"),
                *("-chardev", "socket,id=api,fd=3,server=on,wait=off"),
                *("-mon", "chardev=api,mode=control"),
            ),
            fds=("api",),
        )
        loop = asyncio.get_running_loop()
        try:
            await group.spawn(
                command,
                fds={"api": listener.fileno()},
                confinement=_confinement(files),
                cgroup_fds=(),
            )
            listener.close()
            with pytest.raises(VmmError, match="nonsense"):
                await qmp.execute(files.api_socket, "nonsense", loop.time() + DEADLINE_S)
            await qmp.execute(files.api_socket, "quit", loop.time() + DEADLINE_S)
            ended = await asyncio.shield(group.exited)
            assert str(ended) == "vmm ended with status 0"
            with pytest.raises(Unavailable, match="does not answer 'quit'"):
                await qmp.execute(files.api_socket, "quit", loop.time() + 1)
        finally:
            listener.close()
            await group.close()

    run(body())


def test_a_qmp_server_that_hangs_meets_the_deadline(
    files: MicroVMPaths, run: Callable[[Awaitable[None]], None]
) -> None:
    async def body() -> None:
        listener = vsock.listen_hybrid(files.api_socket, -1)
        deadline = asyncio.get_running_loop().time() + 0.05
        with listener, pytest.raises(DeadlineExceeded, match="in time"):
            await qmp.execute(files.api_socket, "quit", deadline)

    run(body())


def test_a_file_the_vmm_cannot_read_is_named(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinux"
    with pytest.raises(NotFound, match="vmlinux"):
        vmm.check_readable(kernel, "kernel")
    kernel.touch(mode=0o600)
    with pytest.raises(InvalidArgument, match="cannot be read by the VMM") as caught:
        vmm.check_readable(kernel, "kernel")
    assert str(kernel) in caught.value.hint
    with pytest.raises(InvalidArgument, match="is not a file"):
        vmm.check_readable(tmp_path, "kernel")


def test_a_part_that_cannot_be_reclaimed_is_named(
    files: MicroVMPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(microvm_id: str) -> None:
        raise OSError(errno.EBUSY, "busy")

    monkeypatch.setattr(cgroup, "delete", refuse)
    slots.acquire("vm-test")
    with pytest.raises(HypercoreError, match=r"not reclaimed entirely: cgroup: .*busy"):
        reclaim("vm-test")
    assert files.run.exists(), "the state that a second try needs"
    assert "vm-test" not in slots.owners().values()
    monkeypatch.undo()


def test_killing_waits_for_the_end(files: MicroVMPaths) -> None:
    child = subprocess.Popen([SLEEP, "1000"])
    victim = processes.Process("vmm", child.pid, processes.start_time(child.pid))
    assert processes.kill([victim], 5.0) == []
    assert child.wait(0) == -signal.SIGKILL
    begun = time.monotonic()
    assert processes.kill([victim], 5.0) == []
    assert time.monotonic() - begun < 5.0
