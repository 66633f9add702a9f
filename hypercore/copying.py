"""Copy parts of files into others, by the kernel where the filesystems let it: extents are shared
where they can be, holes stay holes. Blocking.
"""

import errno
import os
from collections.abc import Iterator

CHUNK = 1 << 20


def copy_into(source_fd: int, target_fd: int, offset: int, size: int) -> int:
    """Copy the first `size` bytes of one file to `offset` of another, where a hole must be.

    Returns:
        `size`, or less: how long the source turned out to be.
    """
    for start, end in _data_of(source_fd, size):
        while start < end:
            done = _copy_range(source_fd, target_fd, start, offset + start, end - start)
            if not done:
                return start
            start += done
    return size


def write_at(fd: int, data: bytes, offset: int) -> None:
    """pwrite(2), all of it."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


def _data_of(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Where its data is, as (start, end); the rest are holes."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno != errno.ENXIO:  # no data after `end`
                raise
            return
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        yield start, end


def _copy_range(source_fd: int, target_fd: int, start: int, to: int, count: int) -> int:
    try:
        return os.copy_file_range(source_fd, target_fd, count, start, to)
    except OSError:  # EXDEV, EOPNOTSUPP, EINVAL for pseudo files; a real fault comes again below
        data = os.pread(source_fd, min(count, CHUNK), start)
        write_at(target_fd, data, to)
        return len(data)
