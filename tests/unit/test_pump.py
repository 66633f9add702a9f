"""The pump on socket pairs, pipes and files: each byte once and in order, however slow readers."""

import contextlib
import errno
import fcntl
import hashlib
import os
import random
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hypercore._pump import Event, Pump

KIB = 1024
MIB = 1024 * 1024
DEADLINE_S = 60


class Events:
    """A pump's events, kept until somebody asks for them."""

    def __init__(self, pump: Pump) -> None:
        self.pump = pump
        self.seen: list[tuple[int, int, int]] = []

    def collect(self, timeout_s: float = 0) -> None:
        poller = select.poll()  # select() ends at fd 1023
        poller.register(self.pump.event_fd, select.POLLIN)
        if poller.poll(timeout_s * 1000):
            self.seen += self.pump.events()

    def wait(self, node_id: int, kind: Event) -> int:
        """Take the first such event out; its value."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            for index, (found, found_kind, value) in enumerate(self.seen):
                if (found, found_kind) == (node_id, kind):
                    del self.seen[index]
                    return value
            left = deadline - time.monotonic()
            assert left > 0, f"no {kind!r} of {node_id}; got {self.seen}"
            self.collect(left)

    def none_of(self, kind: Event) -> bool:
        self.collect()
        return all(found != kind for _, found, _ in self.seen)


@pytest.fixture
def pump() -> Iterator[Pump]:
    pump = Pump()
    pump.start()
    yield pump
    pump.close()


@pytest.fixture
def events(pump: Pump) -> Events:
    return Events(pump)


@contextlib.contextmanager
def guest() -> Iterator[tuple[socket.socket, int]]:
    """(the guest's end, an fd for the pump)"""
    inside, outside = socket.socketpair()
    with inside:
        yield inside, outside.detach()


def log_file(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


class Reader(threading.Thread):
    """Reads an fd to its end; `pace` is called after each read."""

    def __init__(self, fd: int, size: int = 64 * KIB, pace: Callable[[], None] = lambda: None):
        super().__init__(daemon=True)
        self.fd, self.size, self.pace = fd, size, pace
        self.pieces: list[bytes] = []
        self.start()

    def run(self) -> None:
        while piece := os.read(self.fd, self.size):
            self.pieces.append(piece)
            self.pace()
        os.close(self.fd)

    def result(self) -> bytes:
        self.join(DEADLINE_S)
        assert not self.is_alive(), "the reader saw no end"
        return b"".join(self.pieces)


def until_stalled(pump: Pump, stream: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while pump.counters(stream)[2] == 0:
        assert time.monotonic() < deadline, "it never stalled"
        time.sleep(0.001)


def pieces(seed: int, total: int, sizes: tuple[int, ...]) -> list[bytes]:
    source = random.Random(seed)
    made = []
    while total > 0:
        size = min(source.choice(sizes), total)
        made.append(source.randbytes(size))
        total -= size
    return made


MIXES = {
    "bytes": (500, (1,)),
    "lines": (200 * KIB, (100, 17, 301)),
    "bulk": (6 * MIB, (64 * KIB,)),
    "mixed": (2 * MIB, (1, 100, 4096, 16 * KIB, 64 * KIB, 300 * KIB)),
}


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("slow", [False, True])
def test_output_to_a_pipe_is_byte_exact(pump: Pump, events: Events, mix: str, slow: bool) -> None:
    total, sizes = MIXES[mix]
    sent = pieces(1, total, sizes)
    reader_fd, writer_fd = os.pipe()
    source = random.Random(2)
    pace = (
        (lambda: time.sleep(0.002) if source.random() < 0.05 else None) if slow else lambda: None
    )
    reader = Reader(reader_fd, 7777 if slow else 64 * KIB, pace)
    with guest() as (inside, fd):
        stream = pump.add_output(fd, dst_fd=writer_fd)
        pump.expect(stream, total)
        for piece in sent:
            inside.sendall(piece)
        assert events.wait(stream, Event.DRAINED) == total
    assert events.wait(stream, Event.EOF) == total
    assert reader.result() == b"".join(sent)
    assert pump.counters(stream)[0] == total


@pytest.mark.parametrize("mix", MIXES)
def test_output_to_a_log_and_clients(pump: Pump, events: Events, tmp_path: Path, mix: str) -> None:
    """A quick client, a slow one, one that joins late with replay, one without."""
    total, sizes = MIXES[mix]
    sent = pieces(3, total, sizes)
    expected = b"".join(sent)
    path = tmp_path / "log"
    path.write_bytes(b"before\n")
    source = random.Random(4)
    with guest() as (inside, fd):
        stream = pump.add_output(fd, log_fd=log_file(path))
        readers = []
        clients = []

        def attach(offset: int, **options: object) -> None:
            reader_fd, writer_fd = os.pipe()
            readers.append(Reader(reader_fd, **options))  # type: ignore[arg-type]
            clients.append(pump.add_client(stream, writer_fd, offset))

        attach(0)
        attach(-1)
        attach(7, size=5000, pace=lambda: time.sleep(0.001 if source.random() < 0.05 else 0))
        for index, piece in enumerate(sent):
            inside.sendall(piece)
            if index == len(sent) // 2:
                attach(0)
                attach(-1)
        pump.expect(stream, total)
        assert events.wait(stream, Event.DRAINED) == total
        assert path.read_bytes() == b"before\n" + expected
    assert events.wait(stream, Event.EOF) == total
    results = [reader.result() for reader in readers]
    assert results[0] == b"before\n" + expected
    assert results[1] == expected
    assert results[2] == expected
    assert results[3] == b"before\n" + expected
    assert expected.endswith(results[4])
    for client, result in zip(clients, results, strict=True):
        assert events.wait(client, Event.CLIENT_DONE) == len(result)
    # the stream is still there for those who come too late
    reader_fd, writer_fd = os.pipe()
    late = Reader(reader_fd)
    client = pump.add_client(stream, writer_fd, 3)
    assert late.result() == (b"before\n" + expected)[3:]
    assert events.wait(client, Event.CLIENT_DONE) == total + 4
    pump.remove(stream)
    assert events.wait(stream, Event.REMOVED) == total
    with pytest.raises(KeyError):
        pump.counters(stream)


def test_stuck_client_holds_up_nobody(pump: Pump, events: Events, tmp_path: Path) -> None:
    total = 8 * MIB
    sent = os.urandom(total)
    stuck_reader, stuck_writer = os.pipe()
    with guest() as (inside, fd):
        stream = pump.add_output(fd, log_fd=log_file(tmp_path / "log"))
        client = pump.add_client(stream, stuck_writer, 0)
        reader_fd, writer_fd = os.pipe()
        quick = Reader(reader_fd)
        pump.add_client(stream, writer_fd, 0)
        inside.sendall(sent)
    assert events.wait(stream, Event.EOF) == total
    assert quick.result() == sent
    assert (tmp_path / "log").read_bytes() == sent
    assert events.none_of(Event.CLIENT_DROPPED)
    assert Reader(stuck_reader).result() == sent
    assert events.wait(client, Event.CLIENT_DONE) == total


def test_client_goes_on_after_its_stream_was_removed(
    pump: Pump, events: Events, tmp_path: Path
) -> None:
    sent = os.urandom(2 * MIB)
    reader_fd, writer_fd = os.pipe()
    with guest() as (inside, fd):
        stream = pump.add_output(fd, log_fd=log_file(tmp_path / "log"))
        client = pump.add_client(stream, writer_fd, 0)
        pump.expect(stream, len(sent))
        inside.sendall(sent)
        events.wait(stream, Event.DRAINED)
        pump.remove(stream)
        events.wait(stream, Event.REMOVED)
    assert Reader(reader_fd).result() == sent
    assert events.wait(client, Event.CLIENT_DONE) == len(sent)
    assert pump.totals()[3] == 0


def test_idle_client_whose_reader_leaves_is_reported(
    pump: Pump, events: Events, tmp_path: Path
) -> None:
    with guest() as (_, fd):
        stream = pump.add_output(fd, log_fd=log_file(tmp_path / "log"))
        reader_fd, writer_fd = os.pipe()
        client = pump.add_client(stream, writer_fd, 0)
        os.close(reader_fd)
        assert events.wait(client, Event.CLIENT_DROPPED) == errno.EPIPE


def test_client_that_is_a_file_or_a_socket(pump: Pump, events: Events, tmp_path: Path) -> None:
    sent = os.urandom(3 * MIB)
    with guest() as (inside, fd):
        stream = pump.add_output(fd, log_fd=log_file(tmp_path / "log"))
        file = pump.add_client(stream, os.open(tmp_path / "copy", os.O_WRONLY | os.O_CREAT), 0)
        near, far = socket.socketpair()
        reader = Reader(near.detach())
        sock = pump.add_client(stream, far.detach(), 0)
        null = pump.add_client(stream, os.open("/dev/null", os.O_WRONLY), 0)
        inside.sendall(b"small")
        inside.sendall(sent)
    events.wait(stream, Event.EOF)
    for client in (file, sock, null):
        assert events.wait(client, Event.CLIENT_DONE) == len(sent) + 5
    assert (tmp_path / "copy").read_bytes() == b"small" + sent
    assert reader.result() == b"small" + sent


def test_shared_open_file_of_a_client_is_forgotten(
    pump: Pump, events: Events, tmp_path: Path
) -> None:
    """The attach client keeps its own fd of the pipe: closing ours does not take it off epoll."""
    with guest() as (inside, fd):
        stream = pump.add_output(fd, log_fd=log_file(tmp_path / "log"))
        for _ in range(50):
            reader_fd, writer_fd = os.pipe()
            kept = os.dup(writer_fd)
            client = pump.add_client(stream, writer_fd, 0)
            pump.remove_client(client)
            inside.sendall(b"x")
            os.close(reader_fd)  # an error on a pipe that nobody must watch any more
            os.close(kept)
        pump.expect(stream, 50)
        assert events.wait(stream, Event.DRAINED) == 50
    syscalls = pump.totals()[1]
    assert events.wait(stream, Event.EOF) == 50
    assert pump.totals()[1] - syscalls < 10


def test_dst_gone_is_reported_and_the_guest_goes_on(pump: Pump, events: Events) -> None:
    reader_fd, writer_fd = os.pipe()
    with guest() as (inside, fd):
        stream = pump.add_output(fd, dst_fd=writer_fd)
        inside.sendall(b"one")
        assert os.read(reader_fd, 10) == b"one"
        os.close(reader_fd)
        inside.sendall(b"two")
        assert events.wait(stream, Event.DST_GONE) == errno.EPIPE
        pump.expect(stream, 6 + 4 * MIB)
        inside.sendall(bytes(4 * MIB))
        assert events.wait(stream, Event.DRAINED) == 6 + 4 * MIB
    assert events.wait(stream, Event.EOF) == 6 + 4 * MIB


def test_dst_gone_while_full(pump: Pump, events: Events) -> None:
    for size in (1000, 64 * KIB):  # written and spliced
        reader_fd, writer_fd = os.pipe()
        with guest() as (inside, fd):
            stream = pump.add_output(fd, dst_fd=writer_fd)
            writer = threading.Thread(
                target=lambda size=size, inside=inside: [
                    inside.sendall(bytes(size)) for _ in range(6 * MIB // size)
                ]
            )
            writer.start()
            until_stalled(pump, stream)
            os.close(reader_fd)
            assert events.wait(stream, Event.DST_GONE) == errno.EPIPE
            writer.join()
        assert events.wait(stream, Event.EOF) == 6 * MIB // size * size


def test_guest_that_hung_up_while_dst_is_full_costs_nothing(events: Events) -> None:
    sent = os.urandom(150 * KIB)
    reader_fd, writer_fd = os.pipe()
    fcntl.fcntl(writer_fd, fcntl.F_SETPIPE_SZ, 4096)
    with Pump(pipe_budget=0) as pump:
        with guest() as (inside, fd):
            inside.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MIB)
            stream = pump.add_output(fd, dst_fd=writer_fd)
            inside.sendall(sent)
        until_stalled(pump, stream)
        syscalls = pump.totals()[1]
        time.sleep(0.1)
        assert pump.totals()[1] == syscalls
        before = time.clock_gettime(time.CLOCK_PROCESS_CPUTIME_ID)
        time.sleep(0.3)
        assert time.clock_gettime(time.CLOCK_PROCESS_CPUTIME_ID) - before < 0.15, "it spins"
        assert Reader(reader_fd).result() == sent
        assert Events(pump).wait(stream, Event.EOF) == len(sent)


def test_output_to_nowhere_is_counted(pump: Pump, events: Events) -> None:
    with guest() as (inside, fd):
        stream = pump.add_output(fd)
        inside.sendall(bytes(3 * MIB))
    assert events.wait(stream, Event.EOF) == 3 * MIB
    with pytest.raises(ValueError, match="no log"):
        pump.add_client(stream, 0, 0)


def test_output_to_a_file(pump: Pump, events: Events, tmp_path: Path) -> None:
    sent = os.urandom(5 * MIB)
    with guest() as (inside, fd):
        stream = pump.add_output(fd, dst_fd=os.open(tmp_path / "f", os.O_WRONLY | os.O_CREAT))
        inside.sendall(sent)
    assert events.wait(stream, Event.EOF) == len(sent)
    assert (tmp_path / "f").read_bytes() == sent


def test_output_to_a_socket_and_from_a_pipe(pump: Pump, events: Events) -> None:
    sent = os.urandom(5 * MIB)
    inside, src = os.pipe()
    near, far = socket.socketpair()
    reader = Reader(near.detach())
    stream = pump.add_output(inside, dst_fd=far.detach())
    with open(src, "wb") as writer:
        writer.write(sent)
    assert events.wait(stream, Event.EOF) == len(sent)
    assert reader.result() == sent


def test_expect_before_during_and_after(pump: Pump, events: Events, tmp_path: Path) -> None:
    with guest() as (inside, fd):
        stream = pump.add_output(fd, log_fd=log_file(tmp_path / "log"))
        pump.expect(stream, 0)
        assert events.wait(stream, Event.DRAINED) == 0
        pump.expect(stream, 4)
        inside.sendall(b"abc")
        assert events.none_of(Event.DRAINED)
        inside.sendall(b"d")
        assert events.wait(stream, Event.DRAINED) == 4
        pump.expect(stream, 3)
        assert events.wait(stream, Event.DRAINED) == 4
    events.wait(stream, Event.EOF)
    pump.expect(stream, 5)
    pump.expect(stream, 4)
    assert events.wait(stream, Event.DRAINED) == 4


def test_drained_means_delivered(pump: Pump, events: Events) -> None:
    total = 8 * MIB  # more than any pipe and socket hold
    reader_fd, writer_fd = os.pipe()
    with guest() as (inside, fd):
        stream = pump.add_output(fd, dst_fd=writer_fd)
        pump.expect(stream, total)
        writer = threading.Thread(target=lambda: inside.sendall(bytes(total)))
        writer.start()
        until_stalled(pump, stream)
        assert events.none_of(Event.DRAINED)
        reader = Reader(reader_fd)
        assert events.wait(stream, Event.DRAINED) == total
        writer.join()
    assert len(reader.result()) == total


# ---- rotation ----


def test_rotation_loses_and_repeats_nothing(tmp_path: Path) -> None:
    sent = pieces(5, 4 * MIB, (100, 5000, 64 * KIB))
    expected = b"".join(sent)
    source = random.Random(6)
    with Pump(log_limit=512 * KIB, max_lag=100) as pump, guest() as (inside, fd):
        events = Events(pump)
        paths = [tmp_path / "log.0"]
        stream = pump.add_output(fd, log_fd=log_file(paths[0]))
        readers = []
        for pace in (lambda: None, lambda: time.sleep(0.001 if source.random() < 0.3 else 0)):
            reader_fd, writer_fd = os.pipe()
            readers.append(Reader(reader_fd, 50_000, pace))
            pump.add_client(stream, writer_fd, 0)
        pump.expect(stream, len(expected))
        for piece in sent:
            inside.sendall(piece)
            events.collect()
            for _, kind, value in events.seen:
                if kind == Event.LOG_FULL:
                    assert value >= 512 * KIB
                    paths.append(tmp_path / f"log.{len(paths)}")
                    pump.rotate(stream, log_file(paths[-1]))
            events.seen = [event for event in events.seen if event[1] != Event.LOG_FULL]
        assert events.wait(stream, Event.DRAINED) == len(expected)
        # a client that comes now gets it all: the old files first
        reader_fd, writer_fd = os.pipe()
        readers.append(Reader(reader_fd))
        backlog = [os.open(path, os.O_RDONLY) for path in paths[:-1]]
        pump.add_client(stream, writer_fd, 10, backlog=backlog)
        inside.sendall(b"end")
        inside.close()
        events.wait(stream, Event.EOF)
        results = [reader.result() for reader in readers]
    assert len(paths) >= 2
    assert b"".join(path.read_bytes() for path in paths) == expected + b"end"
    assert results == [expected + b"end", expected + b"end", (expected + b"end")[10:]]


def test_client_too_far_behind_is_dropped(tmp_path: Path) -> None:
    with Pump(max_lag=2) as pump, guest() as (inside, fd):
        events = Events(pump)
        stream = pump.add_output(fd, log_fd=log_file(tmp_path / "0"))
        reader_fd, writer_fd = os.pipe()
        client = pump.add_client(stream, writer_fd, 0)
        sent = 0
        for number in range(1, 5):
            inside.sendall(bytes(MIB))
            sent += MIB
            pump.expect(stream, sent)
            events.wait(stream, Event.DRAINED)
            pump.rotate(stream, log_file(tmp_path / str(number)))
        assert events.wait(client, Event.CLIENT_DROPPED) == errno.EOVERFLOW
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) == sent
        os.close(reader_fd)


def test_log_full_is_said_once_a_segment(tmp_path: Path) -> None:
    with Pump() as pump, guest() as (inside, fd):
        events = Events(pump)
        stream = pump.add_output(fd, log_fd=log_file(tmp_path / "a"), log_limit=1000)
        inside.sendall(bytes(999))
        pump.expect(stream, 999)
        events.wait(stream, Event.DRAINED)
        assert events.none_of(Event.LOG_FULL)
        inside.sendall(bytes(5000))
        assert events.wait(stream, Event.LOG_FULL) >= 1000
        inside.sendall(bytes(5000))
        pump.expect(stream, 10_999)
        events.wait(stream, Event.DRAINED)
        assert events.none_of(Event.LOG_FULL)
        pump.rotate(stream, log_file(tmp_path / "b"))
        pump.expect(stream, 10_999)  # answered after the rotation, which is asynchronous
        events.wait(stream, Event.DRAINED)
        inside.sendall(bytes(1000))
        assert events.wait(stream, Event.LOG_FULL) >= 1000


# ---- inputs ----


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("slow", [False, True])
def test_input_is_byte_exact(pump: Pump, events: Events, mix: str, slow: bool) -> None:
    total, sizes = MIXES[mix]
    sent = pieces(7, total, sizes)
    source = random.Random(8)
    pace = (
        (lambda: time.sleep(0.002) if source.random() < 0.05 else None) if slow else lambda: None
    )
    inside, outside = socket.socketpair()
    stream = pump.add_input(outside.detach())
    reader = Reader(inside.detach(), 9999 if slow else 64 * KIB, pace)
    read_fd, write_fd = os.pipe()
    client = pump.add_source(stream, read_fd)
    with open(write_fd, "wb", buffering=0) as writer:
        for piece in sent:
            view = memoryview(piece)
            while view:
                view = view[writer.write(view) :]
    assert events.wait(client, Event.SOURCE_EOF) == total
    pump.remove(stream)
    assert events.wait(stream, Event.REMOVED) == total
    assert reader.result() == b"".join(sent)


def test_several_sources_one_after_another_and_at_once(pump: Pump, events: Events) -> None:
    inside, outside = socket.socketpair()
    stream = pump.add_input(outside.detach())
    reader = Reader(inside.detach())
    pairs = [os.pipe() for _ in range(5)]
    clients = [pump.add_source(stream, pair[0]) for pair in pairs]

    def feed(number: int) -> None:
        with open(pairs[number][1], "wb") as writer:
            for _ in range(2000):
                writer.write(bytes([number]) * 100)

    threads = [threading.Thread(target=feed, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    totals = [events.wait(client, Event.SOURCE_EOF) for client in clients]
    for thread in threads:
        thread.join()
    assert max(totals) == 1_000_000
    pump.remove(stream)
    received = reader.result()
    assert [received.count(bytes([number])) for number in range(5)] == [200_000] * 5


def test_source_that_is_a_file_or_dev_null(pump: Pump, events: Events, tmp_path: Path) -> None:
    sent = os.urandom(3 * MIB)
    (tmp_path / "f").write_bytes(sent)
    inside, outside = socket.socketpair()
    stream = pump.add_input(outside.detach())
    null = pump.add_source(stream, os.open("/dev/null", os.O_RDONLY))
    assert events.wait(null, Event.SOURCE_EOF) == 0
    file = pump.add_source(stream, os.open(tmp_path / "f", os.O_RDONLY))
    until_stalled(pump, stream)  # the guest reads nothing: it must wait, not spin
    syscalls = pump.totals()[1]
    time.sleep(0.05)
    assert pump.totals()[1] == syscalls
    reader = Reader(inside.detach())
    assert events.wait(file, Event.SOURCE_EOF) == len(sent)
    pump.remove(stream)
    assert reader.result() == sent


def test_fifo_without_a_writer_is_no_eof(pump: Pump, events: Events, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    inside, outside = socket.socketpair()
    with inside:
        stream = pump.add_input(outside.detach())
        fd = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        source = pump.add_source(stream, fd)
        time.sleep(0.02)
        assert events.none_of(Event.SOURCE_EOF)
        with open(tmp_path / "fifo", "wb") as writer:
            writer.write(b"hello")
        assert events.wait(source, Event.SOURCE_EOF) == 5
        assert inside.recv(10) == b"hello"


def test_guest_closes_its_stdin(pump: Pump, events: Events) -> None:
    inside, outside = socket.socketpair()
    stream = pump.add_input(outside.detach())
    read_fd, write_fd = os.pipe()
    source = pump.add_source(stream, read_fd)
    os.write(write_fd, b"abc")
    assert inside.recv(10) == b"abc"
    inside.close()
    os.write(write_fd, b"abc")
    assert events.wait(stream, Event.DST_GONE) in (errno.EPIPE, errno.ECONNRESET)
    with open(write_fd, "wb") as writer:
        writer.write(bytes(MIB))  # must not block
    assert events.wait(source, Event.SOURCE_EOF) == 3


def test_new_source_while_the_guest_does_not_read(pump: Pump, events: Events) -> None:
    inside, outside = socket.socketpair()
    stream = pump.add_input(outside.detach())
    first_read, first_write = os.pipe()
    pump.add_source(stream, first_read)

    def feed() -> None:
        with open(first_write, "wb") as writer:
            writer.write(bytes(2 * MIB))

    feeder = threading.Thread(target=feed)
    feeder.start()
    until_stalled(pump, stream)
    second_read, second_write = os.pipe()
    second = pump.add_source(stream, second_read)
    os.write(second_write, b"x")
    os.close(second_write)
    syscalls = pump.totals()[1]
    time.sleep(0.05)
    assert pump.totals()[1] - syscalls < 5
    reader = Reader(inside.detach())
    events.wait(second, Event.SOURCE_EOF)
    feeder.join()
    pump.remove_source(second)
    pump.remove(stream)
    assert reader.result().count(b"x") == 1


# ---- many, busy, ended ----


def test_hundreds_of_streams(tmp_path: Path) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(300, (hard - 200) // 8)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with Pump() as pump, contextlib.ExitStack() as stack:
            events = Events(pump)
            expected = {}
            inputs = []
            for number in range(count):
                inside, fd = stack.enter_context(guest())
                path = tmp_path / str(number)
                stream = pump.add_output(fd, log_fd=log_file(path))
                sent = f"{number}:".encode() * (number % 50 + 1)
                expected[stream] = (path, sent)
                inputs.append((inside, sent))
            for inside, sent in inputs:
                inside.sendall(sent)
            for inside, _ in inputs:
                inside.close()
            for stream, (path, sent) in expected.items():
                assert events.wait(stream, Event.EOF) == len(sent)
                assert path.read_bytes() == sent
            assert pump.totals()[3] == count
            for stream in expected:
                pump.remove(stream)
            for stream in expected:
                events.wait(stream, Event.REMOVED)
            assert pump.totals()[3] == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_ids_are_never_used_again(pump: Pump, events: Events) -> None:
    seen = set()
    for _ in range(200):
        with guest() as (_, fd):
            stream = pump.add_output(fd)
            assert stream not in seen
            seen.add(stream)
            pump.remove(stream)
            events.wait(stream, Event.REMOVED)
    for stream in seen:
        with pytest.raises(KeyError):
            pump.counters(stream)
        pump.remove(stream)
        pump.remove_client(stream)


def test_close_while_busy(tmp_path: Path) -> None:
    for round_number in range(6):
        pump = Pump()
        pump.start()
        stop = threading.Event()
        threads = []
        with contextlib.ExitStack() as stack:
            for number in range(6):
                inside, fd = stack.enter_context(guest())
                reader_fd, writer_fd = os.pipe()
                stack.callback(os.close, reader_fd)
                if number % 2:
                    pump.add_output(fd, dst_fd=writer_fd)
                else:
                    stream = pump.add_output(fd, log_fd=log_file(tmp_path / str(number)))
                    pump.add_client(stream, writer_fd, 0)

                def write(inside: socket.socket = inside, stop: threading.Event = stop) -> None:
                    with contextlib.suppress(OSError):
                        while not stop.is_set():
                            inside.sendall(bytes(20000))

                threads.append(threading.Thread(target=write))
                threads[-1].start()
            time.sleep(0.002 * round_number)
            pump.close()
            stop.set()
            for thread in threads:
                thread.join(DEADLINE_S)
        pump.close()
        with pytest.raises(ValueError, match="closed"):
            pump.events()
        with pytest.raises(ValueError, match="closed"):
            pump.add_output(0)


def test_remove_while_blocked(pump: Pump, events: Events, tmp_path: Path) -> None:
    reader_fd, writer_fd = os.pipe()
    with guest() as (inside, fd):
        stream = pump.add_output(fd, dst_fd=writer_fd)
        inside.setblocking(False)
        while pump.counters(stream)[2] == 0:
            with contextlib.suppress(BlockingIOError):
                inside.send(bytes(3000))
        pump.remove(stream)
        events.wait(stream, Event.REMOVED)
        assert len(Reader(reader_fd).result()) > 0
        with pytest.raises(BrokenPipeError):
            inside.send(b"x")


def test_never_started_pump_closes_what_it_was_given(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    pump = Pump()
    with guest() as (_, fd):
        stream = pump.add_output(fd, log_fd=log_file(tmp_path / "a"))
        pump.rotate(stream, log_file(tmp_path / "b"))
        reader_fd, writer_fd = os.pipe()
        backlog = [log_file(tmp_path / "c"), log_file(tmp_path / "d")]
        pump.add_client(stream, writer_fd, 0, backlog=backlog)
        os.close(reader_fd)
    pump.close()
    assert os.listdir("/proc/self/fd") == before


def test_unclosed_pump_warns_and_stops() -> None:
    pump = Pump()
    pump.start()
    with pytest.warns(ResourceWarning, match="not closed"):
        del pump


def test_refused_arguments_leave_the_fds_to_the_caller(pump: Pump, tmp_path: Path) -> None:
    reader_fd, writer_fd = os.pipe()
    log = log_file(tmp_path / "log")
    read_only = os.open(tmp_path / "log", os.O_RDONLY)
    bad: list[tuple[type[Exception], Callable[[], object]]] = [
        (ValueError, lambda: pump.add_output(reader_fd, log_fd=log, dst_fd=writer_fd)),
        (OSError, lambda: pump.add_output(-1)),
        (OSError, lambda: pump.add_output(reader_fd, dst_fd=9999)),
        (OSError, lambda: pump.add_output(reader_fd, log_fd=writer_fd)),
        (OSError, lambda: pump.add_output(reader_fd, log_fd=read_only)),
        (KeyError, lambda: pump.add_client(77, writer_fd, 0)),
        (KeyError, lambda: pump.add_source(77, reader_fd)),
        (KeyError, lambda: pump.rotate(77, log)),
        (KeyError, lambda: pump.expect(77, 0)),
        (ValueError, lambda: pump.add_client(77, writer_fd, -2)),
        (ValueError, lambda: pump.add_client(77, writer_fd, -1, backlog=[log])),
        (OSError, lambda: pump.add_client(77, writer_fd, 0, backlog=[log, writer_fd])),
        (KeyError, lambda: pump.add_client(77, writer_fd, 0, backlog=[log, read_only])),
    ]
    for error, call in bad:
        with pytest.raises(error):
            call()
    for fd in (reader_fd, writer_fd, log, read_only):
        os.close(fd)
    assert pump.totals()[3] == 0


def test_hash_of_64_mib_through_log_and_client(pump: Pump, events: Events, tmp_path: Path) -> None:
    digest, sent = hashlib.sha256(), hashlib.sha256()
    reader_fd, writer_fd = os.pipe()
    reader = Reader(reader_fd, MIB)
    block = os.urandom(MIB)
    with guest() as (inside, fd):
        stream = pump.add_output(fd, log_fd=log_file(tmp_path / "log"))
        pump.add_client(stream, writer_fd, 0)
        for _ in range(64):
            sent.update(block)
            inside.sendall(block)
    assert events.wait(stream, Event.EOF) == 64 * MIB
    digest.update(reader.result())
    assert digest.digest() == sent.digest()
