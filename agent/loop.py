"""One thread, one epoll: descriptors, timers, children, and handlers that wait for them.

A handler that waits is a generator: `status = yield Child(pid)` or `yield Sleep(seconds)`. An
exception never leaves the loop, since PID 1's end is a panic of the guest.
"""

import posix
import select
import time

from agent import _sys, files

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
PRIORITY = select.EPOLLPRI
HANGUP = select.EPOLLRDHUP

_SIGPIPE = 13

MAX_UNCLAIMED = 256
"""Exit codes of children nobody waits for yet that are kept."""


class Child:
    """Wait for a child's end; the value is its exit code, 128 + n for signal n."""

    def __init__(self, pid):
        self.pid = pid

    def arm(self, loop, resume):
        loop.on_exit(self.pid, resume)


class Sleep:
    """Wait for some time."""

    def __init__(self, seconds):
        self.seconds = seconds

    def arm(self, loop, resume):
        loop.call_later(self.seconds, lambda: resume(None))


class Loop:
    """Owns the epoll descriptor and reaps all children; not the descriptors it watches."""

    def __init__(self):
        self._poll = select.epoll()
        self._callbacks = {}
        self._timers = []
        self._on_exit = {}
        self._unclaimed = {}
        self._expecting = 0
        self._child_fd = _sys.child_fd()
        self.add(self._child_fd, READ, self._reap)

    # descriptors
    def add(self, fd, events, callback):
        """Call `callback(events)` when `fd` is ready, level-triggered."""
        self._poll.register(fd, events)
        self._callbacks[fd] = callback

    def change(self, fd, events):
        """Watch a descriptor for other events than before."""
        self._poll.modify(fd, events)

    def remove(self, fd):
        """Stop watching; a descriptor that is not watched is fine."""
        if self._callbacks.pop(fd, None) is not None:
            self._poll.unregister(fd)

    # timers
    def call_later(self, seconds, callback):
        """Call `callback()` once. Returns the timer for `cancel`."""
        timer = [time.monotonic() + seconds, callback]
        self._timers.append(timer)
        return timer

    def cancel(self, timer):
        if timer in self._timers:
            self._timers.remove(timer)

    # children
    def spawn(self, argv, fds):
        """Start a program with `fds` as 0, 1, 2 in a session of its own. Returns its pid."""
        actions = [(posix.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(fds)]
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        return posix.posix_spawn(
            argv[0],
            argv,
            environment,
            file_actions=actions,
            setsid=True,
            setsigmask=[],
            setsigdef=[_SIGPIPE],
        )

    def on_exit(self, pid, callback):
        """Call `callback(code)` at the end of `pid`, which may have come already."""
        if pid in self._unclaimed:
            callback(self._unclaimed.pop(pid))
        else:
            self._on_exit[pid] = callback

    def expect_children(self):
        """From now until `children_adopted`, keep exit codes of children not yet known."""
        self._expecting += 1

    def children_adopted(self):
        self._expecting -= 1
        if not self._expecting:
            self._unclaimed.clear()

    def _reap(self, events):
        _sys.drain_child_fd(self._child_fd)
        while True:
            try:
                pid, status = posix.waitpid(-1, posix.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = 128 + (status & 127) if status & 127 else status >> 8
            callback = self._on_exit.pop(pid, None)
            if callback is not None:
                self._guarded(callback, code)
            elif self._expecting and len(self._unclaimed) < MAX_UNCLAIMED:
                self._unclaimed[pid] = code

    # handlers that wait
    def start(self, generator, done):
        """Run a generator to its end, then call `done(value, error)`."""
        self._step(generator, None, done)

    def _step(self, generator, value, done):
        try:
            waited = generator.send(value)
        except StopIteration as stop:
            done(stop.value, None)
            return
        except Exception as exc:
            done(None, exc)
            return
        waited.arm(self, lambda result: self._step(generator, result, done))

    # the loop
    def run(self):
        """Serve for ever."""
        while True:
            try:
                self._turn()
            except Exception as exc:
                files.log(f"loop: {type(exc).__name__}: {exc}")

    def _turn(self):
        timeout = -1
        if self._timers:
            timeout = max(0, min(timer[0] for timer in self._timers) - time.monotonic())
        for fd, events in self._poll.poll(timeout):
            callback = self._callbacks.get(fd)
            if callback is not None and not self._guarded(callback, events):
                self.remove(fd)
        if self._timers:
            now = time.monotonic()
            for timer in [timer for timer in self._timers if timer[0] <= now]:
                # An earlier one may have cancelled it.
                if timer in self._timers:
                    self._timers.remove(timer)
                    self._guarded(timer[1])

    def _guarded(self, callback, *arguments):
        try:
            callback(*arguments)
        except Exception as exc:
            files.log(f"{type(exc).__name__}: {exc}")
            return False
        return True
