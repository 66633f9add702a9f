"""What a running microVM costs the shim server in memory of its own, and that none of it stays.

Part of `make soak`. Tasks, streams, logs and connections are real: per task one to the agent and
one of containerd's with a Wait under way, both held by another process, and two output streams
with their log files. VMs there are none: what a VMM takes is not the server's. Fails when a task
costs more than the promise, or when memory grows over the cycles of create and delete.
"""

import argparse
import asyncio
import contextlib
import gc
import os
import resource
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import uvloop

from hypercore.agent_client import AgentClient
from hypercore.config import HostConfig
from hypercore.microvm import MicroVM
from hypercore.proto import agent_pb, task_pb, types_pb
from hypercore.proto.task_pb import CreateTaskRequest
from hypercore.shim.events import Publisher
from hypercore.shim.host import Host
from hypercore.shim.process import State
from hypercore.shim.service import SERVICES, TaskService
from hypercore.shim.streams import Output, ProcessIO, StreamHub
from hypercore.shim.task import Task
from hypercore.shim.taskio import segmented_log
from hypercore.spec import HardwareSpec, MicroVMSpec, NetworkSpec, RootDisks
from hypercore.wire.ttrpc import Client, Server

PROMISED_KIB = 40
GROWTH_KIB = 2048
"""Of the allocator, not of a leak: below a tenth of what 1,000 tasks that stayed would take."""
AT_ONCE = 50


async def _listening(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(4096)
    return listener


# the other process: all agents, and containerd


async def _peer(agents: str, shim: str) -> None:
    """Serve agents whose init ends by Kill; for each line of stdin, wait for that task."""
    ends: dict[str, asyncio.Event] = {}

    async def wait(request: agent_pb.ProcessRequest) -> agent_pb.WaitResponse:
        await ends.setdefault(request.container_id, asyncio.Event()).wait()
        del ends[request.container_id]
        return agent_pb.WaitResponse(exit_status=137)

    def kill(request: agent_pb.KillRequest) -> types_pb.Empty:
        ends[request.container_id].set()
        return types_pb.Empty()

    server = Server()
    handlers = {"Wait": wait, "Kill": kill, "Delete": lambda request: types_pb.Empty()}
    server.add(agent_pb.Agent.NAME, agent_pb.Agent.METHODS, handlers)
    await server.serve(await _listening(agents))
    print("ready", flush=True)
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    waiting = set()
    while line := await lines.readline():
        task = loop.create_task(_containerd(shim, line.decode().strip()))
        waiting.add(task)
        task.add_done_callback(waiting.discard)


async def _containerd(shim: str, task_id: str) -> None:
    """One connection, one Wait; gone with the task."""
    client = await Client.connect(shim)
    print(task_id, flush=True)
    request = task_pb.WaitRequest(id=task_id).encode()
    await client.call(SERVICES[1], "Wait", request, timeout_s=None)
    client.close()


# the shim server


class _Server:
    def __init__(self, directory: Path, peer: asyncio.subprocess.Process) -> None:
        self._agents = str(directory / "agents")
        self._peer = peer
        self._hub = StreamHub(4)
        self._hub.start()
        self.host = Host(
            "soak", "", HostConfig(), self._hub, Publisher("", "soak"), directory / "io"
        )
        self.service = TaskService(self.host)

    async def create(self, task_id: str) -> None:
        task = Task(self.host, CreateTaskRequest(id=task_id, bundle="/run/soak/bundle"))
        task.paths.data.mkdir(parents=True)
        spec = MicroVMSpec(task.paths.microvm_id, "qemu", HardwareSpec(), NetworkSpec(mode="none"))
        microvm = MicroVM(spec, RootDisks(), self.host.config)
        client = await Client.connect(self._agents)
        microvm._agent = AgentClient(client)
        microvm._owned.callback(microvm._agent.close)
        task._microvm = microvm
        io = ProcessIO()
        for name, path in (("stdout", task.paths.stdout_log), ("stderr", task.paths.stderr_log)):
            ours, guests = socket.socketpair()
            ours.setblocking(False)
            log = segmented_log(path, self.host.config)
            setattr(io, name, Output(self._hub, ours.detach(), target_fd=-1, log=log))
            # The guest's end stays open for the life of the task; it is a number, not an object.
            microvm._owned.callback(os.close, guests.detach())
        task.init.io = io
        task.init.pid = 1
        task.init.advance(State.RUNNING)
        task._own(task._watch_init())
        self.service.tasks[task_id] = task
        assert self._peer.stdin is not None
        assert self._peer.stdout is not None
        self._peer.stdin.write(f"{task_id}\n".encode())
        await self._peer.stdout.readline()

    async def delete(self, task_id: str) -> None:
        task = self.service.find(task_id)
        await task.kill("", 9, False)
        await asyncio.shield(task.init.exited)
        await self.service.delete(task_pb.DeleteRequest(id=task_id))

    def close(self) -> None:
        self._hub.close()


def _anonymous_kib() -> int:
    gc.collect()
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1])
    raise AssertionError("smaps_rollup has no Anonymous")


@contextlib.asynccontextmanager
async def _running(directory: Path) -> AsyncIterator[_Server]:
    shim = str(directory / "shim")
    argv = [sys.executable, "-m", "tests.soak_memory", "--peer", str(directory / "agents"), shim]
    pipe = asyncio.subprocess.PIPE
    peer = await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe)
    made = _Server(directory, peer)
    ttrpc = Server()
    try:
        assert peer.stdout is not None
        assert await peer.stdout.readline() == b"ready\n"
        made.service.serve_on(ttrpc)
        await ttrpc.serve(await _listening(shim))
        yield made
    finally:
        peer.kill()
        await peer.wait()
        await ttrpc.close()
        made.close()


async def _soak(directory: Path, count: int, cycles: int) -> None:
    async with _running(directory) as server:
        for round_number in range(2):  # the first warms caches up
            await _cycle(server, [f"w{round_number}-{n}" for n in range(AT_ONCE)])
        before = _anonymous_kib()
        names = [f"t{n}" for n in range(count)]
        for name in names:
            await server.create(name)
        each = (_anonymous_kib() - before) / count
        print(f"soak: {count} tasks with their connections: {each:.1f} KiB each", flush=True)
        if each > PROMISED_KIB:
            sys.exit(f"soak: a task costs {each:.1f} KiB, more than {PROMISED_KIB}")
        for name in names:
            await server.delete(name)
        settled = _anonymous_kib()
        for first in range(0, cycles, AT_ONCE):
            await _cycle(server, [f"c{first + n}" for n in range(AT_ONCE)])
        grown = _anonymous_kib() - settled
        print(f"soak: {cycles} cycles of create and delete: {grown} KiB more", flush=True)
        if grown > GROWTH_KIB:
            sys.exit(f"soak: {grown} KiB stay after {cycles} cycles")


async def _cycle(server: _Server, names: list[str]) -> None:
    for name in names:
        await server.create(name)
    for name in names:
        await server.delete(name)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak_memory", description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--peer", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if arguments.peer:
        uvloop.run(_peer(*arguments.peer))
        return
    with tempfile.TemporaryDirectory(prefix="hct-", dir="/run") as directory:
        os.environ["HYPERCORE_RUN_DIR"] = f"{directory}/r"
        os.environ["HYPERCORE_DATA_DIR"] = f"{directory}/d"
        uvloop.run(_soak(Path(directory), arguments.count, arguments.cycles))


if __name__ == "__main__":
    main()
