"""What accepts connections when no descriptor is free: waits or says so, and takes them later."""

import asyncio
import contextlib
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from hypercore import vsock
from hypercore.errors import NotFound, ResourceExhausted
from hypercore.proto.stdio_pb import Attach, StdioReply, StdioRequest
from hypercore.shim import attach
from hypercore.shim.task import Task


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def no_task(task_id: str) -> Task:
    raise NotFound(f"no task {task_id}")


async def attach_late(path: str, caplog: pytest.LogCaptureFixture) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen()
    server = attach.AttachServer(listener, "n", no_task)
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    server.start()
    try:
        with no_descriptors():
            client.connect(path)
            await asyncio.sleep(0.3)
        request = StdioRequest(attach=Attach(namespace="n", task_id="t"))
        await loop.sock_sendall(client, request.encode())
        async with asyncio.timeout(10):
            reply = StdioReply.decode(await loop.sock_recv(client, 65536))
        assert "no task t" in reply.error.message
        assert 1 <= len(caplog.messages) <= 2, "it spins"
    finally:
        client.close()
        await server.close()


def test_a_client_waits_until_it_can_attach(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asyncio.run(attach_late(str(tmp_path / "io"), caplog))


async def accept_late(path: Path) -> None:
    listener = vsock.listen_hybrid(path, -1)
    client = socket.socket(socket.AF_UNIX)
    try:
        with no_descriptors():
            client.connect(str(path))
            with pytest.raises(ResourceExhausted, match="Too many open files"):
                await vsock.accept(listener)
    finally:
        client.close()
        listener.close()


def test_the_agents_call_is_refused_with_the_reason(tmp_path: Path) -> None:
    asyncio.run(accept_late(tmp_path / "v"))
