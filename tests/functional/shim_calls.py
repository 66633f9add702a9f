"""Calls to a shim server as containerd makes them, and FIFOs as its clients make them."""

import asyncio
import os
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypercore.proto import task_pb
from hypercore.proto import types_pb as types
from hypercore.wire.ttrpc import Client
from tests.functional.instance import Instance

SERVICE = "containerd.task.v2.Task"
CALL_S = 60.0


@dataclass(frozen=True, slots=True)
class Shim:
    """The server of one task."""

    socket: Path
    task_id: str

    def call(self, method: str, request: Any) -> Any:
        async def run() -> Any:
            client = await Client.connect(str(self.socket))
            try:
                reply = task_pb.Task.METHODS[method][1]
                return await client.request(SERVICE, method, request, reply, timeout_s=CALL_S)
            finally:
                client.close()

        return asyncio.run(run())

    def status(self, exec_id: str = "") -> int:
        request = task_pb.StateRequest(id=self.task_id, exec_id=exec_id)
        return int(self.call("State", request).status)

    def start(self, exec_id: str, process: bytes, streams: "Fifos") -> None:
        """An exec with `process`, an OCI process object, on the FIFOs."""
        request = task_pb.ExecProcessRequest(
            id=self.task_id,
            exec_id=exec_id,
            stdin=streams.stdin,
            stdout=streams.stdout,
            stderr=streams.stderr,
            spec=types.Any(value=process),
        )
        self.call("Exec", request)
        self.call("Start", task_pb.StartRequest(id=self.task_id, exec_id=exec_id))

    def wait(self, exec_id: str) -> int:
        request = task_pb.WaitRequest(id=self.task_id, exec_id=exec_id)
        return int(self.call("Wait", request).exit_status)

    def delete(self, exec_id: str) -> None:
        self.call("Delete", task_pb.DeleteRequest(id=self.task_id, exec_id=exec_id))

    def close_stdin(self, exec_id: str) -> None:
        request = task_pb.CloseIORequest(id=self.task_id, exec_id=exec_id, stdin=True)
        self.call("CloseIO", request)


def shim_of(made: Instance, name: str) -> Shim:
    """The server that owns the task `name`."""
    (run,) = [p for p in (made.run_dir / "vm").iterdir() if p.name.startswith(name)]
    return Shim(Path(os.readlink(run / "stdio")).with_suffix(".sock"), name)


@dataclass(frozen=True, slots=True)
class Fifos:
    stdin: str
    stdout: str
    stderr: str


def fifos(directory: Path, *, stdin: bool = False) -> Fifos:
    for name in ("in", "out", "err"):
        os.mkfifo(directory / name)
    return Fifos(
        str(directory / "in") if stdin else "", *(str(directory / n) for n in ("out", "err"))
    )


def read_some(fd: int, timeout_s: float = CALL_S) -> bytes:
    """The next bytes of a FIFO opened without blocking; none at its end."""
    ready, _, _ = select.select([fd], [], [], timeout_s)
    assert ready, "nothing comes"
    return os.read(fd, 1 << 16)


def read_line(fd: int) -> bytes:
    line = b""
    deadline = time.monotonic() + CALL_S
    while not line.endswith(b"\n"):
        line += read_some(fd, max(0, deadline - time.monotonic()))
    return line


@contextmanager
def reader(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        yield fd
    finally:
        os.close(fd)


class Sink(threading.Thread):
    """Reads a FIFO to its end."""

    def __init__(self, path: str) -> None:
        super().__init__(daemon=True)
        self.data = b""
        self._path = path
        self.start()

    def run(self) -> None:
        with open(self._path, "rb") as file:
            self.data = file.read()

    def all(self) -> bytes:
        self.join(CALL_S)
        assert not self.is_alive(), "the FIFO does not end"
        return self.data
