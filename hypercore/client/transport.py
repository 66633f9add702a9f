"""What a transport must do for the client: calls by the table of api.py, errors as ours."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from hypercore.api import Method
from hypercore.errors import DeadlineExceeded, HypercoreError, OutcomeUnknown, Unavailable


class Duplex(Protocol):
    """A call whose messages go both ways."""

    async def send(self, message: Any) -> None: ...

    async def done_sending(self) -> None:
        """No more messages will be sent."""

    def answers(self) -> AsyncIterator[Any]: ...


class Transport(Protocol):
    """A way to a service. Opened and closed by the client, used in one event loop."""

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def unary(self, method: Method, request: Any, timeout_s: float | None) -> Any:
        """Call a method that has one answer."""

    def stream(
        self, method: Method, request: Any, timeout_s: float | None
    ) -> AbstractAsyncContextManager[AsyncIterator[Any]]:
        """Call a method that answers with a stream; it is open inside the block."""

    async def upload(
        self, method: Method, start: Any, data: AsyncIterator[bytes], timeout_s: float | None
    ) -> Any:
        """Call a method that takes a stream of bytes."""

    def duplex(self, method: Method, start: Any) -> AbstractAsyncContextManager[Duplex]:
        """Call a method whose messages go both ways; `start` is sent."""


def broken(method: Method, sent: bool, why: str) -> HypercoreError:
    """The error for a connection that broke, by what may have happened."""
    if sent and not method.idempotent:
        return OutcomeUnknown(
            f"the connection broke during {method.name}, which may have happened: {why}",
            hint="look at what there is before trying again, or use an idempotency key",
        )
    return Unavailable(f"hypercore does not answer: {why}", hint="is `hypercore serve` running?")


def silent(method: Method, timeout_s: float) -> HypercoreError:
    """The error for an answer that did not come in time."""
    if method.idempotent:
        return DeadlineExceeded(f"{method.name} took longer than the {timeout_s:g} s it was given")
    return OutcomeUnknown(
        f"{method.name} was not answered within {timeout_s:g} s, and may have happened",
        hint="look at what there is before trying again, or use an idempotency key",
    )
