"""Connect to a port of a guest, and the pump for what flows then (see _pump.pyx).

Two ways: the hybrid socket of a VMM or of vhost-device-vsock (a unix socket where `CONNECT port`
is answered by `OK number`), and AF_VSOCK. Both wait with the GIL released, in a thread of their
caller's; an eventfd can end the wait.
"""

import os

from libc.errno cimport (
    EAGAIN,
    ECONNREFUSED,
    ECONNRESET,
    EINTR,
    ENAMETOOLONG,
    ENOENT,
    EPIPE,
)
from libc.errno cimport errno as c_errno
from libc.stdint cimport int64_t
from libc.stdio cimport snprintf
from libc.string cimport memcmp

from hypercore._linux cimport (
    ECANCELED,
    EPROTO,
    ETIMEDOUT,
    POLLIN,
    POLLOUT,
    close,
    hc_now_ns,
    poll,
    pollfd,
    read,
)

from hypercore._pump import Event, Pump

__all__ = ["Event", "Pump", "connect_hybrid", "connect_kernel"]

cdef extern from *:
    """
    #include <string.h>
    #include <sys/socket.h>
    #include <sys/un.h>
    #include <linux/vm_sockets.h>

    /* A connected or connecting socket, or -errno. */
    static int hc_connect(int family, const struct sockaddr *address, socklen_t size,
                          int *connecting) {
        int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        *connecting = 0;
        if (fd < 0)
            return -errno;
        if (connect(fd, address, size) == 0)
            return fd;
        if (errno == EINPROGRESS) {
            *connecting = 1;
            return fd;
        }
        int saved = errno;
        close(fd);
        return -saved;
    }
    static int hc_connect_unix(const char *path, size_t size, int *connecting) {
        struct sockaddr_un address;
        memset(&address, 0, sizeof address);
        address.sun_family = AF_UNIX;
        memcpy(address.sun_path, path, size);
        return hc_connect(AF_UNIX, (struct sockaddr *)&address, sizeof address, connecting);
    }
    static int hc_connect_vsock(unsigned cid, unsigned port, int *connecting) {
        struct sockaddr_vm address;
        memset(&address, 0, sizeof address);
        address.svm_family = AF_VSOCK;
        address.svm_cid = cid;
        address.svm_port = port;
        return hc_connect(AF_VSOCK, (struct sockaddr *)&address, sizeof address, connecting);
    }
    static int hc_socket_error(int fd) {
        int error = 0;
        socklen_t size = sizeof error;
        if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size))
            return errno;
        return error;
    }
    static ssize_t hc_send(int fd, const void *data, size_t size) {
        return send(fd, data, size, MSG_NOSIGNAL);
    }
    #define HC_PATH_MAX (sizeof ((struct sockaddr_un *)0)->sun_path - 1)
    """
    int hc_connect_unix(const char *path, size_t size, int *connecting) nogil
    int hc_connect_vsock(unsigned cid, unsigned port, int *connecting) nogil
    int hc_socket_error(int fd) nogil
    ssize_t hc_send(int fd, const void *data, size_t size) nogil
    size_t HC_PATH_MAX

cdef enum:
    # between two tries: 1, 2, 4, 8, 16, 16 … ms
    MAX_PAUSE_MS = 16
    # "OK " and a 32 bit number
    MAX_REPLY = 32


cdef struct Wait:
    # one deadline for everything a connect does
    int64_t deadline_ns
    int cancel_fd
    int last_error  # of the last try: says why when time is up


cdef int _await(Wait *wait, int fd, short events, int64_t limit_ns) noexcept nogil:
    """1 when fd is ready, 0 when only `limit_ns` is over; -ETIMEDOUT, -ECANCELED, -errno."""
    cdef pollfd polled[2]
    cdef int64_t now = hc_now_ns()
    cdef int64_t left = wait.deadline_ns - now
    cdef int rc
    if left <= 0:
        return -ETIMEDOUT
    if limit_ns >= 0 and limit_ns < left:
        left = limit_ns
    polled[0].fd = fd
    polled[0].events = events
    polled[0].revents = 0
    polled[1].fd = wait.cancel_fd
    polled[1].events = POLLIN
    polled[1].revents = 0
    rc = poll(polled, 2, <int>((left + 999999) // 1000000))
    if rc < 0:
        return 0 if c_errno == EINTR else -c_errno
    if polled[1].revents:
        return -ECANCELED
    if rc == 0 and hc_now_ns() >= wait.deadline_ns:
        return -ETIMEDOUT
    return 1 if polled[0].revents else 0


cdef int _await_ready(Wait *wait, int fd, short events) noexcept nogil:
    """0 when fd is ready, else -errno."""
    cdef int rc = 0
    while rc == 0:
        rc = _await(wait, fd, events, -1)
    return rc if rc < 0 else 0


cdef int _finish(Wait *wait, int fd, bint connecting) noexcept nogil:
    cdef int rc
    if not connecting:
        return 0
    rc = _await_ready(wait, fd, POLLOUT)
    return rc if rc < 0 else -hc_socket_error(fd)


cdef int _handshake(Wait *wait, int fd, unsigned port) noexcept nogil:
    """0, or -errno; -ECONNRESET when the other side gave up, as for a port without a listener."""
    cdef char text[MAX_REPLY]
    cdef int size = snprintf(text, sizeof(text), "CONNECT %u\n", port)
    cdef int done = 0
    cdef ssize_t got
    cdef int rc
    while done < size:
        got = hc_send(fd, text + done, <size_t>(size - done))
        if got >= 0:
            done += <int>got
        elif c_errno == EAGAIN:
            rc = _await_ready(wait, fd, POLLOUT)
            if rc < 0:
                return rc
        elif c_errno != EINTR:
            return -c_errno
    # byte by byte: what follows the line belongs to the stream
    done = 0
    while done < MAX_REPLY:
        got = read(fd, text + done, 1)
        if got == 0:
            return -ECONNRESET
        if got < 0:
            if c_errno == EAGAIN:
                rc = _await_ready(wait, fd, POLLIN)
                if rc < 0:
                    return rc
            elif c_errno != EINTR:
                return -c_errno
            continue
        if text[done] == c"\n":
            return 0 if done >= 4 and memcmp(text, <const char *>"OK ", 3) == 0 else -EPROTO
        done += 1
    return -EPROTO


cdef inline bint _is_not_yet(int error) noexcept nogil:
    """Of a guest or VMM that is still coming up."""
    return (
        error == ECONNREFUSED
        or error == ECONNRESET
        or error == EPIPE
        or error == ENOENT
        or error == EAGAIN
    )


cdef int _dial(
    Wait *wait, const char *path, size_t path_size, unsigned cid, unsigned port
) noexcept nogil:
    """The connected fd or -errno. `path` NULL: AF_VSOCK."""
    cdef int pause_ms = 1
    cdef int connecting = 0
    cdef int fd
    cdef int rc
    while True:
        if path != NULL:
            fd = hc_connect_unix(path, path_size, &connecting)
        else:
            fd = hc_connect_vsock(cid, port, &connecting)
        rc = fd
        if fd >= 0:
            rc = _finish(wait, fd, connecting)
            if rc == 0 and path != NULL:
                rc = _handshake(wait, fd, port)
            if rc == 0:
                return fd
            close(fd)
        if not _is_not_yet(-rc):
            return rc
        wait.last_error = -rc
        rc = _await(wait, -1, 0, <int64_t>pause_ms * 1000000)
        if rc < 0:
            return rc
        if pause_ms < MAX_PAUSE_MS:
            pause_ms *= 2


cdef int _raise(int error, int last_error, str where) except -1:
    if error == ETIMEDOUT and last_error:
        raise TimeoutError(error, f"timed out; last: {os.strerror(last_error)}", where)
    raise OSError(error, os.strerror(error), where)


def connect_hybrid(uds_path, unsigned int port, double timeout_s, *, int cancel_fd=-1):
    """Connect to a guest's port through a hybrid socket; return a non-blocking CLOEXEC fd.

    While the socket is not there or the guest refuses the port it tries again, until the one
    deadline for everything. Do not dial a vhost-device-vsock whose guest is still booting.

    Args:
        cancel_fd: once it is readable the wait ends with ECANCELED.

    Raises:
        TimeoutError: with the last refusal in its text.
        OSError: EPROTO if what answers does not speak the protocol, or the errno of a failure
            that waiting does not cure.
    """
    cdef Wait wait
    cdef int fd
    path = os.fsencode(uds_path)
    if len(path) > <Py_ssize_t>HC_PATH_MAX or b"\0" in path:
        _raise(ENAMETOOLONG, 0, f"{uds_path!s} port {port}")
    cdef const char *text = path
    cdef size_t size = len(path)
    wait.deadline_ns = hc_now_ns() + <int64_t>(timeout_s * 1e9)
    wait.cancel_fd = cancel_fd
    wait.last_error = 0
    with nogil:
        fd = _dial(&wait, text, size, 0, port)
    if fd < 0:
        _raise(-fd, wait.last_error, f"{uds_path!s} port {port}")
    return fd


def connect_kernel(unsigned int cid, unsigned int port, double timeout_s, *, int cancel_fd=-1):
    """Connect to `port` of the guest `cid` by AF_VSOCK. As connect_hybrid otherwise."""
    cdef Wait wait
    cdef int fd
    wait.deadline_ns = hc_now_ns() + <int64_t>(timeout_s * 1e9)
    wait.cancel_fd = cancel_fd
    wait.last_error = 0
    with nogil:
        fd = _dial(&wait, NULL, 0, cid, port)
    if fd < 0:
        _raise(-fd, wait.last_error, f"vsock CID {cid} port {port}")
    return fd
