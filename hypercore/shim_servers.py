"""Shim servers as the engine sees them: ending those that nobody needs.

Their sockets are in one directory, where the launcher finds them too (shim/launcher.c).
"""

import asyncio
import fcntl
import os
from pathlib import Path

from hypercore import paths
from hypercore.errors import DeadlineExceeded, HypercoreError, Unavailable
from hypercore.proto.launcher_pb import Launcher
from hypercore.proto.types_pb import Empty
from hypercore.wire.ttrpc import Client

END_TIMEOUT_S = 10.0


async def end_idle() -> list[str]:
    """End the shim servers of this instance that have no microVM; one line for each.

    One that a container is about to start in ends as well: its launcher starts another.

    Raises:
        DeadlineExceeded: one does not answer, or does not end.
    """
    done = []
    for path in sorted(paths.shim_dir().glob("*.sock")):
        if await _end(path):
            done.append(f"shim server {path.stem}")
    return done


async def _end(path: Path) -> bool:
    try:
        client = await Client.connect(os.fspath(path))
    except Unavailable:
        _remove_sockets(path)
        return False
    try:
        await client.request(Launcher.NAME, "End", Empty(), Empty, timeout_s=END_TIMEOUT_S)
        async with asyncio.timeout(END_TIMEOUT_S):
            await asyncio.shield(client.closed)
    except TimeoutError as exc:
        raise DeadlineExceeded(f"the shim server at {path} does not end") from exc
    except DeadlineExceeded:
        raise
    except HypercoreError:
        return False  # it has microVMs, was ending by itself, or is too old to be asked
    finally:
        client.close()
    return True


def _remove_sockets(path: Path) -> None:
    """Of a server that was killed; not while a launcher starts another one there."""
    fd = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for suffix in (".sock", ".io"):
            path.with_suffix(suffix).unlink(missing_ok=True)
    except BlockingIOError:
        return
    finally:
        os.close(fd)
