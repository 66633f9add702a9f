"""The local end of attach: joins stdin, stdout and stderr with a stdio connection's pipes.

Copying is done by threads that may block on a slow terminal without stalling signals. A thread
that is stuck when we leave is a daemon and ends with the process.
"""

import asyncio
import errno
import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from hypercore.attach import ExitStatus, pipes
from hypercore.cli import signals
from hypercore.errors import InvalidArgument

CHUNK_BYTES = 64 * 1024
SPLICE_BYTES = 1024 * 1024
DEFAULT_DETACH_KEYS = "ctrl-p,ctrl-q"


class Detached(Exception):
    """The user left; the process goes on."""


class Stdio(Protocol):
    """An attached process; engine_exec.Stdio."""

    async def resize(self, rows: int, columns: int) -> None: ...
    async def close_stdin(self) -> None: ...
    async def wait(self) -> ExitStatus: ...


Attach = Callable[[int | None, int | None, int | None], AbstractAsyncContextManager[Stdio]]
"""Attaches the pipe ends for stdin, stdout and stderr to a process."""


class Leave:
    """Ends a `join` as the detach keys do. Bound to the running event loop."""

    def __init__(self) -> None:
        self.future: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()

    def now(self) -> None:
        if not self.future.done():
            self.future.set_exception(Detached())


@dataclass(frozen=True, slots=True)
class Local:
    """What of our side takes part."""

    stdin: bool
    """pass our stdin; without it the process's stdin is left as it is"""
    tty: bool = False
    """the process has a terminal: ours becomes raw and passes its size"""
    detach_keys: bytes = b""


def has_stdin() -> bool:
    """Whether our stdin can give anything: it is open and not /dev/null."""
    try:
        status = os.fstat(0)
    except OSError as exc:
        if exc.errno != errno.EBADF:
            raise
        return False
    return status.st_rdev != os.stat(os.devnull).st_rdev


def parse_detach_keys(text: str) -> bytes:
    """`ctrl-p,ctrl-q` as the bytes a terminal sends; empty: no such keys.

    Raises:
        InvalidArgument: a part is neither one character nor ctrl- and one.
    """
    keys = bytearray()
    for part in filter(None, text.split(",")):
        if len(part) == 1 and part.isascii():
            keys += part.encode()
        elif part.startswith("ctrl-") and len(part) == 6 and 0x40 <= ord(part[5].upper()) <= 0x5F:
            keys.append(ord(part[5].upper()) & 0x1F)
        else:
            raise InvalidArgument(
                f"--detach-keys {text}: {part!r} is no key",
                hint="a letter, or ctrl- and one of a-z @ [ ] ^ _ \\, several with commas",
            )
    return bytes(keys)


class DetachFilter:
    """Finds the detach keys in what is typed; holds a beginning of them back until it is sure."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._matched = 0

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """(bytes to pass on, whether the keys are complete)."""
        if not self._keys:
            return data, False
        out = bytearray()
        for value in data:
            if value == self._keys[self._matched]:
                self._matched += 1
                if self._matched == len(self._keys):
                    return bytes(out), True
                continue
            out += self._keys[: self._matched]
            self._matched = 1 if value == self._keys[0] else 0
            if not self._matched:
                out.append(value)
        return bytes(out), False


async def join(
    attach: Attach,
    local: Local,
    *,
    on_signal: Callable[[int], Coroutine[Any, Any, None]] | None = None,
    begin: Callable[[], Awaitable[None]] | None = None,
    leave: Leave | None = None,
    skip_bytes: Mapping[int, int] | None = None,
    on_output: Callable[[], None] | None = None,
) -> ExitStatus:
    """Pass everything through until the process ends.

    Args:
        on_signal: told each signal we get; None: signals end us as usual.
        begin: awaited once attached, such as the start of the process.
        leave: lets the caller detach.
        skip_bytes: our fd → how many bytes of its stream are left out first.
        on_output: called, from a thread, at the first bytes of each stream, or its end.

    Raises:
        Detached: by the detach keys.
    """
    leave = leave or Leave()
    skip = skip_bytes or {}
    stdin, stdout, stderr = pipes((local.stdin, True, not local.tty))
    owned = [fd for pair in (stdin, stdout, stderr) for fd in pair if fd >= 0]

    def give(fd: int) -> int:
        """Hand the fd over to a thread, which closes it."""
        owned.remove(fd)
        return fd

    def close(*fds: int) -> None:
        for fd in fds:
            if fd >= 0:
                owned.remove(fd)
                os.close(fd)

    try:
        attached = attach(
            stdin[0] if local.stdin else None,
            stdout[1],
            None if local.tty else stderr[1],
        )
        async with attached as connection, _signals(on_signal):
            close(stdin[0], stdout[1], stderr[1])
            # Before the first byte of output: a terminal that is not raw adds a CR to each line.
            with _raw_mode(local.tty and local.stdin):
                outputs = [_in_thread(_copy_out, give(stdout[0]), 1, skip.get(1, 0), on_output)]
                if not local.tty:
                    err = _in_thread(_copy_out, give(stderr[0]), 2, skip.get(2, 0), on_output)
                    outputs.append(err)
                async with _resizing(connection, local.tty):
                    feeding = (
                        _feed(give(stdin[1]), connection, local, leave)
                        if local.stdin
                        else _nothing()
                    )
                    async with feeding:
                        if begin is not None:
                            await begin()
                        status = await _first(connection.wait(), leave.future)
                        await asyncio.gather(*outputs)
                        return status
    finally:
        for fd in owned:
            os.close(fd)


async def _first(
    wait: Coroutine[Any, Any, ExitStatus], other: "asyncio.Future[ExitStatus]"
) -> ExitStatus:
    waiting = asyncio.ensure_future(wait)
    try:
        await asyncio.wait((waiting, other), return_when=asyncio.FIRST_COMPLETED)
        return (waiting if waiting.done() else other).result()
    finally:
        waiting.cancel()


def _in_thread(function: Callable[..., None], *args: object) -> "asyncio.Future[None]":
    """Run a blocking function in a daemon thread; the future is done when it returns."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def finish(exc: BaseException | None) -> None:
        if not done.done():
            done.set_result(None) if exc is None else done.set_exception(exc)

    def work() -> None:
        failure: BaseException | None = None
        try:
            function(*args)
        except BaseException as exc:
            failure = exc
        with suppress(RuntimeError):  # the loop has closed: nobody waits
            loop.call_soon_threadsafe(finish, failure)

    threading.Thread(target=work, daemon=True, name=function.__name__).start()
    return done


def _copy_out(
    source_fd: int, target_fd: int, skip_bytes: int, on_output: Callable[[], None] | None
) -> None:
    """Copy until EOF and close the source. A reader of ours that went away ends it quietly."""
    splice = True
    try:
        if on_output is not None and select.select((source_fd,), (), ()):
            on_output()
        while skip_bytes > 0:
            skipped = os.read(source_fd, min(CHUNK_BYTES, skip_bytes))
            if not skipped:
                return
            skip_bytes -= len(skipped)
        while True:
            if splice:
                try:
                    if os.splice(source_fd, target_fd, SPLICE_BYTES) == 0:
                        return
                    continue
                except OSError as exc:
                    if exc.errno not in (errno.EINVAL, errno.EAGAIN):
                        raise
                    splice = False  # a terminal, a file opened for appending, or non-blocking
            data = os.read(source_fd, CHUNK_BYTES)
            if not data:
                return
            _write_all(target_fd, data)
    except OSError as exc:
        if exc.errno not in (errno.EPIPE, errno.EIO, errno.EBADF):
            raise
    finally:
        os.close(source_fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # somebody made our stdout non-blocking
            select.select((), (fd,), ())


@asynccontextmanager
async def _feed(
    target_fd: int,
    connection: Stdio,
    local: Local,
    leave: Leave,
) -> AsyncIterator[None]:
    """Copy our stdin to the pipe `target_fd` meanwhile; EOF becomes the process's."""
    loop = asyncio.get_running_loop()
    stop_fd = os.eventfd(0, os.EFD_CLOEXEC)
    keys = DetachFilter(local.detach_keys if local.tty else b"")
    ending: list[asyncio.Task[None]] = []

    def end_stdin() -> None:
        ending.append(loop.create_task(connection.close_stdin()))

    def copy() -> None:
        try:
            while True:
                ready, _, _ = select.select((0, stop_fd), (), ())
                if stop_fd in ready:
                    return
                data = _read_stdin()
                if data is None:
                    continue
                passed, complete = keys.feed(data) if data else (b"", False)
                if passed:
                    _write_all(target_fd, passed)
                if complete:
                    loop.call_soon_threadsafe(leave.now)
                    return
                if not data:
                    loop.call_soon_threadsafe(end_stdin)
                    return
        except BrokenPipeError:
            return  # nothing reads any more; how the process ended is told elsewhere
        finally:
            os.close(target_fd)

    done = _in_thread(copy)
    try:
        yield
    finally:
        os.eventfd_write(stop_fd, 1)
        for task in ending:
            task.cancel()
        if done.done():
            os.close(stop_fd)
        else:  # it may be stuck in a full pipe, which closes with the connection
            done.add_done_callback(lambda _: os.close(stop_fd))
        leave.future.cancel()


def _read_stdin() -> bytes | None:
    """None if there is nothing after all: who shares a non-blocking stdin was faster."""
    try:
        return os.read(0, CHUNK_BYTES)
    except BlockingIOError:
        return None
    except OSError as exc:
        if exc.errno != errno.EIO:  # our terminal is gone
            raise
        return b""


@asynccontextmanager
async def _nothing() -> AsyncIterator[None]:
    yield


@contextmanager
def _raw_mode(wanted: bool) -> Iterator[None]:
    """Our terminal passes every key as it is; restored whatever happens."""
    if not (wanted and os.isatty(0)):
        yield
        return
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0, termios.TCSANOW)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


@asynccontextmanager
async def _resizing(connection: Stdio, wanted: bool) -> AsyncIterator[None]:
    """Tell the process our terminal's size, now and whenever it changes."""
    if not wanted or not sys.stdout.isatty():
        yield
        return
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    def resize() -> None:
        with suppress(OSError):
            size = os.get_terminal_size(1)
            task = loop.create_task(connection.resize(size.lines, size.columns))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    resize()
    loop.add_signal_handler(signal.SIGWINCH, resize)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)
        for task in tasks:
            task.cancel()


@asynccontextmanager
async def _signals(
    on_signal: Callable[[int], Coroutine[Any, Any, None]] | None,
) -> AsyncIterator[None]:
    """Have `on_signal` told of signals instead of what is done with them outside."""
    if on_signal is None:
        yield
        return
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    def received(signum: int) -> None:
        task = loop.create_task(on_signal(signum))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    with signals.intercept(received):
        yield
    for task in tasks:
        task.cancel()


def require_terminal(stdin: bool, tty_wanted: bool) -> None:
    """Raises InvalidArgument for -i -t when our stdin is no terminal, as docker does."""
    if stdin and tty_wanted and not os.isatty(0):
        raise InvalidArgument(
            "-i with -t: stdin is no terminal", hint="leave -t out when input is piped"
        )
