"""PID 1 of the guest: make the system, listen, tell the host, serve for ever."""

import _socket
import posix

from agent import (
    _sys,
    cgroups,
    clock,
    files,
    loop,
    modules,
    mounts,
    network,
    rpc,
    service,
    streams,
)
from hypercore.proto.agent_pb import Agent as Contract

DIAL_PORT, CONTROL_PORT, STREAM_PORT = 10788, 10789, 10790
HOST_CID = 2
DIAL_DEADLINE_S = 30
_ANY_CID = 0xFFFFFFFF
_FILES_SOFT, _FILES_HARD = 65536, 1048576


def main():
    """Never returns but by an error, which panics the guest: its reason is on the console."""
    try:
        _serve()
    except Exception as exc:
        files.log(f"cannot start: {type(exc).__name__}: {exc}")


def _serve():
    mounts.mount_system()
    _sys.limit_files(_FILES_SOFT, _FILES_HARD)
    cgroups.enable_controllers(cgroups.ROOT)
    files.make_dir(cgroups.ROOT + "/hc")
    cgroups.enable_controllers(cgroups.ROOT + "/hc")
    network.start_loopback()
    loaded = modules.Modules()
    loaded.load("vsock")
    events = loop.Loop()
    registry = streams.Registry(events)
    agent = service.Agent(events, loaded, registry)
    control = Control(events, agent)
    listen(events, CONTROL_PORT, control.accept)
    listen(events, STREAM_PORT, registry.accept)
    agent.ready_us = clock.since_boot_us()
    control.dial()
    log_times(agent.ready_us, clock.on_cpu_us())
    events.run()


def log_times(ready_us, cpu_us):
    """Where the time of the boot went, on the console."""
    text = f"ready after {ready_us} us"
    root_us = posix.environ.get(b"HYPERCORE_ROOT_US")
    root_cpu_us = posix.environ.get(b"HYPERCORE_ROOT_CPU_US")
    if root_us and root_cpu_us:  # else the kernel has mounted the disk by itself
        text += f", {ready_us - int(root_us)} us with its disk, "
        text += f"{cpu_us - int(root_cpu_us)} us of them on the CPU"
    files.log(text)


class Control:
    """Control connections: the one we dial, and those of a successor of that host."""

    def __init__(self, events, agent):
        self._loop = events
        self._agent = agent
        self._connections = []

    def accept(self, sock):
        connection = rpc.Connection(
            self._loop, sock, Contract.NAME, self._agent.handlers, self._connections.remove
        )
        self._connections.append(connection)

    def dial(self):
        """Tell the host that we are ready. It listens before the VM starts; where it does not,
        it may still dial us.
        """
        port = dial_port(files.read("/proc/cmdline").decode())
        sock = _socket.socket(_socket.AF_VSOCK, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        sock.settimeout(DIAL_DEADLINE_S)
        try:
            sock.connect((HOST_CID, port))
        except OSError as exc:
            sock.close()
            files.log(f"no host on vsock port {port}: {exc}")
            return
        self.accept(sock)


def dial_port(cmdline):
    """A host that serves vsock in its kernel has one space of ports for all guests: there the
    command line names this guest's own.
    """
    for word in cmdline.split():
        name, _, value = word.partition("=")
        if name == "hypercore.control_port":
            return int(value)
    return DIAL_PORT


def listen(events, port, accept):
    """Serve a vsock port for the host alone."""
    sock = _socket.socket(
        _socket.AF_VSOCK, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
    )
    sock.bind((_ANY_CID, port))
    sock.listen(128)

    def ready(_events):
        try:
            fd, (cid, _port) = sock._accept()
        except BlockingIOError:
            return
        connection = _socket.socket(fileno=fd)
        if cid != HOST_CID:
            # A container in the guest: it shares our network, and vsock has no namespaces.
            connection.close()
            return
        accept(connection)

    events.add(sock.fileno(), loop.READ, ready)
