"""The heartbeat over a real connection whose other end says nothing, or answers."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Iterator

import pytest

from hypercore import agent_client, heartbeat
from hypercore.agent_client import AgentClient
from hypercore.errors import Unavailable

DEADLINE_S = 20


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Host's and guest's end of a connection; seconds are shortened to milliseconds."""
    monkeypatch.setattr(heartbeat, "INTERVAL_S", 0.01)
    monkeypatch.setattr(heartbeat, "SILENCE_S", 0.05)
    monkeypatch.setattr(agent_client, "QUICK_S", 0.02)
    host, other = socket.socketpair()
    host.setblocking(False)
    other.setblocking(False)
    with contextlib.closing(host), contextlib.closing(other):
        yield host, other


async def answer(other: socket.socket, count: int) -> None:
    """Answer so many requests with an empty response, whatever they ask."""
    loop = asyncio.get_running_loop()
    received = b""
    while count:
        received += await loop.sock_recv(other, 4096)
        while len(received) >= 10:
            length, stream = struct.unpack_from(">II", received)
            if len(received) < 10 + length:
                break
            received = received[10 + length :]
            await loop.sock_sendall(other, struct.pack(">IIBB", 0, stream, 2, 0))
            count -= 1


def test_a_silent_guest_ends_the_waits(guest: tuple[socket.socket, socket.socket]) -> None:
    async def body() -> None:
        notes: list[str] = []
        agent = await AgentClient.over(guest[0])
        waiting = asyncio.ensure_future(agent.wait("c1"))
        await heartbeat.watch(agent, lambda: True, notes.append)
        with pytest.raises(Unavailable):
            await waiting
        assert len(notes) == 1
        assert agent.closed.done()

    asyncio.run(asyncio.wait_for(body(), DEADLINE_S))


def test_a_paused_guest_may_be_silent(guest: tuple[socket.socket, socket.socket]) -> None:
    async def body() -> None:
        notes: list[str] = []
        looks = asyncio.Semaphore(0)

        def running() -> bool:
            looks.release()
            return False

        agent = await AgentClient.over(guest[0])
        watching = asyncio.ensure_future(heartbeat.watch(agent, running, notes.append))
        for _ in range(20):
            await looks.acquire()
        assert not watching.done()
        assert not agent.closed.done()
        assert notes == []
        watching.cancel()
        agent.close()

    asyncio.run(asyncio.wait_for(body(), DEADLINE_S))


def test_a_guest_that_answers_is_left_alone(guest: tuple[socket.socket, socket.socket]) -> None:
    async def body() -> None:
        agent = await AgentClient.over(guest[0])
        watching = asyncio.ensure_future(heartbeat.watch(agent, lambda: True, pytest.fail))
        await answer(guest[1], 20)
        assert not watching.done()
        guest[1].shutdown(socket.SHUT_RDWR)
        await watching

    asyncio.run(asyncio.wait_for(body(), DEADLINE_S))
