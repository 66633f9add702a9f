"""What each of containerd's calls answers when something fails: the table of docs/shim.md.

Every call here has a deadline of its own that is far longer than what the shim promises: one that
waited for a dead guest would end the test with that, not with the shim's answer.
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from hypercore import processes
from hypercore.errors import (
    DeadlineExceeded,
    HypercoreError,
    NotFound,
    StateError,
    Unavailable,
)
from hypercore.proto import task_pb
from hypercore.proto.types_pb import Any as AnyMessage
from hypercore.wire.ttrpc import Client
from tests.functional import bare_shim
from tests.functional.bare_shim import BareTask
from tests.functional.instance import BOOT_DEADLINE_S

RUNNING, STOPPED, KILLED = 2, 3, 137
FOREVER = "sleep 100000"

pytestmark = [
    pytest.mark.usefixtures("root"),
    pytest.mark.timeout(3 * BOOT_DEADLINE_S),
]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root filesystem with busybox."""
    directory = tmp_path_factory.mktemp("disk")
    busybox = shutil.which("busybox")
    assert busybox is not None, "busybox is not installed"
    tree = directory / "root"
    (tree / "bin").mkdir(parents=True)
    shutil.copy(busybox, tree / "bin" / "busybox")
    for name in ("sh", "sleep", "head", "dd", "touch", "true"):
        (tree / "bin" / name).symlink_to("busybox")
    for name in ("proc", "sys", "dev", "etc", "tmp"):
        (tree / name).mkdir()
    disk = directory / "disk.ext4"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", tree, disk, "32M"], check=True)
    for parent in (disk, *disk.parents[:3]):  # the VMM is another user
        parent.chmod(parent.stat().st_mode | 0o055)
    return disk


def process_of(*args: str) -> AnyMessage:
    document = {"args": args, "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}
    return AnyMessage(type_url="process", value=json.dumps(document).encode())


async def start_exec(task: BareTask, exec_id: str, *args: str) -> None:
    request = task_pb.ExecProcessRequest(id=task.id, exec_id=exec_id, spec=process_of(*args))
    await task.call("Exec", request)
    await task.call("Start", task_pb.StartRequest(id=task.id, exec_id=exec_id))


async def outcome(call: Coroutine[Any, Any, Any]) -> Any:
    """The reply, or the class of the error."""
    try:
        return await call
    except HypercoreError as exc:
        return type(exc)


async def check_dead(task: BareTask, exec_ids: tuple[str, ...] = ()) -> None:
    """Every call to a task whose microVM has died, and its Delete."""
    for exec_id in ("", *exec_ids):
        ended = await task.call("Wait", task_pb.WaitRequest(id=task.id, exec_id=exec_id))
        assert ended.exit_status == KILLED
    state = await task.call("State", task_pb.StateRequest(id=task.id))
    assert (state.status, state.exit_status) == (STOPPED, KILLED)
    answers = {
        "Kill": task_pb.KillRequest(id=task.id, signal=9),
        "Exec": task_pb.ExecProcessRequest(id=task.id, exec_id="late", spec=process_of("true")),
        "Start": task_pb.StartRequest(id=task.id),
        "Pause": task_pb.PauseRequest(id=task.id),
        "Resume": task_pb.ResumeRequest(id=task.id),
        "Stats": task_pb.StatsRequest(id=task.id),
        "Update": task_pb.UpdateTaskRequest(id=task.id, resources=AnyMessage(value=b"{}")),
    }
    got = {name: await outcome(task.call(name, request)) for name, request in answers.items()}
    assert got == {
        "Kill": NotFound,
        "Exec": StateError,
        "Start": StateError,
        "Pause": StateError,
        "Resume": StateError,
        "Stats": NotFound,
        "Update": Unavailable,
    }
    assert (await task.call("Pids", task_pb.PidsRequest(id=task.id))).processes == []
    connected = await task.call("Connect", task_pb.ConnectRequest(id=task.id))
    assert connected.shim_pid == task.server_pid()
    await task.call("CloseIO", task_pb.CloseIORequest(id=task.id, stdin=True))
    deleted = await task.call("Delete", task_pb.DeleteRequest(id=task.id))
    assert deleted.exit_status == KILLED
    await task.call("Shutdown", task_pb.ShutdownRequest(id=task.id))
    noted = await asyncio.to_thread(task.shim.invoke, "delete", task.id)
    assert task_pb.DeleteResponse.decode(noted).exit_status == KILLED


@pytest.mark.parametrize("role", ["vmm", "vhost-device-vsock"])
def test_death_of_the_vmm_while_containerd_is_away(disk: Path, role: str) -> None:
    """Its events wait, and come in order: containerd restarts just now."""

    async def body(shim: bare_shim.BareShim) -> None:
        await shim.listen()
        try:
            async with shim.task(FOREVER) as task:
                assert await shim.heard(2) == ["/tasks/create", "/tasks/start"]
                await shim.deafen()
                await start_exec(task, "e", "sleep", "1000")
                if not (pid := shim.pid("t", role)):
                    pytest.skip(f"this host's VMs have no {role}")
                os.kill(pid, signal.SIGKILL)
                await check_dead(task, ("e",))
                await shim.listen()
                assert (await shim.heard(7))[2:] == [
                    "/tasks/exec-added",
                    "/tasks/exec-started",
                    "/tasks/exit",
                    "/tasks/exit",
                    "/tasks/delete",
                ]
        finally:
            await shim.deafen()

    with bare_shim.place(disk) as shim:
        asyncio.run(body(shim))


def test_panic_of_the_guest(disk: Path) -> None:
    """Also what the death of the agent is: it is the guest's first process."""

    async def body(shim: bare_shim.BareShim) -> None:
        async with shim.task("echo c >/proc/sysrq-trigger; sleep 1000") as task:
            await check_dead(task)

    with bare_shim.place(disk) as shim:
        asyncio.run(body(shim))


def test_hang_of_the_guest(disk: Path) -> None:
    async def body(shim: bare_shim.BareShim) -> None:
        async with shim.task(FOREVER) as task:
            vmm = shim.pid("t", "vmm")
            ended = asyncio.ensure_future(task.call("Wait", task_pb.WaitRequest(id="t")))
            os.kill(vmm, signal.SIGSTOP)
            state = await task.call("State", task_pb.StateRequest(id="t"))
            assert state.status == RUNNING
            await task.call("Connect", task_pb.ConnectRequest(id="t"))
            added = task_pb.ExecProcessRequest(id="t", exec_id="e", spec=process_of("true"))
            await task.call("Exec", added)
            start = task_pb.StartRequest(id="t", exec_id="e")
            starting = asyncio.ensure_future(outcome(task.call("Start", start)))
            requests = {
                "Stats": task_pb.StatsRequest(id="t"),
                "Pause": task_pb.PauseRequest(id="t"),
                "Update": task_pb.UpdateTaskRequest(id="t", resources=AnyMessage(value=b"{}")),
                "Kill": task_pb.KillRequest(id="t", signal=15),
                "Delete": task_pb.DeleteRequest(id="t"),
                "Pids": task_pb.PidsRequest(id="t"),
            }
            calls = [outcome(task.call(name, request)) for name, request in requests.items()]
            got = dict(zip(requests, await asyncio.gather(*calls), strict=True))
            assert [entry.pid for entry in got.pop("Pids").processes] == [vmm]
            assert got.pop("Delete") is StateError
            assert set(got.values()) == {DeadlineExceeded}, got
            assert not ended.done()
            await task.call("Kill", task_pb.KillRequest(id="t", signal=9))
            assert (await ended).exit_status == KILLED
            assert await starting is Unavailable
            await check_dead(task)

    with bare_shim.place(disk) as shim:
        asyncio.run(body(shim))


def test_death_of_the_shim_server(disk: Path) -> None:
    async def body(shim: bare_shim.BareShim) -> None:
        async with shim.task(FOREVER) as task:
            running, _ = processes.read(shim.microvm("t").processes)
            waiting = asyncio.ensure_future(
                outcome(task.call("Wait", task_pb.WaitRequest(id="t")))
            )
            await asyncio.sleep(0)
            address = next((shim.run_dir / "shim").glob("*.sock"))
            bare_shim.kill(task.server_pid())
            assert await waiting is Unavailable
            with pytest.raises(Unavailable):
                await Client.connect(str(address))
            begun = time.monotonic()
            answer = await asyncio.to_thread(shim.invoke, "delete", "t")
            print(f"delete without server or guest: {time.monotonic() - begun:.3f} s")
            assert task_pb.DeleteResponse.decode(answer).exit_status == KILLED
            for process in running:
                assert processes.start_time(process.pid) != process.start_time

    with bare_shim.place(disk) as shim:
        asyncio.run(body(shim))


OUTPUT_BYTES = 4 << 20
FULL = f"""
until [ -e /tmp/go ]; do sleep 0.1; done
head -c {OUTPUT_BYTES} /dev/zero
dd if=/dev/zero of=/big bs=1M count=64 conv=fsync || exit 9
"""


def test_full_disk(disk: Path) -> None:
    """Output waits for room; what the guest cannot write to its root fails there."""

    async def body(shim: bare_shim.BareShim) -> None:
        place = shim.data_dir / "vm"
        filler = place / "filler"
        async with shim.task(FULL, stdio="hypercore://") as task:
            ended = asyncio.ensure_future(task.call("Wait", task_pb.WaitRequest(id="t")))
            with filler.open("wb") as file:
                room = os.fstatvfs(file.fileno())
                os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - (1 << 20))
            await start_exec(task, "go", "touch", "/tmp/go")
            log = shim.microvm("t").stdout_log
            await full(place)
            assert not ended.done()
            state = await task.call("State", task_pb.StateRequest(id="t"))
            assert state.status == RUNNING
            filler.unlink()
            assert (await ended).exit_status == 9
            assert log.stat().st_size == OUTPUT_BYTES
            deleted = await task.call("Delete", task_pb.DeleteRequest(id="t"))
            assert deleted.exit_status == 9

    with bare_shim.place(disk, small_disk_mib=48) as shim:
        asyncio.run(body(shim))


async def full(place: Path) -> None:
    """Wait until nothing more can be written there."""
    async with asyncio.timeout(bare_shim.END_S):
        while os.statvfs(place).f_bavail:  # noqa: ASYNC110 (a filesystem tells nobody)
            await asyncio.sleep(0.05)
