"""The processes of one microVM, which live and die together, and the logs they fill.

A VMM whose vsock helper is gone runs on and says nothing; so the first to end takes the others
with it, and the group's end is the microVM's. Starts what it is told; order and meaning are
microvm.py's, but for one thing: the process called `vmm` is the one the others serve. Bound to the
running event loop.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hypercore import vmm
from hypercore.bounded_log import BoundedLog, last_lines
from hypercore.errors import DeadlineExceeded, VmmError, from_os_error
from hypercore.paths import MicroVMPaths
from hypercore.providers.base import VmmCommand
from hypercore.vmm_events import Event, EventPipe

VMM = "vmm"
CRASHED = "crashed"
ORPHAN_S = 2.0
"""How long a VMM may outlive a helper that ended by itself. A helper sees its VMM close their
socket and ends; on a loaded host the VMM takes a while longer to be gone.
"""
CONFIRM_TIMEOUT_S = 2.0
"""For a VMM to say that it is still there once its guest has ended."""
SOCKETS_TIMEOUT_S = 10.0
"""For a helper to make its sockets; it takes 3 ms."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class VmmExit:
    """How a microVM's processes ended: `role` is the one that did so by itself."""

    role: str
    status: int
    """exit code, or −signal"""
    unix_ns: int
    guest: str = ""
    """what became of the guest, from a VMM that tells: turned off, reset, crashed"""

    def __str__(self) -> str:
        told = f": its guest {self.guest}" if self.guest else ""
        return f"{self.role} {vmm.describe_status(self.status)}{told}"

    @property
    def clean(self) -> bool:
        """The guest ended by itself."""
        return self.role == VMM and self.status == 0 and self.guest != CRASHED


class VmmGroup:
    """See the module. `exited` is done once every process has ended; await it shielded."""

    def __init__(self, files: MicroVMPaths) -> None:
        self.files = files
        self.exited: asyncio.Future[VmmExit] = asyncio.get_running_loop().create_future()
        self.first_exit: VmmExit | None = None
        self._processes: list[vmm.VmmProcess] = []
        self._logs: dict[str, BoundedLog] = {}
        self._orphan_timer: asyncio.TimerHandle | None = None
        self._unlocked: vmm.Confinement | None = None
        self._sockets_later: tuple[Path, ...] = ()
        self._events: EventPipe | None = None
        self._ending: asyncio.Task[None] | None = None
        self._guest_end = ""

    @property
    def vmm_pid(self) -> int:
        """Host pid of the VMM; 0 before its start."""
        return next((p.pid for p in self._processes if p.role == VMM), 0)

    def open_console(self) -> int:
        """Open the console's log; returns its writing end, to lend to the VMM."""
        return self._open_log("console", self.files.console_log).write_fd

    def open_events(
        self,
        guest_end: Callable[[Event], str],
        confirm: Callable[[str, float], Coroutine[Any, Any, bool]],
    ) -> int:
        """Follow a VMM's events to its guest's end, and end the VMM then.

        Args:
            guest_end, confirm: as the provider's guest_end and confirm_end.

        Returns the fd to lend to the VMM.
        """

        async def end_after(end: str) -> None:
            deadline = asyncio.get_running_loop().time() + CONFIRM_TIMEOUT_S
            if await confirm(end, deadline):
                self._guest_end = end
                for process in self._processes:
                    if process.role == VMM:
                        process.send_signal(signal.SIGKILL)

        def on_event(event: Event) -> None:
            if self._ending is None and (end := guest_end(event)):
                self._ending = asyncio.ensure_future(end_after(end))

        self._events = EventPipe(on_event)
        return self._events.write_fd

    async def spawn(
        self,
        command: VmmCommand,
        *,
        fds: dict[str, int],
        confinement: vmm.Confinement | None,
        cgroup_fds: Sequence[int],
        netns_fd: int = -1,
    ) -> None:
        """Start one process, and wait for the sockets it is to make.

        Raises:
            HypercoreError: it cannot be started, or one of the group ended first.
        """
        if command.role == VMM:
            log = self._open_log(VMM, self.files.vmm_log)
        else:
            log = self._open_log(command.role, self.files.helper_log(command.role))
        try:
            if command.log_fifo is not None:
                log.use_fifo(command.log_fifo)
            for fifo in command.fifos:
                os.mkfifo(fifo, 0o600)
            if confinement is not None:
                self._give(command, confinement)
        except OSError as exc:
            raise from_os_error(exc, f"prepare {command.role} of {self.files.microvm_id}") from exc
        process = vmm.spawn(
            command,
            microvm_id=self.files.microvm_id,
            record_file=self.files.processes,
            fds=fds,
            stdout_fd=fds["console"] if command.console_on_stdout else log.write_fd,
            stderr_fd=log.write_fd,
            confinement=confinement,
            cgroup_fds=cgroup_fds,
            netns_fd=netns_fd,
        )
        self._processes.append(process)
        process.exited.add_done_callback(lambda _: self._on_exit(process))
        if command.sockets:
            deadline = asyncio.get_running_loop().time() + SOCKETS_TIMEOUT_S
            await self.unless_exited(
                vmm.wait_for_paths(command.sockets, self.files.vmm_dir, process.pid),
                deadline,
                f"{command.role} did not make its sockets in time",
            )
        self._sockets_later = command.sockets_later
        if confinement is not None and command.sockets_later:
            self._unlocked = confinement
        elif confinement is not None and command.sockets:
            self._lock_down(confinement)

    def configured(self) -> None:
        """The VMM has been told all it needs, and no guest has run yet.

        Raises:
            VmmError: it has not made the sockets it was to make by now.
        """
        if self._ending is not None or self.first_exit is not None:
            return  # whoever waits for the guest is told
        if missing := [str(path) for path in self._sockets_later if not path.exists()]:
            raise VmmError(
                f"microVM {self.files.microvm_id}: its VMM did not make {', '.join(missing)}",
                detail=self.last_words(),
            )
        if self._unlocked is not None:
            self._lock_down(self._unlocked)

    def _give(self, command: VmmCommand, confinement: vmm.Confinement) -> None:
        """What a confined process makes or writes by name is its user's."""
        uid, gid = confinement.uid, confinement.gid
        if command.sockets or command.sockets_later:
            os.chown(self.files.vmm_dir, uid, gid)
        for path in (command.log_fifo, *command.fifos, *command.own_files):
            if path is not None:
                os.chown(path, uid, gid, follow_symlinks=False)

    def _lock_down(self, confinement: vmm.Confinement) -> None:
        """From here on nobody but root can put another socket, or a link, where we connect to
        one of the VMM's."""
        os.chown(self.files.vmm_dir, 0, confinement.gid)
        os.chmod(self.files.vmm_dir, 0o710)

    def all_started(self) -> None:
        """Keep no writing end of the logs: they end with the processes."""
        for log in self._logs.values():
            log.close_writer()
        if self._events is not None:
            self._events.close_writer()

    async def kill(self) -> None:
        """End them all now. Idempotent.

        Raises:
            VmmError: one survives SIGKILL.
        """
        # The VMM first: its end is what the others' is put down to.
        failures: list[VmmError] = []
        for process in sorted(self._processes, key=lambda process: process.role != VMM):
            try:
                await process.kill()
            except VmmError as exc:
                failures.append(exc)
        if failures:
            raise failures[0]

    async def close(self) -> None:
        """Kill, and let go of everything in this process. Idempotent."""
        try:
            await self.kill()
        finally:
            if self._orphan_timer is not None:
                self._orphan_timer.cancel()
            for process in self._processes:
                process.close()
            for log in self._logs.values():
                log.close()
            if self._events is not None:
                self._events.close()
            if self._ending is not None:
                self._ending.cancel()
                await asyncio.wait({self._ending})

    def note(self, line: str) -> None:
        """Add a line of ours to the VMM's log."""
        self._open_log(VMM, self.files.vmm_log).note(line)

    async def unless_exited(self, coro: Coroutine[Any, Any, T], deadline: float, late: str) -> T:
        """What `coro` gives, unless a process ends or `deadline` (loop time) passes first.

        A result that comes too late is closed, if it is a socket or the like.

        Raises:
            VmmError: a process ended; carries its own last words.
            DeadlineExceeded: with `late` as its message.
        """
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(coro)
        first: set[asyncio.Future[Any]] = {task, self.exited}
        try:
            await asyncio.wait(
                first,
                timeout=max(0.0, deadline - loop.time()),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if self.exited.done():
                raise self.error()
            if not task.done():
                raise DeadlineExceeded(
                    f"microVM {self.files.microvm_id}: {late}", detail=self.last_words()
                )
            return task.result()
        except BaseException:
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled() and task.exception() is None:
                close = getattr(task.result(), "close", None)
                if close is not None:
                    close()
            raise

    def error(self) -> VmmError:
        """The end of the group as an error, with its last words."""
        self._drain_logs()
        said = ""
        if self.first_exit is not None and self.first_exit.role in self._logs:
            said = last_lines(self._logs[self.first_exit.role].path, 1)
        return VmmError(
            f"microVM {self.files.microvm_id}: {self.first_exit}" + (f": {said}" if said else ""),
            detail=self.last_words(),
        )

    def last_words(self) -> str:
        """The last lines of all logs."""
        texts = {log.path: last_lines(log.path) for log in self._logs.values()}
        return "\n".join(f"{path} ends with:\n{text}" for path, text in texts.items() if text)

    def _open_log(self, name: str, path: Path) -> BoundedLog:
        if name not in self._logs:
            try:
                self._logs[name] = BoundedLog(path)
            except OSError as exc:
                raise from_os_error(exc, f"open the log {path}") from exc
        return self._logs[name]

    def _on_exit(self, process: vmm.VmmProcess) -> None:
        status = process.exited.result()
        if process.role == VMM and self._events is not None:
            self._events.drain()
            if self._ending is not None and not self._ending.done():
                self._ending.add_done_callback(lambda _: self._on_exit(process))
                return
        if process.role == VMM and (self._guest_end or status != -signal.SIGKILL):
            self._take_down(process)  # by itself, whatever a helper made of it before
        elif process.role == VMM or status < 0 or not self.vmm_pid:
            self._take_down_unless_done(process)
        elif self._orphan_timer is None:
            loop = asyncio.get_running_loop()
            self._orphan_timer = loop.call_later(ORPHAN_S, self._take_down_unless_done, process)
        self._finish()

    def _take_down_unless_done(self, cause: vmm.VmmProcess) -> None:
        if self.first_exit is None:
            self._take_down(cause)

    def _take_down(self, cause: vmm.VmmProcess) -> None:
        """Put the end down to `cause`, which has ended, and end the others."""
        self.first_exit = self._describe(cause.role, cause.exited.result())
        for other in self._processes:
            other.send_signal(signal.SIGKILL)
        self._finish()

    def _describe(self, role: str, status: int) -> VmmExit:
        if role == VMM and self._guest_end:  # we ended the VMM, or it could not go on without us
            return VmmExit(role, 0, time.time_ns(), self._guest_end)
        # A VMM that has events and ends by itself does so for a crash, whatever its status.
        crashed = role == VMM and self._events is not None and status == 0
        return VmmExit(role, status, time.time_ns(), CRASHED if crashed else "")

    def _finish(self) -> None:
        if self.first_exit is None or self.exited.done():
            return
        if all(process.exited.done() for process in self._processes):
            self._drain_logs()
            self.exited.set_result(self.first_exit)

    def _drain_logs(self) -> None:
        for log in self._logs.values():
            log.drain()
