"""The library in all its forms behind one set of words, so that one suite runs over them all."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any

import uvloop

from hypercore.client import AsyncClient, Client

TRANSPORTS = ("local", "http", "grpc")
STYLES = ("sync", "async")


@contextmanager
def opened(address: str, style: str) -> Iterator[Any]:
    """A client; the asynchronous one has its coroutines run to their end, on uvloop."""
    if style == "sync":
        with Client(address, token="") as client:
            yield client
        return
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        client = runner.run(_enter(AsyncClient(address, token="")))
        try:
            yield Blocking(client, runner)
        finally:
            runner.run(client.__aexit__(None, None, None))


async def _enter(context: Any) -> Any:
    return await context.__aenter__()


class Blocking:
    """An asynchronous object whose methods wait, called from the thread that owns the loop."""

    def __init__(self, target: Any, runner: asyncio.Runner) -> None:
        self._target = target
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if not inspect.ismethod(found):
            is_plain = isinstance(found, str | int | float | bytes | tuple | list | dict)
            return found if is_plain or found is None else self._wrapped(found)

        def call(*args: Any, **options: Any) -> Any:
            return self._wrapped(found(*args, **options))

        return call

    def _wrapped(self, value: Any) -> Any:
        if inspect.isawaitable(value):
            return self._wrapped(self._runner.run(_awaited(value)))
        if isinstance(value, AbstractAsyncContextManager) and not hasattr(value, "files"):
            return self._entered(value)
        if isinstance(value, AsyncIterator):
            return self._items(value)
        if type(value).__name__.startswith("Async"):
            return Blocking(value, self._runner)
        return value

    @contextmanager
    def _entered(self, context: Any) -> Iterator[Any]:
        value = self._wrapped(self._runner.run(_enter(context)))
        try:
            yield value
        finally:
            if isinstance(value, Generator):
                value.close()
            self._runner.run(context.__aexit__(None, None, None))

    def _items(self, items: Any) -> Iterator[Any]:
        try:
            while True:
                try:
                    yield self._runner.run(_next(items))
                except StopAsyncIteration:
                    return
        finally:
            if hasattr(items, "aclose"):
                self._runner.run(items.aclose())


async def _awaited(value: Any) -> Any:
    return await value


async def _next(items: Any) -> Any:
    return await anext(items)
