"""containerd's Task service: which task a call is for, and what it answers.

Calls that need no waiting answer at once (wire/server.py); the steps are task.py's.
"""

import asyncio
import logging
import os
import re
import time

from hypercore.errors import (
    AlreadyExists,
    HypercoreError,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    StateError,
)
from hypercore.proto import launcher_pb, task_pb, types_pb
from hypercore.proto.containerd_types_pb import ProcessInfo
from hypercore.proto.types_pb import Empty
from hypercore.shim import metrics
from hypercore.shim.host import Host
from hypercore.shim.process import State
from hypercore.shim.task import Task
from hypercore.shim.transfer import TransferService
from hypercore.shim.unikernel_task import task_for
from hypercore.wire.server import Handler, Server

logger = logging.getLogger(__name__)

SERVICES = ("containerd.task.v2.Task", "containerd.task.v3.Task")
REGISTRATION_S = 300.0
"""How long an id that the launcher registered counts before its Create."""
LOST_END_S = 5.0
"""For the end of a task whose microVM `delete` has just killed to be dealt with."""
UNIMPLEMENTED = 12
SHUTDOWN_S = 4.0
"""For the output of execs to arrive; clients give five seconds."""
PIDS_TIMEOUT_S = 3.0
"""containerd gives a restarted shim five seconds in all."""

# containerd's own rule for identifiers: they become names of files here, too.
_ID = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*\Z")


class Unimplemented(HypercoreError):
    grpc_code = UNIMPLEMENTED


class TaskService:
    """The tasks of one server, by container id."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.tasks: dict[str, Task] = {}
        self._creating: set[str] = set()
        self._registered: dict[str, float] = {}
        self._metrics_version = metrics.host_version()
        self.asked_to_end = asyncio.Event()

    def serve_on(self, server: Server) -> None:
        handlers: dict[str, Handler] = {
            "State": self.state,
            "Create": self.create,
            "Start": self.start,
            "Delete": self.delete,
            "Pids": self.pids,
            "Pause": self.pause,
            "Resume": self.resume,
            "Checkpoint": self.checkpoint,
            "Kill": self.kill,
            "Exec": self.exec,
            "ResizePty": self.resize_pty,
            "CloseIO": self.close_io,
            "Update": self.update,
            "Wait": self.wait,
            "Stats": self.stats,
            "Connect": self.connect,
            "Shutdown": self.shutdown,
        }
        for name in SERVICES:
            server.add(name, task_pb.Task.METHODS, handlers)
        TransferService(self.find).serve_on(server)
        launcher = launcher_pb.Launcher
        server.add(launcher.NAME, launcher.METHODS, {"Register": self.register, "End": self.end})

    def find(self, task_id: str) -> Task:
        """Raises NotFound."""
        task = self.tasks.get(task_id)
        if task is None:
            raise NotFound(f"task {task_id} does not exist")
        return task

    @property
    def busy(self) -> bool:
        """Whether tasks live here; forgets those that containerd has forgotten."""
        for task_id, task in list(self.tasks.items()):
            # `delete` ran instead of Delete: containerd had lost this server.
            if task.init.state is State.STOPPED and not task.bundle.exists():
                task.forget()
                del self.tasks[task_id]
        return bool(self.tasks or self._creating)

    @property
    def idle(self) -> bool:
        """Whether nobody needs this server, nor was told of it a moment ago."""
        self._expire_registrations()
        return not (self.busy or self._registered)

    def _expire_registrations(self) -> None:
        now = time.monotonic()
        self._registered = {k: v for k, v in self._registered.items() if v > now}

    # the launcher

    def register(self, request: launcher_pb.RegisterRequest) -> Empty:
        """Count the id in, before containerd gets this server's address."""
        self._expire_registrations()
        limit = self.host.config.vms_per_server
        known = self.tasks.keys() | self._creating | self._registered.keys()
        if limit and request.id not in known and len(known) >= limit:
            raise ResourceExhausted(f"this server has {len(known)} of {limit} microVMs")
        self._registered[request.id] = time.monotonic() + REGISTRATION_S
        return Empty()

    def end(self, request: Empty) -> Empty:
        """Let server.py end this process, as SIGTERM does."""
        if self.busy:
            known = len(self.tasks.keys() | self._creating)
            raise StateError(f"this server has {known} microVMs")
        self.asked_to_end.set()
        return Empty()

    # containerd

    async def create(self, request: task_pb.CreateTaskRequest) -> task_pb.CreateTaskResponse:
        if not _ID.match(request.id) or len(request.id) > 76:
            raise InvalidArgument(f"task id {request.id!r} is no valid identifier")
        if request.checkpoint or request.parent_checkpoint:
            raise Unimplemented("a task cannot be restored from a checkpoint")
        if request.id in self._creating:
            raise AlreadyExists(f"task {request.id} exists")
        self._creating.add(request.id)
        self._registered.pop(request.id, None)
        try:
            await self._forget_lost(request.id)
            task = task_for(self.host, request)
            pid = await task.create()
            self.tasks[request.id] = task
        except HypercoreError as exc:
            logger.warning(
                "create of %s failed: %s", request.id, exc, extra={"bundle": request.bundle}
            )
            raise
        finally:
            self._creating.discard(request.id)
        return task_pb.CreateTaskResponse(pid=pid)

    async def _forget_lost(self, task_id: str) -> None:
        """Make room for a task of the same id.

        containerd creates none while it knows one: if ours has ended, `delete` ran instead of
        Delete, because containerd had lost this server.

        Raises:
            AlreadyExists: it has not ended.
        """
        old = self.tasks.get(task_id)
        if old is None:
            return
        if old.microvm_ended:
            await asyncio.wait({old.init.exited}, timeout=LOST_END_S)
        if old.init.state is not State.STOPPED:
            raise AlreadyExists(f"task {task_id} exists")
        old.forget()
        self.tasks.pop(task_id, None)

    async def start(self, request: task_pb.StartRequest) -> task_pb.StartResponse:
        pid = await self.find(request.id).start(request.exec_id)
        return task_pb.StartResponse(pid=pid)

    async def delete(self, request: task_pb.DeleteRequest) -> task_pb.DeleteResponse:
        process = await self.find(request.id).delete(request.exec_id)
        if not request.exec_id:
            self.tasks.pop(request.id, None)
        return process.delete_reply()

    def state(self, request: task_pb.StateRequest) -> bytes:
        return self.find(request.id).process(request.exec_id).state_reply()

    async def wait(self, request: task_pb.WaitRequest) -> task_pb.WaitResponse:
        return await self.find(request.id).process(request.exec_id).wait()

    async def kill(self, request: task_pb.KillRequest) -> Empty:
        task = self.find(request.id)
        await task.kill(request.exec_id, request.signal, request.all)
        return Empty()

    def exec(self, request: task_pb.ExecProcessRequest) -> Empty:
        self.find(request.id).add_exec(request)
        return Empty()

    async def resize_pty(self, request: task_pb.ResizePtyRequest) -> Empty:
        task = self.find(request.id)
        await task.resize(request.exec_id, request.height, request.width)
        return Empty()

    def close_io(self, request: task_pb.CloseIORequest) -> Empty:
        task = self.find(request.id)
        task.process(request.exec_id)
        if request.stdin:
            task.close_stdin(request.exec_id)
        return Empty()

    async def pids(self, request: task_pb.PidsRequest) -> task_pb.PidsResponse:
        """Pids as the guest has them; the VMM's, if the guest does not tell."""
        task = self.find(request.id)
        try:
            async with asyncio.timeout(PIDS_TIMEOUT_S):
                pids = await task.agent.pids(task.id)
        except (HypercoreError, TimeoutError):
            pids = [] if task.init.state is State.STOPPED else [task.init.pid]
        return task_pb.PidsResponse(processes=[ProcessInfo(pid=pid) for pid in pids])

    async def pause(self, request: task_pb.PauseRequest) -> Empty:
        await self.find(request.id).pause()
        return Empty()

    async def resume(self, request: task_pb.ResumeRequest) -> Empty:
        await self.find(request.id).resume()
        return Empty()

    def checkpoint(self, request: task_pb.CheckpointTaskRequest) -> Empty:
        raise Unimplemented(f"task {request.id}: a microVM cannot be checkpointed")

    async def update(self, request: task_pb.UpdateTaskRequest) -> Empty:
        task = self.find(request.id)
        if request.resources is None:
            raise InvalidArgument(f"task {request.id}: no resources to update")
        await task.agent.update(task.id, request.resources.value)
        return Empty()

    async def stats(self, request: task_pb.StatsRequest) -> task_pb.StatsResponse:
        task = self.find(request.id)
        if task.init.state is State.STOPPED:
            raise NotFound(f"task {task.id} has ended: it has no statistics")
        # Our own engine reads version 2, whatever the host has.
        version = 2 if task.owned else self._metrics_version
        stats = await task.agent.stats(task.id)
        return task_pb.StatsResponse(stats=metrics.render(stats, version))

    def connect(self, request: task_pb.ConnectRequest) -> task_pb.ConnectResponse:
        task = self.tasks.get(request.id)
        return task_pb.ConnectResponse(shim_pid=os.getpid(), task_pid=task.init.pid if task else 0)

    async def shutdown(self, request: task_pb.ShutdownRequest) -> types_pb.Empty:
        """containerd is done with one task; the server is for many and ends when idle.

        After Delete there is nothing to wait for. Before it, execs that are ending get time to.
        """
        task = self.tasks.get(request.id)
        if task is not None:
            await task.wait_for_execs(SHUTDOWN_S)
        return Empty()
