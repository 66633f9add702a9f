"""crun and runc: their command lines and their failures."""

import posix

from agent import files, runtime_log
from agent.errors import INVALID_ARGUMENT, UNKNOWN, RpcError
from agent.loop import Child

PROGRAMS = {"crun": "/usr/bin/crun", "runc": "/usr/sbin/runc"}


def available():
    """Names of the runtimes on the agent's disk."""
    return [name for name, path in PROGRAMS.items() if posix.access(path, posix.X_OK)]


def check_runtime(name):
    """The runtime's name, or crun's; RpcError for one that is not on the agent's disk."""
    name = name or "crun"
    if name not in available():
        known = ", ".join(available())
        raise RpcError(INVALID_ARGUMENT, f"runtime {name!r} is not on the agent's disk ({known})")
    return name


def run(events, runtime, log_path, command, arguments, fds):
    """Run one command of the runtime; a generator for the loop.

    Raises:
        RpcError: it failed; the message is its own.
    """
    argv = [PROGRAMS[runtime], "--root", "/run/" + runtime, "--log", log_path]
    if runtime == "crun":
        argv.append("--cgroup-manager=cgroupfs")
    files.remove(log_path)
    try:
        pid = events.spawn([*argv, command, *arguments], fds)
    except OSError as exc:
        raise RpcError(UNKNOWN, f"{runtime}: {exc.strerror}") from exc
    status = yield Child(pid)
    if status != 0:
        raise _error(f"{runtime} {command}", status, log_path)
    files.remove(log_path)


def _error(what, status, log_path):
    try:
        log = files.read(log_path, 8192).decode("utf-8", "replace")
    except OSError:
        log = ""
    message = runtime_log.message_of(log)
    code = runtime_log.code_of(message)
    return RpcError(code, message or f"{what} ended with status {status}")
