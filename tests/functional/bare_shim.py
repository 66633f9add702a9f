"""A shim server driven as containerd drives it, without containerd: bundle, launcher, ttrpc.

Shows what each call answers, where ctr shows only what it makes of it; and who takes the events
may be away.
"""

import asyncio
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypercore import paths, processes
from hypercore.proto import events_forward_pb, task_pb
from hypercore.proto.types_pb import Empty, Mount
from hypercore.reclaim import reclaim
from hypercore.wire.codec import Message
from hypercore.wire.ttrpc import Client, Server
from tests.functional import instance
from tests.functional.instance import BOOT_DEADLINE_S, ROOT

SHIM = ROOT / "bin" / "containerd-shim-hypercore-v1"
SERVICE = "containerd.task.v3.Task"
EVENTS = "containerd.services.events.ttrpc.v1.Events"
NAMESPACE = "bare"
CALL_S = 60.0
END_S = 20.0


@dataclass
class BareShim:
    """Directories of its own, one server, and what it told of events."""

    run_dir: Path
    data_dir: Path
    disk: Path
    events: list[str] = field(default_factory=list)
    """topics, as they came"""
    _came: asyncio.Event = field(default_factory=asyncio.Event)
    _listener: Server | None = None

    @property
    def env(self) -> dict[str, str]:
        return {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "TTRPC_ADDRESS": str(self.run_dir / "events.sock"),
            "HYPERCORE_RUN_DIR": str(self.run_dir),
            "HYPERCORE_DATA_DIR": str(self.data_dir),
            "HYPERCORE_CONFIG": str(self.data_dir / "none.toml"),
            "HYPERCORE_BOOT_TIMEOUT_S": str(BOOT_DEADLINE_S),
        }

    def invoke(self, action: str, task_id: str) -> bytes:
        """The shim binary, in the task's bundle; its output."""
        argv = [SHIM, "-namespace", NAMESPACE, "-address", "/run/none.sock"]
        argv += ["-publish-binary", "/bin/true", "-id", task_id, action]
        done = subprocess.run(
            argv,
            cwd=self.run_dir / "b" / task_id,
            env=self.env,
            capture_output=True,
            timeout=CALL_S,
            check=True,
        )
        return done.stdout

    def bundle(self, task_id: str, script: str) -> Path:
        """A container without the usual protection: it may write to /proc/sysrq-trigger."""
        bundle = self.run_dir / "b" / task_id
        (bundle / "rootfs").mkdir(parents=True)
        config = {
            "ociVersion": "1.0.2",
            "process": {
                "args": ["sh", "-c", script],
                "cwd": "/",
                "env": ["PATH=/bin"],
                "user": {"uid": 0, "gid": 0},
            },
            "root": {"path": "rootfs"},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")]},
            "annotations": {"io.hypercore.provider": "qemu", "io.hypercore.network.mode": "none"},
        }
        (bundle / "config.json").write_text(json.dumps(config))
        os.mkfifo(bundle / "log", 0o700)
        return bundle

    def microvm(self, task_id: str) -> paths.MicroVMPaths:
        """Where its microVM's files are; the environment must be this shim's."""
        return paths.MicroVMPaths(paths.microvm_id(NAMESPACE, task_id))

    def pid(self, task_id: str, role: str) -> int:
        running, _ = processes.read(self.microvm(task_id).processes)
        return next((process.pid for process in running if process.role == role), 0)

    @asynccontextmanager
    async def task(
        self, script: str, task_id: str = "t", stdio: str = ""
    ) -> AsyncIterator["BareTask"]:
        """A started task whose microVM has booted."""
        bundle = self.bundle(task_id, script)
        answer = json.loads(await asyncio.to_thread(self.invoke, "start", task_id))
        client = await Client.connect(answer["address"].removeprefix("unix://"))
        task = BareTask(self, client, task_id)
        try:
            root = Mount(type="ext4", source=str(self.disk), options=["loop", "ro"])
            request = task_pb.CreateTaskRequest(
                id=task_id, bundle=str(bundle), rootfs=[root], stdout=stdio, stderr=stdio
            )
            await task.call("Create", request, timeout_s=2 * BOOT_DEADLINE_S)
            await task.call("Start", task_pb.StartRequest(id=task_id))
            yield task
        finally:
            client.close()
            await client.closed

    async def listen(self) -> None:
        """Take events, as a containerd that has come up does."""

        def forward(request: events_forward_pb.ForwardRequest) -> Empty:
            envelope = request.envelope
            assert envelope is not None
            self.events.append(envelope.topic)
            self._came.set()
            return Empty()

        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.env["TTRPC_ADDRESS"])
        listener.listen()
        self._listener = Server()
        self._listener.add(EVENTS, events_forward_pb.Events.METHODS, {"Forward": forward})
        await self._listener.serve(listener)

    async def deafen(self) -> None:
        """End as containerd does when it restarts. Idempotent."""
        if self._listener is not None:
            await self._listener.close()
            self._listener = None
            os.unlink(self.env["TTRPC_ADDRESS"])

    async def heard(self, count: int) -> list[str]:
        """The events, once there are `count`."""
        async with asyncio.timeout(END_S):
            while len(self.events) < count:
                self._came.clear()
                await self._came.wait()
        return self.events


@dataclass(frozen=True)
class BareTask:
    shim: BareShim
    client: Client
    id: str

    async def call(self, method: str, request: Message, *, timeout_s: float = CALL_S) -> Any:
        reply = task_pb.Task.METHODS[method][1]
        return await self.client.request(SERVICE, method, request, reply, timeout_s=timeout_s)

    def server_pid(self) -> int:
        """The shim server's, of which there is one."""
        (pid,) = server_pids(self.shim.run_dir)
        return pid


def server_pids(run_dir: Path) -> list[int]:
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            argv = file.read_bytes()
            if b"hypercore.shim.server" in argv and os.fsencode(run_dir) in argv:
                found.append(int(file.parent.name))
    return found


def kill(pid: int) -> None:
    """SIGKILL, and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            assert select.select([pidfd], [], [], END_S)[0], f"process {pid} does not end"
        finally:
            os.close(pidfd)


@contextmanager
def place(disk: Path, small_disk_mib: int = 0) -> Iterator[BareShim]:
    """Directories, in the environment too; afterwards nothing of a microVM may be there.

    Args:
        small_disk_mib: put what outlives a microVM on a filesystem of this size.
    """
    shared = instance.shared_data_dir()
    data_dir = Path(tempfile.mkdtemp(prefix="hct-", dir="/var/tmp"))
    run_dir = Path(tempfile.mkdtemp(prefix="hct-", dir="/run"))
    wanted = {"HYPERCORE_DATA_DIR": str(data_dir), "HYPERCORE_RUN_DIR": str(run_dir)}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        for directory in (data_dir, run_dir):
            directory.chmod(0o711)
        for name in instance.SHARED:
            (data_dir / name).symlink_to(shared / name)
        (data_dir / "vm").mkdir()
        if small_disk_mib:
            option = f"-osize={small_disk_mib}m"
            subprocess.run(["mount", "-ttmpfs", option, "tmpfs", data_dir / "vm"], check=True)
        yield BareShim(run_dir, data_dir, disk)
        assert not list((run_dir / "vm").glob("*")), "a run directory is left"
        assert not list((data_dir / "vm").glob("*")), "a data directory is left"
    finally:
        for pid in server_pids(run_dir):
            kill(pid)
        for left in (run_dir / "vm").glob("*"):
            reclaim(left.name)
        if small_disk_mib:
            subprocess.run(["umount", data_dir / "vm"], check=True)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        shutil.rmtree(run_dir)
        shutil.rmtree(data_dir)
