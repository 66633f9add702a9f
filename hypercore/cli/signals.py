"""Signals while a verb runs: they cancel it and let it undo its steps, or go where attach says.

Signals belong to the process, so the handlers in force are this module's one piece of state.
"""

import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What ends a verb."""

OTHERS = (signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
"""What only a proxied task gets to see; otherwise they do what they do."""

_handlers: list[Callable[[int], None]] = []


def exit_code_of(signum: int) -> int:
    """What a shell reports for a command that this signal ended."""
    return 128 + signum


class Interrupted(Exception):
    """A signal ended the verb; everything it began is undone."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.exit_code = exit_code_of(signum)


def run_async(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run `work` in an event loop.

    Raises:
        Interrupted: after the first signal of ENDING, once `work` has undone its steps.
    """
    import asyncio

    async def guarded() -> T:
        task = asyncio.current_task()
        assert task is not None
        received: list[int] = []

        def interrupt(signum: int) -> None:
            received.append(signum)
            if len(received) == 1:
                task.cancel()
            elif len(received) == 2:
                print("cleaning up; once more to leave at once", file=sys.stderr, flush=True)
            else:
                print("left in disorder: run `hypercore cleanup`", file=sys.stderr, flush=True)
                os._exit(128 + signum)

        _handlers.append(interrupt)
        loop = asyncio.get_running_loop()
        for signum in ENDING:
            loop.add_signal_handler(signum, _dispatch, signum)
        try:
            return await work()
        except asyncio.CancelledError:
            if received:
                raise Interrupted(received[0]) from None
            raise
        finally:
            _handlers.remove(interrupt)

    return asyncio.run(guarded())


@contextmanager
def intercept(handler: Callable[[int], None]) -> Iterator[None]:
    """Within run_async: have `handler` called for all signals meanwhile."""
    import asyncio

    loop = asyncio.get_running_loop()
    _handlers.append(handler)
    for signum in OTHERS:
        loop.add_signal_handler(signum, _dispatch, signum)
    try:
        yield
    finally:
        _handlers.remove(handler)
        for signum in OTHERS:
            loop.remove_signal_handler(signum)


def _dispatch(signum: int) -> None:
    _handlers[-1](signum)
