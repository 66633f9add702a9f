"""Events reach containerd in order, also over its restart."""

import asyncio
import contextlib
import socket

import uvloop

from hypercore.errors import InvalidArgument
from hypercore.proto import task_events_pb as events
from hypercore.proto.events_forward_pb import Events
from hypercore.proto.types_pb import Empty
from hypercore.shim.events import Publisher, timestamp
from hypercore.wire.ttrpc import Server


@contextlib.asynccontextmanager
async def containerd(path, handler):
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    server = Server()
    server.add(Events.NAME, Events.METHODS, {"Forward": handler})
    await server.serve(listener)
    try:
        yield
    finally:
        await server.close()


def test_order_over_a_restart(tmp_path):
    path = tmp_path / "s"
    got = []
    arrived = asyncio.Event()

    def forward(request):
        envelope = request.envelope
        got.append((envelope.topic, envelope.namespace, envelope.event.type_url))
        arrived.set()
        return Empty()

    async def main():
        publisher = Publisher(f"unix://{path}", "ns")
        publisher.start()
        publisher.publish(events.TaskCreate(container_id="a"))
        async with containerd(path, forward):
            await arrived.wait()
        publisher.publish(events.TaskStart(container_id="a"))
        publisher.publish(events.TaskExit(container_id="a"))
        arrived.clear()
        async with containerd(path, forward):
            await arrived.wait()
            publisher.publish(events.TaskDelete(container_id="a"))
            await publisher.close()

    uvloop.run(main())
    assert [topic for topic, _, _ in got] == [
        "/tasks/create",
        "/tasks/start",
        "/tasks/exit",
        "/tasks/delete",
    ]
    assert {namespace for _, namespace, _ in got} == {"ns"}
    assert got[2][2] == "containerd.events.TaskExit"


def test_a_refused_event_does_not_hold_up_the_next(tmp_path):
    got = []

    def forward(request):
        got.append(request.envelope.topic)
        if len(got) == 1:
            raise InvalidArgument("no")
        return Empty()

    async def main():
        async with containerd(tmp_path / "s", forward):
            publisher = Publisher(str(tmp_path / "s"), "ns")
            publisher.start()
            publisher.publish(events.TaskPaused(container_id="a"))
            publisher.publish(events.TaskResumed(container_id="a"))
            await publisher.close()

    uvloop.run(main())
    assert got == ["/tasks/paused", "/tasks/resumed"]


def test_close_does_not_wait_for_a_containerd_that_is_away(tmp_path):
    async def main():
        publisher = Publisher(str(tmp_path / "s"), "ns")
        publisher.start()
        publisher.publish(events.TaskOOM(container_id="a"))
        await publisher.close(flush_s=0.01)

    uvloop.run(main())


def test_time_of_containerd():
    assert timestamp(0).seconds == -62135596800
    assert (timestamp(1_500_000_000).seconds, timestamp(1_500_000_000).nanos) == (1, 500_000_000)
