"""Attaching to processes, running more of them, waiting for their end.

Output belongs to the shim server: it is read from its stdio socket, and once that is gone from
the log files it left.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hypercore import accounts, logs, oci, paths
from hypercore import attach as stdio
from hypercore.attach import ExitStatus
from hypercore.containerd import containers, snapshots, tasks
from hypercore.containerd.client import Client
from hypercore.errors import DeadlineExceeded, HypercoreError, NotFound, StateError
from hypercore.inventory import ALIVE, Record, State
from hypercore.proto.types_pb import Mount
from hypercore.spec import STDIO_URI
from hypercore.task_errors import from_start

KILL = 9
FORGET_TIMEOUT_S = 2.0
FORGET_ATTEMPTS = 5


class Stdio(Protocol):
    """An attached process, running or ended."""

    terminal: bool

    async def resize(self, rows: int, columns: int) -> None: ...
    async def close_stdin(self) -> None: ...
    async def wait(self) -> ExitStatus: ...


@dataclass(slots=True)
class EndedTask:
    """Stdio of a task whose shim server keeps nothing of it any more: its log and exit code."""

    microvm_id: str
    exit_status: ExitStatus
    terminal: bool
    stdout_fd: int | None
    stderr_fd: int | None

    async def resize(self, rows: int, columns: int) -> None:
        """Nothing to resize."""

    async def close_stdin(self) -> None:
        """Nothing reads."""

    async def wait(self) -> ExitStatus:
        where = paths.MicroVMPaths(self.microvm_id)
        for log_path, fd in (
            (where.stdout_log, self.stdout_fd),
            (where.stderr_log, self.stderr_fd),
        ):
            if fd is not None:
                await asyncio.to_thread(logs.copy, log_path, fd)
        return self.exit_status


@asynccontextmanager
async def attach(
    client: Client,
    record: Record,
    *,
    stdin_fd: int | None,
    stdout_fd: int | None,
    stderr_fd: int | None,
    replay: bool,
) -> AsyncIterator[Stdio]:
    """Join pipe ends to the task's streams; see attach.connect."""
    microvm_id = paths.microvm_id(client.namespace, record.microvm_id)
    connection = stdio.connect(
        paths.MicroVMPaths(microvm_id).stdio_socket,
        namespace=client.namespace,
        task_id=record.microvm_id,
        stdin_fd=stdin_fd,
        stdout_fd=stdout_fd,
        stderr_fd=stderr_fd,
        replay=replay,
    )
    try:
        attached: Stdio = await connection.__aenter__()
    except NotFound:
        status = await _ended(client, record)
        yield EndedTask(
            microvm_id,
            status,
            record.tty,
            stdout_fd if replay else None,
            stderr_fd if replay else None,
        )
        return
    try:
        yield attached
    finally:
        await connection.__aexit__(None, None, None)


async def _ended(client: Client, record: Record) -> ExitStatus:
    """The exit of a task that is not running.

    Raises:
        StateError: it runs, or nothing is known of its end.
    """
    try:
        task = await tasks.get(client, record.microvm_id)
    except NotFound:
        task = None
    if task is not None and task.status == 3:
        return ExitStatus(task.exit_status)
    if task is not None and record.owned:
        raise StateError(
            f"microVM {record.microvm_id} runs, but its shim server does not answer",
            hint=f"`hypercore debug {record.microvm_id[:12]}` shows its console",
        )
    if task is not None:
        raise StateError(
            f"the output of {record.microvm_id} belongs to the client that made it",
            hint="use `ctr task attach`, or that client's own command",
        )
    microvm_id = paths.microvm_id(client.namespace, record.microvm_id)
    status = logs.exit_record(paths.MicroVMPaths(microvm_id))
    if status is None:
        raise StateError(
            f"microVM {record.microvm_id} does not run and left no exit record",
            hint=f"`hypercore logs {record.microvm_id[:12]}` shows its output",
        )
    return status


async def wait(client: Client, record: Record) -> ExitStatus:
    if record.state not in ALIVE:
        return await _ended(client, record)
    try:
        return ExitStatus((await tasks.wait(client, record.microvm_id)).exit_status)
    except NotFound:
        return await _ended(client, record)


@dataclass(slots=True)
class Exec:
    """A process that `start` will run in a microVM."""

    client: Client
    record: Record
    exec_id: str
    tty: bool
    is_left_running: bool = False

    def leave_running(self) -> None:
        """Leaving the context does not end it then."""
        self.is_left_running = True

    async def start(self) -> None:
        """Run it.

        Raises:
            TaskError: the command cannot be run.
        """
        try:
            await tasks.start(self.client, self.record.microvm_id, self.exec_id)
        except HypercoreError as exc:
            raise from_start(exc) from exc

    async def kill(self, signal: int = KILL) -> None:
        with suppress(NotFound, StateError):
            await tasks.kill(self.client, self.record.microvm_id, signal, self.exec_id)

    def attach(
        self,
        stdin_fd: int | None = None,
        stdout_fd: int | None = None,
        stderr_fd: int | None = None,
    ) -> AbstractAsyncContextManager[stdio.StdioConnection]:
        """Join pipe ends to its streams; do it before `start`, for an exec has no log."""
        microvm_id = paths.microvm_id(self.client.namespace, self.record.microvm_id)
        return stdio.connect(
            paths.MicroVMPaths(microvm_id).stdio_socket,
            namespace=self.client.namespace,
            task_id=self.record.microvm_id,
            exec_id=self.exec_id,
            stdin_fd=stdin_fd,
            stdout_fd=stdout_fd,
            stderr_fd=stderr_fd,
        )


@asynccontextmanager
async def exec_in(
    client: Client,
    record: Record,
    args: Sequence[str],
    *,
    env: Sequence[str],
    workdir: str,
    user: str,
    stdin: bool,
    tty: bool,
) -> AsyncIterator[Exec]:
    if record.state is not State.RUNNING:
        raise StateError(
            f"microVM {record.microvm_id} is {record.state}, not running",
            hint=f"`hypercore start {record.microvm_id[:12]}` starts it"
            if record.state not in ALIVE
            else "",
        )
    container = await containers.get(client, record.microvm_id)
    mounts = await snapshots.mounts(client, container.snapshot_key) if user else ()
    process = oci.exec_process(
        containers.spec_of(container)["process"],
        args,
        env=env,
        workdir=workdir,
        user=await resolve_user(user, mounts) if user else None,
        tty=tty,
    )
    exec_id = f"exec-{uuid.uuid4().hex[:16]}"
    try:
        await tasks.add_exec(
            client,
            record.microvm_id,
            exec_id,
            process,
            stdin=STDIO_URI if stdin or tty else "",
            stdout=STDIO_URI,
            stderr="" if tty else STDIO_URI,
            terminal=tty,
        )
    except HypercoreError as exc:
        raise from_start(exc) from exc
    process_in_guest = Exec(client, record, exec_id, tty)
    try:
        yield process_in_guest
    finally:
        if not process_in_guest.is_left_running:
            await _forget(process_in_guest)


async def resolve_user(user: str, mounts: Sequence[Mount]) -> oci.Document:
    """The OCI user that `user` is in the image whose snapshot has these `mounts`.

    Raises:
        InvalidArgument: the image has no such user.
    """
    found = accounts.Accounts()
    if accounts.are_needed(user) and mounts:
        found = await accounts.read(Path(mounts[0].source))
    return found.resolve(user)


async def _forget(process: Exec) -> None:
    """End and forget an exec. Its end was told already, so failures here tell nothing new."""
    client, task_id, exec_id = process.client, process.record.microvm_id, process.exec_id
    with suppress(HypercoreError):
        for _attempt in range(FORGET_ATTEMPTS):
            # A start that was given up may still be under way: then there is nothing to kill yet.
            await process.kill()
            with suppress(DeadlineExceeded):
                await tasks.wait(client, task_id, exec_id, timeout_s=FORGET_TIMEOUT_S)
                break
    with suppress(HypercoreError):
        await tasks.delete(client, task_id, exec_id)
