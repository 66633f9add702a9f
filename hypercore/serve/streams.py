"""Exec, attach and logs as streams of messages, over engine_session."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TypeVar

from hypercore import api_records, logs
from hypercore.attach import ExitStatus
from hypercore.engine import Engine
from hypercore.engine_session import Session, session
from hypercore.errors import InvalidArgument, StateError
from hypercore.inventory import Record
from hypercore.observed import Usage
from hypercore.proto import hypercore_pb as pb
from hypercore.serve.requests import MAX_ARGUMENTS_BYTES, checked_signal
from hypercore.serve.watch import Watcher

log = logging.getLogger(__name__)

MAX_ROWS = 65535
T = TypeVar("T")
Input = pb.ExecInput | pb.AttachInput


async def first(inputs: AsyncIterator[T]) -> T:
    """The message a stream must begin with.

    Raises:
        InvalidArgument: it ended at once.
    """
    try:
        return await anext(inputs)
    except StopAsyncIteration:
        raise InvalidArgument("the stream ended before its first message") from None


def no_start(kind: str) -> InvalidArgument:
    return InvalidArgument(f"the first {kind} must have start", field="start")


def check_exec(start: pb.ExecStart) -> None:
    """Raises InvalidArgument naming the field."""
    from hypercore import hac

    if not start.args:
        raise InvalidArgument("args is empty: which command is to run?", field="args")
    if sum(map(len, (*start.args, *start.env))) > MAX_ARGUMENTS_BYTES:
        raise InvalidArgument(f"args: longer than {MAX_ARGUMENTS_BYTES} bytes", field="args")
    for name, items in (("args", start.args), ("env", start.env)):
        if any("\0" in item for item in items):
            raise InvalidArgument(f"{name}: must not contain NUL", field=name)
    for item in start.env:
        if problem := hac.env_problem(item):
            raise InvalidArgument(f"env: {problem[:200]}", field="env")
    if problem := hac.user_problem(start.user):
        raise InvalidArgument(f"user: {problem[:200]}", field="user")
    if start.workdir and (not start.workdir.startswith("/") or "\0" in start.workdir):
        raise InvalidArgument("workdir: must be an absolute path", field="workdir")


async def begun(answers: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """`answers`, of which the first is there already, or its error raised."""
    try:
        head = [await anext(answers)]
    except StopAsyncIteration:
        head = []

    async def whole() -> AsyncGenerator[T, None]:
        async with aclosing(answers):
            for answer in head:
                yield answer
            async for answer in answers:
                yield answer

    return whole()


async def exec_(
    engine: Engine,
    record: Record,
    start: pb.ExecStart,
    inputs: AsyncIterator[pb.ExecInput],
    counts: Counter[str],
) -> AsyncGenerator[pb.ProcessOutput, None]:
    """Run a process; leaving ends it. `counts` gets the bytes that pass in and out."""
    process = engine.exec(
        record,
        start.args,
        env=start.env,
        workdir=start.workdir,
        user=start.user,
        stdin=start.stdin,
        tty=start.tty,
    )
    async with process as prepared:
        opened = session(prepared.attach, stdin=start.stdin, tty=start.tty, begin=prepared.start)
        async with opened as joined:
            if start.size is not None:
                await _resize(joined, start.size)
            feeding = _feed(joined, inputs, prepared.kill, counts, end_closes=start.stdin)
            async for output in _converse(joined, feeding, counts, tty=start.tty):
                yield output


async def attach(
    engine: Engine,
    record: Record,
    start: pb.AttachStart,
    inputs: AsyncIterator[pb.AttachInput],
    counts: Counter[str],
) -> AsyncGenerator[pb.ProcessOutput, None]:
    """Join the command's streams; leaving detaches."""
    if start.stdin and not record.stdin:
        raise StateError(
            f"microVM {record.microvm_id} has no stdin", hint="it was spawned without one"
        )

    async def signal(number: int) -> None:
        await engine.signal(record, number)

    opened = session(
        lambda *fds: engine.attach(record, *fds, replay=not start.no_replay),
        stdin=start.stdin,
        tty=record.tty,
    )
    async with opened as joined:
        feeding = _feed(joined, inputs, signal, counts, end_closes=False)
        async for output in _converse(joined, feeding, counts, tty=record.tty):
            yield output


async def _converse(
    joined: Session, feeding: Awaitable[None], counts: Counter[str], *, tty: bool
) -> AsyncIterator[pb.ProcessOutput]:
    feeder = asyncio.ensure_future(feeding)
    feeder.add_done_callback(lambda done: _abort_on_failure(joined, done))
    try:
        yield pb.ProcessOutput(started=pb.ProcessStarted(tty=tty))
        async for fd, data in joined.outputs():
            counts["out"] += len(data)
            yield pb.ProcessOutput(stderr=data) if fd == 2 else pb.ProcessOutput(stdout=data)
        status: ExitStatus = await joined.wait()
        yield pb.ProcessOutput(exit=api_records.exit_message(status))
    finally:
        feeder.cancel()
        await asyncio.gather(feeder, return_exceptions=True)


def _abort_on_failure(joined: Session, feeder: "asyncio.Future[None]") -> None:
    if not feeder.cancelled() and (failure := feeder.exception()) is not None:
        joined.abort(failure)


async def _feed(
    joined: Session,
    inputs: AsyncIterator[pb.ExecInput] | AsyncIterator[pb.AttachInput],
    signal: Callable[[int], Awaitable[None]],
    counts: Counter[str],
    *,
    end_closes: bool,
) -> None:
    closed = False
    async for message in inputs:
        if message.stdin is not None:
            await joined.write(message.stdin)
            counts["in"] += len(message.stdin)
        elif message.close_stdin is not None:
            closed = True
            await joined.close_stdin()
        elif message.resize is not None:
            await _resize(joined, message.resize)
        elif message.signal is not None:
            await signal(checked_signal(message.signal.signal, 9))
        else:
            raise InvalidArgument("start may only be the first message", field="start")
    if end_closes and not closed:
        await joined.close_stdin()


async def _resize(joined: Session, size: pb.Resize) -> None:
    if not (0 < size.rows <= MAX_ROWS and 0 < size.columns <= MAX_ROWS):
        raise InvalidArgument(
            f"resize to {size.rows} rows, {size.columns} columns: 1 to {MAX_ROWS} each",
            field="resize",
        )
    await joined.resize(size.rows, size.columns)


async def follow(
    engine: Engine, record: Record, skip_bytes: Mapping[int, int]
) -> AsyncGenerator[pb.LogChunk, None]:
    """The log from `skip_bytes` of each stream on, and what comes until the command ends."""
    left = dict(skip_bytes)
    opened = session(lambda *fds: engine.attach(record, *fds), stdin=False, tty=record.tty)
    async with opened as joined:
        async for fd, data in joined.outputs():
            skipped = min(left.get(fd, 0), len(data))
            if skipped:
                left[fd] -= skipped
                data = data[skipped:]
            if data:
                yield _log_chunk(fd, data)


def _log_chunk(fd: int, data: bytes) -> pb.LogChunk:
    return pb.LogChunk(stream="stderr" if fd == 2 else "stdout", data=data)


async def read_logs(
    files: Sequence[tuple[Path, int]], skip_bytes: Mapping[int, int]
) -> AsyncGenerator[pb.LogChunk, None]:
    """Log files as they are now, one after the other."""
    for path, fd in files:
        chunks = logs.chunks(path, skip_bytes.get(fd, 0))
        while (data := await asyncio.to_thread(next, chunks, b"")) != b"":
            yield _log_chunk(fd, data)


async def tail(files: Sequence[tuple[Path, int]], lines: int | None) -> dict[int, int]:
    """How many bytes of each stream (by its fd) come before its last `lines`; None: show all."""
    if lines is None:
        return {}
    return {fd: await asyncio.to_thread(logs.tail_offset, path, lines) for path, fd in files}


async def events(watcher: Watcher) -> AsyncGenerator[pb.Event, None]:
    try:
        while True:
            event = await watcher.next()
            yield pb.Event(
                kind=event.kind, id=event.microvm_id, at=event.at, exit_code=event.exit_code
            )
    finally:
        watcher.close()


async def stats(
    engine: Engine, microvm_id: str, usage: Usage, interval_s: float
) -> AsyncGenerator[pb.StatsResponse, None]:
    """`usage`, and if `interval_s` is given what is used after each."""
    while True:
        yield pb.StatsResponse(
            at=usage.at,
            cpu_us=usage.cpu_us,
            memory_bytes=usage.memory_bytes,
            memory_limit_bytes=usage.memory_limit_bytes,
            processes=usage.processes,
            oom_kills=usage.oom_kills,
        )
        if not interval_s:
            return
        await asyncio.sleep(interval_s)
        usage = await engine.usage(microvm_id)
