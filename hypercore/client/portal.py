"""An event loop in a thread, for callers that have none: what sync.py is made of."""

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from typing import Any, TypeVar

T = TypeVar("T")
_END: Any = object()


class Portal:
    """Runs coroutines in a thread of its own. Methods may be called from any thread."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        started: Future[asyncio.AbstractEventLoop] = Future()

        def run() -> None:
            with asyncio.Runner() as runner:
                loop = runner.get_loop()
                loop.call_soon(started.set_result, loop)
                loop.run_forever()

        self._thread = threading.Thread(target=run, name="hypercore-client", daemon=True)
        self._thread.start()
        self._loop = started.result()

    def close(self) -> None:
        """End what still runs, and the thread."""
        loop, self._loop = self._loop, None
        if loop is not None and self._thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` to its end. Ctrl-C in the caller's thread cancels it first."""
        if self._loop is None:
            work.close()
            raise RuntimeError("the client is not open: use `with Client(…)`")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            if not future.done():
                future.cancel()
            raise

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        """The items, one after the other, as they are asked for."""
        try:
            while (item := self.call(_next(items))) is not _END:
                yield item
        finally:
            with suppress(RuntimeError):  # closed meanwhile
                self.call(_close(items))

    @contextmanager
    def entered(self, context: AbstractAsyncContextManager[T]) -> Iterator[T]:
        """The context manager for this thread."""
        value = self.call(_enter(context))
        try:
            yield value
        except BaseException as exc:
            if not self.call(_exit(context, exc)):
                raise
        else:
            self.call(_exit(context, None))


async def _next(items: AsyncIterator[T]) -> T:
    try:
        return await anext(items)
    except StopAsyncIteration:
        end: T = _END
        return end


async def _close(items: AsyncIterator[Any]) -> None:
    if (close := getattr(items, "aclose", None)) is not None:
        await close()


async def _enter(context: AbstractAsyncContextManager[T]) -> T:
    return await context.__aenter__()


async def _exit(context: AbstractAsyncContextManager[Any], exc: BaseException | None) -> bool:
    kind = type(exc) if exc is not None else None
    return bool(await context.__aexit__(kind, exc, exc.__traceback__ if exc else None))
