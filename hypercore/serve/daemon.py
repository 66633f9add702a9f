"""The daemon: opens the sockets, runs both servers over one engine, and ends them in order.

SIGTERM and SIGINT stop it: no new calls, those in flight get GRACE_S, then they are cancelled and
undone. SIGHUP reads certificates anew. MicroVMs belong to their shim servers and live on.
"""

import asyncio
import logging
import os
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from socket import socket
from typing import Any

from hypercore import paths
from hypercore.config import HostConfig
from hypercore.engine import Engine
from hypercore.errors import HypercoreError, Unavailable
from hypercore.serve import grpc_server, http_app, http_server, listeners, systemd
from hypercore.serve.callers import LOCAL, Caller
from hypercore.serve.calls import Calls
from hypercore.serve.listeners import Settings
from hypercore.serve.relay import Relay
from hypercore.serve.service import Service
from hypercore.serve.tokens import Grants

log = logging.getLogger(__name__)

GRACE_S = 10.0
FLUSH_S = 2.0
"""for answers on their way, once all calls have ended or had their time"""
RECLAIM_EACH_S = 600.0
MAX_DESCRIPTORS = 65536


async def run(settings: Settings, config: HostConfig, report: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        report: told where it listens, a line each.

    Raises:
        AlreadyExists: another daemon serves one of the sockets.
        InvalidArgument: TCP without TLS.
    """
    settings.check()
    given = systemd.listen_fds(os.environ)
    _raise_descriptor_limit()
    try:
        async with Engine(config) as engine, asyncio.TaskGroup() as group:
            service = Service(engine, config)
            tasks = [
                group.create_task(service.run()),
                group.create_task(_reclaim(service)),
                group.create_task(_watchdog()),
            ]
            async with AsyncExitStack() as stack:
                daemon = _Daemon(settings, service, stack, group)
                await daemon.serve_http(given.pop("http", []))
                await daemon.serve_grpc(given.pop("grpc", []))
                _refuse(given)
                with _signals(daemon) as stopping:
                    for place in daemon.places:
                        report(f"serving {place}")
                    systemd.notify("READY=1")
                    await stopping.wait()
                systemd.notify("STOPPING=1")
                daemon.calls.drain()
                # Before the servers stop: they end WebSockets at once.
                await daemon.calls.finished(GRACE_S)
            for task in tasks:
                task.cancel()
    except BaseExceptionGroup as failures:
        first = failures.exceptions[0]
        raise first if isinstance(first, HypercoreError) else failures from None


def _raise_descriptor_limit() -> None:
    """Each watcher is a descriptor; 1,024, which many hosts start services with, are too few."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _refuse(given: dict[str, list[socket]]) -> None:
    for name, sockets in given.items():
        log.warning("systemd passed a socket named %r: only http and grpc are known", name)
        for sock in sockets:
            sock.close()


@dataclass(slots=True)
class _Daemon:
    """The servers; each is ended by the exit stack."""

    settings: Settings
    service: Service
    stack: AsyncExitStack
    group: asyncio.TaskGroup
    places: list[str] = field(default_factory=list)
    """where it listens, for people"""
    reloads: list[Callable[[], None]] = field(default_factory=list)
    calls: Calls = field(init=False)
    grants: Grants = field(init=False)

    def __post_init__(self) -> None:
        self.calls = Calls(self.service)
        self.grants = Grants(paths.tokens_file(), self.service.figures.denied)

    def identify(self, token: str, peer: http_app.Peer) -> Caller:
        """Local connections are allowed by the socket's mode, others by token or certificate."""
        return LOCAL if peer.local else self.grants.caller(token, peer.certificate_names)

    async def identify_remote(self, context: Any) -> Caller:
        return self.grants.caller(
            grpc_server.bearer(context), grpc_server.certificate_names(context)
        )

    async def serve_http(self, given: Sequence[socket]) -> None:
        """Listen for HTTP on `given`, or at the socket of the settings; and on TCP if told so."""
        app = http_app.app(self.calls, self.identify)
        path, address, tls = self.settings.http_socket, self.settings.http_tcp, self.settings.tls
        if given:
            self.places.append("HTTP on systemd's sockets")
        else:
            given = [listeners.unix_listener(path, listeners.group_id(self.settings.group))]
            self.stack.callback(path.unlink, missing_ok=True)
            self.places.append(f"HTTP at {path}")
        self._start(http_server.server(app, grace_s=FLUSH_S), given)
        if address is None:
            return
        context = listeners.tls_context(tls) if tls else None
        if context is not None and tls is not None:
            self.reloads.append(lambda: listeners.load_identity(context, tls))
        sock = listeners.tcp_listener(address)
        bound = listeners.Address(*sock.getsockname()[:2])
        self.places.append(f"HTTP at {'https' if tls else 'http'}://{bound.text}")
        self._start(http_server.server(app, tls=context, grace_s=FLUSH_S), [sock])

    def _start(self, server: http_server.Server, sockets: Sequence[socket]) -> None:
        serving = self.group.create_task(server.serve(sockets=list(sockets)))
        self.stack.push_async_callback(server.stop, serving)

    async def serve_grpc(self, given: Sequence[socket]) -> None:
        """As serve_http, for gRPC."""
        path, address, tls = self.settings.grpc_socket, self.settings.grpc_tcp, self.settings.tls
        if given:
            path = paths.grpc_inner_socket()
        local = grpc_server.server(self.calls, grpc_server.identify_local)
        listeners.free_socket_path(path)
        old_mask = os.umask(0o177)
        try:
            _add_port(local, f"unix:{path}")
        finally:
            os.umask(old_mask)
        self.stack.callback(path.unlink, missing_ok=True)
        await local.start()
        self.stack.push_async_callback(local.stop, FLUSH_S)
        if given:
            self.places.append("gRPC on systemd's sockets")
            await self._relay(path, given)
        else:
            self.places.append(f"gRPC at {path}")
            listeners.share_socket(path, listeners.group_id(self.settings.group))
        if address is None:
            return
        remote = grpc_server.server(self.calls, self.identify_remote)
        credentials = grpc_server.credentials(tls) if tls else None
        bound = listeners.Address(address.host, _add_port(remote, address.text, credentials))
        await remote.start()
        self.stack.push_async_callback(remote.stop, FLUSH_S)
        self.places.append(f"gRPC at {bound.text}, {'TLS' if tls else 'plaintext'}")

    async def _relay(self, path: Path, given: Sequence[socket]) -> None:
        for sock in given:
            relay = Relay(path)
            await relay.start(sock)
            self.stack.push_async_callback(relay.close)

    def reload(self) -> None:
        """Read certificates anew; what fails stays as it was."""
        systemd.notify(systemd.reloading())
        for reload in self.reloads:
            try:
                reload()
            except HypercoreError as exc:
                log.error("reload: %s", exc)
        systemd.notify("READY=1")


def _add_port(server: Any, address: str, credentials: Any = None) -> int:
    try:
        if credentials is None:
            port: int = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as exc:
        raise Unavailable(f"gRPC cannot listen at {address}: {exc}") from exc
    return port


@contextmanager
def _signals(daemon: _Daemon) -> Iterator[asyncio.Event]:
    """SIGTERM and SIGINT set the event, SIGHUP reloads."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, daemon.reload)
    try:
        yield stopping
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)


async def _watchdog() -> None:
    """Tell systemd that the event loop turns."""
    if interval_s := systemd.watchdog_s(os.environ):
        while True:
            systemd.notify("WATCHDOG=1")
            await asyncio.sleep(interval_s)


async def _reclaim(service: Service) -> None:
    """Take back what crashes have left, now and every few minutes."""
    while True:
        try:
            for line in await service.engine.cleanup():
                log.info("reclaimed %s", line)
                service.figures.reclaimed[line.split()[0]] += 1
        except HypercoreError as exc:
            log.warning("cannot look for what is left behind: %s", exc)
        await asyncio.sleep(RECLAIM_EACH_S)
