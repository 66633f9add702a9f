"""Removes microVMs that are to go once they have ended (`spawn --rm`) and whose client has gone.

containerd's records of a task are not the shim server's to change, and a client of containerd is
not its to import: the command line does it, as a process of its own.
"""

import asyncio
import logging
import os
import signal
import sys

from hypercore import _process
from hypercore.errors import HypercoreError, from_os_error
from hypercore.shim.host import Host

logger = logging.getLogger(__name__)

GRACE_S = 2.0
"""A client in the foreground removes what it has spawned by itself, sooner than this."""
TIMEOUT_S = 60.0
MAX_BYTES = 2000


async def remove_unless(deleted: asyncio.Event, host: Host, task_id: str) -> None:
    """Remove an ended microVM, disk and logs too, unless it is `deleted` within GRACE_S.

    One that somebody has started again meanwhile stays. What fails is logged: `hypercore list` and
    `cleanup` remove what is left.
    """
    try:
        async with asyncio.timeout(GRACE_S):
            await deleted.wait()
    except TimeoutError:
        try:
            await _remove(host, task_id)
        except HypercoreError as exc:
            logger.warning("removing %s: %s", task_id, exc)


async def _remove(host: Host, task_id: str) -> None:
    flags = ["--namespace", host.namespace, "--address", host.containerd_address]
    argv = [sys.executable, "-I", "-m", "hypercore", *flags, "rm", task_id]
    said_fd = os.memfd_create("hypercore rm", os.MFD_CLOEXEC)
    try:
        code = await _run(argv, said_fd)
        if code != 0:
            words = os.pread(said_fd, MAX_BYTES, 0).decode(errors="replace").strip()
            raise HypercoreError(f"`hypercore rm` ended with {code}: {words}")
    finally:
        os.close(said_fd)


async def _run(argv: list[str], output_fd: int) -> int:
    """The exit code. uvloop's own subprocesses would copy this process's page tables first."""
    null_fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fds = [(null_fd, 0), (output_fd, 1), (output_fd, 2)]
        _pid, pidfd = _process.spawn(
            argv, env=dict(os.environ), fds=fds, drop_capabilities=False, no_new_privs=False
        )
    except OSError as exc:
        raise from_os_error(exc, f"start {argv[0]}") from exc
    finally:
        os.close(null_fd)
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await ended.wait()
    except TimeoutError:
        _process.send_signal(pidfd, signal.SIGKILL)
        await ended.wait()
    finally:
        loop.remove_reader(pidfd)
        code = _process.reap(pidfd)
        os.close(pidfd)
    return -1 if code is None else code
