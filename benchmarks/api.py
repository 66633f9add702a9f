"""The daemon with 500 records of microVMs: List and Get over both unix sockets, its memory.

Answers are read whole but not decoded: what a client makes of them is its own time, which the last
series show for the library. Streams: an exec's output through the daemon's reading end, with a
thread that writes zeros in the guest's place.
"""

import asyncio
import http.client
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from hypercore.attach import ExitStatus
from hypercore.client import Client
from hypercore.containerd import client as containerd_client
from hypercore.containerd import containers
from hypercore.engine_session import Stdio, session
from hypercore.proto import hypercore_pb as pb
from tests.functional.instance import Instance
from tests.integration.serve_lab import Daemon, daemon, wait_until

RUNS = 300
RECORDS = 500
STREAM_BYTES = 1 << 30


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


def samples(made: Instance, runs: int) -> dict[str, list[float]]:
    """Milliseconds by what was asked; memory and throughput are printed."""
    asyncio.run(_record(made))
    try:
        with daemon(env=made.env) as running:
            with Client(running.address("http-unix"), token="") as client:
                wait_until(lambda: len(client.list()) >= RECORDS, 60)
            series = _raw(running, runs) | _library(running, runs // 3)
            print(
                f"  daemon with {RECORDS} records: {running.rss_bytes() / 2**20:.1f} MiB resident"
            )
    finally:
        asyncio.run(_forget(made))
    print(f"  an exec's output, in process: {asyncio.run(_stream()):.2f} GiB/s")
    return series


def _raw(running: Daemon, runs: int) -> dict[str, list[float]]:
    connection = _UnixConnection(running.http_socket)

    def over_http(path: str) -> Callable[[], object]:
        def ask() -> bytes:
            connection.request("GET", path)
            return connection.getresponse().read()

        return ask

    with grpc.insecure_channel(f"unix:{running.grpc_socket}") as channel:
        get = channel.unary_unary("/hypercore.v1.Hypercore/Get")
        list_all = channel.unary_unary("/hypercore.v1.Hypercore/List")
        one = pb.MicroVMRequest(id="bench-250").encode()
        found = {
            "Get, HTTP": _timed(over_http("/v1/microvms/bench-250"), runs),
            "Get, gRPC": _timed(lambda: get(one), runs),
            f"List {RECORDS}, HTTP": _timed(over_http("/v1/microvms"), runs),
            f"List {RECORDS}, gRPC": _timed(lambda: list_all(b""), runs),
        }
    connection.close()
    return found


def _library(running: Daemon, runs: int) -> dict[str, list[float]]:
    found = {}
    for name, kind in (("HTTP", "http-unix"), ("gRPC", "grpc-unix")):
        with Client(running.address(kind), token="") as client:
            found[f"Client.get, {name}"] = _timed(lambda: client.get("bench-250"), runs)
            found[f"Client.list, {name}"] = _timed(client.list, runs)
    return found


def _timed(ask: Callable[[], object], runs: int) -> list[float]:
    ask()
    taken = []
    for _ in range(runs):
        began = time.perf_counter()
        ask()
        taken.append((time.perf_counter() - began) * 1000)
    return taken


async def _record(made: Instance) -> None:
    document = {"process": {"args": ["sleep"], "env": [f"N{n}=x" for n in range(100)]}}
    async with containerd_client.Client(made.run_dir / "containerd.sock") as client:
        for number in range(RECORDS):
            await containers.create(
                client,
                f"bench-{number:03}",
                image="docker.io/library/alpine:latest",
                spec=document,
                snapshotter="",
                snapshot_key="",
                labels={"io.hypercore.owner": "bench", "io.hypercore.command": "sleep 100"},
            )


async def _forget(made: Instance) -> None:
    async with containerd_client.Client(made.run_dir / "containerd.sock") as client:
        for number in range(RECORDS):
            await containers.delete(client, f"bench-{number:03}")


class _Zeros:
    """An attached process that writes zeros."""

    terminal = False

    def __init__(self, fd: int) -> None:
        self._work = asyncio.get_running_loop().run_in_executor(None, _write_zeros, os.dup(fd))

    async def resize(self, rows: int, columns: int) -> None:
        """It has no terminal."""

    async def close_stdin(self) -> None:
        """It reads nothing."""

    async def wait(self) -> ExitStatus:
        await self._work
        return ExitStatus(0)


def _write_zeros(fd: int) -> None:
    block = bytes(1 << 20)
    with os.fdopen(fd, "wb", buffering=0) as file:
        for _ in range(STREAM_BYTES // len(block)):
            left = memoryview(block)
            while left:
                left = left[file.write(left) or 0 :]


async def _stream() -> float:
    @asynccontextmanager
    async def attach(*fds: int | None) -> AsyncIterator[Stdio]:
        yield _Zeros(fds[1] or 0)

    count = 0
    began = time.perf_counter()
    async with session(attach, stdin=False, tty=True) as joined:
        async for _fd, data in joined.outputs():
            count += len(data)
    assert count == STREAM_BYTES
    return count / 2**30 / (time.perf_counter() - began)
