"""crun and runc: their command lines, and what their errors mean."""

import posix

from agent import files
from agent.errors import INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED, UNKNOWN, RpcError
from agent.loop import Child

PROGRAMS = {"crun": "/usr/bin/crun", "runc": "/usr/bin/runc"}

_NOT_FOUND = ("executable file", "no such file or directory", "not found")
_DENIED = ("permission denied", "exec format error", "is a directory")


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
        raise error_of(f"{runtime} {command}", status, _last_words(log_path))
    files.remove(log_path)


def _last_words(log_path):
    try:
        text = files.read(log_path, 8192).decode("utf-8", "replace")
    except OSError:
        return ""
    return message_of(text)


def message_of(log):
    """The last error in a runtime's log: crun writes plain text, runc logfmt."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    if not lines:
        return ""
    line = lines[-1]
    head, found, message = line.partition('msg="')
    if found:
        return message.rpartition('"')[0].replace('\\"', '"')
    # crun: "2026-11-24T15:00:00.000000Z: message"
    head, found, message = line.partition("Z: ")
    if found and head[:4].isdigit():
        return message
    return line


def error_of(what, status, message):
    """The RpcError for a runtime's failure; docker's 127 and 126 are told apart by its code."""
    text = message.lower()
    code = UNKNOWN
    if "exec" in text:
        if any(sign in text for sign in _DENIED):
            code = PERMISSION_DENIED
        elif any(sign in text for sign in _NOT_FOUND):
            code = NOT_FOUND
    return RpcError(code, message or f"{what} ended with status {status}")
