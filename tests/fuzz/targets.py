"""What the fuzzer drives: each target takes one case drawn from `rng`; any error it raises is a
finding. What a parser may answer to damaged input is caught here, by its class.
"""

import asyncio
import os
import random
import socket
import tempfile
import tomllib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from hypercore import hac
from hypercore.errors import HypercoreError, NotFound
from hypercore.proto import agent_pb, bootstrap_pb, stdio_pb, task_pb, types_pb
from hypercore.shim.attach import AttachServer
from hypercore.shim.task import Task
from hypercore.spec import from_annotations
from hypercore.wire import _frame, codec
from hypercore.wire.connection import Stream
from hypercore.wire.ttrpc import Client, Server
from tests.fuzz import mutate

Target = Callable[[random.Random], Awaitable[None]]

MAX_FRAME = 4096
TYPES = mutate.message_types()
SERVICE = "containerd.task.v3.Task"


def frame(rng: random.Random, body: bytes) -> bytes:
    """A frame whose header is right, or nearly."""
    stream_id = rng.choice((1, 1, 3, 5, 2, 0, (1 << 32) - 1))
    kind = rng.choice((1, 1, 2, 2, 3, 3, 0, 255))
    made = _frame.encode_frame(stream_id, kind, rng.choice((0, 0, 1, 2, 4, 5, 255)), body)
    if rng.random() < 0.1:
        made = rng.choice(mutate.NUMBERS[:8]).to_bytes(4, "big") + made[4:]
    return made


def request(rng: random.Random) -> bytes:
    """A request frame for a method that the target's server has, or has not."""
    method = rng.choice(("State", "Kill", "Create", "Wait", "Stream", "None"))
    payload = mutate.message(rng, task_pb.CreateTaskRequest).encode()
    return _frame.encode_request(
        rng.randrange(1, 2000),
        rng.choice((0, 0, 1, 2)),
        rng.choice((SERVICE, "other")).encode(),
        method.encode(),
        mutate.damage(rng, payload),
        rng.choice((0, 1, 10**9)),
        ((b"key", b"value"),) if rng.random() < 0.3 else (),
    )


async def framing(rng: random.Random) -> None:
    """However the bytes are cut, the frames are the same; what is too long is dropped."""
    data = b"".join(frame(rng, rng.randbytes(rng.randrange(64))) for _ in range(rng.randrange(4)))
    data = mutate.damage(rng, data)
    whole = _frame.Parser(MAX_FRAME).feed(data)
    parser = _frame.Parser(MAX_FRAME)
    assert [f for piece in mutate.pieces(rng, data) for f in parser.feed(piece)] == whole
    for *_, body in whole:
        assert body is None or len(body) <= MAX_FRAME


async def envelopes(rng: random.Random) -> None:
    body = mutate.damage(rng, request(rng)[10:])
    for decode in (_frame.decode_request, _frame.decode_response):
        try:
            decode(body)
        except ValueError:
            continue


async def messages(rng: random.Random) -> None:
    """Of the shim, containerd, the agent and the stdio socket; stream headers among them."""
    of = rng.choice(TYPES)
    valid = mutate.message(rng, of)
    data = valid.encode()
    assert of.decode(data) == valid
    try:
        decoded = of.decode(mutate.damage(rng, data))
    except codec.DecodeError:
        return
    again = of.decode(decoded.encode())
    # Not the messages themselves: a NaN is no equal of its own.
    assert again.encode() == decoded.encode()


class _Transport(asyncio.Transport):
    """Takes what a connection writes; the frames must be whole."""

    def __init__(self) -> None:
        super().__init__({"socket": socket.socketpair()[0]})
        self.written = bytearray()
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    abort = close

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading

    def is_closing(self) -> bool:
        return self.closed

    def check(self) -> None:
        parser = _frame.Parser()
        frames = parser.feed(bytes(self.written))
        assert sum(10 + len(body or b"") for *_, body in frames) == len(self.written)
        self.get_extra_info("socket").close()


async def _wait(request: Any) -> types_pb.Empty:
    await asyncio.sleep(0)
    return types_pb.Empty()


async def _echo(stream: Stream) -> bytes | None:
    while (received := await stream.receive()) is not None:
        await stream.send(received)
    return None


def _server() -> Server:
    server = Server()
    handlers: dict[str, Callable[[Any], Any]] = {
        "State": lambda request: task_pb.StateResponse(id=request.id),
        "Kill": lambda request: b"",
        "Create": _wait,
        "Wait": _wait,
    }
    server.add(SERVICE, task_pb.Task.METHODS, handlers)
    server.add_streams(SERVICE, {"Stream": _echo})
    return server


async def ttrpc_server(rng: random.Random) -> None:
    server = _server()
    loop = asyncio.get_running_loop()
    made: list[asyncio.Protocol] = []
    from hypercore.wire.server import _ServerConnection

    connection = _ServerConnection(server)
    made.append(connection)
    transport = _Transport()
    connection.connection_made(transport)
    errors: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: errors.append(context))
    data = b"".join(
        request(rng) if rng.random() < 0.6 else frame(rng, rng.randbytes(rng.randrange(40)))
        for _ in range(rng.randrange(8))
    )
    for piece in mutate.pieces(rng, mutate.damage(rng, data)):
        connection.data_received(piece)
        await asyncio.sleep(0)
    connection.connection_lost(None)
    if connection.tasks:
        await asyncio.wait(connection.tasks, timeout=10)
    assert not connection.tasks
    assert not errors, errors
    transport.check()


async def ttrpc_client(rng: random.Random) -> None:
    """Every call under way ends, with an answer or an error of ours."""
    client = Client(MAX_FRAME)
    transport = _Transport()
    client.connection_made(transport)
    loop = asyncio.get_running_loop()
    calls = [
        loop.create_task(client.call(SERVICE, "State", b"", timeout_s=None))
        for _ in range(rng.randrange(1, 4))
    ]
    if rng.random() < 0.5:
        stream = client.open_stream(SERVICE, "Stream")
        calls.append(loop.create_task(_drain(stream)))
    await asyncio.sleep(0)
    answers = []
    for _ in range(rng.randrange(6)):
        number = rng.choice((1, 3, 5, 7, 9))
        answers.append(
            rng.choice(
                (
                    _frame.encode_response(number, rng.randbytes(rng.randrange(30))),
                    _frame.encode_error(
                        number, rng.choice((1, 5, 2**31)), rng.choice(mutate.TEXTS)
                    ),
                    frame(rng, rng.randbytes(rng.randrange(40))),
                )
            )
        )
    for piece in mutate.pieces(rng, mutate.damage(rng, b"".join(answers))):
        client.data_received(piece)
    client.connection_lost(None)
    for ended in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(ended, bytes | HypercoreError), ended
    transport.check()


async def _drain(stream: Stream) -> bytes:
    while await stream.receive() is not None:
        pass
    return b""


HAC = """
[spacecore]
name = "a"
description = "b"
[hardware]
cores = 1
memory = 512
kernel = "/k"
drive = "/d"
ref = "docker.io/library/alpine:latest"
interface = "eth0"
[vm]
provider = "qemu"
cmdline = "quiet"
[network]
mode = "nat"
[workload]
command = ["sh"]
env = ["A=b"]
user = "0"
"""


async def hac_files(rng: random.Random) -> None:
    text = mutate.damage(rng, HAC.encode()).decode(errors="replace")
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, ValueError):
        return
    with tempfile.NamedTemporaryFile("w", suffix=".toml", dir="/dev/shm") as file:
        file.write(text)
        file.flush()
        try:
            hac.parse(Path(file.name), check_host=False)
        except HypercoreError:
            assert document is not None


async def annotations(rng: random.Random) -> None:
    names = ("provider", "cores", "memory", "kernel", "network", "mode", "owner", "x", "")
    values = (
        *mutate.TEXTS,
        "1",
        "-1",
        "1e9",
        "{}",
        "[]",
        "null",
        '{"mode": 1}',
        "true",
        "9" * 5000,
    )
    given = {f"io.hypercore.{rng.choice(names)}": rng.choice(values) for _ in range(3)}
    try:
        from_annotations("vm-1", given)
    except HypercoreError:
        return


async def stdio_socket(rng: random.Random) -> None:
    """Packets with descriptors: refused or not, none stays open."""

    def no_task(task_id: str) -> Task:
        raise NotFound(f"no task {task_id}")

    before = set(os.listdir("/proc/self/fd"))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind("")
    listener.listen()
    server = AttachServer(listener, "n", no_task)
    server.start()
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.connect(listener.getsockname())
    client.setblocking(False)
    packet = mutate.damage(rng, mutate.message(rng, stdio_pb.StdioRequest).encode()) or b"\0"
    ends = [fd for _ in range(rng.randrange(3)) for fd in os.pipe()]
    try:
        socket.send_fds(client, [packet], ends)
        for _ in range(3):
            await asyncio.sleep(0)
    finally:
        for fd in ends:
            os.close(fd)
        client.close()
        await server.close()
    assert set(os.listdir("/proc/self/fd")) == before


TARGETS: dict[str, Target] = {
    "framing": framing,
    "envelopes": envelopes,
    "messages": messages,
    "ttrpc server": ttrpc_server,
    "ttrpc client": ttrpc_client,
    "hac.toml": hac_files,
    "annotations": annotations,
    "stdio socket": stdio_socket,
}


def bootstrap(rng: random.Random) -> bytes:
    """One case for launcher.c: what containerd writes to a shim's stdin, or a server answers."""
    of = rng.choice((bootstrap_pb.BootstrapParams, types_pb.Any, agent_pb.StreamHeader))
    made = mutate.message(rng, of)
    if isinstance(made, bootstrap_pb.BootstrapParams) and rng.random() < 0.7:
        made.instance_id, made.namespace = "id", "ns"
    if rng.random() < 0.3:
        frame = _frame.encode_error(1, rng.choice((5, 8)), rng.choice(mutate.TEXTS))
        return mutate.damage(rng, frame[10:])
    return mutate.damage(rng, made.encode())
