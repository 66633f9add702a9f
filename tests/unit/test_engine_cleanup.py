"""The lock of a microVM that is being set up."""

import asyncio
import os
import threading
from pathlib import Path

import pytest

from hypercore import engine_cleanup, paths
from hypercore.errors import DeadlineExceeded


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> paths.MicroVMPaths:
    monkeypatch.setenv("HYPERCORE_DATA_DIR", str(tmp_path))
    return paths.MicroVMPaths("x")


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_the_lock_is_told_to_others_and_released(where: paths.MicroVMPaths) -> None:
    async def main() -> None:
        assert not engine_cleanup.is_being_spawned("x")
        async with engine_cleanup.spawn_lock(where):
            assert engine_cleanup.is_being_spawned("x")
        assert not engine_cleanup.is_being_spawned("x")

    asyncio.run(main())


def test_who_is_cancelled_while_waiting_leaves_nothing(where: paths.MicroVMPaths) -> None:
    async def main() -> None:
        async with engine_cleanup.spawn_lock(where):
            before = open_fds(), threading.active_count()
            second = asyncio.create_task(engine_cleanup.spawn_lock(where).__aenter__())
            await asyncio.sleep(3 * engine_cleanup.LOCK_RETRY_S)
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            assert (open_fds(), threading.active_count()) == before
        async with engine_cleanup.spawn_lock(where):
            pass

    asyncio.run(main())


def test_who_waits_too_long_is_told(
    where: paths.MicroVMPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_cleanup, "LOCK_TIMEOUT_S", 0.1)

    async def main() -> None:
        async with engine_cleanup.spawn_lock(where):
            with pytest.raises(DeadlineExceeded, match="microVM x is being set up"):
                async with engine_cleanup.spawn_lock(where):
                    pass

    asyncio.run(main())
