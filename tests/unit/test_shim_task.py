"""A task whose guest is not to be trusted: its agent is a real server that says what it likes."""

import asyncio
import contextlib
import socket

import pytest
import uvloop

from hypercore import agent_client
from hypercore.config import HostConfig
from hypercore.errors import AlreadyExists, InvalidArgument
from hypercore.proto import agent_pb, types_pb
from hypercore.proto.task_pb import CreateTaskRequest
from hypercore.shim import task as task_module
from hypercore.shim.events import Publisher
from hypercore.shim.host import Host
from hypercore.shim.process import KILLED, State
from hypercore.shim.service import TaskService
from hypercore.shim.streams import ProcessIO, StreamHub
from hypercore.shim.task import LOST, Task
from hypercore.vmm_group import VmmExit
from hypercore.wire.ttrpc import Client, Server


class MicroVMOf:
    """What a task asks of its microVM, where the agent is `server`."""

    def __init__(self, server, agent):
        self.agent = agent
        self.lost = False
        self.exited = asyncio.get_running_loop().create_future()
        self._server = server

    async def kill(self):
        if not self.exited.done():
            self.exited.set_result(VmmExit("vmm", -9, 1))
            await self._server.close()

    async def delete(self):
        await self.kill()
        self.agent.close()


@contextlib.asynccontextmanager
async def running_task(directory, monkeypatch, handlers):
    monkeypatch.setenv("HYPERCORE_RUN_DIR", str(directory / "r"))
    monkeypatch.setenv("HYPERCORE_DATA_DIR", str(directory / "d"))
    path = str(directory / "agent")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    server = Server()
    server.add(agent_pb.Agent.NAME, agent_pb.Agent.METHODS, handlers)
    await server.serve(listener)
    microvm = MicroVMOf(server, agent_client.AgentClient(await Client.connect(path)))
    host = Host("ns", "", HostConfig(), StreamHub(4), Publisher("", "ns"), directory / "io")
    task = Task(host, CreateTaskRequest(id="c", bundle=str(directory)))
    task.paths.data.mkdir(parents=True)
    task._microvm = microvm
    task.init.io = ProcessIO()
    task.init.advance(State.RUNNING)
    watch = task._own(task._watch_init())
    try:
        yield task
    finally:
        await microvm.delete()
        await watch
        host.hub.pump.close()


async def for_ever(request):
    await asyncio.get_running_loop().create_future()


def test_sigkill_does_not_need_the_guest_to_obey(tmp_path, monkeypatch):
    monkeypatch.setattr(task_module, "KILL_TOLD_S", 0.05)

    async def main():
        handlers = {"Kill": lambda request: types_pb.Empty(), "Wait": for_ever}
        async with running_task(tmp_path, monkeypatch, handlers) as task:
            await task.kill("", 9, True)
            end = await asyncio.wait_for(asyncio.shield(task.init.exited), 10)
            assert end.status == KILLED
            assert "vmm was killed by SIGKILL" in end.reason

    uvloop.run(main())


def test_an_end_that_cannot_be_observed_is_told(tmp_path, monkeypatch):
    class Broken(ProcessIO):
        async def drain(self, stdout_bytes, stderr_bytes):
            raise RuntimeError("no room")

    async def main():
        go = asyncio.Event()

        async def wait(request):
            await go.wait()
            return agent_pb.WaitResponse(exit_status=3)

        async with running_task(tmp_path, monkeypatch, {"Wait": wait}) as task:
            task.init.io = Broken()
            go.set()
            end = await asyncio.wait_for(asyncio.shield(task.init.exited), 10)
            assert (end.status, end.reason) == (LOST, "RuntimeError: no room")

    uvloop.run(main())


def test_a_task_that_containerd_lost_makes_room_for_the_next_of_its_id(tmp_path, monkeypatch):
    request = CreateTaskRequest(id="c", bundle=str(tmp_path))

    async def main():
        async with running_task(tmp_path, monkeypatch, {"Wait": for_ever}) as task:
            service = TaskService(task.host)
            service.tasks["c"] = task
            with pytest.raises(AlreadyExists):
                await service.create(request)
            # What `delete` does: containerd asks this server no more, and the bundle is made anew.
            await task._microvm.kill()
            with pytest.raises(InvalidArgument, match=r"config\.json"):
                await service.create(request)
            assert service.tasks == {}

    uvloop.run(main())
