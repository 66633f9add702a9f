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


class Calls:
    """The methods of a service, for a transport."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._functions = methods(service)
        self.draining = False
        """no new calls are taken"""

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
        try:
            if self.draining:
                raise Unavailable("hypercore is stopping", hint="try again in a moment")
            caller.require(method)
            yield
        except HypercoreError as exc:
            kind = "Cancelled" if isinstance(exc, CallerLeft) else kind_of(exc)
            raise
        except (asyncio.CancelledError, GeneratorExit):
            kind = "Cancelled"
            raise
        except Exception as exc:
            kind = "Internal"
            log.exception("%s by %s failed", method.name, caller.name)
            raise HypercoreError(
                f"internal error in {method.name}: {type(exc).__name__}",
                hint="the daemon's log has more",
            ) from exc
        finally:
            figures.calls[method.name, transport, kind] += 1


def too_late(method: Method, timeout_s: float) -> DeadlineExceeded:
    return DeadlineExceeded(f"{method.name} took longer than the {timeout_s:g} s it was given")
