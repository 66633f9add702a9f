"""The pump's whole life as one scenario: an output to a log and a client, one to a pipe, an input.

The pump runs in a thread of its own, and a fault there ends in an event, not in an exception:
bytes may be missing only where an event told so.
"""

import contextlib
import os
import select
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from hypercore import _pump, _pumploop
from hypercore._pump import Event, Pump

ROOMS = (_pump, _pumploop)

DEADLINE_S = 20.0
DATA = bytes(range(251)) * 1200
"""more than the pipes and sockets hold, so that streams block and become bulk"""
TELLING = frozenset({Event.ERROR, Event.LOG_ERROR, Event.DST_GONE, Event.CLIENT_DROPPED})


@contextlib.contextmanager
def ready() -> Iterator[Callable[[], None]]:
    yield _run


@dataclass(slots=True)
class _Ends:
    """The other sides of what the pump holds: each is written or read by a thread of its own."""

    threads: list[threading.Thread] = field(default_factory=list)
    sockets: list[socket.socket] = field(default_factory=list)
    received: dict[str, bytes] = field(default_factory=dict)

    def guest(self) -> tuple[socket.socket, int]:
        """(the guest's end, an fd for the pump)"""
        inside, outside = socket.socketpair()
        self.sockets.append(inside)
        return inside, outside.detach()

    def send(self, end: socket.socket | int) -> None:
        self._start(lambda: _send(end))

    def receive(self, name: str, fd: int) -> None:
        self._start(lambda: self.received.__setitem__(name, _receive(fd)))

    def close(self) -> None:
        for end in self.sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(DEADLINE_S)
            assert not thread.is_alive(), "an end never saw the other close"
        for end in self.sockets:
            end.close()

    def _start(self, work: Callable[[], None]) -> None:
        self.threads.append(threading.Thread(target=work, daemon=True))
        self.threads[-1].start()


def _send(end: socket.socket | int) -> None:
    """All of DATA, small pieces first, unless the other side goes; then the end."""
    pieces = [DATA[:10], DATA[10:3000], DATA[3000:]]
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for piece in pieces:
            if isinstance(end, int):
                while piece:
                    piece = piece[os.write(end, piece) :]
            else:
                end.sendall(piece)
    if isinstance(end, int):
        os.close(end)
    else:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_WR)


def _receive(fd: int) -> bytes:
    got = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while piece := os.read(fd, 65536):
            got += piece
    os.close(fd)
    return bytes(got)


def _given(add: Callable[..., int], fd: int, *others: int) -> int:
    """Hand `fd`, and `others` that are fds too, to the pump; they stay ours if it refuses."""
    try:
        return add(fd, *others)
    except BaseException:
        for refused in (fd, *others):
            os.close(refused)
        raise


def _run() -> None:
    ends = _Ends()
    with tempfile.TemporaryFile(prefix="hct-faults-", dir="/var/tmp") as log:
        try:
            with Pump() as pump:
                seen = _streams(pump, ends, log.fileno())
        finally:
            ends.close()
        log.seek(0)
        ends.received["log"] = log.read()
    told = {kind for _, kind, _ in seen} & TELLING
    short = [name for name, got in ends.received.items() if got != DATA]
    for name in short:
        assert DATA.startswith(ends.received[name]), f"{name} got other bytes"
    lengths = {name: len(ends.received[name]) for name in short}
    ended_early = any(
        kind in (Event.EOF, Event.SOURCE_EOF) and value < len(DATA) for _, kind, value in seen
    )
    assert not short or told or ended_early, f"bytes are missing and nobody said so: {lengths}"


def _streams(pump: Pump, ends: _Ends, log_fd: int) -> list[tuple[int, int, int]]:
    """Run all streams to their ends; the events."""
    inside, outside = ends.guest()
    logged = _given(lambda src, log: pump.add_output(src, log_fd=log), outside, os.dup(log_fd))
    reader, writer = os.pipe()
    ends.receive("client", reader)
    client = _given(lambda dst: pump.add_client(logged, dst, 0), writer)
    ends.send(inside)

    inside, outside = ends.guest()
    reader, writer = os.pipe()
    ends.receive("pipe", reader)
    piped = _given(lambda src, dst: pump.add_output(src, dst_fd=dst), outside, writer)
    ends.send(inside)

    inside, outside = ends.guest()
    ends.receive("guest", os.dup(inside.fileno()))
    fed = _given(pump.add_input, outside)
    reader, writer = os.pipe()
    ends.send(writer)
    source = _given(lambda src: pump.add_source(fed, src), reader)

    wanted = {
        client: (Event.CLIENT_DONE, Event.CLIENT_DROPPED),
        logged: (Event.EOF,),
        piped: (Event.EOF,),
        source: (Event.SOURCE_EOF,),
    }
    return _until_ended(pump, wanted)


def _until_ended(pump: Pump, wanted: dict[int, tuple[Event, ...]]) -> list[tuple[int, int, int]]:
    seen: list[tuple[int, int, int]] = []
    deadline = time.monotonic() + DEADLINE_S
    while wanted:
        left = deadline - time.monotonic()
        assert left > 0, f"no end of {wanted}; seen {seen}"
        if select.select([pump.event_fd], [], [], left)[0]:
            seen += pump.events()
        for node_id, kind, _ in seen:
            if node_id in wanted and kind in wanted[node_id]:
                del wanted[node_id]
    return seen
