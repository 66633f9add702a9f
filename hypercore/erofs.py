"""Write EROFS images of host files and directories. Not for reading them, nor for mounting.

Uncompressed, so that file data is copied by the kernel (shared extents where the filesystem has
them) and the guest reads it in place. One pass looks at the tree and numbers its inodes, a second
writes. Everything here waits for disks: in async code call it in a thread.

Format: Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h of Linux.
"""

import contextlib
import os
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hypercore.copying import copy_into, write_at
from hypercore.errors import InvalidArgument, from_os_error

BLOCK = 4096
MAX_INODES = 500_000

_MAGIC = 0xE0F5E1E2
_SUPERBLOCK_AT = 1024
_SUPERBLOCK = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQ24x")
_INODE = struct.Struct("<HHHHQIIIIQII16x")
_DIRENT = struct.Struct("<QHBB")
_EXTENDED_PLAIN = 1
"""i_format: 64-byte inode, data in whole blocks of its own"""
_SLOT = 32
_XATTR_HEADER = 12
_XATTR_ENTRY = struct.Struct("<BBH")
_XATTR_INDEXES = (("user.", 1), ("trusted.", 4), ("security.", 6))
_OVERLAY = "trusted.overlay."
_TYPES = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}


@dataclass(slots=True)
class _Inode:
    """One file of the image. `path` is where its bytes come from; "" for the image's root.

    `identity` is the device and inode that were looked at: who may write to the tree may put a
    link in the path meanwhile.
    """

    path: str
    mode: int
    identity: tuple[int, int] = (0, 0)
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    rdev: int = 0
    size: int = 0
    links: int = 1
    xattrs: bytes = b""
    opaque: bool = False
    """an overlay's directory that hides those below it"""
    target: bytes = b""
    entries: "dict[bytes, _Inode]" = field(default_factory=dict)
    parent: "_Inode | None" = None
    nid: int = 0
    block: int = 0

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_whiteout(self) -> bool:
        """An overlay's mark that what is below it is not there."""
        return stat.S_ISCHR(self.mode) and self.rdev == 0

    @property
    def blocks(self) -> int:
        return -(-self.size // BLOCK)


def write(image: Path, sources: Sequence[tuple[str, Path]], *, max_bytes: int) -> None:
    """Write `image`, a new file, with each source (file or directory) under its name in the root.

    Symbolic links are kept, not followed, but for a source itself; hard links stay links; owners,
    modes, times and extended attributes are kept. On failure no file is left.

    Args:
        max_bytes: of file data.

    Raises:
        InvalidArgument: a source is missing or neither file nor directory, or there is too much.
        ResourceExhausted: the disk is full.
    """
    tree = _Tree(max_bytes)
    root = _Inode("", stat.S_IFDIR | 0o755)
    for name, source in sources:
        root.entries[os.fsencode(name)] = tree.source(source, root)
    _write_tree(image, root)


def write_layers(image: Path, directories: Sequence[Path], *, max_bytes: int) -> None:
    """Write `image`, a new file, whose root is what overlayfs makes of `directories`. See write.

    Args:
        directories: as in overlayfs's lowerdir, the topmost first; or one, as it is.

    Raises:
        InvalidArgument: as write; also where a layer refers to another's files, or has another
            filesystem mounted in it.
    """
    tree = _Tree(max_bytes, layers=True)
    root: _Inode | None = None
    for directory in directories:
        layer = tree.source(directory, None)
        if not layer.is_dir:
            raise InvalidArgument(f"{directory} is no directory")
        if root is None:
            root = layer
        else:
            _merge(root, layer)
    if root is None:
        raise InvalidArgument("no directory is given")
    _finish_merge(root)
    _write_tree(image, root)


def _merge(upper: _Inode, lower: _Inode) -> None:
    """Put `lower` under `upper`, both directories; what hides stays, for layers still below."""
    waiting = [(upper, lower)]
    while waiting:
        upper, lower = waiting.pop()
        if upper.opaque:
            continue
        for name, below in lower.entries.items():
            above = upper.entries.get(name)
            if above is None:
                upper.entries[name] = below
                below.parent = upper
            elif above.is_dir and below.is_dir:
                waiting.append((above, below))
            elif above.is_dir:
                above.opaque = True  # a file ends what merges with it from further below
        upper.opaque = lower.opaque


def _finish_merge(root: _Inode) -> None:
    """Drop whiteouts and count links anew."""
    counts: dict[int, int] = {}
    waiting = [root]
    while waiting:
        directory = waiting.pop()
        gone = [name for name, child in directory.entries.items() if child.is_whiteout]
        for name in gone:
            del directory.entries[name]
        children = directory.entries.values()
        directory.links = 2 + sum(child.is_dir for child in children)
        for child in children:
            if child.is_dir:
                waiting.append(child)
            else:
                counts[id(child)] = counts.get(id(child), 0) + 1
                child.links = counts[id(child)]


class _Tree:
    """The look at the host's files; counts what it has seen.

    Args:
        layers: the sources are an overlay's, and each lies on one filesystem.
    """

    def __init__(self, max_bytes: int, *, layers: bool = False) -> None:
        self._max_bytes = max_bytes
        self._layers = layers
        self._bytes = 0
        self._inodes = 0
        self._known: dict[tuple[int, int], _Inode] = {}

    def source(self, path: Path, parent: _Inode | None) -> _Inode:
        try:
            resolved = os.path.realpath(path, strict=True)
            with _held(resolved) as fd:
                top = self._look(resolved, fd, parent)
            waiting = [top]
            while waiting:
                directory = waiting.pop()
                if self._layers and directory.identity[0] != top.identity[0]:
                    raise InvalidArgument(f"{directory.path} is a mount in {path}")
                if directory.is_dir:
                    waiting += self._fill(directory)
        except FileNotFoundError as exc:
            raise InvalidArgument(f"{exc.filename} does not exist") from exc
        except OSError as exc:
            raise from_os_error(exc, f"read {exc.filename or path}") from exc
        if not (top.is_dir or stat.S_ISREG(top.mode)):
            raise InvalidArgument(f"{path} is neither a file nor a directory")
        return top

    def _fill(self, directory: _Inode) -> list[_Inode]:
        """Read its entries; returns those not seen before."""
        fresh = []
        with _opened(directory) as fd, os.scandir(fd) as listing:
            for entry in listing:
                path = os.path.join(directory.path, entry.name)
                try:
                    with _held(entry.name, dir_fd=fd) as child:
                        status = os.fstat(child)
                        key = (status.st_dev, status.st_ino)
                        found = self._known.get(key) if status.st_nlink > 1 else None
                        if found is not None and not found.is_dir:
                            found.links += 1
                        else:
                            found = self._look(path, child, directory)
                            fresh.append(found)
                            if status.st_nlink > 1:
                                self._known[key] = found
                except FileNotFoundError:
                    continue  # gone since its directory was listed
                directory.entries[os.fsencode(entry.name)] = found
        directory.links = 2 + sum(child.is_dir for child in directory.entries.values())
        return fresh

    def _look(self, path: str, fd: int, parent: _Inode | None) -> _Inode:
        """What `fd`, of O_PATH, holds; `path` is where it was found."""
        status = os.fstat(fd)
        made = _Inode(
            path,
            status.st_mode,
            (status.st_dev, status.st_ino),
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
            status.st_rdev,
            parent=parent,
        )
        self._take_xattrs(made, fd)
        if stat.S_ISLNK(made.mode):
            made.target = os.fsencode(os.readlink("", dir_fd=fd))
            made.size = len(made.target)
        elif stat.S_ISREG(made.mode):
            made.size = status.st_size
            self._bytes += made.size
        self._inodes += 1
        if self._bytes > self._max_bytes or self._inodes > MAX_INODES:
            raise InvalidArgument(
                f"more than {self._max_bytes >> 20} MiB or {MAX_INODES} files, up to {path}"
            )
        return made

    def _take_xattrs(self, made: _Inode, fd: int) -> None:
        xattrs = _xattrs(fd)
        if self._layers:
            for name in [name for name in xattrs if name.startswith(_OVERLAY)]:
                value = xattrs.pop(name)
                if name in (f"{_OVERLAY}redirect", f"{_OVERLAY}metacopy"):
                    raise InvalidArgument(f"{made.path} has its data in another layer ({name})")
                if name == f"{_OVERLAY}opaque" and value == b"y":
                    made.opaque = True
        made.xattrs = _pack_xattrs(xattrs)


def _xattrs(fd: int) -> dict[str, bytes]:
    path = f"/proc/self/fd/{fd}"  # the calls that take an fd refuse one of O_PATH
    try:
        return {name: os.getxattr(path, name) for name in os.listxattr(path)}
    except OSError:
        return {}  # a filesystem without them, or one that lost its right to tell


def _pack_xattrs(xattrs: Mapping[str, bytes]) -> bytes:
    """The extended attributes as they follow the inode; empty without any."""
    packed = b""
    for name, value in xattrs.items():
        for prefix, index in _XATTR_INDEXES:
            if name.startswith(prefix):
                short = os.fsencode(name[len(prefix) :])
                entry = _XATTR_ENTRY.pack(len(short), index, len(value)) + short + value
                packed += entry + bytes(-len(entry) % 4)
    return bytes(_XATTR_HEADER) + packed if packed else b""


def _write_tree(image: Path, root: _Inode) -> None:
    inodes = _number(root)
    directories = {id(node): _directory_blocks(node) for node in inodes if node.is_dir}
    for node in inodes:
        if node.is_dir:
            node.size = len(directories[id(node)])
    last = inodes[-1]
    block = -(-(last.nid * _SLOT + _INODE.size + len(last.xattrs)) // BLOCK)
    for node in inodes:
        if node.size:
            node.block = block
            block += node.blocks
    if block >= 1 << 32:
        raise InvalidArgument("more data than an EROFS image can address")
    try:
        fd = os.open(image, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, block * BLOCK)
            os.pwrite(fd, _superblock(root, len(inodes), block), _SUPERBLOCK_AT)
            _write_inodes(fd, inodes)
            for node in inodes:
                if node.is_dir:
                    write_at(fd, directories[id(node)], node.block * BLOCK)
                elif node.target:
                    write_at(fd, node.target, node.block * BLOCK)
                elif node.size:
                    _copy(node, fd)
        except BaseException:
            os.unlink(image)
            raise
        finally:
            os.close(fd)
    except OSError as exc:
        raise from_os_error(exc, f"write {image}") from exc


def _number(root: _Inode) -> list[_Inode]:
    """All inodes, each once, the root first; gives them their numbers, which are places."""
    ordered: list[_Inode] = []
    seen: set[int] = set()
    waiting = [root]
    place = _SUPERBLOCK_AT + _SUPERBLOCK.size
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        place = -(-place // _SLOT) * _SLOT
        node.nid = place // _SLOT
        place += _INODE.size + len(node.xattrs)
        ordered.append(node)
        waiting += node.entries.values()
    return ordered


def _superblock(root: _Inode, inodes: int, blocks: int) -> bytes:
    uuid = os.urandom(16)
    return _SUPERBLOCK.pack(
        _MAGIC, 0, 0, 12, 0, root.nid, inodes, 0, 0, blocks, 0, 0, uuid, b"",
        0, 0, 0, 0, 0, 0, 0, 0,
    )  # fmt: skip


def _write_inodes(fd: int, inodes: Sequence[_Inode]) -> None:
    start = inodes[0].nid * _SLOT
    table = bytearray()
    for number, node in enumerate(inodes, 1):
        table += bytes(node.nid * _SLOT - start - len(table))
        is_device = stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode)
        table += _INODE.pack(
            _EXTENDED_PLAIN,
            (len(node.xattrs) - _XATTR_HEADER) // 4 + 1 if node.xattrs else 0,
            node.mode,
            0,
            node.size,
            _encode_device(node.rdev) if is_device else node.block,
            number,
            node.uid,
            node.gid,
            node.mtime_ns // 10**9 & 0xFFFFFFFFFFFFFFFF,
            node.mtime_ns % 10**9,
            node.links,
        )
        table += node.xattrs
    write_at(fd, bytes(table), start)


def _encode_device(rdev: int) -> int:
    major, minor = os.major(rdev), os.minor(rdev)
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


def _directory_blocks(node: _Inode) -> bytes:
    """Its entries, sorted, packed block by block: the kernel searches by halves."""
    parent = node.parent or node
    entries = [(b".", node), (b"..", parent), *node.entries.items()]
    blocks = b""
    batch: list[tuple[bytes, _Inode]] = []
    used = 0
    for name, child in sorted(entries, key=lambda item: item[0]):
        if used + _DIRENT.size + len(name) > BLOCK:
            blocks += _directory_block(batch).ljust(BLOCK, b"\0")
            batch, used = [], 0
        batch.append((name, child))
        used += _DIRENT.size + len(name)
    return blocks + _directory_block(batch)


def _directory_block(batch: Sequence[tuple[bytes, _Inode]]) -> bytes:
    offset = len(batch) * _DIRENT.size
    head = b""
    for name, child in batch:
        head += _DIRENT.pack(child.nid, offset, _TYPES[stat.S_IFMT(child.mode)], 0)
        offset += len(name)
    return head + b"".join(name for name, _ in batch)


def _copy(node: _Inode, fd: int) -> None:
    """Copy a file's data, without its holes."""
    with _opened(node) as source:
        if copy_into(source, fd, node.block * BLOCK, node.size) != node.size:
            raise InvalidArgument(f"{node.path} became shorter while it was copied")


@contextlib.contextmanager
def _held(path: str, dir_fd: int | None = None) -> Iterator[int]:
    """An fd of O_PATH: of a link itself, and of a device without opening it."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _opened(node: _Inode) -> Iterator[int]:
    """The very file or directory that was looked at, whatever its path leads to now."""
    with _held(node.path) as held:
        status = os.fstat(held)
        if (status.st_dev, status.st_ino) != node.identity:
            raise InvalidArgument(f"{node.path} was replaced while it was copied")
        fd = os.open(f"/proc/self/fd/{held}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
