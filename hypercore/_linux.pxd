# System calls and kernel constants that more than one room uses.
#
# Constants come from the headers; those newer than some build hosts' headers are defined here
# when missing. Functions are declared as libc has them: they return -1 and set errno.

from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <poll.h>
    #include <time.h>
    #include <unistd.h>
    #include <sys/stat.h>
    #include <sys/types.h>
    static inline int64_t hc_now_ns(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    }
    """
    int64_t hc_now_ns() nogil

    int ECANCELED
    int EOVERFLOW
    int EUCLEAN
    int ETIMEDOUT
    int EPROTO
    int O_ACCMODE
    int O_CLOEXEC
    int O_NONBLOCK
    int O_RDONLY
    int O_RDWR
    int O_WRONLY
    int O_APPEND
    int F_GETFL
    int F_SETFL
    int F_SETPIPE_SZ
    int F_GETPIPE_SZ
    unsigned int SPLICE_F_MOVE
    unsigned int SPLICE_F_NONBLOCK
    int SEEK_DATA
    int SEEK_HOLE
    int FALLOC_FL_KEEP_SIZE
    int FALLOC_FL_PUNCH_HOLE
    short POLLIN
    short POLLOUT

    ctypedef long off_t
    ctypedef unsigned int mode_t

    struct pollfd:
        int fd
        short events
        short revents

    struct stat:
        mode_t st_mode
        off_t st_size
        long st_blocks

    int S_ISREG(mode_t) nogil
    int S_ISFIFO(mode_t) nogil
    int S_ISCHR(mode_t) nogil
    int S_ISBLK(mode_t) nogil
    int S_ISSOCK(mode_t) nogil

    int open(const char *path, int flags, ...) nogil
    int close(int fd) nogil
    int dup(int fd) nogil
    int fcntl(int fd, int command, ...) nogil
    int fstat(int fd, stat *out) nogil
    int ftruncate(int fd, off_t length) nogil
    int fallocate(int fd, int mode, off_t offset, off_t length) nogil
    off_t lseek(int fd, off_t offset, int whence) nogil
    ssize_t read(int fd, void *buffer, size_t count) nogil
    ssize_t write(int fd, const void *buffer, size_t count) nogil
    ssize_t pread(int fd, void *buffer, size_t count, off_t offset) nogil
    ssize_t pwrite(int fd, const void *buffer, size_t count, off_t offset) nogil
    ssize_t splice(
        int fd_in, off_t *off_in, int fd_out, off_t *off_out, size_t length, unsigned int flags
    ) nogil
    ssize_t copy_file_range(
        int fd_in, off_t *off_in, int fd_out, off_t *off_out, size_t length, unsigned int flags
    ) nogil
    int poll(pollfd *fds, unsigned long count, int timeout_ms) nogil
    int getpid() nogil
