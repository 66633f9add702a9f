"""Copies between the host and a running microVM's container: docker cp's rules, over Transfer.

The archive goes through the socket of the shim server that owns the microVM. What lies on the host
is read and written by copy_files.py, in a thread, at the other end of a socket pair.
"""

import asyncio
import contextlib
import io
import os
import posixpath
import secrets
import socket
import stat as stat_bits
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from hypercore import copy_files, paths
from hypercore.copy_files import Options as Options
from hypercore.errors import HypercoreError, InvalidArgument, NotFound, StateError, Unavailable
from hypercore.inventory import ALIVE, Record
from hypercore.proto import transfer_pb
from hypercore.proto.types_pb import Any, Empty
from hypercore.transfer_stream import (
    CHUNK,
    STREAM_INIT,
    STREAMING,
    TAR,
    TRANSFER,
    TYPES,
    ByteStream,
    packed,
)
from hypercore.wire import tar
from hypercore.wire.ttrpc import Client

OPEN_S = 10.0
MAX_LINKS = 40
MAX_STAT_BYTES = tar.MAX_EXTENSION + 8 * tar.BLOCK

Read = Callable[[], Awaitable[bytes]]
Write = Callable[[bytes], Awaitable[None]]


async def send_archive(
    namespace: str, record: Record, path: str, read: Read, *, preserve_ownership: bool = False
) -> None:
    """Unpack a tar archive into the directory `path` of the container.

    Args:
        read: gives the archive's bytes, none at its end.
        preserve_ownership: of the archive; else all is the container's root's.

    Raises:
        NotFound, InvalidArgument: there is no such directory, or the archive is none.
        StateError: the microVM does not run.
    """
    target = transfer_pb.ContainerPath(
        container_id=record.microvm_id, path=path, preserve_ownership=preserve_ownership
    )

    async def move(stream: ByteStream) -> None:
        while data := await read():
            await stream.send(data)
        stream.end()

    async with _transfer(namespace, record, "ReadStream", target) as (stream, asked):
        await _together(move(stream), asked)


async def receive_archive(
    namespace: str, record: Record, path: str, write: Write, *, only_entry: bool = False
) -> None:
    """Write the tar archive of `path` in the container, whose entries begin with its last name.

    Args:
        write: takes the archive's bytes.
        only_entry: of a directory, not what is in it.

    Raises:
        NotFound: there is no such path.
        StateError: the microVM does not run.
    """
    source = transfer_pb.ContainerPath(
        container_id=record.microvm_id, path=path, no_walk=only_entry
    )

    async def move(stream: ByteStream) -> None:
        while data := await stream.receive():
            await write(data)

    async with _transfer(namespace, record, "WriteStream", source) as (stream, asked):
        await _together(move(stream), asked)


async def stat(namespace: str, record: Record, path: str) -> tar.Entry:
    """The entry of `path`, a link not followed. Raises NotFound."""
    source = transfer_pb.ContainerPath(container_id=record.microvm_id, path=path, no_walk=True)
    async with _transfer(namespace, record, "WriteStream", source) as (stream, asked):
        head = b""
        while len(head) < MAX_STAT_BYTES:
            data = await stream.receive()
            if not data:
                await asked  # it says why
                break
            head += data
            with contextlib.suppress(tar.TarError):  # not yet all of the header
                entry = tar.Reader(io.BytesIO(head).read).next()
                if entry is not None:
                    return entry
    raise HypercoreError(f"the guest sent no entry for {path}")


@asynccontextmanager
async def _transfer(
    namespace: str, record: Record, kind: str, container_path: transfer_pb.ContainerPath
) -> AsyncIterator[tuple[ByteStream, asyncio.Future[None]]]:
    """A Transfer under way and its stream. Leaving early ends it, by the connection's end."""
    if record.state not in ALIVE:
        raise StateError(
            f"microVM {record.microvm_id} is {record.state}: its files are out of reach",
            hint=f"`hypercore start {record.microvm_id[:12]}` starts it again",
        )
    client = await Client.connect(str(await asyncio.to_thread(_server_of, namespace, record)))
    try:
        stream = client.open_stream(STREAMING, "Stream")
        stream_id = f"cp-{secrets.token_hex(8)}"
        await stream.send(packed(STREAM_INIT, transfer_pb.StreamInit(id=stream_id)))
        async with asyncio.timeout(OPEN_S):
            await stream.receive()
        bytes_of = transfer_pb.ByteStream(stream=stream_id, media_type=TAR)
        one = Any(type_url=f"{TYPES}{kind}", value=bytes_of.encode())
        other = Any(type_url=f"{TYPES}ContainerPath", value=container_path.encode())
        source, target = (one, other) if kind == "ReadStream" else (other, one)
        request = transfer_pb.TransferRequest(source=source, destination=target)
        asked = asyncio.ensure_future(_ask(client, request))
        try:
            yield ByteStream(stream), asked
        finally:
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
    finally:
        client.abort()


async def _ask(client: Client, request: transfer_pb.TransferRequest) -> None:
    """Without a deadline: how long a copy takes is for its bytes to say."""
    await client.request(TRANSFER, "Transfer", request, Empty, timeout_s=None)


def _server_of(namespace: str, record: Record) -> Path:
    """The ttrpc socket of the server that the microVM's stdio link leads to."""
    where = paths.MicroVMPaths(paths.microvm_id(namespace, record.microvm_id))
    try:
        return Path(os.readlink(where.stdio_socket)).with_suffix(".sock")
    except OSError as exc:
        raise Unavailable(
            f"the shim server of microVM {record.microvm_id} is not to be found"
        ) from exc


async def _together(moving: Awaitable[None], asked: asyncio.Future[None]) -> None:
    """Both to their end; of two errors, the server's says more."""
    move = asyncio.ensure_future(moving)
    try:
        await asyncio.wait({move, asked}, return_when=asyncio.FIRST_EXCEPTION)
        if asked.done() or isinstance(move.exception(), Unavailable):
            await asked
        await move
        await asked
    finally:
        move.cancel()
        await asyncio.gather(move, return_exceptions=True)


# files and directories


def top_of(source: str) -> str:
    """The name of an archive's top entry; "." for what copies what is in a directory."""
    name = posixpath.basename(source.rstrip("/"))
    return "." if name in ("", ".", "..") else name


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a copy goes: into `directory`, its top under `name` (none: only what is in it)."""

    directory: str
    name: str


def plan(source: str, is_dir: bool, target: str, target_is: str) -> Plan:
    """docker cp's rules. `target_is`: "dir", "file", or "" where nothing is there.

    Raises:
        InvalidArgument: a directory onto a file, or a file into a directory that is missing.
    """
    if target_is == "dir":
        return Plan(target, "" if top_of(source) == "." else top_of(source))
    if target_is == "file" and is_dir:
        raise InvalidArgument(f"{target} is no directory: {source} cannot be copied onto it")
    if not target_is and not is_dir and target.endswith("/"):
        raise InvalidArgument(f"{target} does not exist: {source} is a file")
    bare = target.rstrip("/") or "/"
    return Plan(posixpath.dirname(bare) or ".", posixpath.basename(bare))


async def copy_to(
    namespace: str,
    record: Record,
    source: str,
    path: str,
    *,
    preserve_ownership: bool = False,
    follow: bool = False,
) -> None:
    """Copy a file or directory of the host into the container.

    Args:
        source: "directory/." copies what is in the directory.
        path: in the container, as docker cp has it.
        follow: copy what `source` leads to if it is a symbolic link.
    """
    try:
        status = await asyncio.to_thread(os.stat if follow else os.lstat, source)
    except OSError as exc:
        raise NotFound(f"{source}: {exc.strerror}") from exc
    is_dir = stat_bits.S_ISDIR(status.st_mode)
    path, kind = await resolve(namespace, record, path)
    made = plan(source, is_dir, path, kind)
    with _Pipe() as pipe:

        def work() -> None:
            try:
                copy_files.pack(source, made.name or ".", pipe.theirs.fileno(), follow=follow)
            finally:
                pipe.theirs.close()

        await _beside(
            work,
            send_archive(
                namespace,
                record,
                made.directory,
                pipe.read,
                preserve_ownership=preserve_ownership,
            ),
            pipe,
        )


async def copy_from(
    namespace: str,
    record: Record,
    path: str,
    target: str,
    *,
    options: Options,
    follow: bool = False,
) -> tuple[str, ...]:
    """Copy a file or directory of the container to the host; see copy_files.unpack.

    Args:
        path: "directory/." copies what is in the directory.
        target: on the host, as docker cp has it.
        follow: copy what `path` leads to if it is a symbolic link.

    Returns:
        what was left out: device nodes and FIFOs.
    """
    path = absolute(path)
    if follow:
        path, _ = await resolve(namespace, record, path)
    entry = await stat(namespace, record, path)
    target, kind = await asyncio.to_thread(_on_host, target)
    made = plan(path, entry.kind == tar.DIRECTORY, target, kind)
    left_out: list[str] = []
    with _Pipe() as pipe:

        def work() -> None:
            try:
                left_out.extend(
                    copy_files.unpack(
                        pipe.theirs.recv, made.directory, top_of(path), made.name, options
                    )
                )
            finally:
                pipe.theirs.close()

        await _beside(work, receive_archive(namespace, record, path, pipe.write), pipe)
    return tuple(left_out)


def _on_host(path: str) -> tuple[str, str]:
    """As resolve, for the user's own path."""
    if os.path.isdir(path):
        return path, "dir"
    if os.path.lexists(path):
        return os.path.realpath(path), "file"
    return path, ""


def absolute(path: str) -> str:
    """A path in the container, where relative ones begin at its root, as docker cp has it."""
    return path if path.startswith("/") else "/" + path


async def resolve(namespace: str, record: Record, path: str) -> tuple[str, str]:
    """(path, "dir", "file" or "") of what a path in the container leads to."""
    path = absolute(path)
    for _ in range(MAX_LINKS):
        try:
            entry = await stat(namespace, record, path)
        except NotFound:
            return path, ""
        if entry.kind == tar.SYMLINK:
            path = posixpath.join(posixpath.dirname(path.rstrip("/")), os.fsdecode(entry.link))
            continue
        return path, "dir" if entry.kind == tar.DIRECTORY else "file"
    raise InvalidArgument(f"{path} in microVM {record.microvm_id}: too many symbolic links")


class _Pipe:
    """Bytes between a thread that blocks and the event loop."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)

    async def read(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.ours, CHUNK)

    async def write(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.ours, data)

    def end(self) -> None:
        """The thread sees the end of what was written, and finds no reader."""
        self.ours.close()

    def __enter__(self) -> "_Pipe":
        return self

    def __exit__(self, *_: object) -> None:
        self.ours.close()
        self.theirs.close()


async def _beside(work: Callable[[], None], transfer: Awaitable[None], pipe: _Pipe) -> None:
    """`work` in a thread, beside the transfer. Of two errors the first is told, the cause."""
    thread = asyncio.ensure_future(asyncio.to_thread(work))
    moving = asyncio.ensure_future(transfer)
    first, second = thread, moving
    try:
        await asyncio.wait({thread, moving}, return_when=asyncio.FIRST_COMPLETED)
        if not thread.done():
            first, second = moving, thread
        await asyncio.wait({moving})  # a thread that failed has closed its end
    finally:
        moving.cancel()
        await asyncio.gather(moving, return_exceptions=True)
        pipe.end()
        await asyncio.wait({thread})
    first.result()
    second.result()
