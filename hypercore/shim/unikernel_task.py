"""One task that is a whole microVM: its console is the stdio, its end the exit.

What containerd asks of a task, for a guest without an agent. The life of a task is task.py's.
"""

import asyncio
import contextlib
import os
import shutil
from pathlib import Path

from hypercore.bounded_log import last_lines
from hypercore.errors import HypercoreError, InvalidArgument, NotFound, StateError, from_os_error
from hypercore.paths import MicroVMPaths
from hypercore.proto import task_events_pb as events
from hypercore.proto.task_pb import CreateTaskRequest, ExecProcessRequest
from hypercore.shim import guest_spec, records, uris
from hypercore.shim.host import Host
from hypercore.shim.process import KILLED, Exit, Process, State
from hypercore.shim.streams import Input, Output, ProcessIO
from hypercore.shim.task import Task
from hypercore.shim.taskio import segmented_log
from hypercore.spec import ANNOTATION_PREFIX, STDIO_URI, from_annotations
from hypercore.unikernel import UnikernelVM, open_terminal
from hypercore.unikernel_spec import KIND

ENDING = (1, 2, 3, 15)
"""SIGHUP, SIGINT, SIGQUIT and SIGTERM press the power button; SIGKILL ends the VM."""
SIGKILL = 9


def task_for(host: Host, request: CreateTaskRequest) -> Task:
    """The task for a bundle: a container in a microVM, or a microVM alone."""
    annotations = guest_spec.load(Path(request.bundle)).get("annotations") or {}
    kind = annotations.get(f"{ANNOTATION_PREFIX}kind")
    return (UnikernelTask if kind == KIND else Task)(host, request)


class UnikernelTask(Task):
    """From Create to Delete. The VMM is there from Create on, its guest runs from Start on."""

    _microvm: UnikernelVM | None

    async def create(self) -> int:
        request = self._request
        annotations = guest_spec.load(self.bundle).get("annotations") or {}
        spec = from_annotations(self.paths.microvm_id, annotations)
        self.owned = annotations.get(f"{ANNOTATION_PREFIX}owner") == "engine"
        if request.rootfs:
            raise InvalidArgument(f"task {self.id}: a unikernel has no root file system")
        async with contextlib.AsyncExitStack() as undo:
            if not self.owned:
                undo.callback(shutil.rmtree, self.paths.data, ignore_errors=True)
            try:
                self.paths.data.mkdir(mode=0o700, parents=True, exist_ok=True)
                self.paths.exit_record.unlink(missing_ok=True)
            except OSError as exc:
                raise from_os_error(exc, f"make {self.paths.data}") from exc
            with contextlib.ExitStack() as lent:  # the VMM's ends
                console_fd, stdin_fd = await self._open_console(lent)
                undo.callback(self._close_io)
                microvm = UnikernelVM(
                    spec, self.host.config, console_fd=console_fd, stdin_fd=stdin_fd
                )
                undo.push_async_callback(microvm.delete)
                await microvm.start()
            self._microvm = microvm
            self._link_stdio()
            undo.pop_all()
        self.timings.update(microvm.timings)
        self.init.pid = microvm.pid
        self._publish(
            events.TaskCreate(
                container_id=self.id,
                bundle=request.bundle,
                io=events.TaskIO(
                    stdin=request.stdin, stdout=request.stdout, stderr=request.stderr
                ),
                pid=microvm.pid,
            )
        )
        self._own(self._watch_init())
        return microvm.pid

    async def _open_console(self, lent: contextlib.ExitStack) -> tuple[int, int]:
        """Join the console with what the client gave; returns the VMM's ends of it."""
        ends = await uris.open_ends(self.init.uris, self.id, self.host.namespace)
        with contextlib.closing(ends):
            io = self.init.io = ProcessIO()
            ours, theirs = os.pipe2(os.O_CLOEXEC)
            lent.callback(os.close, theirs)
            os.set_blocking(ours, False)
            kept = self.init.uris[1] == STDIO_URI
            files = MicroVMPaths(self.paths.microvm_id)
            io.stdout = Output(
                self.host.hub,
                ours,
                target_fd=ends.take("stdout"),
                log=segmented_log(files.stdout_log, self.host.config) if kept else None,
            )
            if not self.init.uris[0]:
                return theirs, -1
            ours, terminal_fd = open_terminal()
            lent.callback(os.close, terminal_fd)
            io.stdin = Input(self.host.hub, ours, lambda total: None)
            if ends.stdin >= 0:
                io.stdin.add_fifo(ends.take("stdin"), ends.take("stdin_keeper"))
            return theirs, terminal_fd

    def _close_io(self) -> None:
        if self.init.io is not None:
            self.init.io.close()

    async def _start_init(self) -> None:
        assert self._microvm is not None
        try:
            await self._microvm.run()
            self.timings.update(self._microvm.timings)
            self.init.advance(State.RUNNING)
            self._publish(events.TaskStart(container_id=self.id, pid=self.init.pid))
        except HypercoreError:
            # Its VM is of no use, and its guest may have begun.
            await self._microvm.kill()
            raise
        finally:
            starting, self.init.starting = self.init.starting, None
            if starting is not None and not starting.done():
                starting.set_result(None)
        await asyncio.to_thread(records.write, self.paths.timings, self.timings)

    async def _observed_end(self, process: Process) -> Exit:
        assert self._microvm is not None
        io = process.io or ProcessIO()
        end = await self._microvm.wait()
        await io.drain(None, None)
        io.finish()
        if end.clean:
            return Exit(0, end.unix_ns)
        words = await asyncio.to_thread(last_lines, self.paths.vmm_log, 3)
        self.log.error("%s\n%s", end, words)
        return Exit(KILLED, end.unix_ns, reason=str(end))

    async def _shut_down(self, *, clean: bool) -> None:
        await super()._shut_down(clean=False)  # there is no agent to ask

    def add_exec(self, request: ExecProcessRequest) -> None:
        raise InvalidArgument(
            f"task {self.id} is a unikernel: no process can be added",
            hint="it runs its kernel and nothing else; `hypercore attach` leads to its console",
        )

    async def kill(self, exec_id: str, signal: int, everyone: bool) -> None:
        process = self.process(exec_id)
        if process.state is State.STOPPED:
            raise NotFound(f"process {process.name} has ended")
        assert self._microvm is not None
        if signal == SIGKILL or process.state is State.CREATED:
            await self._microvm.kill()
        elif signal in ENDING:
            await self._microvm.press_power_button()
        else:
            raise InvalidArgument(f"task {self.id} is a unikernel: signal {signal} means nothing")

    async def pause(self) -> None:
        self.init.require(State.RUNNING)
        assert self._microvm is not None
        await self._microvm.pause()
        self.init.advance(State.PAUSED)
        self._publish(events.TaskPaused(container_id=self.id))

    async def resume(self) -> None:
        self.init.require(State.PAUSED)
        assert self._microvm is not None
        await self._microvm.resume()
        self.init.advance(State.RUNNING)
        self._publish(events.TaskResumed(container_id=self.id))

    async def resize(self, exec_id: str, rows: int, columns: int) -> None:
        raise StateError(f"task {self.id} is a unikernel: its console has no size")
