"""The streams of a process in a microVM, for a program: bytes in, bytes out, exit status.

Joins attach's pipes to coroutines; nothing blocks, and who does not read slows only the process
down. What a terminal wants is cli/terminal.py's.
"""

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, suppress
from typing import Protocol

from hypercore.attach import ExitStatus, pipes
from hypercore.errors import HypercoreError, StateError

READ_BYTES = 256 * 1024
PIPE_BYTES = 1024 * 1024
QUEUED_CHUNKS = 4


class Stdio(Protocol):
    """An attached process; engine_exec.Stdio."""

    async def resize(self, rows: int, columns: int) -> None: ...
    async def close_stdin(self) -> None: ...
    async def wait(self) -> ExitStatus: ...


Attach = Callable[[int | None, int | None, int | None], AbstractAsyncContextManager[Stdio]]
"""Attaches the pipe ends for stdin, stdout and stderr to a process."""


class Session:
    """An attached process. Made by `session`."""

    def __init__(self, attached: Stdio, stdin_fd: int, queue: "asyncio.Queue[Chunk]") -> None:
        self._attached = attached
        self._stdin_fd = stdin_fd
        self._queue = queue
        self._failure: BaseException | None = None
        self._exit: asyncio.Task[ExitStatus] = asyncio.create_task(attached.wait())

    def on_exit(self, callback: Callable[[], None]) -> None:
        self._exit.add_done_callback(lambda _exit: callback())

    async def outputs(self) -> AsyncIterator[tuple[int, bytes]]:
        """What the process prints, as (1 or 2, bytes), until it has ended and all is read."""
        open_streams = 2
        while open_streams:
            fd, data = await self._queue.get()
            if self._failure is not None:
                raise self._failure
            if data:
                yield fd, data
            else:
                open_streams -= 1

    def abort(self, failure: BaseException) -> None:
        """Have `outputs` raise `failure`."""
        self._failure = failure
        with suppress(asyncio.QueueFull):  # then it has something to wake up for
            self._queue.put_nowait((0, b""))

    async def write(self, data: bytes) -> None:
        """Pass `data` to its stdin; waits while it does not read.

        Raises:
            StateError: it has no stdin, or that was closed.
        """
        if self._stdin_fd < 0:
            raise StateError("this process has no open stdin")
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._stdin_fd, view) :]
            except BlockingIOError:
                await _ready(self._stdin_fd, for_writing=True)
            except BrokenPipeError:
                return  # it has ended; wait() tells

    async def close_stdin(self) -> None:
        """EOF for the process, after all that was written."""
        await self._attached.close_stdin()
        self.drop_stdin()

    def drop_stdin(self) -> None:
        fd, self._stdin_fd = self._stdin_fd, -1
        if fd >= 0:
            os.close(fd)

    async def resize(self, rows: int, columns: int) -> None:
        await self._attached.resize(rows, columns)

    async def wait(self) -> ExitStatus:
        """How it ended; all its output has been queued for `outputs` then."""
        return await asyncio.shield(self._exit)

    async def leave(self) -> None:
        self.drop_stdin()
        self._exit.cancel()
        with suppress(asyncio.CancelledError, HypercoreError):
            await self._exit


Chunk = tuple[int, bytes]
"""The stream's number and its bytes; none: it has ended"""


@asynccontextmanager
async def session(
    attach: Attach,
    *,
    stdin: bool,
    tty: bool,
    begin: Callable[[], Awaitable[None]] | None = None,
) -> AsyncIterator[Session]:
    """Attach to a process; leaving the block detaches, the process goes on.

    Args:
        begin: awaited once attached, such as the start of the process.
    """
    with ExitStack() as owned:
        ends = pipes((stdin, True, not tty))
        ours, theirs = [], []
        for number, (read_fd, write_fd) in enumerate(ends):
            our_fd, their_fd = (write_fd, read_fd) if number == 0 else (read_fd, write_fd)
            ours.append(_Owned(our_fd))
            theirs.append(_Owned(their_fd))
            owned.callback(ours[-1].close)
            owned.callback(theirs[-1].close)
            if our_fd >= 0:
                os.set_blocking(our_fd, False)
                with suppress(OSError):  # beyond the user's limit: the default serves
                    fcntl.fcntl(our_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        given = [end.fd if end.fd >= 0 else None for end in theirs]
        queue: asyncio.Queue[Chunk] = asyncio.Queue(QUEUED_CHUNKS)
        async with attach(given[0], given[1], given[2]) as attached:
            theirs[0].close()
            opened = Session(attached, ours[0].take(), queue)
            readers = [
                asyncio.create_task(_read(number, ours[number], queue)) for number in (1, 2)
            ]
            try:
                # Who copies a log to an ended task's pipes needs them until then.
                opened.on_exit(lambda: theirs[1].close())
                opened.on_exit(lambda: theirs[2].close())
                if begin is not None:
                    await begin()
                yield opened
            finally:
                await opened.leave()
                for reader in readers:
                    reader.cancel()
                await asyncio.gather(*readers, return_exceptions=True)


class _Owned:
    """A descriptor and its one owner."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def take(self) -> int:
        fd, self.fd = self.fd, -1
        return fd

    def close(self) -> None:
        if (fd := self.take()) >= 0:
            os.close(fd)


async def _read(number: int, end: _Owned, queue: "asyncio.Queue[Chunk]") -> None:
    while end.fd >= 0:
        try:
            data = os.read(end.fd, READ_BYTES)
        except BlockingIOError:
            await _ready(end.fd)
            continue
        if not data:
            break
        await queue.put((number, data))
    await queue.put((number, b""))


async def _ready(fd: int, *, for_writing: bool = False) -> None:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def done() -> None:
        if not future.done():
            future.set_result(None)

    add, remove = (
        (loop.add_writer, loop.remove_writer)
        if for_writing
        else (loop.add_reader, loop.remove_reader)
    )
    add(fd, done)
    try:
        await future
    finally:
        remove(fd)
