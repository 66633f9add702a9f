"""The pump with full disks, FIFOs, terminals and thousands of streams."""

import contextlib
import ctypes
import errno
import os
import pty
import resource
import socket
import threading
import time
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from hypercore._pump import Event, Pump
from tests.unit.test_pump import Events, Reader, guest, log_file

KIB = 1024
MIB = 1024 * 1024


@pytest.fixture
def pump() -> Iterator[Pump]:
    with Pump() as pump:
        yield pump


@pytest.fixture
def events(pump: Pump) -> Events:
    return Events(pump)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 1 MiB."""
    libc = ctypes.CDLL(None, use_errno=True)
    path = tmp_path / "small"
    path.mkdir()
    if libc.mount(b"tmpfs", bytes(path), b"tmpfs", 0, b"size=1m"):
        raise OSError(ctypes.get_errno(), "mount tmpfs")
    yield path
    libc.umount2(bytes(path), 2)


def send(sock: socket.socket, data: bytes) -> threading.Thread:
    thread = threading.Thread(target=sock.sendall, args=(data,))
    thread.start()
    return thread


def test_full_disk_stalls_the_stream_until_there_is_room(
    pump: Pump, events: Events, small_disk: Path
) -> None:
    (small_disk / "hog").write_bytes(bytes(700 * KIB))
    sent = os.urandom(900 * KIB)
    with guest() as (inside, fd), guest() as (other, other_fd):
        stream = pump.add_output(fd, log_fd=log_file(small_disk / "log"))
        reader_fd, writer_fd = os.pipe()
        reader = Reader(reader_fd)
        pump.add_client(stream, writer_fd, 0)
        pump.expect(stream, len(sent))
        writer = send(inside, sent)
        assert events.wait(stream, Event.LOG_ERROR) == errno.ENOSPC
        # the others do not notice, and it is said once
        neighbour = pump.add_output(other_fd)
        other.sendall(bytes(MIB))
        pump.expect(neighbour, MIB)
        events.wait(neighbour, Event.DRAINED)
        time.sleep(0.3)
        assert events.none_of(Event.LOG_ERROR)
        assert events.none_of(Event.DRAINED)
        (small_disk / "hog").unlink()
        assert events.wait(stream, Event.DRAINED) == len(sent)
        writer.join()
    assert (small_disk / "log").read_bytes() == sent
    assert events.wait(stream, Event.EOF) == len(sent)
    assert reader.result() == sent


def test_rotation_to_another_disk_ends_a_stall(
    pump: Pump, events: Events, small_disk: Path, tmp_path: Path
) -> None:
    sent = os.urandom(3 * MIB)
    with guest() as (inside, fd):
        stream = pump.add_output(fd, log_fd=log_file(small_disk / "log"))
        reader_fd, writer_fd = os.pipe()
        reader = Reader(reader_fd)
        pump.add_client(stream, writer_fd, 0)
        writer = send(inside, sent)
        assert events.wait(stream, Event.LOG_ERROR) == errno.ENOSPC
        pump.rotate(stream, log_file(tmp_path / "log"))
        writer.join()
    assert events.wait(stream, Event.EOF) == len(sent)
    assert (small_disk / "log").read_bytes() + (tmp_path / "log").read_bytes() == sent
    assert reader.result() == sent


@pytest.mark.parametrize("how", ["remove", "close"])
def test_stalled_stream_ends(pump: Pump, events: Events, small_disk: Path, how: str) -> None:
    with guest() as (inside, fd):
        stream = pump.add_output(fd, log_fd=log_file(small_disk / "log"))
        inside.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            for _ in range(100):
                inside.send(bytes(20_000))
                time.sleep(0.001)
        assert events.wait(stream, Event.LOG_ERROR) == errno.ENOSPC
        if how == "remove":
            pump.remove(stream)
            events.wait(stream, Event.REMOVED)
        else:
            pump.close()
        with pytest.raises(BrokenPipeError):
            inside.send(b"x")


def test_full_disk_behind_a_file_destination(pump: Pump, events: Events, small_disk: Path) -> None:
    sent = os.urandom(900 * KIB)
    (small_disk / "hog").write_bytes(bytes(700 * KIB))
    with guest() as (inside, fd):
        stream = pump.add_output(fd, dst_fd=os.open(small_disk / "f", os.O_WRONLY | os.O_CREAT))
        writer = send(inside, sent)
        assert events.wait(stream, Event.LOG_ERROR) == errno.ENOSPC
        (small_disk / "hog").unlink()
        writer.join()
    assert events.wait(stream, Event.EOF) == len(sent)
    assert (small_disk / "f").read_bytes() == sent


def test_truncated_log_drops_the_client_and_not_the_pump(
    pump: Pump, events: Events, tmp_path: Path
) -> None:
    reader_fd, writer_fd = os.pipe()
    with guest() as (inside, fd):
        stream = pump.add_output(fd, log_fd=log_file(tmp_path / "log"))
        client = pump.add_client(stream, writer_fd, 0)
        pump.expect(stream, 4 * MIB)
        inside.sendall(bytes(4 * MIB))
        events.wait(stream, Event.DRAINED)
        os.truncate(tmp_path / "log", 0)
        Reader(reader_fd).result()
        assert events.wait(client, Event.CLIENT_DROPPED) == errno.EIO


def test_fifo_both_ways_as_containerd_makes_them(
    pump: Pump, events: Events, tmp_path: Path
) -> None:
    """The reader of a FIFO may leave and come back while somebody holds its other end."""
    path = tmp_path / "out"
    os.mkfifo(path)
    keeper = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    with guest() as (inside, fd):
        stream = pump.add_output(fd, dst_fd=os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        for text in (b"one", b"two"):
            reader = os.open(path, os.O_RDONLY)
            inside.sendall(text)
            assert os.read(reader, 100) == text
            os.close(reader)
        inside.sendall(b"kept")
        pump.expect(stream, 10)
        events.wait(stream, Event.DRAINED)
    assert os.read(keeper, 100) == b"kept"
    os.close(keeper)
    assert events.wait(stream, Event.EOF) == 10


def test_terminal_as_source_and_destination(pump: Pump, events: Events) -> None:
    master, slave = pty.openpty()
    tty.setraw(slave)
    shown, shown_slave = pty.openpty()
    tty.setraw(shown_slave)
    near, far = socket.socketpair()
    stream = pump.add_output(master, dst_fd=shown_slave)
    stdin = pump.add_input(far.detach())
    os.write(slave, b"x" * 3000)
    got = b""
    while len(got) < 3000:
        got += os.read(shown, 4096)
    assert got == b"x" * 3000
    keyboard, keyboard_slave = pty.openpty()
    tty.setraw(keyboard_slave)
    source = pump.add_source(stdin, keyboard_slave)
    os.write(keyboard, b"typed")
    assert near.recv(100) == b"typed"
    os.close(keyboard)  # a hang-up
    assert events.wait(source, Event.SOURCE_EOF) == 5
    os.close(slave)
    assert events.wait(stream, Event.EOF) == 3000
    near.close()
    os.close(shown)


def test_thousands_of_streams_with_a_client_each(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(1500, (hard - 500) // 6)
    assert count >= 1000, f"the hard limit of open files is {hard}"
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with Pump() as pump, contextlib.ExitStack() as stack:
            events = Events(pump)
            rows = []
            for number in range(count):
                inside, fd = stack.enter_context(guest())
                path = tmp_path / str(number)
                stream = pump.add_output(fd, log_fd=log_file(path))
                reader_fd, writer_fd = os.pipe()
                stack.callback(os.close, reader_fd)
                client = pump.add_client(stream, writer_fd, 0)
                sent = f"{number}:".encode() * (number % 50 + 1)
                rows.append((inside, stream, client, reader_fd, path, sent))
            for inside, *_, sent in rows:
                inside.sendall(sent)
                inside.close()
            for _, stream, client, reader_fd, path, sent in rows:
                assert events.wait(stream, Event.EOF) == len(sent)
                assert events.wait(client, Event.CLIENT_DONE) == len(sent)
                assert path.read_bytes() == sent
                assert os.read(reader_fd, 1000) == sent
                pump.remove(stream)
            for _, stream, *_ in rows:
                events.wait(stream, Event.REMOVED)
            assert pump.totals()[3] == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_storm_of_clients_and_rotations(tmp_path: Path) -> None:
    """Everything at once, from several threads, for a while: no byte is wrong, no fd is left."""
    import random

    source = random.Random(9)
    stop = threading.Event()
    failures: list[str] = []
    with Pump(log_limit=64 * KIB, max_lag=1000) as pump:
        events = Events(pump)

        def run(number: int) -> None:
            chooser = random.Random(number)
            counter = 0
            with guest() as (inside, fd):
                paths = [tmp_path / f"{number}.0"]
                stream = pump.add_output(fd, log_fd=log_file(paths[0]))
                readers = []
                while not stop.is_set():
                    piece = b"".join(b"%012d\n" % (counter + n) for n in range(200))
                    counter += 200
                    inside.sendall(piece)
                    if chooser.random() < 0.2:
                        reader_fd, writer_fd = os.pipe()
                        client = pump.add_client(stream, writer_fd, -1)
                        if chooser.random() < 0.5:
                            readers.append(Reader(reader_fd))
                        else:
                            os.close(reader_fd)
                            pump.remove_client(client)
                    if chooser.random() < 0.2:
                        paths.append(tmp_path / f"{number}.{len(paths)}")
                        pump.rotate(stream, log_file(paths[-1]))
            for reader in readers:
                text = reader.result()
                text = text[text.find(b"\n") + 1 :]
                if text:
                    first = int(text[:12])
                    expected = b"".join(b"%012d\n" % n for n in range(first, counter))
                    if text != expected:
                        failures.append(f"a client of stream {number} got other bytes")
            whole = b"".join(path.read_bytes() for path in paths)
            if whole != b"".join(b"%012d\n" % n for n in range(counter)):
                failures.append(f"log of stream {number} differs")
            pump.remove(stream)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 1
        while time.monotonic() < end:
            events.collect(0.1)
            pump.totals()
            with contextlib.suppress(KeyError):
                pump.counters(source.randrange(1 << 24))
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures


def test_memory_of_an_idle_stdio_pair_stays_below_1_kib() -> None:
    """stdin and stdout of a task that does nothing; user memory, by malloc's own count."""

    class Mallinfo(ctypes.Structure):
        _fields_ = [(name, ctypes.c_size_t) for name in "abcdefg"] + [
            (name, ctypes.c_size_t) for name in ("uordblks", "fordblks", "keepcost")
        ]

    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = Mallinfo
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = 1000
    try:
        with contextlib.ExitStack() as stack:
            pairs = [stack.enter_context(guest()) for _ in range(2 * count)]
            pump = stack.enter_context(Pump())
            before = libc.mallinfo2().uordblks
            for number in range(0, 2 * count, 2):
                stream = pump.add_output(pairs[number][1])
                pump.add_input(pairs[number + 1][1])
            pump.remove(stream)
            Events(pump).wait(stream, Event.REMOVED)
            assert (libc.mallinfo2().uordblks - before) / count < KIB
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
