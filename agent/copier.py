"""Copies between a container and the host: a child of the agent for each, in its mounts.

The child takes over the stream's connection and blocks as it likes. Its end tells the agent how it
went: status 0, or a code and a sentence on a pipe.
"""

import posix

from agent import _sys, files
from agent.errors import INVALID_ARGUMENT, NOT_FOUND, UNKNOWN, RpcError
from agent.loop import Child

STREAM_TIMEOUT_S = 120
"""How long the host may take no byte, or send none."""
MAX_COPIES = 16
"""Of one container at one time."""

_CHUNK = 65536
_KERNEL_TYPES = (
    *(b"proc", b"sysfs", b"cgroup", b"cgroup2", b"devpts", b"mqueue", b"securityfs"),
    *(b"debugfs", b"tracefs", b"bpf", b"pstore", b"configfs"),
)


def copy(container, request):
    """Do what the CopyRequest says; a generator for the loop."""
    path = request.path
    if not path.startswith("/") or "\0" in path:
        raise RpcError(INVALID_ARGUMENT, f"path {path!r} is not absolute")
    if len(container.copies) >= MAX_COPIES:
        raise RpcError(UNKNOWN, f"{MAX_COPIES} copies of container {container.id} are under way")
    init = container.process("")
    if init.exited:
        raise RpcError(NOT_FOUND, f"container {container.id} has ended")
    sock = container.registry.take(request.token)
    read_fd, write_fd = posix.pipe2(posix.O_CLOEXEC)
    try:
        pid = posix.fork()
        if pid == 0:
            _child(sock, write_fd, init.pid, request)
    finally:
        sock.close()
        posix.close(write_fd)
    container.copies.add(pid)
    try:
        status = yield Child(pid)
        said = posix.read(read_fd, 4096)
    finally:
        container.copies.discard(pid)
        posix.close(read_fd)
    if status:
        text = said[1:].decode("utf-8", "replace") or f"the copy ended with status {status}"
        raise RpcError(said[0] if said else UNKNOWN, text)


def _child(sock, result_fd, init_pid, request):
    """Never returns."""
    status = 1
    try:
        try:
            _close_others(sock.fileno(), result_fd)
            sock.settimeout(STREAM_TIMEOUT_S)
            _copy(sock, init_pid, request)
            status = 0
        except RpcError as exc:
            code, text = exc.code, exc.message
        except OSError as exc:
            code = NOT_FOUND if isinstance(exc, FileNotFoundError) else UNKNOWN
            if isinstance(exc, NotADirectoryError):
                code = INVALID_ARGUMENT
            text = f"{_shown(exc.filename) or request.path}: {exc.strerror or exc}"
        except ValueError as exc:
            code, text = INVALID_ARGUMENT, str(exc)
        if status:
            posix.write(result_fd, bytes((code,)) + text.encode("utf-8", "replace")[:2048])
    finally:
        posix._exit(status)


def _copy(sock, init_pid, request):
    # Nobody but such a child needs them: the agent itself is small.
    from agent import archive, pieces

    devices = _kernel_devices(init_pid)
    _enter(init_pid)
    path = request.path.encode("utf-8", "surrogateescape")
    stream = pieces.Pieces(sock)
    if request.into:
        archive.unpack(stream.read, path, request.preserve_ownership)
        while stream.read(_CHUNK):
            pass  # what pads an archive
    else:
        archive.pack(stream.send, path, request.only_entry, devices)
        stream.end()


def _close_others(*kept):
    """What the agent has open is not for the container's eyes."""
    start = 3
    for fd in sorted(kept):
        posix.closerange(start, fd)
        start = fd + 1
    posix.closerange(start, 1 << 20)


def _enter(init_pid):
    """See files as the container's init does, and with its user namespace's eyes."""
    flags = posix.O_RDONLY | posix.O_CLOEXEC
    others = [
        name
        for name in ("user", "mnt")
        if posix.readlink(f"/proc/{init_pid}/ns/{name}") != posix.readlink(f"/proc/self/ns/{name}")
    ]
    fds = [posix.open(f"/proc/{init_pid}/ns/{name}", flags) for name in others]
    for fd in fds:
        _sys.join_namespace(fd)
        posix.close(fd)
    if "user" in others:
        posix.setgid(0)
        posix.setuid(0)
    posix.umask(0)
    posix.chdir("/")


def _kernel_devices(init_pid):
    """Device numbers of what is no storage among the container's mounts."""
    found = set()
    for line in files.read(f"/proc/{init_pid}/mountinfo", 1 << 20).splitlines():
        before, _, after = line.partition(b" - ")
        words = before.split()
        if len(words) > 2 and after.split(b" ", 1)[0] in _KERNEL_TYPES:
            major, _, minor = words[2].partition(b":")
            found.add(posix.makedev(int(major), int(minor)))
    return found


def _shown(name):
    if isinstance(name, bytes):
        return name.decode("utf-8", "backslashreplace")
    return name if isinstance(name, str) else ""
