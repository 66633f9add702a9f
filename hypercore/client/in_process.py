"""The transport that needs no daemon: the service in this process, over an engine of its own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from hypercore.api import Method
from hypercore.client.transport import silent

if TYPE_CHECKING:
    from hypercore.config import HostConfig
    from hypercore.serve.calls import Calls

QUEUED_MESSAGES = 4
_END = object()


class InProcess:
    """A transport.Transport; None for the host's configuration."""

    def __init__(self, config: "HostConfig | None" = None) -> None:
        self._config = config
        self._stack = AsyncExitStack()
        self._calls: Calls | None = None
        self._following: asyncio.Task[None] | None = None

    async def open(self) -> None:
        from hypercore.engine import Engine
        from hypercore.serve.calls import Calls
        from hypercore.serve.service import Service

        engine = await self._stack.enter_async_context(Engine(self._config))
        await engine.containerd_version()
        self._calls = Calls(Service(engine, engine.config))

    async def close(self) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        await self._stack.aclose()

    def _open_calls(self) -> "Calls":
        if self._calls is None:
            raise RuntimeError("the client is not open: use `with Client(…)`")
        return self._calls

    async def unary(self, method: Method, request: Any, timeout_s: float | None) -> Any:
        from hypercore.serve.callers import LOCAL

        try:
            async with asyncio.timeout(timeout_s) as limit:
                return await self._open_calls().unary(method, request, LOCAL, "local")
        except TimeoutError:
            if limit.expired() and timeout_s is not None:
                raise silent(method, timeout_s) from None
            raise

    @asynccontextmanager
    async def stream(
        self, method: Method, request: Any, timeout_s: float | None
    ) -> AsyncIterator[AsyncIterator[Any]]:
        from hypercore.serve.callers import LOCAL

        if method.name == "Events":
            await self._follow()
        async with self._open_calls().stream(method, request, LOCAL, "local") as answers:
            yield _timed(method, answers, timeout_s)

    async def _follow(self) -> None:
        """Follow containerd's events, which only who watches them needs."""
        service = self._open_calls().service
        if self._following is None:
            self._following = asyncio.create_task(service.run())
        await service.watch.wait_synced()

    async def upload(
        self, method: Method, start: Any, data: AsyncIterator[bytes], timeout_s: float | None
    ) -> Any:
        async def messages() -> AsyncIterator[Any]:
            yield method.request(start=start)
            async for piece in data:
                yield method.request(data=piece)

        return await self.unary(method, messages(), timeout_s)

    @asynccontextmanager
    async def duplex(self, method: Method, start: Any) -> AsyncIterator["_Duplex"]:
        from hypercore.serve.callers import LOCAL

        queue: asyncio.Queue[Any] = asyncio.Queue(QUEUED_MESSAGES)

        async def messages() -> AsyncIterator[Any]:
            yield method.request(start=start)
            while (message := await queue.get()) is not _END:
                yield message

        async with self._open_calls().stream(method, messages(), LOCAL, "local") as answers:
            yield _Duplex(queue, answers)


class _Duplex:
    """A transport.Duplex."""

    def __init__(self, queue: "asyncio.Queue[Any]", answers: AsyncIterator[Any]) -> None:
        self._queue = queue
        self._answers = answers

    async def send(self, message: Any) -> None:
        await self._queue.put(message)

    async def done_sending(self) -> None:
        await self._queue.put(_END)

    def answers(self) -> AsyncIterator[Any]:
        return self._answers


async def _timed(
    method: Method, answers: AsyncIterator[Any], timeout_s: float | None
) -> AsyncIterator[Any]:
    deadline = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
    while True:
        try:
            async with asyncio.timeout_at(deadline) as limit:
                answer = await anext(answers)
        except StopAsyncIteration:
            return
        except TimeoutError:
            if limit.expired() and timeout_s is not None:
                raise silent(method, timeout_s) from None
            raise
        yield answer
