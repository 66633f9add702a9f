"""Task events for containerd: queued in order, forwarded over its ttrpc socket, kept while it is
away.

The order of a task's events is the order of `publish`; who calls it sees to create < start < exit
< delete. Not for our own subscribers.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque

from hypercore.errors import HypercoreError, Unavailable
from hypercore.proto import events_forward_pb, task_events_pb
from hypercore.proto.containerd_types_pb import Envelope
from hypercore.proto.types_pb import Any, Empty, Timestamp
from hypercore.wire.codec import Message
from hypercore.wire.ttrpc import Client

logger = logging.getLogger(__name__)

MAX_QUEUED = 10_000
FORWARD_TIMEOUT_S = 5.0
RETRY_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)

_TOPICS: dict[type[Message], str] = {
    task_events_pb.TaskCreate: "/tasks/create",
    task_events_pb.TaskStart: "/tasks/start",
    task_events_pb.TaskExit: "/tasks/exit",
    task_events_pb.TaskDelete: "/tasks/delete",
    task_events_pb.TaskExecAdded: "/tasks/exec-added",
    task_events_pb.TaskExecStarted: "/tasks/exec-started",
    task_events_pb.TaskPaused: "/tasks/paused",
    task_events_pb.TaskResumed: "/tasks/resumed",
    task_events_pb.TaskOOM: "/tasks/oom",
}


def timestamp(unix_ns: int) -> Timestamp:
    """`unix_ns` for containerd, to which 0 is the year 1 and not 1970."""
    if unix_ns == 0:
        return Timestamp(seconds=-62135596800)
    return Timestamp(seconds=unix_ns // 1_000_000_000, nanos=unix_ns % 1_000_000_000)


class Publisher:
    """Forwards the events of one containerd namespace.

    Args:
        address: of containerd's ttrpc socket, with or without `unix://`; empty: nobody listens.
    """

    def __init__(self, address: str, namespace: str) -> None:
        self._path = address.removeprefix("unix://")
        self._namespace = namespace
        self._metadata = ((b"containerd-namespace-ttrpc", namespace.encode()),)
        self._queue: deque[Envelope] = deque()
        self._queued = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._client: Client | None = None
        self._worker: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._path:
            self._worker = asyncio.get_running_loop().create_task(self._run())

    def publish(self, event: Message) -> None:
        """Queue `event`; never waits."""
        if not self._path:
            return
        if len(self._queue) >= MAX_QUEUED:
            dropped = self._queue.popleft()
            logger.error("more than %d events wait: dropped %s", MAX_QUEUED, dropped.topic)
        self._queue.append(
            Envelope(
                timestamp=timestamp(time.time_ns()),
                namespace=self._namespace,
                topic=_TOPICS[type(event)],
                event=Any(
                    type_url=f"containerd.events.{type(event).__name__}", value=event.encode()
                ),
            )
        )
        self._empty.clear()
        self._queued.set()

    async def close(self, flush_s: float = FORWARD_TIMEOUT_S) -> None:
        """Forward what is queued, for at most `flush_s`, and disconnect."""
        if self._worker is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(flush_s):
                await self._empty.wait()
        self._worker.cancel()
        await asyncio.wait([self._worker])
        if self._client is not None:
            self._client.close()
            await self._client.closed

    async def _run(self) -> None:
        failures = 0
        while True:
            await self._queued.wait()
            envelope = self._queue[0]
            try:
                await self._forward(envelope)
                failures = 0
            except Unavailable as exc:
                # containerd restarts: the event waits, and all behind it.
                if failures == 0:
                    logger.warning("events wait for containerd: %s", exc)
                await asyncio.sleep(RETRY_S[min(failures, len(RETRY_S) - 1)])
                failures += 1
                continue
            except HypercoreError as exc:
                logger.error("containerd refused event %s: %s", envelope.topic, exc)
            # publish() may have dropped this one meanwhile.
            if self._queue and self._queue[0] is envelope:
                self._queue.popleft()
            if not self._queue:
                self._queued.clear()
                self._empty.set()

    async def _forward(self, envelope: Envelope) -> None:
        if self._client is None or self._client.closed.done():
            self._client = await Client.connect(self._path)
        await self._client.request(
            events_forward_pb.Events.NAME,
            "Forward",
            events_forward_pb.ForwardRequest(envelope=envelope),
            Empty,
            timeout_s=FORWARD_TIMEOUT_S,
            metadata=self._metadata,
        )
