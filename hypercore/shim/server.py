"""The shim server: one process for all microVMs of one containerd namespace.

Started by the launcher with its listening sockets (fd 3 ttrpc, fd 4 stdio), like a
socket-activated service; ends when it has been idle for long. SIGTERM ends it only without tasks:
to containerd the end of this process is the death of all its tasks.
"""

import argparse
import asyncio
import fcntl
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hypercore import config
from hypercore.shim import logs
from hypercore.shim.attach import AttachServer
from hypercore.shim.events import Publisher
from hypercore.shim.host import Host
from hypercore.shim.service import TaskService
from hypercore.shim.streams import StreamHub
from hypercore.wire.ttrpc import Server

logger = logging.getLogger(__name__)

TTRPC_FD, STDIO_FD = 3, 4
IDLE_S = 600.0


@dataclass(frozen=True, slots=True)
class Options:
    namespace: str
    address: str
    """containerd's gRPC socket, for the log"""
    lock: Path
    """held while a server starts or ends; the paths of sockets and log follow from it"""

    @property
    def ttrpc_socket(self) -> Path:
        return self.lock.with_suffix(".sock")

    @property
    def stdio_socket(self) -> Path:
        return self.lock.with_suffix(".io")

    @property
    def log(self) -> Path:
        return self.lock.with_suffix(".log")


def parse(argv: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(prog="hypercore.shim.server")
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--lock", required=True, type=Path)
    given = parser.parse_args(argv)
    return Options(given.namespace, given.address, given.lock)


async def serve(options: Options, ttrpc: socket.socket, stdio: socket.socket) -> None:
    """Serve until idle, or until asked to end (SIGTERM, or the Launcher service's End) while there
    are no tasks.
    """
    host_config = config.load()
    hub = StreamHub(host_config.log_segments)
    publisher = Publisher(os.environ.get("TTRPC_ADDRESS", ""), options.namespace)
    host = Host(
        options.namespace, options.address, host_config, hub, publisher, options.stdio_socket
    )
    service = TaskService(host)
    server = Server()
    service.serve_on(server)
    attach = AttachServer(stdio, options.namespace, service.find)

    hub.start()
    publisher.start()
    attach.start()
    await server.serve(ttrpc)
    logger.info(
        "serving %s, namespace %s, as pid %d", options.address, options.namespace, os.getpid()
    )
    lock_fd = await _until_idle(service, options.lock)
    try:
        # The lock is held and nobody can be told of this server any more.
        for path in (options.ttrpc_socket, options.stdio_socket):
            path.unlink(missing_ok=True)
        await attach.close()
        await server.close()
        await publisher.close()
        hub.close()
        logger.info("idle: ended")
    finally:
        os.close(lock_fd)


async def _until_idle(service: TaskService, lock: Path) -> int:
    """Wait until the server may end; returns the held lock."""
    loop = asyncio.get_running_loop()
    asked = service.asked_to_end
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    idle_s = float(os.environ.get("HYPERCORE_SHIM_IDLE_S") or IDLE_S)
    idle_since: float | None = None
    while True:
        wait_s = max(idle_s / 10, 0.05) if idle_since is None else idle_s
        was_asked = await _wait(asked, wait_s)
        asked.clear()
        if was_asked and service.busy:
            logger.warning("asked to end, but %d tasks run here: going on", len(service.tasks))
        if service.busy if was_asked else not service.idle:
            idle_since = None
            continue
        now = loop.time()
        if idle_since is None:
            idle_since = now
        if not was_asked and now - idle_since < idle_s:
            continue
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # A launcher is about to register.
            os.close(fd)
            continue
        if service.idle or (was_asked and not service.busy):
            return fd
        os.close(fd)
        idle_since = None


async def _wait(event: asyncio.Event, timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True


def main(argv: Sequence[str] | None = None) -> None:
    import uvloop

    options = parse(argv if argv is not None else sys.argv[1:])
    logs.set_up(options.log, debug=os.environ.get("HYPERCORE_SHIM_DEBUG") == "1")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for fd in (TTRPC_FD, STDIO_FD):
        os.set_inheritable(fd, False)
    ttrpc, stdio = socket.socket(fileno=TTRPC_FD), socket.socket(fileno=STDIO_FD)
    try:
        uvloop.run(serve(options, ttrpc, stdio))
    except BaseException:
        logger.exception("the shim server failed")
        raise


if __name__ == "__main__":
    main()
