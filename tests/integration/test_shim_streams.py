"""The shim server's streams over real sockets, pipes, FIFOs and logs; the guest is a socket."""

import asyncio
import contextlib
import os
import socket
from pathlib import Path

import pytest
import uvloop

from hypercore.errors import InvalidArgument, NotFound
from hypercore.shim import streams, uris
from hypercore.shim.streams import Input, Output, SegmentedLog, StreamHub


@contextlib.asynccontextmanager
async def running_hub():
    hub = StreamHub(log_segments=4)
    hub.start()
    try:
        yield hub
    finally:
        hub.close()


def guest():
    """(the guest's socket, the fd the host has of it)"""
    inside, outside = socket.socketpair()
    outside.setblocking(False)
    return inside, outside.detach()


async def read_all(fd):
    """Everything up to EOF, off the loop."""

    def read():
        data = b""
        while chunk := os.read(fd, 65536):
            data += chunk
        os.close(fd)
        return data

    return await asyncio.to_thread(read)


def test_log_and_clients(tmp_path):
    async def main():
        async with running_hub() as hub:
            inside, outside = guest()
            output = Output(hub, outside, log=SegmentedLog(tmp_path / "log", 1 << 20, 4))
            inside.sendall(b"one\n")
            await output.drain(4)
            done = asyncio.Event()
            early_read, early_write = os.pipe()
            late_read, late_write = os.pipe()
            output.add_client(early_write, True, lambda *_: None)
            output.add_client(late_write, False, lambda *_: done.set())
            inside.sendall(b"two\n")
            assert await output.drain(8) == 0
            inside.close()
            assert await read_all(early_read) == b"one\ntwo\n"
            assert await read_all(late_read) == b"two\n"
            await done.wait()
            # The stream has ended, and its log still has readers.
            again_read, again_write = os.pipe()
            output.add_client(again_write, True, lambda *_: None)
            assert await read_all(again_read) == b"one\ntwo\n"
            output.close()
        assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"

    uvloop.run(main())


def test_rotation_and_its_backlog(tmp_path):
    async def main():
        async with running_hub() as hub:
            inside, outside = guest()
            log = SegmentedLog(tmp_path / "log", 1000, 3)
            output = Output(hub, outside, log=log)
            sent = b""
            for number in range(3):
                piece = bytes([65 + number]) * 1500
                inside.sendall(piece)
                sent += piece
                await output.drain(len(sent))
            await until(lambda: (tmp_path / "log.2").exists())
            inside.close()
            client_read, client_write = os.pipe()
            output.add_client(client_write, True, lambda *_: None)
            got = await read_all(client_read)
            assert sent.endswith(got)
            assert len(got) >= 3000
            output.close()
        names = sorted(p.name for p in tmp_path.iterdir())
        assert names == ["log", "log.1", "log.2"]

    uvloop.run(main())


def children():
    return "".join(path.read_text() for path in Path("/proc/self/task").glob("*/children"))


def test_a_rotation_that_fails_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "ROTATE_RETRY_S", 0.01)
    blocker = tmp_path / "log.new"
    blocker.mkdir()

    async def main():
        async with running_hub() as hub:
            inside, outside = guest()
            output = Output(hub, outside, log=SegmentedLog(tmp_path / "log", 1000, 2))
            inside.sendall(b"a" * 1500)
            await output.drain(1500)
            assert not (tmp_path / "log.1").exists()
            blocker.rmdir()
            await until((tmp_path / "log.1").exists)
            inside.sendall(b"b" * 100)
            await output.drain(1600)
            inside.close()
            output.close()
        assert (tmp_path / "log").read_bytes() == b"b" * 100
        assert (tmp_path / "log.1").read_bytes() == b"a" * 1500

    uvloop.run(main())


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what it looks at tells nobody
            await asyncio.sleep(0.01)


def test_missing_bytes_are_counted(monkeypatch):
    monkeypatch.setattr(streams, "DRAIN_STALL_S", 0.05)

    async def main():
        async with running_hub() as hub:
            inside, outside = guest()
            output = Output(hub, outside)
            inside.sendall(b"12345")
            assert await output.drain(8) == 3
            inside.close()
            output.close()

    uvloop.run(main())


def test_a_count_no_stream_can_have_is_only_missed(monkeypatch):
    monkeypatch.setattr(streams, "DRAIN_STALL_S", 0.05)

    async def main():
        async with running_hub() as hub:
            inside, outside = guest()
            output = Output(hub, outside)
            assert await output.drain((1 << 64) - 1) == (1 << 64) - 1
            inside.close()
            output.close()

    uvloop.run(main())


def test_nothing_of_ended_clients_and_sources_is_kept(tmp_path):
    async def main():
        ended = asyncio.Event()
        async with running_hub() as hub:
            inside, outside = guest()
            output = Output(hub, outside, log=SegmentedLog(tmp_path / "log", 0, 1))
            read_fd, write_fd = os.pipe()
            output.add_client(write_fd, True, lambda *_: ended.set())
            inside.close()
            await ended.wait()
            os.close(read_fd)
            output.close()

            inside, outside = guest()
            stdin = Input(hub, outside, lambda total: None)
            read_fd, write_fd = os.pipe()
            stdin.add_source(read_fd)
            stdin.close()
            os.close(write_fd)
            inside.close()
            assert hub._listeners == {}

    uvloop.run(main())


def test_a_dead_guest_is_drained_to_its_end(tmp_path):
    async def main():
        async with running_hub() as hub:
            inside, outside = guest()
            output = Output(hub, outside, log=SegmentedLog(tmp_path / "log", 0, 1))
            inside.sendall(b"x" * 100_000)
            inside.close()
            assert await output.drain(None) == 0
            output.close()
        assert (tmp_path / "log").stat().st_size == 100_000

    uvloop.run(main())


def test_stdin_fifo_ends_by_close_only(tmp_path):
    path = tmp_path / "in"
    os.mkfifo(path)

    async def main():
        totals = []
        async with running_hub() as hub:
            ends = await uris.open_ends((str(path), "", ""), "c", "ns")
            inside, outside = guest()
            stdin = Input(hub, outside, totals.append)
            stdin.add_fifo(ends.take("stdin"), ends.take("stdin_keeper"))
            for piece in (b"first", b"second"):  # a client detaches, another one comes
                await asyncio.to_thread(path.write_bytes, piece)
                assert await asyncio.to_thread(inside.recv, 100) == piece
            assert totals == []
            stdin.end_fifo()
            await until(lambda: totals)
            assert totals == [11]
            stdin.close()
            inside.close()

    uvloop.run(main())


def test_several_sources_share_stdin():
    async def main():
        totals = []
        async with running_hub() as hub:
            inside, outside = guest()
            stdin = Input(hub, outside, totals.append)
            (read_a, write_a), (read_b, write_b) = os.pipe(), os.pipe()
            a, b = stdin.add_source(read_a), stdin.add_source(read_b)
            os.write(write_a, b"aa")
            assert await asyncio.to_thread(inside.recv, 100) == b"aa"
            os.close(write_a)  # detached: stdin goes on
            os.write(write_b, b"bbb")
            assert await asyncio.to_thread(inside.recv, 100) == b"bbb"
            stdin.end_after(b)
            os.close(write_b)
            await until(lambda: totals)
            assert totals == [5]
            stdin.remove_source(a)
            stdin.close()
            inside.close()

    uvloop.run(main())


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (("", "xyz:///a", ""), InvalidArgument),
        (("file:///a", "", ""), InvalidArgument),
        (("", "/nonexistent/fifo", ""), NotFound),
        (("", "binary:///nonexistent", "binary:///nonexistent"), NotFound),
    ],
)
def test_bad_uris_are_refused(given, error):
    async def main():
        with pytest.raises(error):
            await uris.open_ends(given, "c", "ns")

    uvloop.run(main())


def test_file_uri_appends(tmp_path):
    log = tmp_path / "new" / "log"

    async def main():
        ends = await uris.open_ends(("", f"file://{log}", f"file://{log}"), "c", "ns")
        os.write(ends.stdout, b"one\n")
        os.write(ends.stderr, b"two\n")
        ends.close()

    uvloop.run(main())
    assert log.read_bytes() == b"one\ntwo\n"


@pytest.mark.parametrize("scheme", ["binary", "binary-v2"])
def test_logging_program(tmp_path, scheme):
    program = tmp_path / "logger"
    ready = "echo >&5; exec 5>&-" if scheme == "binary-v2" else "exec 5>&-"
    program.write_text(f'#!/bin/sh\n{ready}\ncat <&3 >"$2"\n echo "$1 $CONTAINER_ID" >>"$2"\n')
    program.chmod(0o755)
    out = tmp_path / "out"

    async def main():
        uri = f"{scheme}://{program}?path={out}"
        ends = await uris.open_ends(("", uri, uri), "c1", "ns")
        os.write(ends.stdout, b"hello\n")
        ends.close()
        await until(lambda: out.exists() and out.read_text().endswith("c1\n"))
        await until(lambda: not children())

    uvloop.run(main())
    assert out.read_text() == "hello\npath c1\n"
