"""Start a process, confined if asked, and watch its exit. Not for policy: that is vmm.py's.

`spawn` is clone(VM | VFORK | PIDFD): it costs the same 0.1 ms whatever the size of the caller,
may be called from any thread, leaves no watcher behind, and needs no SIGCHLD handler. The calling
thread waits for the child's exec with the GIL released.

In a new pid namespace the process is pid 1: signals it has no handler for are ignored, SIGTERM
included; SIGKILL always works, and ends every process of that namespace.
"""

import os
import stat as _stat
from dataclasses import dataclass
from typing import NamedTuple

from libc.errno cimport ENOENT, ESRCH
from libc.errno cimport errno as c_errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport strrchr

from hypercore._linux cimport O_CLOEXEC, O_RDONLY, close, open, read

cdef extern from "_spawn.h":
    struct hc_op:
        int kind
        unsigned attr
        const char *source
        const char *target

    struct hc_rlimit:
        int resource
        uint64_t soft
        uint64_t hard

    struct hc_spawn_args "hc_spawn":
        char **argv
        char **envp
        const char *cwd
        uint64_t namespaces
        int *sources
        const int *targets
        int fd_count
        const int *cgroup_fds
        int cgroup_count
        const hc_rlimit *rlimits
        int rlimit_count
        const uint32_t *groups
        int group_count
        int uid
        int gid
        int netns_fd
        int new_session
        int drop_capabilities
        int no_new_privs
        int mask
        const char *oom_score_adj
        const char *root
        const hc_op *ops
        int op_count
        const char *step
        const char *what
        int error

    int HC_OP_MKDIR
    int HC_OP_FILE
    int HC_OP_SYMLINK
    int HC_OP_BIND
    int HC_OP_PROC
    unsigned HC_ATTR_RDONLY
    unsigned HC_ATTR_NOSUID
    unsigned HC_ATTR_NODEV
    unsigned HC_ATTR_NOEXEC
    int WNOHANG
    int c_CLONE_NEWNS "CLONE_NEWNS"
    int c_CLONE_NEWPID "CLONE_NEWPID"
    int c_CLONE_NEWNET "CLONE_NEWNET"
    int c_CLONE_NEWIPC "CLONE_NEWIPC"
    int c_CLONE_NEWUTS "CLONE_NEWUTS"
    int c_CLONE_NEWCGROUP "CLONE_NEWCGROUP"
    int hc_spawn(hc_spawn_args *args, int *pidfd) nogil
    int hc_reap(int pidfd, int flags, int *status) nogil
    int hc_send_signal(int pidfd, int signal_number) nogil

CLONE_NEWNS = c_CLONE_NEWNS
CLONE_NEWPID = c_CLONE_NEWPID
CLONE_NEWNET = c_CLONE_NEWNET
CLONE_NEWIPC = c_CLONE_NEWIPC
CLONE_NEWUTS = c_CLONE_NEWUTS
CLONE_NEWCGROUP = c_CLONE_NEWCGROUP


class Bind(NamedTuple):
    """A file or directory of the host, shown in a jail. A plain tuple of the four serves too.

    Set-uid bits never count below it, device nodes only if `source` itself is one, and what is
    writable cannot be executed.
    """

    source: str
    target: str
    read_only: bool = True
    is_file: bool = False


@dataclass(frozen=True)
class Jail:
    """A root directory of its own: a read-only tmpfs with nothing but what is listed here.

    Built in a new mount namespace over the existing directory `root`, so the host sees nothing
    of it and nothing is left to clean up. Targets are absolute paths inside; their parents are
    made. `symlinks` are (text, path of the link). With `proc`, /proc shows the processes of the
    jail's pid namespace and nothing else of the system (procfs `subset=pid`).
    """

    root: str
    binds: tuple = ()
    symlinks: tuple = ()
    directories: tuple = ()
    proc: bool = False


cdef class _Table:
    """C arrays and strings of one spawn, alive until it is over."""

    cdef list blocks
    cdef list texts

    def __cinit__(self):
        self.blocks = []
        self.texts = []

    cdef void *array(self, size_t count, size_t size) except NULL:
        # bytearrays that are never resized: freed with this object on every path out
        block = bytearray((count + 1) * size)
        self.blocks.append(block)
        return <void *><char *>block

    cdef const char *text(self, value) except NULL:
        encoded = os.fsencode(value)
        if b"\0" in encoded:
            raise ValueError(f"NUL byte in {value!r}")
        self.texts.append(encoded)
        return <const char *><char *>encoded

    cdef char **strings(self, values) except NULL:
        cdef char **array = <char **>self.array(len(values), sizeof(char *))
        for i, value in enumerate(values):
            array[i] = <char *>self.text(value)
        return array

    cdef int *ints(self, values) except NULL:
        cdef int *array = <int *>self.array(len(values), sizeof(int))
        for i, value in enumerate(values):
            array[i] = value
        return array


cdef int _fill_jail(hc_spawn_args *args, _Table table, jail) except -1:
    steps = []
    made = set()
    root = os.fsdecode(jail.root)
    if not os.path.isabs(root):
        raise ValueError(f"jail root {root!r} is not absolute")

    def inside(path):
        path = os.fsdecode(path)
        if not path.startswith("/") or ".." in path.split("/"):
            raise ValueError(f"jail path {path!r} is not absolute and plain")
        return os.path.normpath(path)

    def directory(path):
        if path in made or path == "/":
            return
        directory(os.path.dirname(path))
        made.add(path)
        steps.append((HC_OP_MKDIR, 0, "", path))

    for path in jail.directories:
        directory(inside(path))
    for source, target, read_only, is_file in jail.binds:
        target = inside(target)
        attr = HC_ATTR_NOSUID | (HC_ATTR_RDONLY if read_only else HC_ATTR_NOEXEC)
        if is_file:
            directory(os.path.dirname(target))
            steps.append((HC_OP_FILE, 0, "", target))
            mode = os.stat(source).st_mode
            if not (_stat.S_ISCHR(mode) or _stat.S_ISBLK(mode)):
                attr |= HC_ATTR_NODEV
        else:
            directory(target)
            attr |= HC_ATTR_NODEV
        steps.append((HC_OP_BIND, attr, source, target))
    for text, link in jail.symlinks:
        link = inside(link)
        directory(os.path.dirname(link))
        steps.append((HC_OP_SYMLINK, 0, text, link))
    if jail.proc:
        directory("/proc")
        steps.append((HC_OP_PROC, 0, "", "/proc"))

    cdef hc_op *ops = <hc_op *>table.array(len(steps), sizeof(hc_op))
    for i, (kind, attr, source, target) in enumerate(steps):
        ops[i].kind = kind
        ops[i].attr = attr
        ops[i].source = table.text(source)
        ops[i].target = table.text(root + target)
    args.root = table.text(root)
    args.ops = ops
    args.op_count = <int>len(steps)
    args.namespaces |= <uint64_t>c_CLONE_NEWNS
    return 0


def spawn(
    argv,
    *,
    env,
    fds=(),
    cwd="/",
    setsid=True,
    int uid=-1,
    int gid=-1,
    groups=(),
    unsigned int namespaces=0,
    int netns_fd=-1,
    cgroup_fds=(),
    rlimits=(),
    drop_capabilities=None,
    no_new_privs=True,
    int umask=0o077,
    oom_score_adj=None,
    root=None,
):
    """Start `argv` and return (pid, pidfd) once its exec has succeeded.

    The caller owns the pidfd: readable at the exit, then `reap` it.

    Args:
        argv: argv[0] is a path (inside the jail, if there is one); PATH is not searched.
        env: the whole environment.
        fds: (source, target) pairs; every other fd is closed, 0-2 are /dev/null if not named.
        uid, gid, groups: set together; -1 leaves them. `groups` replaces the inherited ones.
        namespaces: CLONE_NEW* mask. netns_fd: an existing network namespace to enter instead.
        cgroup_fds: open cgroup.procs or tasks files; the process enters each before it runs.
        rlimits: (resource, soft, hard) triples, resource as in the module `resource`.
        drop_capabilities: all sets, the bounding set too; None: when a uid is given.
        root: a Jail; implies CLONE_NEWNS.

    Raises:
        OSError: errno of the step that failed; `filename` names the step and what it was about,
            such as "exec /usr/bin/qemu". No process is left then.
    """
    if not argv or "/" not in os.fsdecode(argv[0]):
        raise ValueError(f"argv[0] is not a path: {argv!r}")
    if netns_fd >= 0 and namespaces & c_CLONE_NEWNET:
        raise ValueError("netns_fd and CLONE_NEWNET exclude each other")
    cdef _Table table = _Table()
    cdef hc_spawn_args args
    cdef hc_rlimit *limits
    cdef int pidfd = -1
    cdef int pid
    args.argv = table.strings(argv)
    args.envp = table.strings([f"{name}={value}" for name, value in env.items()])
    args.cwd = table.text(cwd)
    args.namespaces = namespaces

    wanted = {0: -1, 1: -1, 2: -1}
    for source, target in fds:
        if source < 0 or target < 0 or wanted.get(target, -1) != -1:
            raise ValueError(f"bad fd pair ({source}, {target})")
        wanted[target] = source
    placed = sorted(wanted.items())
    args.targets = table.ints([target for target, _ in placed])
    args.sources = table.ints([source for _, source in placed])
    args.fd_count = <int>len(placed)

    args.cgroup_fds = table.ints(cgroup_fds)
    args.cgroup_count = <int>len(cgroup_fds)
    limits = <hc_rlimit *>table.array(len(rlimits), sizeof(hc_rlimit))
    for i, (resource, soft, hard) in enumerate(rlimits):
        limits[i].resource = resource
        # RLIM_INFINITY is -1 in Python, all ones in the kernel
        limits[i].soft = soft & 0xFFFFFFFFFFFFFFFF
        limits[i].hard = hard & 0xFFFFFFFFFFFFFFFF
    args.rlimits = limits
    args.rlimit_count = <int>len(rlimits)
    args.groups = <const uint32_t *>table.ints(groups)
    args.group_count = <int>len(groups)
    args.uid = uid
    args.gid = gid
    args.netns_fd = netns_fd
    args.new_session = bool(setsid)
    args.drop_capabilities = uid >= 0 if drop_capabilities is None else bool(drop_capabilities)
    args.no_new_privs = bool(no_new_privs)
    args.mask = umask
    args.oom_score_adj = NULL
    if oom_score_adj is not None:
        args.oom_score_adj = table.text(str(int(oom_score_adj)))
    args.root = NULL
    args.ops = NULL
    args.op_count = 0
    if root is not None:
        _fill_jail(&args, table, root)
    args.step = NULL
    args.what = NULL
    args.error = 0

    with nogil:
        pid = hc_spawn(&args, &pidfd)
    if pid < 0:
        where = args.step.decode()
        if args.what != NULL:
            where += " " + os.fsdecode(args.what)
        raise OSError(-pid, os.strerror(-pid), where)
    return pid, pidfd


def reap(int pidfd):
    """The exit code, or -signal, of a child that has ended; None while it runs.

    Never waits. Raises ChildProcessError if the child was reaped before or is not ours.
    """
    cdef int status = 0
    cdef int rc
    with nogil:
        rc = hc_reap(pidfd, WNOHANG, &status)
    if rc < 0:
        raise OSError(-rc, os.strerror(-rc), "waitid")
    return status if rc else None


def send_signal(int pidfd, int signal_number):
    """Send a signal to the very process `pidfd` stands for; ProcessLookupError if it is gone."""
    cdef int rc = hc_send_signal(pidfd, signal_number)
    if rc < 0:
        raise OSError(-rc, os.strerror(-rc), "pidfd_send_signal")


def start_time(int pid):
    """When `pid` started, in clock ticks since boot; 0 if there is none or it is a zombie.

    With the pid it names one process for good: pids are used again, start times are not.
    """
    cdef char path[32]
    cdef char text[1024]
    cdef ssize_t size = 0
    cdef int fd
    cdef int error = 0
    snprintf(path, sizeof(path), "/proc/%d/stat", pid)
    with nogil:
        fd = open(path, O_RDONLY | O_CLOEXEC)
        if fd < 0:
            error = c_errno
        else:
            size = read(fd, text, sizeof(text) - 1)
            if size < 0:
                error = c_errno
            close(fd)
    if error in (ENOENT, ESRCH):
        return 0
    if error:
        raise OSError(error, os.strerror(error), path.decode())
    text[size] = 0
    # the second field is the program's name in parentheses and may hold anything
    cdef char *end = strrchr(text, c")")
    if end == NULL:
        return 0
    fields = (<bytes>end[1:]).split()
    if fields[0] in (b"Z", b"X", b"x"):
        return 0
    return int(fields[19])
