"""Pausing a running microVM, and what it uses."""

import time

from hypercore.containerd import tasks
from hypercore.containerd.client import Client
from hypercore.errors import NotFound, StateError
from hypercore.inventory import Record, State
from hypercore.observed import Usage
from hypercore.proto.cgroup_stats_pb import Metrics
from hypercore.wire.codec import DecodeError


async def pause(client: Client, record: Record) -> None:
    """Stop the microVM's processors; idempotent.

    Raises:
        StateError: it does not run.
    """
    if record.state is State.PAUSED:
        return
    _require(record, State.RUNNING)
    await tasks.pause(client, record.microvm_id)


async def resume(client: Client, record: Record) -> None:
    """Let a paused microVM go on; idempotent.

    Raises:
        StateError: it has ended.
    """
    if record.state is State.RUNNING:
        return
    _require(record, State.PAUSED)
    await tasks.resume(client, record.microvm_id)


async def usage(client: Client, record: Record) -> Usage:
    """What a running microVM's container uses now.

    Raises:
        StateError: it does not run.
    """
    _require(record, State.RUNNING)
    try:
        found = await tasks.metrics(client, record.microvm_id)
    except NotFound:
        found = []
    data = found[0].data if found else None
    if data is None:
        raise StateError(f"microVM {record.microvm_id} has just ended")
    try:
        metrics = Metrics.decode(data.value)
    except DecodeError as exc:
        raise StateError(f"microVM {record.microvm_id} tells nothing of its use: {exc}") from exc
    cpu, memory, pids, events = metrics.cpu, metrics.memory, metrics.pids, metrics.memory_events
    return Usage(
        at=time.time(),
        cpu_us=cpu.usage_usec if cpu else 0,
        memory_bytes=memory.usage if memory else 0,
        memory_limit_bytes=memory.usage_limit if memory else 0,
        processes=pids.current if pids else 0,
        oom_kills=events.oom_kill if events else 0,
    )


def _require(record: Record, wanted: State) -> None:
    if record.state is not wanted:
        raise StateError(
            f"microVM {record.microvm_id} is {record.state}, not {wanted}",
            hint=f"`hypercore start {record.microvm_id[:12]}` starts it"
            if record.state in (State.EXITED, State.STOPPED)
            else "",
        )
