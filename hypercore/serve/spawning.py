"""Spawns of many callers: a bounded number at once, first come first served, and idempotency keys.

A key is remembered by this process for KEY_TTL_S. A second request with it gets what the first one
got, or waits for it; with other content it is an error.
"""

import asyncio
import hashlib
import os
import time
from collections import OrderedDict
from dataclasses import dataclass

from hypercore.engine import Engine
from hypercore.errors import AlreadyExists, NotFound, StateError
from hypercore.proto import hypercore_pb as pb
from hypercore.serve.callers import Caller
from hypercore.serve.figures import Figures
from hypercore.serve.requests import checked_key, spawn_spec
from hypercore.serve.watch import Watch

SPAWNS_AT_ONCE = 4 * (os.cpu_count() or 1)
KEY_TTL_S = 24 * 3600.0
MAX_KEYS = 10_000


@dataclass(slots=True)
class _Keyed:
    """What became of the first request with a key."""

    digest: bytes
    at: float
    answer: "asyncio.Future[pb.SpawnResponse]"


class Spawner:
    """Spawn, for a daemon."""

    def __init__(self, engine: Engine, watch: Watch, figures: Figures) -> None:
        self._engine = engine
        self._watch = watch
        self._figures = figures
        self._places = asyncio.Semaphore(SPAWNS_AT_ONCE)
        self._keyed: OrderedDict[tuple[str, str], _Keyed] = OrderedDict()

    async def spawn(self, request: pb.SpawnRequest, caller: Caller) -> pb.SpawnResponse:
        """Run an image in a new microVM, or answer as before to a key that was used.

        Raises:
            AlreadyExists: the key was used for another request.
            StateError: the microVM made with the key has been removed since.
        """
        key = checked_key(request.idempotency_key)
        if not key:
            return await self._spawn(request, caller)
        digest = hashlib.sha256(request.encode()).digest()
        place = caller.name, key
        self._forget_old()
        while (known := self._keyed.get(place)) is not None:
            if known.digest != digest:
                raise AlreadyExists(
                    f"the idempotency key {key[:40]!r} was used for another request",
                    hint="a new request needs a new key",
                    field="idempotency_key",
                )
            await asyncio.wait({known.answer})
            if not known.answer.cancelled() and known.answer.exception() is None:
                return await self._again(known.answer.result())
        mine = _Keyed(digest, time.monotonic(), asyncio.get_running_loop().create_future())
        self._keyed[place] = mine
        try:
            answer = await self._spawn(request, caller)
        except BaseException:
            # Nothing was made: the same key may try again.
            del self._keyed[place]
            mine.answer.cancel()
            raise
        mine.answer.set_result(answer)
        return answer

    async def _again(self, first: pb.SpawnResponse) -> pb.SpawnResponse:
        assert first.microvm is not None
        try:
            entry = await self._watch.find(first.microvm.id)
        except NotFound as exc:
            raise StateError(
                f"microVM {first.microvm.id}, made with this idempotency key, has been removed",
                hint="a new request needs a new key",
                field="idempotency_key",
            ) from exc
        return pb.SpawnResponse(
            microvm=entry.message,
            engine_ms=first.engine_ms,
            shim_ms=first.shim_ms,
            notices=first.notices,
            replayed=True,
        )

    def _forget_old(self) -> None:
        limit = time.monotonic() - KEY_TTL_S
        while self._keyed:
            oldest = next(iter(self._keyed.values()))
            if len(self._keyed) < MAX_KEYS and oldest.at > limit:
                return
            if not oldest.answer.done():
                return
            self._keyed.popitem(last=False)

    async def _spawn(self, request: pb.SpawnRequest, caller: Caller) -> pb.SpawnResponse:
        spec = await asyncio.to_thread(spawn_spec, request, caller)
        stdin = True if request.stdin is None else request.stdin
        async with self._places:
            spawned = await self._engine.spawn(
                spec, unique_name=True, stdin=stdin, remove=request.remove
            )
        timings = self._engine.timings(spawned)
        self._figures.spawned(timings)
        entry = await self._watch.refreshed(spawned.microvm_id)
        return pb.SpawnResponse(
            microvm=entry.message,
            engine_ms=dict(timings.get("engine", {})),
            shim_ms=dict(timings.get("shim", {})),
            notices=[f"provider: {spawned.provider}"] if not spec.provider else [],
        )
