/* What a vforked child does between clone and exec, for _process.pyx.
 *
 * The child shares the caller's memory and runs beside its other threads: only plain system
 * calls are made here, no allocation, no libc function that locks, keeps state or (as glibc's
 * setuid does) signals other threads. All strings and tables are prepared by the caller.
 */
#ifndef HYPERCORE_SPAWN_H
#define HYPERCORE_SPAWN_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef CLONE_PIDFD
#define CLONE_PIDFD 0x00001000
#endif
#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424
#endif
#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef SYS_mount_setattr
#define SYS_mount_setattr 442
#endif
#define HC_P_PIDFD 3
#define HC_CLOSE_RANGE_CLOEXEC 4
#define HC_AT_RECURSIVE 0x8000

/* mount_setattr(2); <linux/mount.h> and <sys/mount.h> cannot be included together everywhere */
#define HC_ATTR_RDONLY 0x1
#define HC_ATTR_NOSUID 0x2
#define HC_ATTR_NODEV 0x4
#define HC_ATTR_NOEXEC 0x8
struct hc_mount_attr {
    uint64_t attr_set, attr_clr, propagation, userns_fd;
};

enum hc_op_kind { HC_OP_MKDIR, HC_OP_FILE, HC_OP_SYMLINK, HC_OP_BIND, HC_OP_PROC };

/* One step of filling a jail's root; `target` is below that root, as a path of the host. */
struct hc_op {
    int kind;
    unsigned attr; /* HC_OP_BIND: HC_ATTR_* */
    const char *source;
    const char *target;
};

struct hc_rlimit {
    int resource;
    uint64_t soft, hard;
};

struct hc_spawn {
    char **argv, **envp;
    const char *cwd;
    uint64_t namespaces;
    /* sorted by target; source -1 stands for /dev/null */
    int *sources;
    const int *targets;
    int fd_count;
    const int *cgroup_fds;
    int cgroup_count;
    const struct hc_rlimit *rlimits;
    int rlimit_count;
    const uint32_t *groups;
    int group_count;
    int uid, gid; /* -1: unchanged */
    int netns_fd; /* -1: none */
    int new_session, drop_capabilities, no_new_privs, mask;
    const char *oom_score_adj; /* decimal text or NULL */
    const char *root;          /* jail, or NULL */
    const struct hc_op *ops;
    int op_count;
    /* out: the step that failed, what it was about (or NULL), and errno */
    const char *step, *what;
    int error;
};

static int hc_fail(struct hc_spawn *s, const char *step, const char *what) {
    s->error = errno;
    s->step = step;
    s->what = what;
    return -1;
}

static int hc_write_file(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC), rc;
    if (fd < 0)
        return -1;
    rc = write(fd, text, strlen(text)) < 0 ? -1 : 0;
    if (rc < 0) {
        int saved = errno;
        close(fd);
        errno = saved;
    } else {
        close(fd);
    }
    return rc;
}

static int hc_enter_jail(struct hc_spawn *s) {
    struct hc_mount_attr attr;
    int i, fd;
    /* Nothing mounted below may reach the host's namespace. */
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
        return hc_fail(s, "make mounts private", NULL);
    if (mount("jail", s->root, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=1m"))
        return hc_fail(s, "mount jail", s->root);
    umask(0022); /* whatever the caller's: the uid inside must be able to walk in here */
    for (i = 0; i < s->op_count; i++) {
        const struct hc_op *op = &s->ops[i];
        switch (op->kind) {
        case HC_OP_MKDIR:
            if (mkdir(op->target, 0755) && errno != EEXIST)
                return hc_fail(s, "mkdir", op->target);
            break;
        case HC_OP_FILE:
            fd = open(op->target, O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0644);
            if (fd < 0)
                return hc_fail(s, "create", op->target);
            close(fd);
            break;
        case HC_OP_SYMLINK:
            if (symlink(op->source, op->target))
                return hc_fail(s, "symlink", op->target);
            break;
        case HC_OP_BIND:
            if (mount(op->source, op->target, NULL, MS_BIND | MS_REC, NULL))
                return hc_fail(s, "bind", op->source);
            memset(&attr, 0, sizeof attr);
            attr.attr_set = op->attr;
            if (syscall(SYS_mount_setattr, -1, op->target, HC_AT_RECURSIVE, &attr, sizeof attr))
                return hc_fail(s, "restrict bind", op->source);
            break;
        case HC_OP_PROC:
            if (mount("proc", op->target, "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "subset=pid"))
                return hc_fail(s, "mount proc", op->target);
            break;
        }
    }
    /* pivot_root(2), "pivot_root(".", ".")": the old root lies over the new one, and goes. */
    if (chdir(s->root))
        return hc_fail(s, "chdir", s->root);
    if (syscall(SYS_pivot_root, ".", "."))
        return hc_fail(s, "pivot_root", s->root);
    if (umount2(".", MNT_DETACH))
        return hc_fail(s, "detach old root", NULL);
    if (mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV, NULL))
        return hc_fail(s, "make jail read-only", NULL);
    return 0;
}

/* Leaves exactly the wanted fds open after exec: `sources[i]` as `targets[i]`. */
static int hc_place_fds(struct hc_spawn *s, int null_fd) {
    int i, low = 0, base = 3;
    if (s->fd_count && s->targets[s->fd_count - 1] >= base)
        base = s->targets[s->fd_count - 1] + 1;
    for (i = 0; i < s->fd_count; i++) {
        int fd = fcntl(s->sources[i] < 0 ? null_fd : s->sources[i], F_DUPFD_CLOEXEC, base);
        if (fd < 0)
            return hc_fail(s, "duplicate fd", NULL);
        s->sources[i] = fd;
    }
    for (i = 0; i < s->fd_count; i++) {
        if (dup2(s->sources[i], s->targets[i]) < 0)
            return hc_fail(s, "place fd", NULL);
        if (s->targets[i] > low &&
            syscall(SYS_close_range, low, s->targets[i] - 1, HC_CLOSE_RANGE_CLOEXEC))
            return hc_fail(s, "close_range", NULL);
        low = s->targets[i] + 1;
    }
    if (syscall(SYS_close_range, low, ~0U, HC_CLOSE_RANGE_CLOEXEC))
        return hc_fail(s, "close_range", NULL);
    return 0;
}

static int hc_drop_capabilities(struct hc_spawn *s) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    memset(data, 0, sizeof data);
    if (syscall(SYS_capset, &header, data))
        return hc_fail(s, "capset", NULL);
    return 0;
}

static int hc_prepare(struct hc_spawn *s) {
    struct sigaction action;
    sigset_t none;
    int i, null_fd;

    /* Python ignores SIGPIPE, and handlers must not run here, in the parent's memory. */
    memset(&action, 0, sizeof action);
    action.sa_handler = SIG_DFL;
    for (i = 1; i < _NSIG; i++)
        sigaction(i, &action, NULL); /* EINVAL for SIGKILL, SIGSTOP and libc's own */

    if (s->new_session && setsid() < 0)
        return hc_fail(s, "setsid", NULL);
    for (i = 0; i < s->cgroup_count; i++)
        if (write(s->cgroup_fds[i], "0", 1) < 0)
            return hc_fail(s, "enter cgroup", NULL);
    if (s->oom_score_adj && hc_write_file("/proc/self/oom_score_adj", s->oom_score_adj))
        return hc_fail(s, "set oom_score_adj", s->oom_score_adj);
    if (s->netns_fd >= 0 && setns(s->netns_fd, CLONE_NEWNET))
        return hc_fail(s, "enter network namespace", NULL);
    null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null_fd < 0)
        return hc_fail(s, "open", "/dev/null");
    if (s->root && hc_enter_jail(s))
        return -1;
    if (chdir(s->cwd))
        return hc_fail(s, "chdir", s->cwd);
    umask(s->mask);
    if (hc_place_fds(s, null_fd))
        return -1;
    for (i = 0; i < s->rlimit_count; i++) {
        uint64_t limit[2] = {s->rlimits[i].soft, s->rlimits[i].hard};
        if (syscall(SYS_prlimit64, 0, s->rlimits[i].resource, limit, NULL))
            return hc_fail(s, "set rlimit", NULL);
    }
    if (s->drop_capabilities) {
        /* EINVAL is the first number beyond the kernel's last capability. */
        for (i = 0; !prctl(PR_CAPBSET_DROP, i, 0, 0, 0); i++)
            ;
        if (errno != EINVAL || i == 0)
            return hc_fail(s, "drop bounding capabilities", NULL);
        if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) && errno != EINVAL)
            return hc_fail(s, "clear ambient capabilities", NULL);
    }
    if (s->uid >= 0 || s->gid >= 0) {
        if (syscall(SYS_setgroups, s->group_count, s->groups))
            return hc_fail(s, "setgroups", NULL);
        if (s->gid >= 0 && syscall(SYS_setresgid, s->gid, s->gid, s->gid))
            return hc_fail(s, "setresgid", NULL);
        if (s->uid >= 0 && syscall(SYS_setresuid, s->uid, s->uid, s->uid))
            return hc_fail(s, "setresuid", NULL);
    }
    if (s->drop_capabilities && hc_drop_capabilities(s))
        return -1;
    if (s->no_new_privs && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        return hc_fail(s, "no_new_privs", NULL);
    sigemptyset(&none);
    if (sigprocmask(SIG_SETMASK, &none, NULL))
        return hc_fail(s, "unblock signals", NULL);
    return 0;
}

static int hc_child(void *arg) {
    struct hc_spawn *s = arg;
    if (!hc_prepare(s)) {
        execve(s->argv[0], s->argv, s->envp);
        hc_fail(s, "exec", s->argv[0]);
    }
    syscall(SYS_exit_group, 127);
    return 127;
}

static int hc_reap(int pidfd, int flags, int *status) {
    siginfo_t info;
    int rc;
    info.si_pid = 0;
    do
        rc = waitid((idtype_t)HC_P_PIDFD, pidfd, &info, WEXITED | flags);
    while (rc && errno == EINTR);
    if (rc)
        return -errno;
    if (!info.si_pid)
        return 0;
    *status = info.si_code == CLD_EXITED ? info.si_status : -info.si_status;
    return 1;
}

#define HC_STACK_BYTES (64 * 1024)

/* The pid, or -errno with `step` and `what` set. Returns after the child's exec. */
static pthread_mutex_t hc_dumpable_lock = PTHREAD_MUTEX_INITIALIZER;

static int hc_spawn(struct hc_spawn *s, int *pidfd_out) {
    sigset_t all, before;
    int pid, pidfd = -1, error, status, dumpable;
    char *stack = mmap(NULL, HC_STACK_BYTES, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (stack == MAP_FAILED) {
        hc_fail(s, "allocate stack", NULL);
        return -s->error;
    }
    s->error = 0;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    /* One at a time: another thread's child may just have cleared what is to be kept here. */
    pthread_mutex_lock(&hc_dumpable_lock);
    dumpable = prctl(PR_GET_DUMPABLE, 0, 0, 0, 0);
    pid = clone(hc_child, stack + HC_STACK_BYTES,
                (int)(CLONE_VM | CLONE_VFORK | CLONE_PIDFD | s->namespaces | SIGCHLD), s, &pidfd);
    error = errno;
    /* A change of uid clears "dumpable" of the memory, which is ours as well (commit_creds). */
    if (dumpable == 1 && (s->uid >= 0 || s->gid >= 0))
        prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
    pthread_mutex_unlock(&hc_dumpable_lock);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    munmap(stack, HC_STACK_BYTES);
    if (pid < 0) {
        errno = error;
        hc_fail(s, "clone", NULL);
        return -error;
    }
    if (s->error) {
        hc_reap(pidfd, 0, &status);
        close(pidfd);
        return -s->error;
    }
    *pidfd_out = pidfd;
    return pid;
}

static int hc_send_signal(int pidfd, int signal_number) {
    return syscall(SYS_pidfd_send_signal, pidfd, signal_number, NULL, 0) ? -errno : 0;
}

#endif
