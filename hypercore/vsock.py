"""Reaching the guest over vsock: the listener it dials, and dialling it. Not the bytes after that.

Two ways to the same guest: the hybrid socket of a VMM or vhost-device-vsock (a unix socket, where
`CONNECT port` is answered `OK number`), or the kernel's AF_VSOCK. Nothing here dials a guest that
has not dialled us first: vhost-device-vsock 0.3.0 deadlocks when it must connect to a guest whose
driver is coming up.
"""

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

from hypercore.errors import Unavailable, from_os_error
from hypercore.proto import agent_pb

CONTROL_PORT = 10788
"""Host port the agent dials when it is ready."""
SUCCESSOR_PORT = 10789
"""Guest port where the agent listens for a host process that takes the microVM over."""
STREAM_PORT = 10790
"""Guest port of stdio streams."""

MAX_REPLY_BYTES = 64


def listen_hybrid(path: Path, uid: int) -> socket.socket:
    """Listen at the unix socket for one guest port; only root and `uid` may connect."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.setblocking(False)
        listener.bind(str(path))
        os.chmod(path, 0o600)
        if uid >= 0:
            os.chown(path, uid, -1)
        listener.listen(4)
    except BaseException:
        listener.close()
        raise
    return listener


def listen_kernel(port: int) -> socket.socket:
    """Listen on the host's `port` for guests of any CID; look at who connected."""
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.setblocking(False)
        listener.bind((socket.VMADDR_CID_ANY, port))
        listener.listen(4)
    except BaseException:
        listener.close()
        raise
    return listener


def peer_uid(connection: socket.socket) -> int:
    """Effective uid of the process at the other end of a unix socket, when it connected."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    uid: int = struct.unpack("iII", credentials)[1]
    return uid


async def accept(listener: socket.socket) -> socket.socket:
    """The next connection, non-blocking.

    Raises:
        ResourceExhausted: no descriptor is free.
    """
    loop = asyncio.get_running_loop()
    while True:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            await _ready(listener, loop.add_reader, loop.remove_reader)
            continue
        except ConnectionAbortedError:
            continue
        except OSError as exc:
            raise from_os_error(exc, "accept a connection of the guest") from exc
        connection.setblocking(False)
        return connection


async def dial_hybrid(path: Path, port: int, uid: int) -> socket.socket:
    """Connect to the guest's `port` through a hybrid socket served by `uid` (-1: by anyone).

    The caller sets the deadline.

    Raises:
        Unavailable: nobody serves the socket, or the guest does not listen on the port.
    """
    loop = asyncio.get_running_loop()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.setblocking(False)
        try:
            await loop.sock_connect(connection, str(path))
            if uid >= 0 and peer_uid(connection) != uid:
                raise Unavailable(f"{path} is served by uid {peer_uid(connection)}, not {uid}")
            await loop.sock_sendall(connection, f"CONNECT {port}\n".encode())
            # Byte by byte: what follows the line belongs to the stream.
            reply = b""
            while not reply.endswith(b"\n") and len(reply) < MAX_REPLY_BYTES:
                byte = await loop.sock_recv(connection, 1)
                if not byte:
                    break
                reply += byte
        except OSError as exc:
            raise Unavailable(f"cannot reach guest port {port} through {path}: {exc}") from exc
        if not (reply.startswith(b"OK ") and reply.endswith(b"\n")):
            raise Unavailable(f"guest port {port} refused the connection through {path}")
    except BaseException:
        connection.close()
        raise
    return connection


async def dial_kernel(cid: int, port: int) -> socket.socket:
    """Connect to `port` of the guest `cid` by AF_VSOCK. As dial_hybrid otherwise."""
    loop = asyncio.get_running_loop()
    connection = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.setblocking(False)
        try:
            connection.connect((cid, port))
        except BlockingIOError:
            # loop.sock_connect would look the address up as an internet one
            await _ready(connection, loop.add_writer, loop.remove_writer)
        if error := connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(error, os.strerror(error))
    except OSError as exc:
        connection.close()
        raise Unavailable(f"cannot reach port {port} of guest CID {cid}: {exc}") from exc
    except BaseException:
        connection.close()
        raise
    return connection


async def open_stream(connection: socket.socket, token: bytes, offset: int) -> None:
    """Name the stdio stream that `connection` is to carry, and wait for the agent's word.

    Separate connections have no order: only after this may a call to the agent use `token`.

    Raises:
        Unavailable: the agent refused, or the guest is gone.
    """
    loop = asyncio.get_running_loop()
    header = agent_pb.StreamHeader(version=1, token=token, offset=offset).encode()
    try:
        await loop.sock_sendall(connection, struct.pack(">H", len(header)) + header)
        answer = await loop.sock_recv(connection, 1)
    except OSError as exc:
        raise Unavailable(f"the guest closed a stdio stream before it began: {exc}") from exc
    if answer != b"+":
        word = "refused" if answer == b"-" else "closed"
        raise Unavailable(f"the agent {word} the stdio stream {token.hex()}")


async def _ready(
    sock: socket.socket,
    add: Callable[..., object],
    remove: Callable[[int], object],
) -> None:
    """Wait once for what `add` watches, the loop's add_reader or add_writer."""
    ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_ready() -> None:
        if not ready.done():
            ready.set_result(None)

    add(sock.fileno(), on_ready)
    try:
        await ready
    finally:
        remove(sock.fileno())
