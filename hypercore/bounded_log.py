"""A log file that its writer cannot grow without end: a pipe, drained into two segments at most.

For the guest's console and the VMM's own messages, whose writers are not trusted. The writer gets
the pipe, never the file. Reading pauses after each chunk, which bounds the load on the event loop
as well; the pipe pushes back on a writer that is faster. Not for stdio of tasks: the pump's.
"""

import asyncio
import contextlib
import errno
import os
from pathlib import Path

SEGMENT_BYTES = 256 * 1024
CHUNK_BYTES = 64 * 1024
PAUSE_S = 0.02
"""Between two reads: at most 3 MiB/s and 50 wake-ups per second for each log."""


class BoundedLog:
    """One log and the pipe that feeds it. Bound to the running event loop."""

    def __init__(self, path: Path, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.path = path
        self._segment_bytes = segment_bytes
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._file_fd = self._read_fd = -1
        self.write_fd = -1
        """for children; close_writer() once they have it"""
        try:
            self._file_fd = self._open()
            self._read_fd, self.write_fd = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(self._read_fd, False)
            self._loop.add_reader(self._read_fd, self._on_readable)
        except BaseException:
            self.close()
            raise

    def use_fifo(self, path: Path) -> None:
        """Be fed through a new FIFO at `path`; for a writer that opens its log by name.

        To be called before anybody has been given the writer's end.
        """
        os.mkfifo(path, 0o600)
        read_fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            write_fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        except BaseException:
            os.close(read_fd)
            raise
        self._loop.remove_reader(self._read_fd)
        os.close(self._read_fd)
        self.close_writer()
        self._read_fd, self.write_fd = read_fd, write_fd
        self._loop.add_reader(read_fd, self._on_readable)

    def close_writer(self) -> None:
        """Close our own copy of the writer's end."""
        fd, self.write_fd = self.write_fd, -1
        if fd >= 0:
            os.close(fd)

    def note(self, line: str) -> None:
        """Add a line of our own; does nothing after close."""
        if self._file_fd >= 0:
            self._append(f"hypercore: {line}\n".encode())

    def drain(self) -> None:
        """Take over what the pipe holds now, such as the last words of a writer that has ended."""
        while self._read_fd >= 0 and self._read():
            pass

    def close(self) -> None:
        """Drain and close. Idempotent; the file stays."""
        if self._timer is not None:
            self._timer.cancel()
        if self._read_fd >= 0:
            self._loop.remove_reader(self._read_fd)
            if self._file_fd >= 0:
                self.drain()
        self.close_writer()
        for name in ("_read_fd", "_file_fd"):
            fd = getattr(self, name)
            setattr(self, name, -1)
            if fd >= 0:
                os.close(fd)

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(self.path, flags, 0o600)

    def _on_readable(self) -> None:
        if self._read():
            self._loop.remove_reader(self._read_fd)
            self._timer = self._loop.call_later(PAUSE_S, self._watch_again)

    def _watch_again(self) -> None:
        if self._read_fd >= 0:
            self._loop.add_reader(self._read_fd, self._on_readable)

    def _read(self) -> bool:
        """Move one chunk; False when there is none now, or never will be."""
        try:
            chunk = os.read(self._read_fd, CHUNK_BYTES)
        except BlockingIOError:
            return False
        if not chunk:  # all writers are gone
            self._loop.remove_reader(self._read_fd)
            fd, self._read_fd = self._read_fd, -1
            os.close(fd)
            return False
        self._append(chunk)
        return True

    def _append(self, chunk: bytes) -> None:
        try:
            if os.fstat(self._file_fd).st_size + len(chunk) > self._segment_bytes:
                self._rotate()
            os.write(self._file_fd, chunk[-self._segment_bytes :])
        except OSError as exc:
            if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            # A full disk costs lines of the log, never the VM.

    def _rotate(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.path, earlier_segment(self.path))
        fd, self._file_fd = self._file_fd, self._open()
        os.close(fd)


def earlier_segment(path: Path) -> Path:
    return path.with_name(path.name + ".1")


def last_lines(path: Path, count: int = 20, max_bytes: int = 8192) -> str:
    """The end of a log as text, at most `count` lines; empty if there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - max_bytes))
            data = file.read(max_bytes)
    except FileNotFoundError:
        return ""
    text = data.decode(errors="replace").replace("\r", "")
    return "\n".join([line for line in text.splitlines() if line.strip()][-count:])
