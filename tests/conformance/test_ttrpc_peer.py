"""Our ttrpc against containerd's Go implementation, each as server and as client.

The service is the one ttrpc's own integration tests use: unary calls and every kind of stream.
"""

import asyncio
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hypercore.errors import AlreadyExists, HypercoreError
from hypercore.wire import codec
from hypercore.wire.codec import Field, Message
from hypercore.wire.connection import Stream
from hypercore.wire.ttrpc import Client, Server
from tests.conformance import golang

SERVICE = "ttrpc.integration.streaming.Streaming"
MESSAGES = 500
DEADLINE_S = 60


class Echo(Message):
    __slots__ = ("msg", "seq")
    FIELDS = (Field(1, "seq", codec.UINT), Field(2, "msg", codec.STRING))


class Part(Message):
    __slots__ = ("add",)
    FIELDS = (Field(1, "add", codec.INT),)


class Sum(Message):
    __slots__ = ("num", "sum")
    FIELDS = (Field(1, "sum", codec.INT), Field(2, "num", codec.INT))


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("ttrpc") / "peer"
    golang.build(Path(__file__).parent / "ttrpc", program, ["."])
    return program


def echo(request: Any) -> Message:
    if request.msg == "fail":
        raise AlreadyExists("told to")
    return Echo(seq=request.seq + 1, msg=request.msg)


async def echo_stream(stream: Stream) -> None:
    while (data := await stream.receive()) is not None:
        received = Echo.decode(data)
        await stream.send(Echo(seq=received.seq + 1, msg=received.msg).encode())


async def sum_stream(stream: Stream) -> bytes:
    total = Sum()
    while (data := await stream.receive()) is not None:
        total.sum += Part.decode(data).add
        total.num += 1
    return total.encode()


async def divide_stream(stream: Stream) -> None:
    asked = Sum.decode(await stream.receive() or b"")
    for _ in range(asked.num):
        await stream.send(Part(add=asked.sum // asked.num).encode())


async def echo_null(stream: Stream) -> bytes:
    while await stream.receive() is not None:
        pass
    return b""


async def echo_null_stream(stream: Stream) -> None:
    while await stream.receive() is not None:
        await stream.send(b"")


async def empty_payload_stream(stream: Stream) -> None:
    assert await stream.receive() == b""
    for seq in (1, 2):
        await stream.send(Echo(seq=seq).encode())


def test_go_client_of_our_server(peer: Path, tmp_path: Path) -> None:
    async def serve() -> tuple[int, bytes]:
        server = Server()
        server.add(SERVICE, {"Echo": (Echo, Echo)}, {"Echo": echo})
        handlers: dict[str, Any] = {
            "EchoStream": echo_stream,
            "SumStream": sum_stream,
            "DivideStream": divide_stream,
            "EchoNull": echo_null,
            "EchoNullStream": echo_null_stream,
            "EmptyPayloadStream": empty_payload_stream,
        }
        server.add_streams(SERVICE, handlers)
        await server.serve(listener)
        try:
            client = await asyncio.create_subprocess_exec(
                peer, "client", path, stderr=asyncio.subprocess.PIPE
            )
            async with asyncio.timeout(DEADLINE_S):
                _, said = await client.communicate()
            assert client.returncode is not None
            return client.returncode, said
        finally:
            await server.close()

    path = str(tmp_path / "s")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    assert asyncio.run(serve()) == (0, b"")


async def check_all(path: str) -> None:
    client = await Client.connect(path)
    try:
        for seq in range(MESSAGES):
            sent = Echo(seq=seq, msg="x")
            got = await client.request(SERVICE, "Echo", sent, Echo, timeout_s=DEADLINE_S)
            assert (got.seq, got.msg) == (seq + 1, "x")
        with pytest.raises(AlreadyExists, match="told to"):
            await client.call(SERVICE, "Echo", Echo(msg="fail").encode(), timeout_s=DEADLINE_S)
        with pytest.raises(HypercoreError, match="method"):
            await client.call(SERVICE, "Nothing", b"", timeout_s=DEADLINE_S)

        stream = client.open_stream(SERVICE, "EchoStream")
        for seq in range(MESSAGES):
            await stream.send(Echo(seq=seq).encode())
            assert Echo.decode(await stream.receive() or b"").seq == seq + 1
        stream.close_send()
        assert await stream.receive() is None

        stream = client.open_stream(SERVICE, "SumStream")
        for add in range(MESSAGES):
            await stream.send(Part(add=add).encode())
        stream.close_send()
        total = Sum.decode(await stream.receive() or b"")
        assert (total.num, total.sum) == (MESSAGES, MESSAGES * (MESSAGES - 1) // 2)

        stream = client.open_stream(SERVICE, "DivideStream", Sum(sum=20, num=10).encode())
        for _ in range(10):
            assert Part.decode(await stream.receive() or b"").add == 2
        assert await stream.receive() is None

        stream = client.open_stream(SERVICE, "EchoNullStream")
        for seq in range(3):
            await stream.send(Echo(seq=seq).encode())
            assert await stream.receive() == b""
        stream.close_send()
        assert await stream.receive() is None

        stream = client.open_stream(SERVICE, "EmptyPayloadStream", b"")
        for seq in (1, 2):
            assert Echo.decode(await stream.receive() or b"").seq == seq
        assert await stream.receive() is None
    finally:
        client.close()
        await client.closed


def test_our_client_of_a_go_server(peer: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with subprocess.Popen([peer, "server", path], stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            asyncio.run(asyncio.wait_for(check_all(path), DEADLINE_S))
        finally:
            server.kill()
