"""Our client against our server over real sockets, and raw frames where the rules matter."""

import asyncio
import contextlib
import socket
import struct

import pytest
import uvloop

from hypercore.errors import DeadlineExceeded, HypercoreError, NotFound, Unavailable
from hypercore.proto.agent_pb import Agent, PidsResponse, ProcessRequest
from hypercore.wire import connection
from hypercore.wire._frame import decode_response, encode_frame, encode_request
from hypercore.wire.connection import STREAM_BUFFER
from hypercore.wire.ttrpc import Client, Server

SERVICE = "test.v1.Streams"


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request):
    if request.param == "uvloop":
        return uvloop.run
    return asyncio.run


async def echo(stream):
    while (message := await stream.receive()) is not None:
        await stream.send(message)


async def total(stream):
    result = 0
    while (message := await stream.receive()) is not None:
        result += len(message)
    return b"%d" % result


async def count(stream):
    for number in range(int(await stream.receive())):
        await stream.send(b"%d" % number)


async def refuse(stream):
    raise NotFound("no such thing")


@contextlib.asynccontextmanager
async def served(tmp_path, handlers=None, peers=1):
    path = str(tmp_path / "s")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    server = Server()
    server.add(Agent.NAME, Agent.METHODS, handlers or {})
    streams = {"Echo": echo, "Total": total, "Count": count, "Refuse": refuse}
    server.add_streams(SERVICE, streams)
    await server.serve(listener)
    clients = [await Client.connect(path) for _ in range(peers)]
    try:
        yield server, path, *clients
    finally:
        for client in clients:
            client.close()
        await server.close()


async def call(client, handler="Pids", timeout_s=5.0, **values):
    return await client.request(
        Agent.NAME, handler, ProcessRequest(**values), PidsResponse, timeout_s=timeout_s
    )


def test_unary_inline_and_task(run, tmp_path):
    async def slow(request):
        await asyncio.sleep(0)
        return PidsResponse(pids=[2])

    async def main():
        handlers = {"Pids": lambda request: PidsResponse(pids=[1]), "Start": slow}
        async with served(tmp_path, handlers) as (_, _, client):
            assert (await call(client)).pids == [1]
            assert (await call(client, "Start")).pids == [2]
            replies = await asyncio.gather(*(call(client, "Start") for _ in range(200)))
            assert len(replies) == 200

    run(main())


def test_errors_keep_their_class(run, tmp_path):
    def gone(request):
        raise NotFound(f"task {request.container_id} does not exist")

    async def broken(request):
        raise KeyError("boom")

    async def main():
        async with served(tmp_path, {"Pids": gone, "Start": broken}) as (_, _, client):
            with pytest.raises(NotFound, match="task x does not exist"):
                await call(client, container_id="x")
            with pytest.raises(HypercoreError, match="KeyError: 'boom'"):
                await call(client, "Start")
            with pytest.raises(HypercoreError, match="method Kill"):
                await call(client, "Kill")
            with pytest.raises(HypercoreError, match=r"service no\.Such"):
                await client.call("no.Such", "Kill", b"", timeout_s=5)

    run(main())


def test_deadlines_on_both_sides(run, tmp_path):
    cancelled = []

    async def forever(request):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(request.exec_id)
            raise

    async def main():
        async with served(tmp_path, {"Pids": forever}) as (_, path, client):
            with pytest.raises(DeadlineExceeded):
                await call(client, timeout_s=0.01, exec_id="a")
            reader, writer = await asyncio.open_unix_connection(path)
            body = ProcessRequest(exec_id="b").encode()
            writer.write(encode_request(1, 0, Agent.NAME.encode(), b"Pids", body, 1_000_000))
            size, _, kind, _ = struct.unpack(">IIBB", await reader.readexactly(10))
            code, text, _ = decode_response(await reader.readexactly(size))
            assert (kind, code, text) == (2, 4, "deadline exceeded")
            writer.close()
            await writer.wait_closed()

    run(main())
    assert sorted(cancelled) == ["a", "b"]


def test_a_call_answered_out_of_turn_ends(run):
    """A guest's agent is not trusted: no frame of it may leave a call without an end."""

    async def main():
        ours, theirs = socket.socketpair()
        client = await Client.over(ours)
        with theirs:
            pending = asyncio.ensure_future(call(client))
            await asyncio.sleep(0)
            theirs.sendall(encode_frame(1, 3, 0, b"data, and no stream"))
            with pytest.raises(HypercoreError, match="frame of type 3"):
                await asyncio.wait_for(pending, 5)
        client.close()
        await client.closed

    run(main())


def test_a_socket_that_is_no_unix_socket(run):
    """As AF_VSOCK's, which a machine without guests cannot connect: here TCP's."""

    async def main():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
        client = await Client.over(ours)
        with theirs:
            pending = asyncio.ensure_future(call(client))
            theirs.settimeout(5)
            assert await asyncio.to_thread(theirs.recv, 10)
            client.close()
            with pytest.raises(Unavailable):
                await pending
        await client.closed

    run(main())


def test_a_peer_that_answers_what_was_not_asked_is_disconnected(run):
    async def main():
        ours, theirs = socket.socketpair()
        client = await Client.over(ours)
        with theirs:
            with pytest.raises(DeadlineExceeded):
                await call(client, timeout_s=0.01)
            pending = asyncio.ensure_future(call(client))
            await asyncio.sleep(0)
            late = encode_frame(1, 2, 0, b"")
            theirs.sendall(late + encode_frame(3, 2, 0, b""))
            assert await pending == PidsResponse()
            pending = asyncio.ensure_future(call(client))
            await asyncio.sleep(0)
            theirs.sendall(late)
            with pytest.raises(Unavailable):
                await asyncio.wait_for(pending, 4)
        await client.closed

    run(main())


def test_closed_connection_ends_everything(run, tmp_path):
    started = asyncio.Event()
    ended = []

    async def forever(request):
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def main():
        async with served(tmp_path, {"Pids": forever}, peers=2) as (server, _, client, other):
            pending = asyncio.ensure_future(call(client, timeout_s=None))
            stream = other.open_stream(SERVICE, "Echo")
            await started.wait()
            client.close()
            with pytest.raises(Unavailable):
                await pending
            await client.closed
            with pytest.raises(Unavailable):
                await call(client)
            await server.close()
            await other.closed
            with pytest.raises(Unavailable):
                await stream.receive()

    run(main())
    assert ended == [True]


def test_streams(run, tmp_path):
    async def main():
        async with served(tmp_path) as (server, _, client):
            stream = client.open_stream(SERVICE, "Echo")
            for message in (b"a", b"", b"c" * 100_000):
                await stream.send(message)
                assert await stream.receive() == message
            stream.close_send()
            assert await stream.receive() is None

            stream = client.open_stream(SERVICE, "Total")
            for _ in range(1000):
                await stream.send(b"xx")
            stream.close_send()
            assert await stream.receive() == b"2000"
            assert await stream.receive() is None

            stream = client.open_stream(SERVICE, "Count", b"3")
            assert [await stream.receive() for _ in range(4)] == [b"0", b"1", b"2", None]

            stream = client.open_stream(SERVICE, "Refuse", b"")
            with pytest.raises(NotFound, match="no such thing"):
                await stream.receive()
            assert not client.streams
            assert not any(c.streams for c in server.connections)

    run(main())


def test_unread_stream_does_not_stop_the_connection(run, tmp_path, monkeypatch):
    """The reader that never comes costs its stream, not the connection."""
    monkeypatch.setattr(connection, "STREAM_STALL_S", 0.05)

    async def main():
        handlers = {"Pids": lambda request: PidsResponse(pids=[1])}
        async with served(tmp_path, handlers) as (_, _, client):
            stream = client.open_stream(SERVICE, "Count", b"%d" % (STREAM_BUFFER * 4))
            assert (await call(client)).pids == [1]
            dropped = asyncio.Event()
            client._stream_dropped = stream._dropped = lambda _: dropped.set()
            await dropped.wait()
            with pytest.raises(HypercoreError, match="was full"):
                await stream.receive()
            assert (await call(client)).pids == [1]

    run(main())


def exchange(path, *frames):
    """Send raw frames, return the (stream id, type, flags, body) of one answer to each."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(path)
        answers = []
        for frame in frames:
            sock.sendall(frame)
            header = sock.recv(10, socket.MSG_WAITALL)
            size, stream_id, kind, flags = struct.unpack(">IIBB", header)
            body = sock.recv(size, socket.MSG_WAITALL) if size else b""
            answers.append((stream_id, kind, flags, body))
        return answers


def test_rules_of_stream_ids(run, tmp_path):
    request = (Agent.NAME.encode(), b"Pids", b"")

    async def main():
        handlers = {"Pids": lambda request: PidsResponse()}
        async with served(tmp_path, handlers) as (_, path, _):
            answers = await asyncio.to_thread(
                exchange,
                path,
                encode_request(3, 0, *request),
                encode_request(4, 0, *request),
                encode_request(3, 0, *request),
                encode_frame(99, 3, 0, b""),
                encode_frame(5, 9, 0, b"of no known type") + encode_frame(7, 1, 0, b"\xff\xff"),
                struct.pack(">IIBB", (4 << 20) + 1, 9, 1, 0) + b"\0" * ((4 << 20) + 1),
                encode_request(11, 0, *request),
            )
        codes = [decode_response(body)[0] for _, _, _, body in answers]
        assert codes == [0, 3, 3, 3, 3, 8, 0]
        assert [a[0] for a in answers] == [3, 4, 3, 99, 7, 9, 11]

    run(main())
