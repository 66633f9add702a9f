"""The streams of a process between the guest's connections and their other ends, on the pump.

The pump moves the bytes in its own thread; here its events become futures and callbacks, and logs
are rotated. Where the other ends come from is uris.py's and attach.py's business.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

from hypercore._pump import Event, Pump
from hypercore.errors import HypercoreError, StateError, from_os_error

logger = logging.getLogger(__name__)

DRAIN_STALL_S = 10.0
"""How long the end of a process waits for a reader that takes nothing."""

MAX_BYTES = (1 << 63) - 1
"""What a count may be; the guest's word for it is not trusted."""

ROTATE_RETRY_S = 1.0
"""After a log could not be rotated, for want of file descriptors or space."""

Listener = Callable[[int, int], None]
"""Gets the event's kind and value."""


class StreamHub:
    """The server's one pump, its events dispatched on the event loop.

    Args:
        log_segments: an attached client that lags by more whole segments is dropped.
    """

    def __init__(self, log_segments: int) -> None:
        self.pump = Pump(max_lag=log_segments)
        self._listeners: dict[int, Listener] = {}

    def start(self) -> None:
        self.pump.start()
        asyncio.get_running_loop().add_reader(self.pump.event_fd, self._dispatch)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.pump.event_fd)
        self.pump.close()

    def listen(self, number: int, listener: Listener) -> None:
        """Call `listener` for events of the stream, source or client `number`."""
        self._listeners[number] = listener

    def forget(self, number: int) -> None:
        self._listeners.pop(number, None)

    def _dispatch(self) -> None:
        for number, kind, value in self.pump.events():
            listener = self._listeners.get(number)
            if listener is not None:
                listener(kind, value)


class SegmentedLog:
    """A log file that grows to a limit and is then renamed to `.1`, `.1` to `.2`, and so on.

    Args:
        segments: files kept, the live one included.
    """

    def __init__(self, path: Path, limit_bytes: int, segments: int) -> None:
        self.path = path
        self.limit_bytes = limit_bytes
        self._segments = segments

    def open(self) -> int:
        """A new fd of the live segment, for appending."""
        return _open_log(self.path)

    def backlog(self) -> list[int]:
        """New fds of the renamed segments, the oldest first."""
        fds: list[int] = []
        for number in range(self._segments - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                fds.append(os.open(f"{self.path}.{number}", os.O_RDONLY | os.O_CLOEXEC))
        return fds

    def rotate(self) -> int:
        """Rename the segments and return an fd of the new live one; on failure nothing changes."""
        made = self.path.with_name(self.path.name + ".new")
        fd = _open_log(made)
        try:
            names = [self.path, *(Path(f"{self.path}.{n}") for n in range(1, self._segments))]
            for older, newer in zip(reversed(names), reversed(names[:-1]), strict=False):
                with contextlib.suppress(FileNotFoundError):
                    os.rename(newer, older)
            os.rename(made, self.path)
        except BaseException:
            os.close(fd)
            raise
        return fd


class Output:
    """stdout or stderr: from the guest into a log, or straight to an fd, or counted and dropped.

    Args:
        source_fd: the guest's connection; the pump's from now on, as `target_fd`.
    """

    def __init__(
        self,
        hub: StreamHub,
        source_fd: int,
        *,
        target_fd: int = -1,
        log: SegmentedLog | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._hub = hub
        self._log = log
        self._drained: asyncio.Future[None] = loop.create_future()
        self._ended: asyncio.Future[None] = loop.create_future()
        self._finished = False
        log_fd = -1
        try:
            if log is not None:
                log_fd = log.open()
            self.number = hub.pump.add_output(
                source_fd,
                log_fd=log_fd,
                dst_fd=target_fd,
                log_limit=log.limit_bytes if log is not None else 0,
            )
        except BaseException:
            _close(source_fd, target_fd, log_fd)
            raise
        hub.listen(self.number, self._on_event)

    def _on_event(self, kind: int, value: int) -> None:
        if kind == Event.DRAINED:
            _settle(self._drained)
        elif kind == Event.EOF:
            _settle(self._ended)
        elif kind == Event.LOG_FULL and self._log is not None:
            self._rotate(self._log)
        elif kind == Event.LOG_ERROR and self._log is not None:
            logger.error("cannot write %s: %s; retrying", self._log.path, os.strerror(value))

    def _rotate(self, log: SegmentedLog) -> None:
        if self._finished:
            return
        try:
            fd = log.rotate()
        except (OSError, HypercoreError) as exc:
            # The pump tells of a full segment once: without another try it grows without end.
            logger.error("%s is not rotated: %s", log.path, exc)
            asyncio.get_running_loop().call_later(ROTATE_RETRY_S, self._rotate, log)
            return
        try:
            self._hub.pump.rotate(self.number, fd)
        except BaseException:
            os.close(fd)
            raise

    @property
    def has_log(self) -> bool:
        return self._log is not None

    @property
    def received_bytes(self) -> int:
        return self._hub.pump.counters(self.number)[0]

    async def drain(self, total: int | None) -> int:
        """Wait until everything is where it belongs; returns how many bytes are missing.

        Args:
            total: what the guest says it sent; None: it is gone, what has arrived is all.
        """
        if total is None:
            await self._progressing(self._ended)
            total = self.received_bytes
        if self._drained.done():  # an earlier call's
            self._drained = asyncio.get_running_loop().create_future()
        self._hub.pump.expect(self.number, min(total, MAX_BYTES))
        await self._progressing(self._drained)
        return max(0, total - self.received_bytes)

    async def _progressing(self, event: asyncio.Future[None]) -> None:
        """Wait for `event`, but not longer than DRAIN_STALL_S without a byte moving."""
        before = -1
        while not event.done():
            await asyncio.wait({event}, timeout=DRAIN_STALL_S)
            now = self.received_bytes
            if now == before:
                return
            before = now

    def add_client(self, fd: int, replay: bool, listener: Callable[[int, int, int], None]) -> int:
        """Copy the log to `fd`, the pump's from now on: from its start, or what comes next.

        Args:
            listener: gets the returned number, and kind and value of the client's events.
        """
        backlog = self._log.backlog() if replay and self._log is not None else []
        try:
            if self._finished:
                raise StateError("the stream is closed")
            number = self._hub.pump.add_client(
                self.number, fd, 0 if replay else -1, backlog=backlog
            )
        except BaseException:
            _close(fd, *backlog)
            raise

        def on_event(kind: int, value: int) -> None:
            if kind in (Event.CLIENT_DONE, Event.CLIENT_DROPPED):
                self._hub.forget(number)
            listener(number, kind, value)

        self._hub.listen(number, on_event)
        return number

    def remove_client(self, number: int) -> None:
        self._hub.forget(number)
        self._hub.pump.remove_client(number)

    def close(self) -> None:
        """Let the pump close its fds. Idempotent."""
        if not self._finished:
            self._finished = True
            self._hub.forget(self.number)
            self._hub.pump.remove(self.number)


class Input:
    """stdin: any number of sources into the guest's connection.

    Args:
        target_fd: the guest's connection; the pump's from now on.
        on_end: called with the total of bytes once a source that was to end stdin has ended.
    """

    def __init__(self, hub: StreamHub, target_fd: int, on_end: Callable[[int], object]) -> None:
        self._hub = hub
        self._on_end = on_end
        self._sources: set[int] = set()
        self._ending: set[int] = set()
        self._ended_at: dict[int, int] = {}
        self._keeper_fd = -1
        self._fifo = -1
        self._finished = False
        try:
            self.number = hub.pump.add_input(target_fd)
        except BaseException:
            _close(target_fd)
            raise

    def add_source(self, fd: int) -> int:
        """Read from `fd`, the pump's from now on; it is closed if that fails."""
        try:
            source = self._hub.pump.add_source(self.number, fd)
        except BaseException:
            _close(fd)
            raise
        self._sources.add(source)
        self._hub.listen(source, lambda kind, value: self._on_event(source, kind, value))
        return source

    def add_fifo(self, source_fd: int, keeper_fd: int) -> None:
        """Read from a FIFO that `keeper_fd`, its write end, keeps from ending until `end_fifo`."""
        self._keeper_fd = keeper_fd
        self._fifo = self.add_source(source_fd)

    def end_fifo(self) -> None:
        """EOF once what the FIFO holds is delivered. Idempotent."""
        if self._fifo >= 0:
            self.end_after(self._fifo)
        self._close_keeper()

    def end_after(self, source: int) -> None:
        """EOF for the process once `source` has ended and its bytes are delivered."""
        total = self._ended_at.get(source)
        if total is not None:
            self._on_end(total)
        else:
            self._ending.add(source)

    def remove_source(self, source: int) -> None:
        """Stop reading from it; stdin goes on."""
        self._hub.forget(source)
        self._sources.discard(source)
        self._ending.discard(source)
        if self._ended_at.pop(source, None) is None:
            self._hub.pump.remove_source(source)

    def _on_event(self, source: int, kind: int, value: int) -> None:
        if kind == Event.SOURCE_EOF:
            self._ended_at[source] = value
            if source in self._ending:
                self._ending.discard(source)
                self._on_end(value)

    def _close_keeper(self) -> None:
        fd, self._keeper_fd = self._keeper_fd, -1
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        """Let the pump close its fds. Idempotent."""
        self._close_keeper()
        if not self._finished:
            self._finished = True
            for source in self._sources:
                self._hub.forget(source)
            self._hub.pump.remove(self.number)


class ProcessIO:
    """The three streams of one process; a None is /dev/null in the guest."""

    def __init__(
        self,
        stdin: Input | None = None,
        stdout: Output | None = None,
        stderr: Output | None = None,
    ) -> None:
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr

    async def drain(self, stdout_bytes: int | None, stderr_bytes: int | None) -> int:
        """Wait for all output; returns the missing bytes. See Output.drain."""
        pairs = ((self.stdout, stdout_bytes), (self.stderr, stderr_bytes))
        missing = await asyncio.gather(*(out.drain(n) for out, n in pairs if out is not None))
        return sum(missing)

    def finish(self) -> None:
        """The process has ended: EOF for its readers. Logs stay open for clients yet to come."""
        if self.stdin is not None:
            self.stdin.close()
        for output in (self.stdout, self.stderr):
            if output is not None and not output.has_log:
                output.close()

    def close(self) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()


def _open_log(path: Path) -> int:
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags, 0o600)
    except OSError as exc:
        raise from_os_error(exc, f"open {path}") from exc


def _close(*fds: int) -> None:
    for fd in fds:
        if fd >= 0:
            os.close(fd)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
