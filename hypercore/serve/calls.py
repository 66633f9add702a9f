"""What both servers do around a call: rights, counting, time, and unexpected failures."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any

from hypercore.api import Method
from hypercore.errors import (
    DeadlineExceeded,
    HypercoreError,
    Unavailable,
    kind_of,
)
from hypercore.serve.callers import Caller, CallerLeft
from hypercore.serve.service import Service, methods
from hypercore.wire.codec import Message

log = logging.getLogger(__name__)

WAITING = ("Attach", "Events", "Logs", "Stats", "Wait")
"""Methods that may wait for ever and change nothing: who stops need not wait for them"""


class Calls:
    """The methods of a service, for a transport."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._functions = methods(service)
        self.draining = False
        """no new calls are taken"""
        self._waiting: set[asyncio.Task[Any]] = set()
        self._ended: set[asyncio.Task[Any]] = set()
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def drain(self) -> None:
        """Take no new calls, and end those that only wait for something to happen."""
        self.draining = True
        for task in self._waiting:
            self._ended.add(task)
            task.cancel()

    async def finished(self, timeout_s: float) -> bool:
        """Wait until no call is under way; False if some still are after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def unary(self, method: Method, request: Any, caller: Caller, transport: str) -> Message:
        """Call a method that has one answer; `request` may be a stream of messages."""
        began = time.monotonic()
        with self._counted(method, caller, transport):
            answer: Message = await self._functions[method.name](request, caller)
        self.service.figures.call_s[method.name].add(time.monotonic() - began)
        return answer

    @asynccontextmanager
    async def stream(
        self, method: Method, request: Any, caller: Caller, transport: str
    ) -> AsyncIterator[AsyncIterator[Any]]:
        """Call a method that answers with a stream; it is open, and checked, inside the block."""
        with self._counted(method, caller, transport):
            answers = await self._functions[method.name](request, caller)
            async with aclosing(answers):
                yield answers

    @contextmanager
    def _counted(self, method: Method, caller: Caller, transport: str) -> Iterator[None]:
        figures = self.service.figures
        kind = ""
        task = asyncio.current_task()
        assert task is not None
        self._under_way += 1
        self._idle.clear()
        try:
            if self.draining:
                raise _stopping()
            caller.require(method)
            if method.name in WAITING:
                self._waiting.add(task)
            yield
        except HypercoreError as exc:
            kind = "Cancelled" if isinstance(exc, CallerLeft) else kind_of(exc)
            raise
        except (asyncio.CancelledError, GeneratorExit) as exc:
            kind = "Cancelled"
            if task in self._ended and isinstance(exc, asyncio.CancelledError):
                task.uncancel()
                raise _stopping() from exc
            raise
        except Exception as exc:
            kind = "Internal"
            log.exception("%s by %s failed", method.name, caller.name)
            raise HypercoreError(
                f"internal error in {method.name}: {type(exc).__name__}",
                hint="the daemon's log has more",
            ) from exc
        finally:
            self._waiting.discard(task)
            self._ended.discard(task)
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()
            figures.calls[method.name, transport, kind] += 1


def _stopping() -> Unavailable:
    return Unavailable("hypercore is stopping", hint="try again in a moment")


def too_late(method: Method, timeout_s: float) -> DeadlineExceeded:
    return DeadlineExceeded(f"{method.name} took longer than the {timeout_s:g} s it was given")
