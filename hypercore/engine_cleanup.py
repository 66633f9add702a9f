"""Ending the task of one microVM, and removing all of it, whatever its state.

Every step is idempotent and none needs the guest. What belongs to a spawn in progress is told by
a lock that dies with its process: `spawn_lock`. Finding what crashes left is engine_orphans.py's.
"""

import asyncio
import fcntl
import logging
import os
import shutil
import signal as signals
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from hypercore import inventory, paths, reclaim, slots
from hypercore.containerd import containers, snapshots, tasks
from hypercore.containerd.client import Client
from hypercore.errors import (
    DeadlineExceeded,
    HypercoreError,
    NotFound,
    StateError,
    Unavailable,
    from_os_error,
)
from hypercore.inventory import Record
from hypercore.signal_names import signal_number

log = logging.getLogger(__name__)

KILL_TIMEOUT_S = 20.0
RECLAIM_TIMEOUT_S = 5.0
LOCK_TIMEOUT_S = 180.0
"""Longer than a boot is given by default."""
LOCK_RETRY_S = 0.05


@asynccontextmanager
async def spawn_lock(where: paths.MicroVMPaths) -> AsyncIterator[None]:
    """Make the microVM's data directory and hold its lock while the microVM is set up.

    Raises:
        DeadlineExceeded: another process has been setting it up for LOCK_TIMEOUT_S.
    """
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    try:
        # Nothing but a blocked thread could wait for a flock, and nothing could end that thread.
        while (fd := _try_lock(where)) < 0:
            if time.monotonic() > deadline:
                raise DeadlineExceeded(
                    f"microVM {where.microvm_id} is being set up by another process",
                    hint="`hypercore list` shows it once that has ended",
                )
            await asyncio.sleep(LOCK_RETRY_S)
    except OSError as exc:
        raise from_os_error(exc, f"make {where.data}") from exc
    try:
        yield
    finally:
        os.close(fd)


def _try_lock(where: paths.MicroVMPaths) -> int:
    """An fd that holds the lock; -1 if another process has it."""
    while True:
        where.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(where.data, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A cleanup may have removed the directory before it was locked.
            if os.fstat(fd).st_nlink > 0 and where.data.samefile(f"/proc/self/fd/{fd}"):
                return fd
        except FileNotFoundError:
            pass
        except BlockingIOError:
            os.close(fd)
            return -1
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def is_being_spawned(microvm_id: str) -> bool:
    """Whether a living process sets this microVM up."""
    try:
        fd = os.open(paths.MicroVMPaths(microvm_id).data, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


async def end_task(client: Client, task_id: str) -> bool:
    """Kill and forget the task; whether there was one.

    Raises:
        DeadlineExceeded: the shim did not report its end in time.
    """
    try:
        # NotFound is also what a process that has just ended gets (containerd's own convention):
        # its task is still there, and so may its VM be for a moment.
        with suppress(StateError, NotFound):
            await tasks.kill(client, task_id, signals.SIGKILL, everything=True)
        await tasks.wait(client, task_id, timeout_s=KILL_TIMEOUT_S)
        await tasks.delete(client, task_id)
    except NotFound:
        # No task, or only its shim was left: containerd forgets that one by a second delete.
        with suppress(HypercoreError):
            await tasks.delete(client, task_id)
            return True
        return False
    except DeadlineExceeded:
        raise
    except Unavailable:
        await _until_forgotten(client, task_id)
    return True


async def _until_forgotten(client: Client, task_id: str) -> None:
    """Wait while containerd, whose connection to the shim broke, cleans up after it."""
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while True:
        try:
            await tasks.delete(client, task_id)
        except NotFound:
            return
        except DeadlineExceeded:
            raise
        except (Unavailable, StateError):
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)
        else:
            return


async def stop_task(client: Client, record: Record, grace_s: float, signal: int = 0) -> None:
    """Ask the task to end by `signal` (0: its stop signal), kill it after `grace_s`."""
    with suppress(NotFound, StateError):
        number = signal or signal_number(record.stop_signal or "TERM")
        await tasks.kill(client, record.microvm_id, number)
    if record.state is inventory.State.PAUSED:
        with suppress(HypercoreError):
            await tasks.resume(client, record.microvm_id)
    try:
        await tasks.wait(client, record.microvm_id, timeout_s=max(grace_s, 0.05))
        return
    except NotFound:
        return
    except DeadlineExceeded:
        pass
    with suppress(NotFound, StateError):
        await tasks.kill(client, record.microvm_id, signals.SIGKILL, everything=True)
    with suppress(NotFound):
        await tasks.wait(client, record.microvm_id, timeout_s=KILL_TIMEOUT_S)


async def end_task_quietly(client: Client, task_id: str) -> None:
    """Undo of a task's creation, also of one that was cancelled half-way; failures are logged."""
    await _quietly(f"end task {task_id}", end_task(client, task_id))


async def discard_run_state(where: paths.MicroVMPaths) -> None:
    """Undo: kill what still runs of a microVM and release what it held; the disk stays."""
    await _quietly(f"reclaim {where.microvm_id}", reclaim_until_gone(where.microvm_id))


async def reclaim_until_gone(microvm_id: str) -> None:
    """Reclaim while the shim server may be at it too; each can be in the other's way for a moment.

    Raises:
        HypercoreError: something was still there after RECLAIM_TIMEOUT_S.
    """
    deadline = time.monotonic() + RECLAIM_TIMEOUT_S
    while True:
        try:
            await asyncio.to_thread(reclaim.reclaim, microvm_id)
        except HypercoreError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)
        else:
            return


async def discard_state(where: paths.MicroVMPaths) -> None:
    """As discard_run_state, and remove disk and logs."""
    await discard_run_state(where)
    await _quietly(f"remove {where.data}", asyncio.to_thread(remove_tree, where.data))


async def delete_microvm(client: Client, task_id: str) -> list[str]:
    """Remove all of a microVM, whatever its state; what there was, one line each."""
    microvm_id = paths.microvm_id(client.namespace, task_id)
    where = paths.MicroVMPaths(microvm_id)
    done: list[str] = []
    failures: list[HypercoreError] = []

    async def step(what: str, work: Awaitable[object]) -> None:
        try:
            if await work:
                done.append(f"{what} {task_id}")
        except HypercoreError as exc:
            failures.append(exc)

    await step("task", end_task(client, task_id))
    await step("state", _reclaim(where))
    await step("container", _delete_container(client, task_id))
    await step("snapshot", _remove_snapshot(client, task_id))
    await step("data", asyncio.to_thread(remove_tree, where.data))
    if failures:
        first, *others = failures
        for other in others:
            log.warning("cleanup of %s: %s", task_id, other)
        raise first
    return done


async def _reclaim(where: paths.MicroVMPaths) -> bool:
    existed = where.run.exists() or where.microvm_id in slots.owners().values()
    await reclaim_until_gone(where.microvm_id)
    return existed


async def _delete_container(client: Client, container_id: str) -> bool:
    try:
        await containers.get(client, container_id)
    except NotFound:
        return False
    await containers.delete(client, container_id)
    return True


async def _remove_snapshot(client: Client, key: str) -> bool:
    if await snapshots.stat(client, key) is None:
        return False
    await snapshots.remove(client, key)
    return True


def remove_tree(path: Path) -> bool:
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return False
    except OSError as exc:
        raise from_os_error(exc, f"remove {path}") from exc
    return True


async def _quietly(what: str, work: Awaitable[object]) -> None:
    try:
        await work
    except HypercoreError as exc:
        log.warning("could not %s: %s", what, exc)
