"""Unix sockets of the host that a container may connect to, over the guest's streams.

The guest listens; it is asked for the next connection, and then dialled for it. The socket on the
host is opened for each connection, so its server may come and go.
"""

import asyncio
import contextlib
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from hypercore.agent_client import AgentClient
from hypercore.errors import HypercoreError, InvalidArgument, Unavailable, from_os_error
from hypercore.proto.agent_pb import ForwardedSocket
from hypercore.shim.pieces import PieceStream

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 128
"""Of one container at one time; its guest holds back the rest."""
CONNECT_S = 5.0
CHUNK = 65536

OpenStream = Callable[[bytes], Awaitable[int]]


@dataclass(frozen=True, slots=True)
class HostSocket:
    """A mount of type `uds`, or a bind mount of a socket; `name` is the guest's for it."""

    name: str
    path: str
    destination: str


def described(given: HostSocket) -> ForwardedSocket:
    """The socket as the guest makes it: who may connect is as on the host.

    Raises:
        InvalidArgument: there is no socket at the path.
    """
    try:
        status = os.stat(given.path)
    except OSError as exc:
        raise from_os_error(exc, f"find the socket {given.path}") from exc
    if not stat.S_ISSOCK(status.st_mode):
        raise InvalidArgument(
            f"mount of {given.path} on {given.destination}: it is no socket",
            hint="type `uds` is for unix sockets; bind files and directories",
        )
    mode = stat.S_IMODE(status.st_mode) & 0o777
    return ForwardedSocket(name=given.name, mode=mode, uid=status.st_uid, gid=status.st_gid)


async def serve(
    agent: AgentClient,
    container_id: str,
    sockets: Mapping[str, HostSocket],
    open_stream: OpenStream,
) -> None:
    """Connect the container to `sockets`, by name, until its guest is gone. Never raises."""
    async with asyncio.TaskGroup() as connections:
        running: set[asyncio.Task[None]] = set()
        try:
            while True:
                asked = await agent.next_connection(container_id)
                given = sockets.get(asked.name)
                if given is None or len(running) >= MAX_CONNECTIONS:
                    continue  # the guest hangs up by itself
                task = connections.create_task(_connect(given, asked.token, open_stream))
                running.add(task)
                task.add_done_callback(running.discard)
        except HypercoreError as exc:
            logger.debug("sockets of %s: %s", container_id, exc)
        finally:
            for task in running:
                task.cancel()


async def _connect(given: HostSocket, token: bytes, open_stream: OpenStream) -> None:
    try:
        stream = PieceStream(await open_stream(token))
    except HypercoreError as exc:
        logger.warning("the guest's connection to %s: %s", given.path, exc)
        return
    with contextlib.closing(stream):
        local = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with contextlib.closing(local):
            local.setblocking(False)
            try:
                async with asyncio.timeout(CONNECT_S):
                    await asyncio.get_running_loop().sock_connect(local, given.path)
            except (OSError, TimeoutError) as exc:
                # Closing the stream tells the container.
                logger.warning("cannot connect to %s for a container: %s", given.path, exc)
                return
            await _join(local, stream)


async def _join(local: socket.socket, stream: PieceStream) -> None:
    """Move bytes both ways until both have ended, or one has broken."""
    ways = [
        asyncio.ensure_future(_to_guest(local, stream)),
        asyncio.ensure_future(_to_host(stream, local)),
    ]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for way in ways:
            way.cancel()
        results = await asyncio.gather(*ways, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception) and not isinstance(result, OSError | Unavailable):
            raise result


async def _to_guest(local: socket.socket, stream: PieceStream) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(local, CHUNK):
        await stream.send(data)
    await stream.send(b"")


async def _to_host(stream: PieceStream, local: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while data := await stream.receive(CHUNK):
        await loop.sock_sendall(local, data)
    local.shutdown(socket.SHUT_WR)
