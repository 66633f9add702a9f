"""A process in a microVM, at the client's end of a call."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

from hypercore import api_records
from hypercore.attach import ExitStatus
from hypercore.client.results import Output, RunResult
from hypercore.client.transport import Duplex
from hypercore.errors import DeadlineExceeded, HypercoreError, OutcomeUnknown
from hypercore.proto import hypercore_pb as pb

CHUNK_BYTES = 256 * 1024


class AsyncProcess:
    """A running process. `outputs` must be read, or it waits; `wait` reads and drops the rest."""

    def __init__(self, duplex: Duplex, kind: Any, tty: bool, answers: AsyncIterator[Any]) -> None:
        self._tty = tty
        self._duplex = duplex
        self._kind = kind
        self._answers = answers
        self._status: ExitStatus | None = None

    @classmethod
    async def begun(cls, duplex: Duplex, kind: Any) -> "AsyncProcess":
        """Once the process runs; `kind` is the class of the messages to send.

        Raises:
            TaskError: it cannot be run.
        """
        answers = duplex.answers()
        async for answer in answers:
            if answer.started is not None:
                return cls(duplex, kind, answer.started.tty, answers)
        raise HypercoreError("the service ended the call before the process began")

    @property
    def tty(self) -> bool:
        """Whether it has a terminal: its stderr is in its stdout then."""
        return self._tty

    async def outputs(self) -> AsyncIterator[Output]:
        """What it prints, until it has ended."""
        async for answer in self._answers:
            if answer.stdout is not None:
                yield Output("stdout", answer.stdout)
            elif answer.stderr is not None:
                yield Output("stderr", answer.stderr)
            elif answer.exit is not None:
                self._status = api_records.exit_status(answer.exit)

    async def wait(self) -> ExitStatus:
        """How it ended."""
        if self._status is None:
            async for _output in self.outputs():
                continue
        if self._status is None:
            raise OutcomeUnknown("the call ended before the process did")
        return self._status

    async def write(self, data: bytes) -> None:
        """Pass `data` to its stdin."""
        for start in range(0, len(data), CHUNK_BYTES):
            await self._duplex.send(self._kind(stdin=data[start : start + CHUNK_BYTES]))

    async def close_stdin(self) -> None:
        """EOF for the process, after all that was written."""
        await self._duplex.send(self._kind(close_stdin=pb.CloseStdin()))

    async def resize(self, rows: int, columns: int) -> None:
        await self._duplex.send(self._kind(resize=pb.Resize(rows=rows, columns=columns)))

    async def kill(self, signal: str = "KILL") -> None:
        await self._duplex.send(self._kind(signal=pb.Signal(signal=signal)))


async def run(
    opening: AbstractAsyncContextManager[AsyncProcess],
    args: tuple[str, ...],
    data: bytes,
    timeout_s: float | None,
) -> RunResult:
    """Run a process to its end; see AsyncClient.run."""
    began = time.monotonic()
    collected = {"stdout": bytearray(), "stderr": bytearray()}
    try:
        async with asyncio.timeout(timeout_s) as limit, opening as process:
            feeding = asyncio.ensure_future(_feed(process, data))
            try:
                async for output in process.outputs():
                    collected[output.stream] += output.data
                status = await process.wait()
            finally:
                feeding.cancel()
                await asyncio.gather(feeding, return_exceptions=True)
    except TimeoutError:
        if not limit.expired():
            raise
        raise DeadlineExceeded(
            f"{' '.join(args)[:200]!r} has not ended within {timeout_s:g} s and was killed",
            detail=bytes(collected["stderr"][-2000:]).decode(errors="replace"),
        ) from None
    return RunResult(
        args=args,
        exit_code=status.exit_code,
        stdout_bytes=bytes(collected["stdout"]),
        stderr_bytes=bytes(collected["stderr"]),
        missing_bytes=status.missing_bytes,
        reason=status.reason,
        elapsed_ms=round((time.monotonic() - began) * 1000, 3),
    )


async def _feed(process: AsyncProcess, data: bytes) -> None:
    if data:
        await process.write(data)
        await process.close_stdin()
