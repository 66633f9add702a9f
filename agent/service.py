"""The Agent service of agent.proto: checks each request, hands it to the room that does it."""

import posix

from agent import _build, _sys, cgroups, clock, copier, files, network, runtime, tasks
from agent.errors import (
    ALREADY_EXISTS,
    FAILED_PRECONDITION,
    INVALID_ARGUMENT,
    NOT_FOUND,
    RpcError,
)
from agent.loop import Sleep
from agent.tasks import check_id
from hypercore.proto import agent_pb, types_pb

PROTOCOL_VERSION = 1
POWER_OFF_GRACE_S = 0.25
"""How long the answer to PowerOff may take to reach the host before the machine goes."""

POWER_OFF_KILL_S = 3
"""How long killed processes may take to go, for each container."""

MAX_SIGNAL = 64
_POWER_OFF, _RESTART = "poweroff", "reboot"


class Agent:
    """State of the one agent: its containers and what Hello told."""

    def __init__(self, events, modules, registry):
        self._loop = events
        self._modules = modules
        self._registry = registry
        self._containers = {}
        self._hello = agent_pb.HelloRequest(version=PROTOCOL_VERSION)
        self.ready_us = 0
        self.handlers = {}
        for method, (request, _) in agent_pb.Agent.METHODS.items():
            self.handlers[method] = (request, getattr(self, _handler_name(method)))

    # the machine
    def hello(self, request):
        if request.version != PROTOCOL_VERSION:
            raise RpcError(
                FAILED_PRECONDITION,
                f"the host speaks version {request.version} of the protocol, "
                f"the agent {PROTOCOL_VERSION}",
            )
        if request.poweroff not in ("", _POWER_OFF, _RESTART):
            raise RpcError(INVALID_ARGUMENT, f"poweroff {request.poweroff!r}")
        clock.set_wall_clock(request.unix_ns)
        network.set_hostname(request.hostname)
        if request.interfaces:
            self._modules.load("net")
        network.configure(request.interfaces)
        self._hello = request
        features = ["tty", "exec", "freeze", "overlay", "oom", "copy", "sockets"]
        features += [f"runtime:{name}" for name in runtime.available()]
        return agent_pb.HelloResponse(
            version=PROTOCOL_VERSION,
            agent_version=_build.VERSION,
            features=features,
            ready_us=self.ready_us,
            kernel=posix.uname().release,
        )

    def set_clock(self, request):
        clock.set_wall_clock(request.unix_ns)
        return types_pb.Empty()

    def power_off(self, request):
        self._loop.start(self._power_off(), _report)
        return types_pb.Empty()

    def _power_off(self):
        yield Sleep(POWER_OFF_GRACE_S)
        containers = list(self._containers.values())
        for container in containers:
            container.kill_all()
        for container in containers:
            yield from container.wait_empty(POWER_OFF_KILL_S)
            busy = container.root.unmount()
            if busy:
                files.log(f"power-off: container {container.id} is busy")
        posix.sync()
        if self._hello.poweroff == _RESTART:
            _sys.restart()
        else:
            _sys.power_off()

    # containers
    def create(self, request):
        container_id = request.container_id
        check_id(container_id, "container_id")
        runtime_name = runtime.check_runtime(request.runtime)
        if container_id in self._containers:
            raise RpcError(ALREADY_EXISTS, f"container {container_id} exists")
        self._modules.load("overlay")
        container = tasks.Container(self._loop, self._registry, container_id, runtime_name)
        self._containers[container_id] = container
        try:
            yield from container.create(request, self._files(request))
        except BaseException:
            del self._containers[container_id]
            raise
        return agent_pb.ProcessResponse(pid=container.process("").pid)

    def _files(self, request):
        """Files for the root as {path: (mode, content)}; the request's win over Hello's."""
        made = network.container_files(self._hello)
        chosen = {path: (0o644, content) for path, content in made.items()}
        for file in request.files:
            chosen[file.path] = (file.mode & 0o7777, file.content)
        return chosen

    def start(self, request):
        container = self._container(request)
        if request.exec_id:
            raise RpcError(INVALID_ARGUMENT, "Exec starts an exec; Start is for containers")
        process = container.process("")
        yield from container.start()
        return agent_pb.ProcessResponse(pid=process.pid)

    def exec(self, request):
        check_id(request.exec_id, "exec_id")
        container = self._container(request)
        yield from container.exec(request)
        return agent_pb.ProcessResponse(pid=container.process(request.exec_id).pid)

    def wait(self, request):
        return (yield from self._process(request).wait())

    def kill(self, request):
        if not 0 < request.signal <= MAX_SIGNAL:
            raise RpcError(INVALID_ARGUMENT, f"signal {request.signal}")
        process = self._process(request)
        if request.all:
            cgroups.signal_all(process.container.cgroup, request.signal)
        elif process.exited:
            raise RpcError(NOT_FOUND, "the process has ended already")
        else:
            posix.kill(process.pid, request.signal)
        return types_pb.Empty()

    def close_io(self, request):
        process = self._process(request)
        if process.input is not None:
            process.input.end_at(request.stdin_bytes)
        return types_pb.Empty()

    def resize_pty(self, request):
        self._process(request).resize(request.rows & 0xFFFF, request.columns & 0xFFFF)
        return types_pb.Empty()

    def pids(self, request):
        return agent_pb.PidsResponse(pids=cgroups.pids(self._container(request).cgroup))

    def stats(self, request):
        return cgroups.stats(self._container(request).cgroup)

    def update(self, request):
        yield from self._container(request).update(request.resources_json)
        return types_pb.Empty()

    def pause(self, request):
        yield from cgroups.freeze(self._container(request).cgroup, True)
        return types_pb.Empty()

    def resume(self, request):
        yield from cgroups.freeze(self._container(request).cgroup, False)
        return types_pb.Empty()

    def delete(self, request):
        container = self._container(request)
        if request.exec_id:
            container.forget(request.exec_id)
            return types_pb.Empty()
        if not container.created:
            raise RpcError(FAILED_PRECONDITION, f"container {container.id} is being created")
        yield from container.delete()
        self._containers.pop(request.container_id, None)
        return types_pb.Empty()

    def copy(self, request):
        yield from copier.copy(self._container(request), request)
        return types_pb.Empty()

    def next_connection(self, request):
        name, token = yield from self._container(request).forwards.next()
        return agent_pb.ConnectionResponse(name=name, token=token)

    def _container(self, request):
        container = self._containers.get(request.container_id)
        if container is None:
            raise RpcError(NOT_FOUND, f"no container {request.container_id}")
        return container

    def _process(self, request):
        return self._container(request).process(request.exec_id)


def _report(_value, error):
    if error is not None:
        files.log(f"power-off: {type(error).__name__}: {error}")


def _handler_name(method):
    """ResizePty -> resize_pty, CloseIO -> close_io."""
    words = []
    for letter in method:
        if letter.isupper() and words and words[-1][-1].islower():
            words.append("")
        if not words:
            words.append("")
        words[-1] += letter
    return "_".join(words).lower()
