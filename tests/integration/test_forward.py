"""The host's side of forwarded unix sockets: real sockets, a guest that is a socket pair."""

import asyncio
import os
import socket
from pathlib import Path

import pytest

from hypercore.errors import InvalidArgument, NotFound, Unavailable
from hypercore.proto import agent_pb
from hypercore.shim import forward
from hypercore.shim.forward import HostSocket
from hypercore.shim.pieces import PieceStream

TOKEN = b"t" * 16


class Guest:
    """An agent with connections to tell of, and their other ends."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[str] = asyncio.Queue()
        self.dialled: asyncio.Queue[PieceStream] = asyncio.Queue()

    async def next_connection(self, container_id: str) -> agent_pb.ConnectionResponse:
        name = await self.asked.get()
        if not name:
            raise Unavailable("the guest is gone")
        return agent_pb.ConnectionResponse(name=name, token=TOKEN)

    async def open_stream(self, token: bytes) -> int:
        assert token == TOKEN
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        self.dialled.put_nowait(PieceStream(theirs.detach()))
        return ours.detach()


async def connected(guest: Guest, name: str = "0") -> PieceStream:
    guest.asked.put_nowait(name)
    async with asyncio.timeout(10):
        return await guest.dialled.get()


async def received(stream: PieceStream) -> bytes:
    parts = []
    async with asyncio.timeout(20):
        while part := await stream.receive(65536):
            parts.append(part)
    return b"".join(parts)


def test_both_directions_end_by_themselves(tmp_path: Path) -> None:
    blob = os.urandom(3 << 20)

    async def run() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            got = await reader.read()  # to the container's end
            writer.write(got[::-1])
            writer.close()

        server = await asyncio.start_unix_server(serve, tmp_path / "s")
        guest = Guest()
        named = {"0": HostSocket("0", str(tmp_path / "s"), "/run/s")}
        serving = asyncio.ensure_future(forward.serve(guest, "one", named, guest.open_stream))
        try:
            streams = [await connected(guest) for _ in range(3)]
            for stream in streams:
                for start in range(0, len(blob), 100_000):
                    await stream.send(blob[start : start + 100_000])
                await stream.send(b"")
            for stream in streams:
                assert await received(stream) == blob[::-1]
                stream.close()
        finally:
            guest.asked.put_nowait("")
            await serving
            server.close()
            await server.wait_closed()

    asyncio.run(run())


def test_a_server_that_is_not_there_cuts_the_connection_and_may_come(tmp_path: Path) -> None:
    async def run() -> None:
        guest = Guest()
        named = {"0": HostSocket("0", str(tmp_path / "s"), "/run/s")}
        serving = asyncio.ensure_future(forward.serve(guest, "one", named, guest.open_stream))
        try:
            stream = await connected(guest)
            with pytest.raises(Unavailable):
                await received(stream)
            stream.close()

            async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                writer.write(b"hello")
                writer.close()

            server = await asyncio.start_unix_server(greet, tmp_path / "s")
            stream = await connected(guest)
            assert await received(stream) == b"hello"
            stream.close()
            server.close()
            await server.wait_closed()
        finally:
            guest.asked.put_nowait("")
            await serving

    asyncio.run(run())


def test_what_a_guest_announces_is_bounded() -> None:
    async def run() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        stream = PieceStream(ours.detach())
        with theirs:
            theirs.sendall(b"\xff\xff\xff\xff")
            with pytest.raises(Unavailable, match="4294967295 bytes"):
                await stream.receive(100)
        stream.close()

    asyncio.run(run())


def test_the_socket_is_made_as_it_is_on_the_host(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
    (tmp_path / "s").chmod(0o640)
    made = forward.described(HostSocket("0", str(tmp_path / "s"), "/run/s"))
    assert (made.mode, made.uid, made.gid) == (0o640, os.getuid(), os.getgid())
    (tmp_path / "file").touch()
    with pytest.raises(InvalidArgument, match="it is no socket"):
        forward.described(HostSocket("0", str(tmp_path / "file"), "/run/s"))
    with pytest.raises(NotFound):
        forward.described(HostSocket("0", str(tmp_path / "nothing"), "/run/s"))
