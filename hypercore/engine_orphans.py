"""Finding and reclaiming what crashes have left: of the CLI, a shim server, a VMM, the host.

Spawns go on meanwhile, in other processes. Whatever is looked at is therefore looked at in this
order: what is there, whether a living process sets it up, whether containerd knows it. A spawn
that ends in between is known by then.
"""

import asyncio
import logging
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from hypercore import inventory, paths, shim_servers, slots
from hypercore.containerd import containers, leases, namespaces, snapshots, tasks
from hypercore.containerd.client import Client
from hypercore.engine_cleanup import (
    delete_microvm,
    end_task,
    is_being_spawned,
    reclaim_until_gone,
    remove_tree,
)
from hypercore.errors import (
    DeadlineExceeded,
    HypercoreError,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from hypercore.inventory import ALIVE, Record, State

log = logging.getLogger(__name__)

AT_ONCE = 8


async def cleanup(client: Client, *, everything: bool = False) -> list[str]:
    """Reclaim all of ours that is dead or that nothing refers to; what it was, one line each.

    Dead is a microVM without a task: its shim died, the host was rebooted, or its spawn never
    came to an end. The last goes altogether; the others lose what they held while they ran and
    keep disk and logs until `rm`, as ended ones do.

    Args:
        everything: remove all microVMs, also those that run or have ended, and end the shim
            servers then.

    Raises:
        HypercoreError: the first of what could not be reclaimed; the others are logged.
    """
    done: list[str] = []
    failures: list[HypercoreError] = []
    places = asyncio.Semaphore(AT_ONCE)

    async def delete(record: Record) -> None:
        async with places:
            try:
                if everything:
                    done.extend(await delete_microvm(client, record.microvm_id))
                elif await _is_dead(client, record):
                    done.extend(await _reclaim_dead(client, record))
            except HypercoreError as exc:
                failures.append(exc)

    candidates = [
        record
        for record in await inventory.list_all(client)
        if record.owned
        and (everything or record.state is State.STOPPED or _is_to_be_removed(record))
        and not is_being_spawned(paths.microvm_id(client.namespace, record.microvm_id))
    ]
    await asyncio.gather(*map(delete, candidates))
    steps = [_reclaim_orphans, _remove_orphan_snapshots, _end_abandoned_leases]
    if everything:
        steps.append(_end_idle_servers)
    for step in steps:
        try:
            done += await step(client)
        except HypercoreError as exc:
            failures.append(exc)
    for failure in failures[1:]:
        log.warning("cleanup: %s", failure)
    if failures:
        raise failures[0]
    return done


async def has_ended(client: Client, record: Record) -> bool:
    """Whether a microVM that is to be removed once ended has: it is past its setting up."""
    return (
        _is_to_be_removed(record)
        and not is_being_spawned(paths.microvm_id(client.namespace, record.microvm_id))
        and await _is_dead(client, record)
    )


def _is_to_be_removed(record: Record) -> bool:
    return record.remove and record.state not in ALIVE


async def _reclaim_dead(client: Client, record: Record) -> list[str]:
    where = paths.MicroVMPaths(paths.microvm_id(client.namespace, record.microvm_id))
    if record.remove or not where.timings.exists():  # the shim writes those once it has booted
        return await delete_microvm(client, record.microvm_id)
    await end_task(client, record.microvm_id)
    if not where.run.exists():
        return []
    await reclaim_until_gone(where.microvm_id)
    return [f"run state of {record.microvm_id}"]


async def _is_dead(client: Client, record: Record) -> bool:
    """Whether it still is; since it was listed, its spawn may have come to its end."""
    try:
        task = await tasks.get(client, record.microvm_id)
    except DeadlineExceeded:
        raise
    except (NotFound, Unavailable):  # no task, or no shim server any more
        return True
    return record.remove and inventory.state_of(task) not in ALIVE


async def _reclaim_orphans(client: Client) -> list[str]:
    """Run and data directories, processes, slots and network elements of nobody."""
    from hypercore import network

    candidates = {name for name in _traces() if not is_being_spawned(name)}
    known = await _known_ids(client)
    done = []
    for microvm_id in sorted(candidates - known):
        await reclaim_until_gone(microvm_id)
        await asyncio.to_thread(remove_tree, paths.MicroVMPaths(microvm_id).data)
        done.append(f"orphan {microvm_id}")
    await asyncio.to_thread(network.reclaim_all, _Live(known))
    return done


class _Live(Collection[str]):
    """Ids of containers and of microVMs that are being set up, as of the moment of asking."""

    def __init__(self, known: set[str]) -> None:
        self._known = known

    def __contains__(self, microvm_id: object) -> bool:
        return microvm_id in self._known or microvm_id in _traces()

    def __iter__(self) -> Iterator[str]:
        return iter(self._known | _traces())

    def __len__(self) -> int:
        return len(self._known | _traces())


async def _known_ids(client: Client) -> set[str]:
    """microVM ids of the containers of every namespace; other clients' count too."""
    known: set[str] = set()
    for namespace in await namespaces.list_names(client):
        async with Client(client.socket, namespace) as other:
            for container in await containers.list_all(other):
                known.add(paths.microvm_id(namespace, container.id))
    return known


def _traces() -> set[str]:
    """Ids of all microVMs of which this host has anything."""
    some = paths.MicroVMPaths("x")
    found = {path.name for root in (some.run.parent, some.data.parent) for path in _entries(root)}
    return found | set(slots.owners().values())


def _entries(directory: Path) -> Sequence[Path]:
    try:
        return list(directory.iterdir())
    except FileNotFoundError:
        return ()


async def _remove_orphan_snapshots(client: Client) -> list[str]:
    candidates = [
        info.name
        for info in await snapshots.list_all(client)
        if info.labels.get(inventory.LABEL_OWNER) == inventory.OWNER
        and not is_being_spawned(paths.microvm_id(client.namespace, info.name))
    ]
    known = {container.snapshot_key for container in await containers.list_all(client)}
    done = []
    for name in candidates:
        if name not in known:
            await snapshots.remove(client, name)
            done.append(f"snapshot {name}")
    return done


async def _end_abandoned_leases(client: Client) -> list[str]:
    done = []
    for lease in await leases.list_all(client):
        if leases.is_abandoned(lease):
            await leases.delete(client, lease.id, sync=True)
            done.append(f"lease {lease.id}")
    return done


async def _end_idle_servers(client: Client) -> list[str]:
    return await shim_servers.end_idle()


def orphan_id(text: str) -> str:
    """The id that `text` is or begins, of state that containerd knows nothing of; "": none.

    Raises:
        InvalidArgument: several begin so, or it can be no id.
    """
    if not text or "/" in text or text.startswith("."):
        raise InvalidArgument(f"{text!r} is no microVM id")
    matches = sorted(name for name in _traces() if name.startswith(text))
    if text in matches:
        return text
    if len(matches) > 1:
        raise InvalidArgument(f"{text!r} is ambiguous: " + ", ".join(matches))
    return matches[0] if matches else ""
