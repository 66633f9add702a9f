"""What happens to microVMs, as containerd tells it: a stream of Events.

Subscribing to containerd is not acknowledged, so that nobody could tell an early event from a lost
one: `subscribe` publishes marks of its own until it sees one come back.
"""

import asyncio
import typing
import uuid
from collections.abc import AsyncGenerator
from contextlib import suppress

from hypercore.containerd.client import Client
from hypercore.errors import DeadlineExceeded, HypercoreError
from hypercore.inventory import seconds
from hypercore.observed import Event
from hypercore.proto import task_events_pb
from hypercore.proto.containerd_events_pb import Events, PublishRequest, SubscribeRequest
from hypercore.proto.containerd_types_pb import Envelope
from hypercore.proto.types_pb import Any, Empty
from hypercore.wire.codec import DecodeError

MARK_TOPIC = "/hypercore/mark"
MARK_EACH_S = 0.1
MARK_TIMEOUT_S = 10.0

_KINDS = {
    "/containers/create": "created",
    "/containers/delete": "deleted",
    "/containers/update": "updated",
    "/tasks/start": "started",
    "/tasks/exit": "exited",
    "/tasks/paused": "paused",
    "/tasks/resumed": "resumed",
    "/tasks/oom": "oom",
    "/tasks/delete": "forgotten",
}
"""Users are told of observed.EVENT_KINDS; the others only change what a list shows."""


async def subscribe(client: Client) -> AsyncGenerator[Event | None, None]:
    """All events of the client's namespace; the first item is None: from then on none is missed.

    Raises:
        Unavailable: containerd went away.
    """
    token = uuid.uuid4().hex
    filters = [f"namespace=={client.namespace}"]
    stream = client.stream(
        Events, "Subscribe", SubscribeRequest(filters=filters), Envelope, timeout_s=None
    )
    marking = asyncio.create_task(_mark(client, token))
    pending: asyncio.Future[Envelope] = asyncio.ensure_future(anext(stream))
    try:
        while not await _is_mark(pending, marking, token):
            pending = asyncio.ensure_future(anext(stream))
        marking.cancel()
        yield None
        async for envelope in stream:
            if (event := parse(envelope)) is not None:
                yield event
    finally:
        marking.cancel()
        pending.cancel()
        with suppress(asyncio.CancelledError, StopAsyncIteration, HypercoreError):
            await pending
        await stream.aclose()


async def _is_mark(
    pending: "asyncio.Future[Envelope]", marking: "asyncio.Task[None]", token: str
) -> bool:
    both: set[asyncio.Future[typing.Any]] = {pending, marking}
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if not pending.done():
        await marking  # it ends only by failing
    envelope = await pending
    return (
        envelope.topic == MARK_TOPIC
        and envelope.event is not None
        and (envelope.event.type_url == token)
    )


async def _mark(client: Client, token: str) -> None:
    request = PublishRequest(topic=MARK_TOPIC, event=Any(type_url=token, value=b""))
    with suppress(TimeoutError):
        async with asyncio.timeout(MARK_TIMEOUT_S):
            while True:
                await client.unary(Events, "Publish", request, Empty)
                await asyncio.sleep(MARK_EACH_S)
    raise DeadlineExceeded(f"containerd passed no event on within {MARK_TIMEOUT_S:g} s")


def parse(envelope: Envelope) -> Event | None:
    """The event in an envelope; None for what concerns no microVM, such as an exec's end."""
    kind = _KINDS.get(envelope.topic)
    if kind is None or envelope.event is None:
        return None
    at, value = seconds(envelope.timestamp), envelope.event.value
    try:
        if kind == "exited":
            ended = task_events_pb.TaskExit.decode(value)
            if ended.id != ended.container_id:
                return None
            return Event(kind, ended.container_id, at, ended.exit_status)
        if kind == "forgotten":
            gone = task_events_pb.TaskDelete.decode(value)
            return Event(kind, gone.container_id, at) if not gone.id else None
        # All others begin with the container's id as field 1.
        return Event(kind, task_events_pb.TaskOOM.decode(value).container_id, at)
    except DecodeError:
        return None
