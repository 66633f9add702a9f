# cython: language_level=3, binding=False
"""Linux system calls that CPython's built-in modules lack. No policy: ints in, ints out."""

cdef extern from *:
    """
    #define _GNU_SOURCE
    #include <errno.h>
    #include <fcntl.h>
    #include <linux/blkpg.h>
    #include <linux/openat2.h>
    #include <sched.h>
    #include <signal.h>
    #include <sys/ioctl.h>
    #include <sys/mount.h>
    #include <sys/reboot.h>
    #include <sys/resource.h>
    #include <sys/signalfd.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    static long hc_mount(const char *source, const char *target, const char *type,
                         unsigned long flags, const char *data) {
        return mount(source, target, type, flags, data) < 0 ? -errno : 0;
    }
    static long hc_umount(const char *target, int flags) {
        return umount2(target, flags) < 0 ? -errno : 0;
    }
    /* SIGCHLD is read from a descriptor: a Python signal handler would cut AF_VSOCK calls short
       in a way that CPython's retry (PEP 475) takes for success. */
    static long hc_child_fd(void) {
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, SIGCHLD);
        if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
            return -errno;
        int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
        return fd < 0 ? -errno : fd;
    }
    static void hc_drain(int fd) {
        struct signalfd_siginfo info;
        while (read(fd, &info, sizeof info) > 0) {}
    }
    static long hc_splice(int source, int target, size_t size) {
        ssize_t n;
        do
            n = splice(source, NULL, target, NULL, size, SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
        while (n < 0 && errno == EINTR);
        return n < 0 ? -errno : n;
    }
    static long hc_open_beneath(int root_fd, const char *path, int flags, unsigned mode) {
        struct open_how how = {
            .flags = (unsigned)flags | O_CLOEXEC,
            .mode = flags & O_CREAT ? mode : 0,
            .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
        };
        long fd = syscall(SYS_openat2, root_fd, path, &how, sizeof how);
        return fd < 0 ? -errno : fd;
    }
    static long hc_add_partition(int fd, int number, long long start, long long length) {
        struct blkpg_partition part = {.start = start, .length = length, .pno = number};
        struct blkpg_ioctl_arg arg = {
            .op = BLKPG_ADD_PARTITION, .datalen = sizeof part, .data = &part,
        };
        return ioctl(fd, BLKPG, &arg) < 0 ? -errno : 0;
    }
    static long hc_join_namespace(int fd) { return setns(fd, 0) < 0 ? -errno : 0; }
    static long hc_load_module(int fd) {
        return syscall(SYS_finit_module, fd, "", 0) < 0 ? -errno : 0;
    }
    static long hc_limit_files(unsigned long soft, unsigned long hard) {
        struct rlimit limit = {soft, hard};
        return setrlimit(RLIMIT_NOFILE, &limit) < 0 ? -errno : 0;
    }
    static long hc_reboot(int how) { return reboot(how) < 0 ? -errno : 0; }
    enum { HC_POWER_OFF = RB_POWER_OFF, HC_RESTART = RB_AUTOBOOT };
    """
    long hc_mount(const char *source, const char *target, const char *type, unsigned long flags,
                  const char *data) noexcept nogil
    long hc_umount(const char *target, int flags) noexcept nogil
    long hc_child_fd() noexcept nogil
    void hc_drain(int fd) noexcept nogil
    long hc_splice(int source, int target, size_t size) noexcept nogil
    long hc_open_beneath(int root_fd, const char *path, int flags, unsigned mode) noexcept nogil
    long hc_add_partition(int fd, int number, long long start, long long length) noexcept nogil
    long hc_join_namespace(int fd) noexcept nogil
    long hc_load_module(int fd) noexcept nogil
    long hc_limit_files(unsigned long soft, unsigned long hard) noexcept nogil
    long hc_reboot(int how) noexcept nogil
    int HC_POWER_OFF, HC_RESTART

cdef extern from "string.h" nogil:
    char *strerror(int number)

RDONLY, NOSUID, NODEV, NOEXEC, NOATIME, MOVE = 1, 2, 4, 8, 1024, 8192
"""Flags of mount(2)."""


cdef long checked(long result, name) except -1:
    if result < 0:
        raise OSError(-result, strerror(<int>-result).decode(), name)
    return result


def mount(str source, str target, str fs_type, unsigned long flags=0, str data=""):
    """mount(2)."""
    cdef bytes s = source.encode(), t = target.encode(), f = fs_type.encode(), d = data.encode()
    checked(hc_mount(s, t, f, flags, d), f"{source} on {target} ({fs_type} {data})")


def umount(str target, bint detach=False):
    """umount2(2); `detach` unmounts lazily."""
    cdef bytes t = target.encode()
    checked(hc_umount(t, 2 if detach else 0), target)


def child_fd():
    """A descriptor that is readable when a child has ended; blocks SIGCHLD."""
    return checked(hc_child_fd(), "signalfd")


def drain_child_fd(int fd):
    """Read all that waits in `child_fd`."""
    hc_drain(fd)


def splice(int source_fd, int target_fd, size_t size):
    """Move bytes without blocking. Returns their number, 0 at the end, or -errno."""
    return hc_splice(source_fd, target_fd, size)


def open_beneath(int root_fd, str path, int flags, unsigned mode=0):
    """Open `path` as a process chrooted to `root_fd` would. Returns a descriptor."""
    cdef bytes p = path.encode()
    return checked(hc_open_beneath(root_fd, p, flags, mode), path)


def add_partition(int fd, int number, long long start, long long length):
    """Make a part of a block device a device of its own, without a table on it."""
    checked(hc_add_partition(fd, number, start, length), f"partition {number}")


def join_namespace(int fd):
    """setns(2), into what `fd` of /proc/PID/ns is open on."""
    checked(hc_join_namespace(fd), "setns")


def load_module(int fd):
    """finit_module(2). Returns 0 or -errno."""
    return hc_load_module(fd)


def limit_files(unsigned long soft, unsigned long hard):
    """Set RLIMIT_NOFILE of this process and those it starts."""
    checked(hc_limit_files(soft, hard), "RLIMIT_NOFILE")


def power_off():
    """Turn the machine off at once."""
    checked(hc_reboot(HC_POWER_OFF), "power off")


def restart():
    """Reset the machine at once."""
    checked(hc_reboot(HC_RESTART), "restart")
