"""One task: a microVM, the container in it, its init process and its execs.

Orders the steps between containerd's calls, the agent, the streams and the events; what a call
means on the wire is service.py's. Every change that must not stop half-way when a caller gives up
runs in a task of asyncio that is owned here.
"""

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

from hypercore import paths
from hypercore.agent_client import AgentClient
from hypercore.bounded_log import last_lines
from hypercore.errors import (
    AlreadyExists,
    DeadlineExceeded,
    HypercoreError,
    InvalidArgument,
    NotFound,
    StateError,
    Unavailable,
    from_os_error,
)
from hypercore.microvm import MicroVM
from hypercore.proto import agent_pb
from hypercore.proto import task_events_pb as events
from hypercore.proto.task_pb import CreateTaskRequest, ExecProcessRequest
from hypercore.shim import (
    binds,
    create_request,
    forward,
    guest_spec,
    hooks,
    host_cgroup,
    records,
    remover,
    rootfs,
)
from hypercore.shim.events import timestamp
from hypercore.shim.host import Host
from hypercore.shim.process import KILLED, Exit, Process, State
from hypercore.shim.streams import ProcessIO
from hypercore.shim.taskio import open_io
from hypercore.spec import ANNOTATION_PREFIX, MicroVMSpec, RootDisks, from_annotations

logger = logging.getLogger(__name__)

GUEST_DELETE_S = 10.0
"""For the guest to delete a container and unmount its root, before it is killed anyway."""
EXECS_END_S = 5.0
"""For the ends of execs to be told once their container's init is gone."""
VMM_END_S = 2.0
"""For the VMM to end after its agent's connection did."""
KILL_TOLD_S = 10.0
"""For the guest to tell of its init's end after SIGKILL while no output of it moves."""
KILL_ROUNDS = 6
"""As often the guest may use that time, moving output."""
SIGKILL = 9
LOST = 255
"""Exit status of a process whose end nobody can tell."""

T = TypeVar("T")


class Task:
    """From Create to Delete."""

    def __init__(self, host: Host, request: CreateTaskRequest) -> None:
        self.host = host
        self.id = request.id
        self.bundle = Path(request.bundle)
        self.paths = paths.MicroVMPaths(paths.microvm_id(host.namespace, request.id))
        self.timings: dict[str, float] = {}
        self.owned = False
        """made by our own engine: its data directory outlives Delete"""
        self._removed_when_ended = False
        """it goes altogether, whoever spawned it has gone meanwhile (remover.py)"""
        self._deleted = asyncio.Event()
        self.log = logging.LoggerAdapter(logger, {"task": request.id, "bundle": request.bundle})
        self._request = request
        self._microvm: MicroVM | None = None
        self._guest: guest_spec.GuestSpec | None = None
        self._sockets: list[agent_pb.ForwardedSocket] = []
        self._config: guest_spec.Document = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """done once the agent has said how init ended, or cannot any more"""
        self._insisting: asyncio.Task[None] | None = None
        self._reclaimed = False
        """the host has everything back but the directories"""
        stderr = "" if request.terminal else request.stderr
        self.init = Process(
            request.id,
            "",
            request.bundle,
            (request.stdin, request.stdout, stderr),
            request.terminal,
        )
        self.execs: dict[str, Process] = {}

    # -- looking things up

    def process(self, exec_id: str) -> Process:
        """The init for an empty `exec_id`. Raises NotFound."""
        if not exec_id:
            return self.init
        found = self.execs.get(exec_id)
        if found is None:
            raise NotFound(f"exec {exec_id} of task {self.id} does not exist")
        return found

    @property
    def agent(self) -> AgentClient:
        if self._microvm is None:
            raise StateError(f"task {self.id} has no microVM yet")
        return self._microvm.agent

    @property
    def microvm_ended(self) -> bool:
        return self._microvm is not None and self._microvm.exited.done()

    # -- create

    async def create(self) -> int:
        """Boot the microVM and create the container in it; returns the VMM's pid.

        On failure, cancellation included, nothing is left; a stranger's data directory neither.
        """
        request = self._request
        config = self._config = guest_spec.load(self.bundle)
        annotations = config.get("annotations") or {}
        spec = from_annotations(self.paths.microvm_id, annotations)
        if f"{ANNOTATION_PREFIX}memory" not in annotations:
            fit_mib = guest_spec.memory_mib(config, spec.hardware.memory_mib)
            hardware = dataclasses.replace(spec.hardware, memory_mib=fit_mib)
            spec = dataclasses.replace(spec, hardware=hardware)
        cgroups_path = (config.get("linux") or {}).get("cgroupsPath") or ""
        spec = dataclasses.replace(spec, cgroup_path=host_cgroup.path_of(cgroups_path))
        self.owned = annotations.get(f"{ANNOTATION_PREFIX}owner") == "engine"
        wanted = annotations.get(f"{ANNOTATION_PREFIX}rm") == "true"
        self._removed_when_ended = self.owned and wanted
        self._guest = guest_spec.translate(config, self.id)
        async with contextlib.AsyncExitStack() as undo:
            if not self.owned:
                undo.callback(shutil.rmtree, self.paths.data, ignore_errors=True)
            with self._timed("root disks"):
                disks = await _in_thread(self._prepare_data, request)
            pid = await self._boot(spec, disks, undo)
            await hooks.run(
                self._guest.hooks, hooks.BEFORE_CREATE, self._hook_state("creating", pid)
            )
            with self._timed("create"):
                self.init.io = await self._open_io(self.init)
                undo.callback(self.init.io.close)
                await self._create_container(disks)
            undo.pop_all()
        self.init.pid = pid
        self._publish(
            events.TaskCreate(
                container_id=self.id,
                bundle=request.bundle,
                rootfs=request.rootfs,
                io=events.TaskIO(
                    stdin=request.stdin,
                    stdout=request.stdout,
                    stderr=request.stderr,
                    terminal=request.terminal,
                ),
                pid=pid,
            )
        )
        self._own(self._watch_init())
        if self._guest.sockets:
            named = {given.name: given for given in self._guest.sockets}
            self._own(forward.serve(self.agent, self.id, named, self.open_stream))
        return pid

    def _prepare_data(self, request: CreateTaskRequest) -> RootDisks:
        """Blocking."""
        assert self._guest is not None
        try:
            self.paths.data.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.paths.exit_record.unlink(missing_ok=True)
        except OSError as exc:
            raise from_os_error(exc, f"make {self.paths.data}") from exc
        self._sockets = [forward.described(given) for given in self._guest.sockets]
        bound = self._guest.binds
        disk = binds.disk(bound, self.paths.binds) if bound else None
        root = rootfs.root_disks(
            request.rootfs or rootfs.of_bundle(self.bundle, self._config),
            read_only=self._guest.config["root"]["readonly"],
            paths=self.paths,
            upper_size_mib=self.host.config.upper_size_mib,
        )
        return dataclasses.replace(root, binds=disk)

    async def _boot(
        self, spec: MicroVMSpec, disks: RootDisks, undo: contextlib.AsyncExitStack
    ) -> int:
        microvm = MicroVM(spec, disks, self.host.config)
        undo.push_async_callback(microvm.delete)
        await microvm.start()
        self.timings.update(microvm.timings)
        self._microvm = microvm
        self._link_stdio()
        return microvm.pid

    async def _create_container(self, disks: RootDisks) -> None:
        assert self._guest is not None
        assert self._microvm is not None
        request = create_request.render(
            self.id,
            self._guest,
            disks,
            self._microvm,
            stdio=self.init.stdio,
            sockets=self._sockets,
        )
        try:
            await self.agent.create(request)
        except Unavailable as exc:
            raise await self._explain(exc) from exc

    def _link_stdio(self) -> None:
        """Where attach clients find this server; gone with the run directory."""
        self.paths.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.paths.stdio_socket.unlink(missing_ok=True)
        self.paths.stdio_socket.symlink_to(self.host.stdio_socket)

    # -- streams

    async def open_stream(self, token: bytes) -> int:
        """A stream into the guest, for those who know what to do with it; see MicroVM."""
        if self._microvm is None:
            raise StateError(f"task {self.id} has no microVM yet")
        return await self._microvm.open_stream(token)

    async def _open_io(self, process: Process) -> ProcessIO:
        assert self._microvm is not None
        return await open_io(
            process,
            self._microvm,
            self.host,
            lambda total: self._own(self._end_stdin(process, total)),
        )

    async def _end_stdin(self, process: Process, total: int) -> None:
        if process.starting is not None:
            # A short input ends before the agent knows the exec it is for.
            await asyncio.shield(process.starting)
        try:
            await self.agent.close_io(self.id, process.exec_id, total)
        except HypercoreError as exc:
            self.log.debug("end of stdin of %s: %s", process.name, exc)

    # -- start

    async def start(self, exec_id: str) -> int:
        """Start the init or an exec; returns its pid."""
        process = self.process(exec_id)
        process.require(State.CREATED)
        if process.starting is not None:
            raise StateError(f"process {process.name} is being started")
        process.starting = asyncio.get_running_loop().create_future()
        run = self._start_exec(process) if exec_id else self._start_init()
        await self._shielded(run)
        return process.pid

    async def _start_init(self) -> None:
        try:
            with self._timed("start"):
                await self.agent.start(self.id)
            self.init.advance(State.RUNNING)
            self._publish(events.TaskStart(container_id=self.id, pid=self.init.pid))
            assert self._guest is not None
            state = self._hook_state("running", self.init.pid)
            await hooks.run_all(self._guest.hooks, hooks.AFTER_START, state)
        except Unavailable as exc:
            raise await self._explain(exc) from exc
        finally:
            _end_starting(self.init)
        await asyncio.to_thread(records.write, self.paths.timings, self.timings)

    async def _start_exec(self, process: Process) -> None:
        try:
            async with contextlib.AsyncExitStack() as undo:
                self.init.require(State.RUNNING)
                io = await self._open_io(process)
                undo.callback(io.close)
                guest_pid = await self.agent.exec(
                    agent_pb.ExecRequest(
                        container_id=self.id,
                        exec_id=process.exec_id,
                        process_json=process.spec_json,
                        stdio=process.stdio,
                    )
                )
                undo.pop_all()
        except BaseException as exc:
            if process.state is State.CREATED:
                process.end(Exit.now(255, reason=str(exc)))
            _end_starting(process)
            if isinstance(exc, Unavailable):
                raise await self._explain(exc) from exc
            raise
        process.io = io
        process.pid = guest_pid
        process.advance(State.RUNNING)
        self._publish(
            events.TaskExecStarted(container_id=self.id, exec_id=process.exec_id, pid=guest_pid)
        )
        _end_starting(process)
        self._own(self._watch_exec(process))

    def add_exec(self, request: ExecProcessRequest) -> None:
        """Remember a process to be started."""
        if self.init.state is State.STOPPED:
            raise StateError(f"task {self.id} is stopped: no process can be added")
        if not request.exec_id or request.exec_id in self.execs:
            raise AlreadyExists(f"exec {request.exec_id!r} of task {self.id} exists")
        try:
            document = json.loads(request.spec.value if request.spec else b"")
            spec = guest_spec.process(document)
        except (ValueError, AttributeError) as exc:
            raise InvalidArgument(f"exec {request.exec_id}: no OCI process: {exc}") from exc
        stderr = "" if request.terminal else request.stderr
        process = Process(
            self.id,
            request.exec_id,
            str(self.bundle),
            (request.stdin, request.stdout, stderr),
            request.terminal,
        )
        process.spec_json = json.dumps(spec).encode()
        self.execs[request.exec_id] = process
        self._publish(events.TaskExecAdded(container_id=self.id, exec_id=request.exec_id))

    # -- the end

    async def _watch_exec(self, process: Process) -> None:
        end = await self._end_of(process)
        process.end(end)
        self._publish_exit(process, end)

    async def wait_for_execs(self, timeout_s: float) -> None:
        """Until started execs have ended and their output is delivered, or the time is over."""
        running = [p.exited for p in self.execs.values() if p.state is not State.CREATED]
        if running:
            await asyncio.wait(running, timeout=timeout_s)

    async def _watch_init(self) -> None:
        """From the agent's word that init has ended to the exit event, VM and all."""
        end = await self._end_of(self.init)
        if self.init.starting is not None:
            await asyncio.shield(self.init.starting)
        await self.wait_for_execs(EXECS_END_S)
        await self._shut_down(clean=not end.reason)
        for process in self.execs.values():
            if process.state is State.CREATED:
                process.end(Exit.now(KILLED, reason="its container has ended"))
        await asyncio.to_thread(self._write_records, end)
        if end.oom_killed:
            self._publish(events.TaskOOM(container_id=self.id))
        self.init.end(end)
        self._publish_exit(self.init, end)
        self.log.info(
            "init ended with status %d%s", end.status, f": {end.reason}" if end.reason else ""
        )
        if self._removed_when_ended:
            self._own(remover.remove_unless(self._deleted, self.host, self.id))

    def _write_records(self, end: Exit) -> None:
        """Unless containerd has lost this server and started the id anew with another."""
        if self._microvm is None or not (self._microvm.lost and self.paths.run.exists()):
            records.write_exit(self.paths, end)
            records.write(self.paths.timings, self.timings)

    async def _end_of(self, process: Process) -> Exit:
        """How the process ended, once its output is where it belongs. Never raises."""
        try:
            return await self._observed_end(process)
        except Exception as exc:
            # Whoever waits for the end, to kill or to delete, would do so for ever.
            self.log.exception("the end of %s cannot be told", process.name)
            return Exit.now(LOST, f"{type(exc).__name__}: {exc}")

    async def _observed_end(self, process: Process) -> Exit:
        io = process.io or ProcessIO()
        try:
            try:
                answer = await self.agent.wait(self.id, process.exec_id)
            finally:
                if process is self.init:
                    _settle(self._told)
        except Unavailable as exc:
            death = await self._explain(exc)
            await io.drain(None, None)
            io.finish()
            self.log.error("%s\n%s", death, death.detail)
            return Exit.now(KILLED, death.message)
        except HypercoreError as exc:
            self.log.error("the agent lost process %s: %s", process.name, exc)
            io.finish()
            return Exit.now(LOST, exc.message)
        missing = await io.drain(answer.stdout_bytes, answer.stderr_bytes)
        io.finish()
        if missing:
            self.log.error("%d bytes of the output of %s are missing", missing, process.name)
        return Exit(
            answer.exit_status,
            answer.exited_unix_ns or time.time_ns(),
            missing_bytes=missing,
            oom_killed=answer.oom_killed,
        )

    async def _explain(self, exc: HypercoreError) -> HypercoreError:
        """`exc` of a guest that is gone, as the VM's death with its last words."""
        microvm = self._microvm
        if microvm is None or not microvm.agent.closed.done():
            return exc
        await asyncio.wait({microvm.exited}, timeout=VMM_END_S)
        if not microvm.exited.done():
            # The connection ended and the VMM lives: without an agent it is of no use.
            with contextlib.suppress(HypercoreError):
                await microvm.kill()
                await asyncio.wait({microvm.exited}, timeout=VMM_END_S)
        known = microvm.exited.done() and microvm.exited.exception() is None
        ended = microvm.exited.result() if known else "its agent is gone"
        words = await asyncio.to_thread(last_lines, self.paths.console_log)
        return Unavailable(f"the microVM of task {self.id} died: {ended}", detail=words)

    async def _shut_down(self, *, clean: bool) -> None:
        """Unmount in the guest if it still can, kill the VMM, give everything back. Idempotent."""
        microvm = self._microvm
        assert microvm is not None
        if clean:
            try:
                async with asyncio.timeout(GUEST_DELETE_S):
                    await self.agent.delete(self.id)
            except (HypercoreError, TimeoutError) as exc:
                self.log.warning("the guest did not delete its container: %s", exc)
        try:
            await microvm.delete()
            self._reclaimed = not microvm.lost
        except HypercoreError as exc:
            self.log.error("%s", exc)
        if not microvm.lost:
            with contextlib.suppress(OSError):
                self._link_stdio()

    def _publish_exit(self, process: Process, end: Exit) -> None:
        self._publish(
            events.TaskExit(
                container_id=self.id,
                id=process.name,
                pid=process.pid,
                exit_status=end.status,
                exited_at=timestamp(end.unix_ns),
            )
        )

    # -- calls about a running task

    async def kill(self, exec_id: str, signal: int, everyone: bool) -> None:
        process = self.process(exec_id)
        if process.state is State.STOPPED:
            raise NotFound(f"process {process.name} has ended")
        if exec_id and process.state is State.CREATED:
            raise StateError(f"process {process.name} is not started")
        try:
            await self.agent.kill(self.id, exec_id, signal=signal, everyone=everyone)
        except DeadlineExceeded:
            if signal != SIGKILL or exec_id:
                raise
            # A guest that hangs cannot be asked to kill; its VMM can be killed.
            self.log.error("the guest does not answer: its VMM is killed")
            assert self._microvm is not None
            await self._microvm.kill()
        except Unavailable as exc:
            raise NotFound(f"process {process.name} has ended with its microVM") from exc
        else:
            if signal == SIGKILL and not exec_id and self._insisting is None:
                self._insisting = self._own(self._insist())

    async def _insist(self) -> None:
        """After SIGKILL: a guest that does not tell of its effect in time is killed itself."""
        assert self._microvm is not None
        for _ in range(KILL_ROUNDS):
            if self._told.done():
                return
            before = self._received_bytes()
            await asyncio.wait({self._told}, timeout=KILL_TOLD_S)
            if not self._told.done() and self._received_bytes() == before:
                break
        if self._told.done():
            return
        self.log.error("the guest does not tell of the end of its init: its VMM is killed")
        await self._microvm.kill()

    def _received_bytes(self) -> int:
        io = self.init.io or ProcessIO()
        return sum(out.received_bytes for out in (io.stdout, io.stderr) if out is not None)

    async def pause(self) -> None:
        self.init.require(State.RUNNING)
        await self.agent.pause(self.id)
        self.init.advance(State.PAUSED)
        self._publish(events.TaskPaused(container_id=self.id))

    async def resume(self) -> None:
        self.init.require(State.PAUSED)
        await self.agent.resume(self.id)
        self.init.advance(State.RUNNING)
        self._publish(events.TaskResumed(container_id=self.id))

    async def resize(self, exec_id: str, rows: int, columns: int) -> None:
        process = self.process(exec_id)
        if not process.terminal:
            raise StateError(f"process {process.name} has no terminal")
        if rows == 0 or columns == 0:
            return
        process.size = (rows, columns)
        if process.state is State.STOPPED or process.io is None:
            return
        await self.agent.resize_pty(self.id, exec_id, rows, columns)

    def close_stdin(self, exec_id: str) -> None:
        process = self.process(exec_id)
        if process.io is not None and process.io.stdin is not None:
            process.io.stdin.end_fifo()

    # -- delete

    async def delete(self, exec_id: str) -> Process:
        """Forget an ended process; the init takes the task with it. Returns it."""
        process = self.process(exec_id)
        if process.state in (State.RUNNING, State.PAUSED) or process.starting is not None:
            raise StateError(f"process {process.name} is running, it cannot be deleted")
        if exec_id:
            await self._shielded(self._delete_exec(process))
        else:
            await self._shielded(self._delete_init())
        return process

    async def _delete_exec(self, process: Process) -> None:
        if process.state is State.CREATED:
            process.end(Exit.now(0))
        else:
            with contextlib.suppress(HypercoreError):  # the guest may be gone, or never had it
                await self.agent.delete(self.id, process.exec_id)
        self._forget_io(process)
        self.execs.pop(process.exec_id, None)

    async def _delete_init(self) -> None:
        if self.init.state is State.CREATED:
            assert self._microvm is not None
            await self._microvm.kill()
        end = await asyncio.shield(self.init.exited)
        self.forget()
        if self._guest is not None:  # a unikernel has no hooks
            state = self._hook_state("stopped", 0)
            await hooks.run_all(self._guest.hooks, hooks.AFTER_STOP, state)
        await asyncio.to_thread(self._remove_files)
        self._publish(
            events.TaskDelete(
                container_id=self.id,
                pid=self.init.pid,
                exit_status=end.status,
                exited_at=timestamp(end.unix_ns),
            )
        )

    def _forget_io(self, process: Process) -> None:
        if process.io is not None:
            process.io.close()

    def _remove_files(self) -> None:
        gone = [self.paths.run] if self.owned else [self.paths.run, self.paths.data]
        for directory in gone:
            shutil.rmtree(directory, ignore_errors=True)
        if self._reclaimed and not any(map(os.path.lexists, gone)):
            records.write_deleted(self.bundle, self.init.delete_reply())

    def forget(self) -> None:
        """Let go of streams without Delete: containerd does not know the task any more."""
        self._deleted.set()
        for process in [self.init, *self.execs.values()]:
            self._forget_io(process)

    # -- small things

    def _hook_state(self, status: str, pid: int) -> dict[str, object]:
        """What OCI hooks get on their stdin."""
        assert self._guest is not None
        return {
            "ociVersion": guest_spec.GUEST_OCI_VERSION,
            "id": self.id,
            "status": status,
            "pid": pid,
            "bundle": str(self.bundle),
            "annotations": self._guest.annotations,
        }

    def _publish(self, event: Any) -> None:
        self.host.publisher.publish(event)

    @contextlib.contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self.timings[phase] = round((time.monotonic() - begun) * 1000, 3)

    def _own(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run it to its end, whoever waits."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background_done)
        return task

    async def _shielded(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """As `_own`, and wait for it; cancelling the waiter leaves it running."""
        task = self._own(coroutine)
        task.add_done_callback(_retrieve)
        return await asyncio.shield(task)

    def _background_done(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            error = task.exception()
            if not isinstance(error, HypercoreError):
                self.log.error("a step failed", exc_info=error)


async def _in_thread(function: Callable[..., T], *args: object) -> T:
    """Run it off the loop. A cancelled caller still waits for it, so that undo comes after."""
    work = asyncio.ensure_future(asyncio.to_thread(function, *args))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait({work})
        raise


def _end_starting(process: Process) -> None:
    """Let go whoever waits for the start; how it went is in the process's state."""
    _settle(process.starting)
    process.starting = None


def _settle(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Its error is the waiter's; without one it is not asyncio's to report."""
    if not task.cancelled():
        task.exception()
