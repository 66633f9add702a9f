"""The agent's tar in directories of the host, and the Transfer service over it on a socket."""

import asyncio
import io
import os
import secrets
import socket
import tarfile
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent import archive
from agent.pieces import Pieces
from hypercore.errors import HypercoreError, InvalidArgument, NotFound
from hypercore.proto import transfer_pb
from hypercore.proto.agent_pb import CopyRequest
from hypercore.proto.types_pb import Any, Empty
from hypercore.shim.transfer import TransferService
from hypercore.transfer_stream import STREAM_INIT, STREAMING, TRANSFER, TYPES, ByteStream, packed
from hypercore.wire import tar
from hypercore.wire.ttrpc import Client, Server

pytestmark = pytest.mark.usefixtures("root")


def members(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as read:
        return {member.name: member for member in read.getmembers()}


def packed_path(path: Path | str, only_entry: bool = False) -> dict[str, tarfile.TarInfo]:
    raw = io.BytesIO()
    archive.pack(raw.write, os.fsencode(path), only_entry, set())
    return members(raw.getvalue())


def unpack(data: bytes, into: Path, *, preserve: bool = False) -> None:
    before = os.getcwd()
    mask = os.umask(0)
    try:
        archive.unpack(io.BytesIO(data).read, os.fsencode(into), preserve)
    finally:
        os.chdir(before)
        os.umask(mask)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    (top / "sub").mkdir(parents=True)
    (top / "sub").chmod(0o2750)
    (top / "sub" / ("n" * 200)).write_bytes(b"long" * 1000)
    (top / "empty").touch(0o600)
    (top / "link").symlink_to("/etc/passwd")
    os.link(top / "empty", top / "same")
    os.mkfifo(top / "fifo")
    os.mknod(top / "null", 0o20666, os.makedev(1, 3))
    os.setxattr(top / "empty", "user.colour", b"green")
    os.chown(top / "empty", 123, 456)
    os.utime(top / "sub", ns=(1, 1_600_000_000_123_456_789))
    with socket.socket(socket.AF_UNIX) as left_out:
        left_out.bind(str(top / "socket"))
    return top


def test_a_tree_comes_back_as_it_was(tree: Path, tmp_path: Path) -> None:
    raw = io.BytesIO()
    archive.pack(raw.write, os.fsencode(tree), False, set())
    into = tmp_path / "into"
    into.mkdir()
    unpack(raw.getvalue(), into, preserve=True)
    made = into / "tree"
    assert sorted(os.listdir(made)) == ["empty", "fifo", "link", "null", "same", "sub"]
    assert (made / "sub" / ("n" * 200)).read_bytes() == b"long" * 1000
    for name in ("empty", "fifo", "null", "sub"):
        was, now = os.lstat(tree / name), os.lstat(made / name)
        assert (was.st_mode, was.st_uid, was.st_gid, was.st_rdev, was.st_mtime_ns) == (
            (now.st_mode, now.st_uid, now.st_gid, now.st_rdev, now.st_mtime_ns)
        )
    assert os.stat(made / "empty").st_ino == os.stat(made / "same").st_ino
    assert os.readlink(made / "link") == "/etc/passwd"
    assert os.getxattr(made / "empty", "user.colour") == b"green"


def test_without_preserving_all_is_roots(tree: Path, tmp_path: Path) -> None:
    raw = io.BytesIO()
    archive.pack(raw.write, os.fsencode(tree / "empty"), False, set())
    unpack(raw.getvalue(), tmp_path)
    status = os.stat(tmp_path / "empty")
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (0, 0, 0o600)


def test_entries_are_named_as_cp_would(tree: Path) -> None:
    assert list(packed_path(tree / "link")) == ["link"]
    assert list(packed_path(f"{tree}/sub/")) == ["sub", "sub/" + "n" * 200]
    assert list(packed_path(f"{tree}/sub/.")) == [".", "./" + "n" * 200]
    assert list(packed_path(tree, only_entry=True)) == ["tree"]
    (file,) = packed_path(tree / "sub" / ("n" * 200), only_entry=True).values()
    assert file.size == 4000


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        packed_path(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        unpack(tar.END, tmp_path / "file")


@pytest.mark.parametrize("name", [b"../out", b"a/../../out", b"sub/.."])
def test_names_that_lead_out_are_refused(name: bytes, tmp_path: Path) -> None:
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(tar.TarError, match="leads out"):
        unpack(tar.Entry(name, tar.REGULAR, 0o644).encode() + tar.END, into)
    assert os.listdir(tmp_path) == ["into"]


def test_files_replace_files_and_links_but_not_directories(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("kept")
    (tmp_path / "a").symlink_to("target")
    (tmp_path / "d").mkdir()
    one = tar.Entry(b"/a", tar.REGULAR, 0o644, size=3).encode() + b"new" + tar.padding(3)
    unpack(one + tar.END, tmp_path)
    assert (tmp_path / "a").read_text() == "new"
    assert not (tmp_path / "a").is_symlink()
    assert (tmp_path / "target").read_text() == "kept"
    with pytest.raises(IsADirectoryError):
        unpack(tar.Entry(b"d", tar.REGULAR).encode() + tar.END, tmp_path)


class Guest:
    """A task whose agent is a thread that copies in a directory of the host."""

    id = "one"

    def __init__(self, top: Path) -> None:
        self.top = top
        self.agent = self
        self.ends: dict[bytes, socket.socket] = {}

    async def open_stream(self, token: bytes) -> int:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.ends[token] = theirs
        return ours.detach()

    async def copy(self, request: CopyRequest) -> None:
        await asyncio.to_thread(self._copy, self.ends.pop(request.token), request)

    def _copy(self, sock: socket.socket, request: CopyRequest) -> None:
        path = os.fsencode(f"{self.top}{request.path}")
        with sock:
            pieces = Pieces(sock)
            if request.into:
                try:
                    unpack_in_thread(pieces.read, path, request.preserve_ownership)
                except ValueError as exc:
                    raise InvalidArgument(str(exc)) from exc
                while pieces.read(1 << 20):
                    pass
                return
            try:
                archive.pack(pieces.send, path, request.only_entry, set())
            except FileNotFoundError as exc:
                raise NotFound(str(exc)) from exc
            pieces.end()


_DIRECTORY = threading.Lock()


def unpack_in_thread(read: object, path: bytes, preserve: bool) -> None:
    """The agent's child has a working directory of its own; here all threads have one."""
    with _DIRECTORY:
        before = os.getcwd()
        try:
            archive.unpack(read, path, preserve)
        finally:
            os.chdir(before)


@asynccontextmanager
async def serving(top: Path) -> AsyncIterator[Client]:
    guest = Guest(top)

    def find(container_id: str) -> Guest:
        if container_id != guest.id:
            raise NotFound(f"task {container_id} does not exist")
        return guest

    server = Server()
    TransferService(find).serve_on(server)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(top / ".." / "s.sock"))
    listener.listen()
    await server.serve(listener)
    client = await Client.connect(str(top / ".." / "s.sock"))
    try:
        yield client
    finally:
        client.close()
        await server.close()


def message(name: str, value: object) -> Any:
    return Any(type_url=f"{TYPES}{name}", value=value.encode())


async def transfer(client: Client, source: Any | None, target: Any | None) -> None:
    request = transfer_pb.TransferRequest(source=source, destination=target)
    await client.request(TRANSFER, "Transfer", request, Empty, timeout_s=20)


async def opened(client: Client, stream_id: str) -> ByteStream:
    stream = client.open_stream(STREAMING, "Stream", timeout_s=20)
    await stream.send(packed(STREAM_INIT, transfer_pb.StreamInit(id=stream_id)))
    assert await stream.receive() is not None
    return ByteStream(stream)


def where(path: str, **more: bool) -> Any:
    container = transfer_pb.ContainerPath(container_id="one", path=path, **more)
    return message("ContainerPath", container)


async def copy_in(client: Client, data: bytes, path: str, stream_id: str = "in") -> None:
    stream = await opened(client, stream_id)
    given = message(
        "ReadStream", transfer_pb.ByteStream(stream=stream_id, media_type="application/x-tar")
    )

    async def send() -> None:
        await stream.send(data)
        stream.end()

    sending = asyncio.ensure_future(send())
    try:
        await transfer(client, given, where(path))
    finally:
        sending.cancel()
        await asyncio.wait({sending})


async def copy_out(client: Client, path: str, **more: bool) -> bytes:
    stream_id = secrets.token_hex(4)
    stream = await opened(client, stream_id)
    given = message("WriteStream", transfer_pb.ByteStream(stream=stream_id))
    asked = asyncio.ensure_future(transfer(client, where(path, **more), given))
    parts = []
    try:
        while part := await stream.receive():
            parts.append(part)
    finally:
        await asked
    return b"".join(parts)


def test_copies_over_the_services(tree: Path) -> None:
    blob = secrets.token_bytes(3 << 20)
    entry = tar.Entry(b"blob", tar.REGULAR, 0o644, size=len(blob))
    padded = entry.encode() + blob + tar.padding(len(blob)) + tar.END + bytes(1 << 20)

    async def run() -> None:
        async with serving(tree) as client:
            await copy_in(client, padded, "/sub")
            data = await copy_out(client, "/sub/blob")
            with tarfile.open(fileobj=io.BytesIO(data)) as read:
                assert read.extractfile("blob").read() == blob
            assert list(members(await copy_out(client, "/sub", no_walk=True))) == ["sub"]

    asyncio.run(run())
    assert (tree / "sub" / "blob").read_bytes() == blob


def test_refusals_over_the_services(tree: Path) -> None:
    async def run() -> None:
        async with serving(tree) as client:
            with pytest.raises(NotFound, match="nothing"):
                await copy_out(client, "/nothing")
            evil = tar.Entry(b"../out", tar.REGULAR).encode() + tar.END
            with pytest.raises(InvalidArgument, match="leads out"):
                await copy_in(client, evil, "/sub", "evil")
            for source, target in (
                (None, None),
                (where("/"), where("/")),
                (message("OCIRegistry", Empty()), where("/")),
            ):
                with pytest.raises(InvalidArgument):
                    await transfer(client, source, target)
            given = message("WriteStream", transfer_pb.ByteStream(stream="nobody"))
            with pytest.raises(NotFound, match="no stream"):
                await transfer(client, where("/"), given)
            # What was refused holds nothing up.
            await copy_in(client, tar.END, "/sub", "evil")

    asyncio.run(run())


def test_a_client_that_goes_ends_its_copy(tree: Path) -> None:
    async def run() -> None:
        async with serving(tree) as client:
            stream = await opened(client, "cut")
            given = message("ReadStream", transfer_pb.ByteStream(stream="cut"))
            asked = asyncio.ensure_future(transfer(client, given, where("/sub")))
            head = tar.Entry(b"half", tar.REGULAR, size=1 << 20).encode()
            await stream.send(head + bytes(1000))
            stream.end()
            with pytest.raises(HypercoreError, match="cut short"):
                await asked

    asyncio.run(run())
