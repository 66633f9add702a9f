"""Tell when files appear in a directory: an inotify descriptor, no more."""

from libc.errno cimport errno

from os import fsencode, strerror

cdef extern from "<sys/inotify.h>" nogil:
    int IN_CLOEXEC
    int IN_NONBLOCK
    unsigned int IN_CREATE
    unsigned int IN_MOVED_TO
    unsigned int IN_ONLYDIR
    int inotify_init1(int flags)
    int inotify_add_watch(int fd, const char *path, unsigned int mask)

cdef extern from "<unistd.h>" nogil:
    int close(int fd)


def watch_directory(path):
    """A non-blocking CLOEXEC descriptor, readable once an entry was made in `path` (bytes or str).

    The caller owns it. Its events carry no more than "look again".
    """
    cdef bytes raw = fsencode(path)
    cdef const char *name = raw
    cdef int error = 0
    cdef int fd
    cdef int watch
    with nogil:
        fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK)
        if fd < 0:
            error = errno
        else:
            watch = inotify_add_watch(fd, name, IN_CREATE | IN_MOVED_TO | IN_ONLYDIR)
            if watch < 0:
                error = errno
                close(fd)
    if error:
        raise OSError(error, strerror(error), raw)
    return fd
