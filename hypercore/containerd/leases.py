"""Leases: what is made under one is safe from containerd's garbage collector until it ends."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

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
