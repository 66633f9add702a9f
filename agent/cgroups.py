"""A container's cgroup (v2 only): its processes, counters, freezer and out-of-memory kills."""

import posix

from agent import files
from agent.errors import FAILED_PRECONDITION, NOT_FOUND, RpcError
from agent.loop import Sleep
from hypercore.proto.agent_pb import StatsResponse

ROOT = "/sys/fs/cgroup"
FREEZE_DEADLINE_S = 5


def path_of(container_id):
    """The cgroup that the host names in config.json."""
    return f"{ROOT}/hc/{container_id}"


def enable_controllers(path):
    """Let the children of a cgroup have all controllers that it has itself."""
    names = files.read(path + "/cgroup.controllers").split()
    files.write(path + "/cgroup.subtree_control", b" ".join(b"+" + name for name in names))


def pids(path):
    """All processes in the cgroup and the cgroups below it."""
    try:
        found = [int(pid) for pid in files.read(path + "/cgroup.procs", 1 << 20).split()]
        names = posix.listdir(path)
    except OSError:
        return []
    for name in names:
        child = f"{path}/{name}"
        # Only cgroups are directories; a file has no cgroup.procs below it.
        if "." not in name or _is_dir(child):
            found += pids(child)
    return found


def signal_all(path, number):
    """Signal every process of the cgroup; SIGKILL also reaches those forked meanwhile."""
    if number == 9:
        try:
            files.write(path + "/cgroup.kill", b"1")
        except FileNotFoundError as exc:
            raise RpcError(NOT_FOUND, "the container has no processes") from exc
        return
    for pid in pids(path):
        try:
            posix.kill(pid, number)
        except ProcessLookupError:
            pass


def oom_kills(path):
    """How many processes the kernel has killed for want of memory."""
    return _table(path + "/memory.events").get("oom_kill", 0)


def freeze(path, frozen):
    """Freeze or thaw; a generator for the loop that ends when it has happened."""
    try:
        files.write(path + "/cgroup.freeze", b"1" if frozen else b"0")
    except FileNotFoundError as exc:
        raise RpcError(NOT_FOUND, "the container has no cgroup") from exc
    waited = 0
    while _table(path + "/cgroup.events").get("frozen", 0) != int(frozen):
        if waited >= FREEZE_DEADLINE_S:
            raise RpcError(FAILED_PRECONDITION, "the container does not freeze")
        yield Sleep(0.005)
        waited += 0.005


def stats(path):
    """The counters of the cgroup."""
    cpu = _table(path + "/cpu.stat")
    memory = _table(path + "/memory.stat")
    return StatsResponse(
        cpu_usage_us=cpu.get("usage_usec", 0),
        cpu_user_us=cpu.get("user_usec", 0),
        cpu_system_us=cpu.get("system_usec", 0),
        nr_periods=cpu.get("nr_periods", 0),
        nr_throttled=cpu.get("nr_throttled", 0),
        throttled_us=cpu.get("throttled_usec", 0),
        memory_current_bytes=_number(path + "/memory.current"),
        memory_limit_bytes=_number(path + "/memory.max"),
        memory_anon_bytes=memory.get("anon", 0),
        memory_file_bytes=memory.get("file", 0),
        pids_current=_number(path + "/pids.current"),
        pids_limit=_number(path + "/pids.max"),
        oom_kills=oom_kills(path),
    )


def _is_dir(path):
    return posix.stat(path).st_mode & 0o170000 == 0o040000


def _number(path):
    """A file with one number; 0 for "max" and for a controller that is not there."""
    try:
        text = files.read(path).strip()
    except OSError:
        return 0
    return int(text) if text.isdigit() else 0


def _table(path):
    """A file of `key value` lines."""
    try:
        lines = files.read(path).decode().splitlines()
    except OSError:
        return {}
    pairs = [line.split() for line in lines]
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}
