"""Containers and their processes: made by the runtime, watched, ended, forgotten.

What the host may ask is in service.py; the order of steps within one container is here.
"""

import _socket
import posix
import time

from agent import cgroups, files, forward, mounts, runtime, streams
from agent.errors import (
    ALREADY_EXISTS,
    FAILED_PRECONDITION,
    INVALID_ARGUMENT,
    NOT_FOUND,
    RpcError,
    from_os_error,
)
from agent.loop import PRIORITY, Sleep
from hypercore.proto.agent_pb import WaitResponse

MAX_ID = 128
OUTPUT_GRACE_S = 0.25
"""How long after its end what others write to a process's output still counts as its own."""

_MSG_CMSG_CLOEXEC = 0x40000000


def check_id(text, what):
    """An id becomes part of paths."""
    plain = text.replace("-", "a").replace("_", "a").replace(".", "a")
    if len(text) > MAX_ID or not (plain.isascii() and plain.isalnum()) or text[0] == ".":
        raise RpcError(INVALID_ARGUMENT, f"{what} {text!r} is no id")


class Process:
    """One process that the host asked for: a container's init or an exec."""

    def __init__(self, container, exec_id, terminal):
        self.container = container
        self.exec_id = exec_id
        self.terminal = terminal
        self.pid = 0
        self.outputs = []
        self.input = None
        self.tokens = []
        self.oom_before = 0
        self.result = None
        self._exit = None
        self._waiters = []

    @property
    def exited(self):
        return self._exit is not None

    def wait(self):
        """A generator for the loop that ends with the WaitResponse."""
        if self.result is None:
            yield _Waiter(self._waiters)
        return self.result

    def started(self, pid, oom_kills):
        """The runtime has made it."""
        self.pid = pid
        self.oom_before = oom_kills
        self.container.loop.on_exit(pid, self._ended)

    def _ended(self, status):
        self._exit = (status, time.time_ns())
        self.container.loop.call_later(OUTPUT_GRACE_S, self._end_grace)
        self.output_changed()

    def _end_grace(self):
        for output in self.outputs:
            output.drop_rest()
            output.settle()
        self.output_changed()

    def output_changed(self):
        """The end is told once all output has been read; where others hold a pipe open, all that
        was in it when the grace time ended.
        """
        if self._exit is None or self.result is not None:
            return
        for output in self.outputs:
            if not output.settled():
                return
        status, when = self._exit
        counts = [output.count for output in self.outputs] + [0, 0]
        kills = cgroups.oom_kills(self.container.cgroup)
        self.result = WaitResponse(
            exit_status=status,
            exited_unix_ns=when,
            stdout_bytes=counts[0],
            stderr_bytes=counts[1],
            oom_killed=status == 137 and kills > self.oom_before,
        )
        waiters, self._waiters = self._waiters, []
        for resume in waiters:
            resume(None)

    def resize(self, rows, columns):
        if not self.terminal or self.input is None:
            raise RpcError(FAILED_PRECONDITION, "the process has no terminal")
        self.input.resize(rows, columns)

    def close(self):
        """Close all streams; whoever still waits gets what is known."""
        for output in self.outputs:
            output.close()
        if self.input is not None:
            self.input.close()
        for token in self.tokens:
            self.container.registry.release(token)
        self.tokens = []


class _Waiter:
    def __init__(self, waiters):
        self._waiters = waiters

    def arm(self, loop, resume):
        self._waiters.append(resume)


class Container:
    """One container; owns its directory, its root's mounts and its processes."""

    def __init__(self, events, registry, container_id, runtime_name):
        self.loop = events
        self.registry = registry
        self.id = container_id
        self.runtime = runtime_name
        self.cgroup = cgroups.path_of(container_id)
        self.directory = f"{mounts.RUN}/{container_id}"
        self.root = mounts.Root(self.directory)
        self.processes = {}
        self.forwards = forward.Forwards(events, registry, self.directory)
        self.copies = set()
        """pids of children that copy files for the host"""
        self.created = False
        self.started = False
        self._oom_fd = -1
        self._oom_kills = 0

    def process(self, exec_id):
        """RpcError when there is none."""
        process = self.processes.get(exec_id)
        if process is None or process.pid == 0:
            what = f"exec {exec_id} of container {self.id}" if exec_id else self.id
            raise RpcError(NOT_FOUND, f"no process {what}")
        return process

    def create(self, request, made_files):
        """Mount the root, make the files, let the runtime create the container.

        A generator for the loop. On failure nothing is left.
        """
        files.make_dir(self.directory, 0o700)
        try:
            yield from self.root.mount(request.root_disks, request.binds)
            try:
                self.forwards.listen(request.sockets)
                for path, (mode, content) in made_files.items():
                    self.root.inject(path, mode, content)
                files.write(self.directory + "/config.json", request.config_json)
            except OSError as exc:
                raise from_os_error(exc, "container's files:") from exc
            bundle = ["--bundle", self.directory]
            yield from self._launch("", request.stdio, "create", bundle, [self.id])
        except Exception:
            yield from self._delete_quietly()
            self._drop_all()
            raise
        self.created = True
        self._watch_memory()

    def start(self):
        """Let the init process go; a generator for the loop."""
        if self.started:
            raise RpcError(FAILED_PRECONDITION, f"container {self.id} was started before")
        self.started = True
        yield from self._run_alone("start", [self.id])

    def exec(self, request):
        """Start one more process; a generator for the loop."""
        exec_id = request.exec_id
        if exec_id in self.processes:
            raise RpcError(ALREADY_EXISTS, f"exec {exec_id} of container {self.id} exists")
        if not self.created or self.process("").exited:
            raise RpcError(FAILED_PRECONDITION, f"container {self.id} is not running")
        spec = f"{self.directory}/exec-{exec_id}.json"
        files.write(spec, request.process_json)
        try:
            options = ["--detach", "--process", spec]
            yield from self._launch(exec_id, request.stdio, "exec", options, [self.id])
        finally:
            files.remove(spec)

    def update(self, resources_json):
        """Change limits; a generator for the loop."""
        path = self.directory + "/resources.json"
        files.write(path, resources_json)
        try:
            yield from self._run_alone("update", ["--resources", path, self.id])
        finally:
            files.remove(path)

    def delete(self):
        """Delete the container and unmount its root; a generator for the loop."""
        init = self.processes.get("")
        if init is not None and self.started and not init.exited:
            raise RpcError(FAILED_PRECONDITION, f"container {self.id} is still running")
        yield from self._run_alone("delete", ["--force", self.id])
        self._drop_all()

    def forget(self, exec_id):
        """Forget an ended exec."""
        process = self.process(exec_id)
        if not process.exited:
            raise RpcError(FAILED_PRECONDITION, f"exec {exec_id} is still running")
        process.close()
        del self.processes[exec_id]

    def kill_all(self):
        """For power-off: whatever still runs."""
        try:
            cgroups.signal_all(self.cgroup, 9)
        except (OSError, RpcError):
            pass

    def wait_empty(self, seconds):
        """A generator for the loop that ends when no process is left, or the time is over."""
        deadline = time.monotonic() + seconds
        while cgroups.pids(self.cgroup) and time.monotonic() < deadline:
            yield Sleep(0.01)

    def _watch_memory(self):
        """Say on the console when the kernel kills for want of memory; the exit record and Stats
        tell the host.
        """
        path = self.cgroup + "/memory.events"
        try:
            self._oom_fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
        except OSError:
            return  # the kernel has no memory controller
        posix.read(self._oom_fd, 4096)  # only changes after a read wake the poll
        self.loop.add(self._oom_fd, PRIORITY, self._memory_event)

    def _memory_event(self, events):
        posix.pread(self._oom_fd, 4096, 0)
        kills = cgroups.oom_kills(self.cgroup)
        if kills > self._oom_kills:
            self._oom_kills = kills
            files.log(f"container {self.id}: out of memory, {kills} processes killed")

    def _drop_all(self):
        if self._oom_fd >= 0:
            self.loop.remove(self._oom_fd)
            fd, self._oom_fd = self._oom_fd, -1
            posix.close(fd)
        for pid in self.copies:
            posix.kill(pid, 9)
        self.forwards.close()
        for process in self.processes.values():
            process.close()
        self.processes.clear()
        busy = self.root.unmount()
        if busy:
            files.log(f"container {self.id}: busy, detached: {', '.join(busy)}")
        files.remove_tree(self.directory)

    def _run(self, command, arguments, fds, name):
        log_path = f"{self.directory}/{name}.log"
        yield from runtime.run(self.loop, self.runtime, log_path, command, arguments, fds)

    def _run_alone(self, command, arguments):
        """A command of the runtime without stdio."""
        null = posix.open("/dev/null", posix.O_RDWR | posix.O_CLOEXEC)
        try:
            yield from self._run(command, arguments, (null, null, null), command)
        finally:
            posix.close(null)

    def _delete_quietly(self):
        """After a failed create: the runtime may or may not know the container."""
        try:
            yield from self._run_alone("delete", ["--force", self.id])
        except RpcError:
            pass

    def _launch(self, exec_id, stdio, command, options, tail):
        """create or exec: streams, pid file, console; a generator for the loop."""
        tokens = (stdio.stdin_token, stdio.stdout_token, stdio.stderr_token)
        for token in tokens:
            streams.check_token(token)
        self.registry.check(tokens)
        process = Process(self, exec_id, stdio.terminal)
        self.processes[exec_id] = process
        name = f"{command}-{exec_id}" if exec_id else command
        pid_path = f"{self.directory}/{name}.pid"
        arguments = [*options, "--pid-file", pid_path]
        wiring = _Terminal(self, name) if stdio.terminal else _Pipes(tokens)
        oom_kills = cgroups.oom_kills(self.cgroup)
        self.loop.expect_children()
        try:
            arguments += wiring.arguments
            yield from self._run(command, arguments + tail, wiring.fds, name)
            wiring.attach(process, stdio)
            process.started(int(files.read(pid_path, 32)), oom_kills)
        except BaseException:
            self.processes.pop(exec_id, None)
            process.close()
            raise
        finally:
            self.loop.children_adopted()
            wiring.close()
            files.remove(pid_path)


class _Pipes:
    """Three pipes, or /dev/null where there is no token."""

    def __init__(self, tokens):
        self._tokens = tokens
        self._ours = []
        self.arguments = []
        self.fds = []
        for number, token in enumerate(tokens):
            if token:
                theirs, ours = streams.new_pipe(outgoing=number > 0)
            else:
                theirs, ours = posix.open("/dev/null", posix.O_RDWR | posix.O_CLOEXEC), -1
            self.fds.append(theirs)
            self._ours.append(ours)

    def attach(self, process, stdio):
        events, registry = process.container.loop, process.container.registry
        for number, token in enumerate(self._tokens):
            ours, self._ours[number] = self._ours[number], -1
            if number == 0:
                if ours < 0:
                    continue
                process.input = user = streams.Input(events, ours, False)
            else:
                # /dev/null counts as an output that has ended with no bytes.
                user = streams.Output(events, ours, False, False, process.output_changed)
                process.outputs.append(user)
            if token:
                registry.claim(token, user)
                process.tokens.append(token)

    def close(self):
        for fd in self.fds + [fd for fd in self._ours if fd >= 0]:
            posix.close(fd)
        self.fds = []
        self._ours = []


class _Terminal:
    """A pseudo-terminal: the runtime makes it and passes our end over a unix socket."""

    def __init__(self, container, name):
        self._path = f"{container.directory}/{name}.console"
        kind = _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
        self._listener = _socket.socket(_socket.AF_UNIX, kind)
        self._listener.bind(self._path)
        self._listener.listen(1)
        self._null = posix.open("/dev/null", posix.O_RDWR | posix.O_CLOEXEC)
        self.arguments = ["--console-socket", self._path]
        self.fds = (self._null, self._null, self._null)

    def attach(self, process, stdio):
        events, registry = process.container.loop, process.container.registry
        master = self._receive()
        posix.set_blocking(master, False)
        token = stdio.stdout_token
        changed = process.output_changed
        output = streams.Output(events, master, True, not token, changed)
        process.outputs.append(output)
        process.input = streams.Input(events, streams.second_fd(master), True)
        if stdio.rows and stdio.columns:
            process.resize(stdio.rows, stdio.columns)
        for name, user in ((token, output), (stdio.stdin_token, process.input)):
            if name:
                registry.claim(name, user)
                process.tokens.append(name)

    def _receive(self):
        fd, _ = self._listener._accept()
        sock = _socket.socket(fileno=fd)
        try:
            _, ancillary, _, _ = sock.recvmsg(4096, _socket.CMSG_SPACE(4), _MSG_CMSG_CLOEXEC)
        finally:
            sock.close()
        if not ancillary:
            raise RpcError(FAILED_PRECONDITION, "the runtime passed no terminal")
        return int.from_bytes(ancillary[0][2][:4], "little")

    def close(self):
        self._listener.close()
        posix.close(self._null)
        files.remove(self._path)
