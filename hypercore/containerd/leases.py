"""Leases: what is made under one is safe from containerd's garbage collector until it ends."""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hypercore import _process
from hypercore.containerd.client import Client
from hypercore.errors import NotFound
from hypercore.proto.containerd_leases_pb import (
    CreateRequest,
    CreateResponse,
    DeleteRequest,
    Lease,
    Leases,
    ListRequest,
    ListResponse,
)
from hypercore.proto.types_pb import Empty

OWNER_LABEL = "io.hypercore.purpose"
HOLDER_LABEL = "io.hypercore.holder"
"""The process that made the lease, so that cleanup can tell when it is dead."""

MAX_AGE_S = 6 * 3600
"""A lease whose maker was killed ends by itself after this; the longest pull fits in."""


@asynccontextmanager
async def lease(client: Client, purpose: str) -> AsyncIterator[Client]:
    """A client whose objects are held until the block is left.

    On failure or cancellation what nothing else refers to is collected before this returns.

    Args:
        purpose: shown in the lease's label, such as "pull docker.io/library/alpine:latest".
    """
    lease_id = f"hypercore-{uuid.uuid4()}"
    expires = datetime.now(UTC) + timedelta(seconds=MAX_AGE_S)
    labels = {
        "containerd.io/gc.expire": expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
        OWNER_LABEL: purpose[:200],
        HOLDER_LABEL: _holder(os.getpid()),
    }
    request = CreateRequest(id=lease_id, labels=labels)
    try:
        # Inside: a create that was cancelled may have been carried out all the same.
        await client.unary(Leases, "Create", request, CreateResponse)
        yield client.leased(lease_id)
    except BaseException:
        await asyncio.shield(delete(client, lease_id, sync=True))
        raise
    await delete(client, lease_id)


@asynccontextmanager
async def ensure(client: Client, purpose: str) -> AsyncIterator[Client]:
    """The client itself where it already is under a lease, else as `lease`."""
    if client.lease_id:
        yield client
        return
    async with lease(client, purpose) as leased:
        yield leased


async def delete(client: Client, lease_id: str, *, sync: bool = False) -> None:
    """End a lease; idempotent. `sync` also waits for the garbage to be collected."""
    with suppress(NotFound):
        await client.unary(Leases, "Delete", DeleteRequest(id=lease_id, sync=sync), Empty)


async def list_all(client: Client) -> list[Lease]:
    """All leases of the namespace; ours have OWNER_LABEL."""
    return (await client.unary(Leases, "List", ListRequest(), ListResponse)).leases


def is_abandoned(lease: Lease) -> bool:
    """Whether the process that made this lease of ours is dead. Others' leases never are."""
    holder = lease.labels.get(HOLDER_LABEL, "")
    parts = holder.split("/")
    if len(parts) != 4 or not parts[2].isdecimal():
        return False
    boot, namespace, pid, _start_time = parts
    here = _holder(int(pid))
    if boot == here.split("/")[0] and namespace != here.split("/")[1]:
        return False  # a process that we cannot see
    return here != holder


def _holder(pid: int) -> str:
    """Boot, pid namespace, pid and start time: never the same again."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    namespace = os.readlink("/proc/self/ns/pid").removeprefix("pid:")
    return f"{boot_id}/{namespace}/{pid}/{_process.start_time(pid)}"
