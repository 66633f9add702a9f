"""Files of the host as tar: packed for a container, and unpacked from one, which is not trusted.

What a container sends stays below the directory it is unpacked in: names that are absolute or have
`..` are refused, no symbolic link is followed on the way, whether it was there or came with the
archive, nothing that is there is written into (files are made anew), device nodes, FIFOs, set-id
bits and extended attributes are left out unless asked for. Blocking.
"""

import errno
import os
import stat
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hypercore.errors import HypercoreError, InvalidArgument, NotFound, from_os_error
from hypercore.wire import tar

CHUNK = 65536
MAX_DIRECTORIES = 1_000_000
_SPECIAL = {
    tar.CHARACTER: stat.S_IFCHR,
    tar.BLOCK_DEVICE: stat.S_IFBLK,
    tar.FIFO: stat.S_IFIFO,
}
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Options:
    """How to unpack."""

    preserve_ownership: bool = False
    """owners and all mode bits as in the archive; else the caller's own, without set-id bits"""
    special_files: bool = False
    """make device nodes and FIFOs"""


def pack(source: str, name: str, write_fd: int, *, follow: bool = False) -> None:
    """Write the archive of `source` to `write_fd`; sockets are left out.

    Args:
        name: of its top entry.
        follow: pack what `source` leads to if it is a symbolic link.

    Raises:
        HypercoreError: a file cannot be read.
        BrokenPipeError: the reader has seen enough.
    """
    try:
        path = os.path.realpath(source, strict=True) if follow else source
        with (
            os.fdopen(write_fd, "wb", buffering=0, closefd=False) as out,
            tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive,
        ):
            archive.add(path, arcname=name)
    except BrokenPipeError:
        raise
    except OSError as exc:
        raise from_os_error(exc, f"read {exc.filename or source}") from exc
    except tarfile.TarError as exc:
        raise HypercoreError(f"{source}: {exc}") from exc


def unpack(
    read: Callable[[int], bytes], directory: str, top: str, name: str, options: Options
) -> Sequence[str]:
    """Unpack an archive whose entries are all below `top` (".": of no name) into `directory`.

    Args:
        read: read(n) gives up to n bytes, none at the end.
        name: what `top` is called in `directory`; empty: what is in it goes there directly.

    Returns:
        what was left out.

    Raises:
        HypercoreError: the archive is none, leads elsewhere, or a file cannot be made.
    """
    try:
        root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as exc:
        raise NotFound(f"the directory {directory} does not exist") from exc
    except OSError as exc:
        raise from_os_error(exc, f"open the directory {directory}") from exc
    try:
        return _Unpacking(root, os.fsencode(top), os.fsencode(name), options).run(read)
    except tar.TarError as exc:
        raise InvalidArgument(f"the archive from the container: {exc}") from exc
    except OSError as exc:
        shown = os.path.join(directory, os.fsdecode(exc.filename or b""))
        raise from_os_error(exc, f"write {shown}") from exc
    finally:
        os.close(root)


class _Unpacking:
    def __init__(self, root_fd: int, top: bytes, name: bytes, options: Options) -> None:
        self._root = root_fd
        self._top = [] if top in (b"", b".") else [top]
        self._name = [name] if name else []
        self._options = options
        self._directories: list[tuple[list[bytes], tar.Entry]] = []
        self._left_out: list[str] = []

    def run(self, read: Callable[[int], bytes]) -> Sequence[str]:
        reader = tar.Reader(read)
        while (entry := reader.next()) is not None:
            parts = self._place(entry.name)
            if not parts:
                continue  # the directory itself, which is the caller's
            with _Closing(self._walk(parts[:-1])) as parent:
                self._make(reader, entry, parent, parts)
        while read(CHUNK):
            pass  # what pads an archive
        for parts, entry in reversed(self._directories):
            with _Closing(self._walk(parts)) as fd:
                self._set_status(fd, entry)
        return self._left_out

    def _place(self, raw: bytes) -> list[bytes]:
        """Where an entry goes, below the root."""
        shown = os.fsdecode(raw)
        parts = [part for part in raw.split(b"/") if part not in (b"", b".")]
        if raw.startswith(b"/") or b".." in parts:
            raise tar.TarError(f"entry {shown!r} leads out of it")
        if parts[: len(self._top)] != self._top:
            raise tar.TarError(f"entry {shown!r} is not what was asked for")
        return self._name + parts[len(self._top) :]

    def _walk(self, parts: Sequence[bytes]) -> int:
        """A new fd of a directory, made where it is missing."""
        fd = os.dup(self._root)
        for part in parts:
            with _Closing(fd) as parent:
                try:
                    fd = os.open(part, _DIRECTORY, dir_fd=parent)
                except FileNotFoundError:
                    os.mkdir(part, 0o755, dir_fd=parent)
                    fd = os.open(part, _DIRECTORY, dir_fd=parent)
                except OSError as exc:
                    if exc.errno not in (errno.ELOOP, errno.ENOTDIR):
                        raise
                    shown = os.fsdecode(b"/".join(parts))
                    raise tar.TarError(f"{shown!r} leads through what is no directory") from exc
        return fd

    def _make(self, reader: tar.Reader, entry: tar.Entry, parent: int, parts: list[bytes]) -> None:
        name = parts[-1]
        if entry.kind == tar.DIRECTORY:
            os.close(self._walk(parts))
            self._directories.append((parts, entry))
            if len(self._directories) > MAX_DIRECTORIES:
                raise tar.TarError(f"more than {MAX_DIRECTORIES} directories")
            return
        if entry.kind in _SPECIAL and not self._options.special_files:
            self._left_out.append(os.fsdecode(entry.name))
            return
        _make_way(name, parent)
        if entry.kind == tar.REGULAR:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with _Closing(os.open(name, flags, 0o600, dir_fd=parent)) as fd:
                _copy(reader, fd)
                self._set_status(fd, entry)
        elif entry.kind == tar.HARD_LINK:
            target = self._place(entry.link)
            with _Closing(self._walk(target[:-1])) as other:
                os.link(
                    target[-1], name, src_dir_fd=other, dst_dir_fd=parent, follow_symlinks=False
                )
        elif entry.kind == tar.SYMLINK:
            os.symlink(entry.link, name, dir_fd=parent)
            if self._options.preserve_ownership:
                os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        else:
            device = os.makedev(entry.major, entry.minor)
            mode = _SPECIAL[entry.kind] | entry.mode & 0o777
            os.mknod(name, mode, device, dir_fd=parent)
            if self._options.preserve_ownership:
                os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)

    def _set_status(self, fd: int, entry: tar.Entry) -> None:
        mode = entry.mode & 0o777
        if self._options.preserve_ownership:
            os.fchown(fd, entry.uid, entry.gid)
            mode = entry.mode
        os.fchmod(fd, mode)
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))


class _Closing:
    """An fd for a `with` statement."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _make_way(name: bytes, parent: int) -> None:
    """What stands in a file's place goes, but for a directory."""
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return


def _copy(reader: tar.Reader, fd: int) -> None:
    while data := reader.data(CHUNK):
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
