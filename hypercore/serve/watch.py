"""What microVMs there are, kept in memory by containerd's events, so that a list costs no calls.

While the subscription is up, records are what containerd said last; while it is not, every reader
asks containerd itself.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing

from hypercore import api_records, inventory
from hypercore.engine import Engine
from hypercore.errors import HypercoreError, NotFound, ResourceExhausted
from hypercore.inventory import ALIVE, Record
from hypercore.observed import EVENT_KINDS, Event
from hypercore.proto import hypercore_pb as pb
from hypercore.wire import json

log = logging.getLogger(__name__)

QUEUED_EVENTS = 1024
"""A watcher that lags more than this is told so and dropped."""
RETRY_S = (0.1, 0.5, 2.0, 5.0)


class Encoded(pb.MicroVM):
    """A MicroVM whose bytes and JSON text are made once."""

    __slots__ = ("data", "json_text")

    def __init__(self, **values: object) -> None:
        super().__init__(**values)  # type: ignore[arg-type]
        self.data = super().encode()
        self.json_text = ""
        self.json_text = json.dumps(self)

    def encode(self) -> bytes:
        return self.data


class Entry:
    """A record and the message made of it."""

    __slots__ = ("message", "record")

    def __init__(self, record: Record) -> None:
        self.record = record
        self.message = api_records.microvm(record, Encoded)


class Watch:
    """The records, and those who want to hear of changes. `run` keeps them until it is cancelled.

    Args:
        ended: called with each record whose task has ended.
    """

    def __init__(self, engine: Engine, *, ended: Callable[[Record], None] | None = None) -> None:
        self._engine = engine
        self._ended = ended or (lambda record: None)
        self._entries: dict[str, Entry] = {}
        self._sorted: list[Entry] | None = None
        self._is_synced = asyncio.Event()
        self._lock = asyncio.Lock()
        self._dirty: set[str] = set()
        self._untold: list[Event] = []
        self._wake = asyncio.Event()
        self._watchers: set[Watcher] = set()

    @property
    def is_synced(self) -> bool:
        return self._is_synced.is_set()

    async def wait_synced(self) -> None:
        """Wait until events are followed, which `run` sees to."""
        await self._is_synced.wait()

    async def entries(self) -> Sequence[Entry]:
        """All microVMs, the newest first.

        Raises:
            Unavailable: containerd does not answer.
        """
        if not self.is_synced:
            return [Entry(record) for record in await self._engine.list()]
        if self._sorted is None:
            self._sorted = sorted(
                self._entries.values(), key=lambda entry: entry.record.created_at, reverse=True
            )
        return self._sorted

    def peek(self) -> Sequence[Record]:
        """What is in memory, for figures."""
        return [entry.record for entry in self._entries.values()]

    async def find(self, wanted: str) -> Entry:
        """By id, id prefix or name; see inventory.find."""
        if self.is_synced and (entry := self._entries.get(wanted)) is not None:
            return entry
        found = await self.entries()
        record = inventory.select([entry.record for entry in found], wanted)
        return next(entry for entry in found if entry.record is record)

    async def refreshed(self, microvm_id: str) -> Entry:
        """The microVM as containerd knows it now.

        Raises:
            NotFound: it is gone.
        """
        if self.is_synced:
            await self._refresh({microvm_id})
            if microvm_id not in self._entries:
                raise NotFound(f"no microVM {microvm_id!r}")
            return self._entries[microvm_id]
        return Entry(await self._engine.find(microvm_id))

    async def gone(self, microvm_id: str) -> None:
        """Note that a microVM was removed."""
        if self.is_synced:
            await self._refresh({microvm_id})

    async def run(self) -> None:
        failures = 0
        async with asyncio.TaskGroup() as group:
            group.create_task(self._refresh_dirty())
            while True:
                try:
                    async with aclosing(self._engine.events()) as events:
                        async for event in events:
                            if event is None:
                                await self._sync()
                                failures = 0
                            else:
                                self._take(event)
                    problem = "its stream ended"
                except HypercoreError as exc:
                    problem = exc.message
                if self.is_synced or failures == 0:
                    log.warning("containerd's events are lost, subscribing again: %s", problem)
                self._is_synced.clear()
                await asyncio.sleep(RETRY_S[min(failures, len(RETRY_S) - 1)])
                failures += 1

    async def _sync(self) -> None:
        async with self._lock:
            records = await inventory.list_all(self._engine.client)
            self._entries = {record.microvm_id: Entry(record) for record in records}
            self._sorted = None
            self._is_synced.set()
        for record in records:
            if record.state not in ALIVE:
                self._ended(record)

    def _take(self, event: Event) -> None:
        self._dirty.add(event.microvm_id)
        if event.kind in EVENT_KINDS:
            self._untold.append(event)
        self._wake.set()

    async def _refresh_dirty(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            dirty, self._dirty = self._dirty, set()
            events, self._untold = self._untold, []
            try:
                await self._refresh(dirty)
            except HypercoreError as exc:
                # The stream breaks next, and a new subscription lists all.
                log.warning("cannot look after %d microVMs: %s", len(dirty), exc)
                self._is_synced.clear()
            # Now: who is told of a change finds it made.
            for event in events:
                for watcher in tuple(self._watchers):
                    watcher.put(event)

    async def _refresh(self, dirty: set[str]) -> None:
        async with self._lock:
            for microvm_id in dirty:
                was = self._entries.get(microvm_id)
                record = await inventory.get(self._engine.client, microvm_id)
                self._sorted = None
                if record is None:
                    self._entries.pop(microvm_id, None)
                    continue
                self._entries[microvm_id] = Entry(record)
                if record.state not in ALIVE and (was is None or was.record.state in ALIVE):
                    self._ended(record)

    async def watcher(self, wanted: str, kinds: Sequence[str]) -> "Watcher":
        """Who gets what happens from now on to microVM `wanted`, or to all; to be closed.

        Raises:
            NotFound: there is no such microVM.
        """
        microvm_id = (await self.find(wanted)).record.microvm_id if wanted else ""
        watcher = Watcher(microvm_id, frozenset(kinds), self._watchers.discard)
        self._watchers.add(watcher)
        return watcher

    def states(self) -> Mapping[tuple[str, str], int]:
        """How many microVMs there are by (state, provider)."""
        counts: dict[tuple[str, str], int] = {}
        for record in self.peek():
            key = str(record.state), record.provider
            counts[key] = counts.get(key, 0) + 1
        return counts


class Watcher:
    """A bounded queue of events for one reader."""

    def __init__(
        self, microvm_id: str, kinds: frozenset[str], forget: "Callable[[Watcher], None]"
    ) -> None:
        self._forget = forget
        self._microvm_id = microvm_id
        self._kinds = kinds
        self._events: deque[Event] = deque()
        self._wake = asyncio.Event()
        self._lost = False

    def put(self, event: Event) -> None:
        if self._microvm_id not in ("", event.microvm_id):
            return
        if self._kinds and event.kind not in self._kinds:
            return
        if len(self._events) < QUEUED_EVENTS:
            self._events.append(event)
        else:
            self._lost = True
        self._wake.set()

    def close(self) -> None:
        self._forget(self)

    async def next(self) -> Event:
        """The next event.

        Raises:
            ResourceExhausted: the reader is too slow, and has had what was kept for it.
        """
        while not self._events:
            if self._lost:
                raise ResourceExhausted(
                    f"this reader of events is more than {QUEUED_EVENTS} behind",
                    hint="list the microVMs, then follow the events again",
                )
            self._wake.clear()
            await self._wake.wait()
        return self._events.popleft()
