"""The pump's thread: see _pump.pyx, which is its only user. Nothing here touches Python.

Every function but the exported ones runs in that thread. A function on a node may kill it: after
_serve_client, _feed and _record the flag DEAD tells. Dead nodes stay allocated until the end of
the batch of epoll events that may still name them.
"""

from libc.errno cimport (
    EAGAIN,
    EBADF,
    ECONNRESET,
    EDQUOT,
    EINTR,
    EINVAL,
    EIO,
    ENOENT,
    ENOMEM,
    ENOSPC,
    ENOTCONN,
    EPERM,
    EPIPE,
)
from libc.errno cimport errno as c_errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy

from hypercore._linux cimport (
    EOVERFLOW,
    F_GETFL,
    F_SETPIPE_SZ,
    O_ACCMODE,
    O_RDWR,
    S_ISREG,
    SPLICE_F_MOVE,
    SPLICE_F_NONBLOCK,
    close,
    fcntl,
    fstat,
    hc_now_ns,
    off_t,
    pread,
    pwrite,
    read,
    splice,
    stat,
    write,
)

cdef extern from *:
    """
    #include <sys/epoll.h>
    #include <sys/eventfd.h>

    /* No signal is for this thread: Python's handlers run in the main one, and no SIGPIPE. */
    static int hc_thread_start(pthread_t *thread, void *(*run)(void *), void *argument) {
        sigset_t all, before;
        int rc;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        rc = pthread_create(thread, NULL, run, argument);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        return rc;
    }
    static int hc_watch(int epoll, int op, int fd, uint32_t events, uint64_t data) {
        struct epoll_event event;
        event.events = events;
        event.data.u64 = data;
        return epoll_ctl(epoll, op, fd, &event) ? -errno : 0;
    }
    """
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int hc_thread_start(pthread_t *thread, void *(*run)(void *) noexcept nogil, void *arg) nogil
    int hc_watch(int epoll, int op, int fd, uint32_t events, uint64_t data) nogil
    int epoll_create1(int flags) nogil
    int epoll_wait(int epoll, epoll_event *events, int count, int timeout_ms) nogil
    int eventfd(unsigned int value, int flags) nogil
    int EPOLL_CLOEXEC
    int EFD_CLOEXEC
    int EFD_NONBLOCK
    int EPOLL_CTL_ADD
    int EPOLL_CTL_MOD
    int EPOLL_CTL_DEL
    uint32_t EPOLLIN
    uint32_t EPOLLOUT
    uint32_t EPOLLERR
    uint32_t EPOLLHUP
    uint32_t EPOLLET
    uint32_t EPOLLONESHOT


cdef int loop_init(Core *core) noexcept nogil:
    """0 or -errno; loop_clear() frees what was got in both cases."""
    cdef int rc
    core.epoll = core.wake = core.notify = -1
    pthread_mutex_init(&core.lock, NULL)
    core.buffer = <uint8_t *>malloc(LOG_READ)
    core.spare = <uint8_t *>malloc(SMALL_READ)
    if core.buffer == NULL or core.spare == NULL:
        return -ENOMEM
    core.epoll = epoll_create1(EPOLL_CLOEXEC)
    if core.epoll < 0:
        return -c_errno
    core.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    if core.wake < 0:
        return -c_errno
    core.notify = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    if core.notify < 0:
        return -c_errno
    rc = hc_watch(core.epoll, EPOLL_CTL_ADD, core.wake, EPOLLIN, 0)
    return rc


cdef int loop_start(Core *core) noexcept nogil:
    """0 or an errno."""
    return hc_thread_start(&core.thread, _run, core)


cdef void *_run(void *core) noexcept nogil:
    _loop(<Core *>core)
    return NULL


cdef void loop_clear(Core *core) noexcept nogil:
    """Close and free everything; the thread has ended or never was."""
    cdef Command *command = core.commands
    cdef Command *following
    cdef uint32_t slot
    while command != NULL:
        following = command.next
        segment_release(command.segment)
        free(command)
        command = following
    core.commands = NULL
    _free_list(core.dead)
    _free_dead_of(core.ready)
    _free_dead_of(core.stalled)
    core.dead = core.ready = core.stalled = NULL
    for slot in range(core.table_size):
        if core.table[slot] != NULL:
            _node_free(core.table[slot])
    free(core.table)
    free(core.free_slots)
    free(core.notices)
    free(core.buffer)
    free(core.spare)
    core.table = NULL
    core.free_slots = NULL
    core.notices = NULL
    core.buffer = core.spare = NULL
    core.table_size = core.free_count = core.node_count = 0
    core.notice_count = core.notice_room = 0
    _close_fd(&core.epoll)
    _close_fd(&core.wake)
    _close_fd(&core.notify)


cdef void _free_list(Node *node) noexcept nogil:
    cdef Node *following
    while node != NULL:
        following = node.next_in_list
        _node_free(node)
        node = following


cdef void _free_dead_of(Node *node) noexcept nogil:
    """The dead of a list whose living are in the table as well."""
    cdef Node *following
    while node != NULL:
        following = node.next_in_list
        if node.flags & DEAD:
            _node_free(node)
        node = following


cdef int segment_open(int fd, bint live, Segment **out) noexcept nogil:
    """A segment that owns the file `fd`, if `live` open for reading and writing; 0 or -errno."""
    cdef stat info
    cdef int mode = fcntl(fd, F_GETFL)
    if mode < 0:
        return -c_errno
    if fstat(fd, &info) < 0:
        return -c_errno
    if not S_ISREG(info.st_mode):
        return -EINVAL
    if live and mode & O_ACCMODE != O_RDWR:
        return -EBADF
    out[0] = <Segment *>calloc(1, sizeof(Segment))
    if out[0] == NULL:
        return -ENOMEM
    out[0].fd = fd
    out[0].refs = 1
    out[0].size = info.st_size
    return 0


cdef void segment_release(Segment *segment) noexcept nogil:
    cdef Segment *following
    while segment != NULL:
        segment.refs -= 1
        if segment.refs:
            return
        following = segment.next
        close(segment.fd)
        free(segment)
        segment = following


cdef void _close_fd(int *fd) noexcept nogil:
    if fd[0] >= 0:
        close(fd[0])
        fd[0] = -1


cdef void _node_free(Node *node) noexcept nogil:
    _close_fd(&node.fd)
    _close_fd(&node.dst_fd)
    segment_release(node.segment)
    free(node.pending)
    free(node)


cdef inline bint _is_disk_full(int error) noexcept nogil:
    return error == ENOSPC or error == EDQUOT


cdef void _loop(Core *core) noexcept nogil:
    cdef epoll_event events[BATCH]
    cdef int count
    cdef int i
    cdef int timeout
    cdef uint64_t data
    cdef Node *node
    while True:
        timeout = -1
        if core.stalled != NULL:
            timeout = RETRY_MS
        if core.ready != NULL:
            timeout = 0
        count = epoll_wait(core.epoll, events, BATCH, timeout)
        for i in range(count):
            data = events[i].data.u64
            if data == 0:
                if not _run_commands(core):
                    return
                continue
            node = <Node *>(data & ~<uint64_t>1)
            if node.flags & DEAD:
                continue
            if data & 1:
                _dst_ready(core, node, events[i].events)
            else:
                _src_ready(core, node)
        if core.ready != NULL:
            _serve_ready(core)
        if core.stalled != NULL and (core.dead != NULL or hc_now_ns() >= core.retry_at):
            _retry_stalled(core)
        if core.dead != NULL:
            _free_dead(core)


cdef void _src_ready(Core *core, Node *node) noexcept nogil:
    if node.flags & (BLOCKED | STALLED | ENDED):
        return  # an event from before
    if node.kind == SOURCE:
        _feed(core, node)
    elif node.has_log or node.dst_fd < 0:
        _record(core, node)
    else:
        _forward(core, node)


cdef void _dst_ready(Core *core, Node *node, uint32_t events) noexcept nogil:
    if node.kind == CLIENT:
        if node.flags & BEHIND:
            _serve_client(core, node)
        elif events & (EPOLLERR | EPOLLHUP):
            _drop_client(core, node, EPIPE)
    elif node.flags & BLOCKED:
        _unblock(core, node)

# nodes: watch, block, end


cdef int _watch_src(Core *core, Node *node) noexcept nogil:
    """0, or -errno after which the stream cannot work."""
    cdef int rc = hc_watch(core.epoll, EPOLL_CTL_ADD, node.fd, EPOLLIN, <uint64_t>node)
    if rc == -EPERM:  # a regular file or /dev/null: always readable
        node.flags |= UNPOLLABLE
        _make_ready(core, node)
        return 0
    return rc


cdef void _pause_src(Core *core, Node *node) noexcept nogil:
    # Edges only: a level-triggered hang-up cannot be switched off otherwise.
    if not node.flags & (UNPOLLABLE | ENDED):
        hc_watch(core.epoll, EPOLL_CTL_MOD, node.fd, EPOLLET, <uint64_t>node)


cdef void _resume_src(Core *core, Node *node) noexcept nogil:
    cdef int rc
    if node.flags & ENDED:
        return
    if node.flags & UNPOLLABLE:
        _make_ready(core, node)
        return
    rc = hc_watch(core.epoll, EPOLL_CTL_MOD, node.fd, EPOLLIN, <uint64_t>node)
    if rc < 0:
        _fail_src(core, node, -rc)


cdef void _fail_src(Core *core, Node *node, int error) noexcept nogil:
    """The source cannot be watched: its stream ends here."""
    _report(core, node.id, EV_ERROR, error)
    if node.kind == SOURCE:
        _end_source(core, node)
    else:
        _end_output(core, node)


cdef void _watch_dst(Core *core, Node *node, int fd) noexcept nogil:
    cdef int op = EPOLL_CTL_MOD if node.flags & DST_WATCHED else EPOLL_CTL_ADD
    cdef int rc = hc_watch(
        core.epoll, op, fd, EPOLLOUT | EPOLLONESHOT, <uint64_t>node | 1
    )
    if rc == 0:
        node.flags |= DST_WATCHED
    elif not node.flags & STALLED:
        # cannot be waited for: ask again on the timer
        _stall(core, node)


cdef void _block(Core *core, Node *node) noexcept nogil:
    """The destination of an output or input is full."""
    node.flags |= BLOCKED
    hc_add(&node.stalls, 1)
    hc_add(&core.stalls, 1)
    if node.kind == OUTPUT:
        _pause_src(core, node)
        _watch_dst(core, node, node.dst_fd)
    else:
        _pause_sources(core, node)
        _watch_dst(core, node, node.fd)


cdef void _pause_sources(Core *core, Node *node) noexcept nogil:
    cdef Node *source = node.first
    while source != NULL:
        _pause_src(core, source)
        source = source.next


cdef void _unblock(Core *core, Node *node) noexcept nogil:
    cdef Node *source
    cdef Node *following
    if node.pending_size and not _write_pending(core, node):
        return
    node.flags &= ~BLOCKED
    if node.kind == OUTPUT:
        _resume_src(core, node)
        return
    source = node.first
    while source != NULL:
        following = source.next
        _resume_src(core, source)
        source = following


cdef bint _write_pending(Core *core, Node *node) noexcept nogil:
    """Deliver what a full destination left over; False while it is still full."""
    cdef int fd = node.fd if node.kind == INPUT else node.dst_fd
    cdef ssize_t put = write(fd, node.pending + node.pending_at, node.pending_size)
    cdef int error = c_errno
    _count(core, node)
    if put < 0:
        if error == EAGAIN or error == EINTR:
            _watch_dst(core, node, fd)
            return False
        if _is_disk_full(error):
            _report_disk(core, node, error)
            _stall(core, node)
            return False
        _lose_dst(core, node, error)
        return True
    node.flags &= ~REPORTED
    if node.kind == INPUT:
        _count_bytes(core, node, put)
    node.pending_at += <size_t>put
    node.pending_size -= <size_t>put
    if node.pending_size:
        _watch_dst(core, node, fd)
        return False
    free(node.pending)
    node.pending = NULL
    _check_drained(core, node)
    return True


cdef bint _keep(Core *core, Node *node, const uint8_t *rest, size_t size) noexcept nogil:
    """Keep what was read and could not be delivered; False ends the stream: no memory."""
    node.pending = <uint8_t *>malloc(size)
    if node.pending == NULL:
        _report(core, node.id, EV_ERROR, ENOMEM)
        return False
    memcpy(node.pending, rest, size)
    node.pending_at = 0
    node.pending_size = size
    return True


cdef void _lose_dst(Core *core, Node *node, int error) noexcept nogil:
    """Nobody takes this stream's bytes any more: from here on they are dropped."""
    free(node.pending)
    node.pending = NULL
    node.pending_size = 0
    node.flags |= GONE
    node.flags &= ~(BULK | DST_WATCHED)
    _unwatch(core, &node.dst_fd if node.kind == OUTPUT else &node.fd)
    _return_pipe(core, node)
    _report(core, node.id, EV_DST_GONE, error)
    _check_drained(core, node)


cdef void _stall(Core *core, Node *node) noexcept nogil:
    """Try again on the timer."""
    if node.flags & STALLED:
        return
    node.flags |= STALLED
    hc_add(&node.stalls, 1)
    hc_add(&core.stalls, 1)
    if node.kind == OUTPUT:
        _pause_src(core, node)
    if core.stalled == NULL:
        core.retry_at = hc_now_ns() + RETRY_MS * 1000000
    node.next_in_list = core.stalled
    core.stalled = node


cdef void _retry_stalled(Core *core) noexcept nogil:
    cdef Node *node = core.stalled
    cdef Node *following
    cdef bint due = hc_now_ns() >= core.retry_at
    core.stalled = NULL
    while node != NULL:
        following = node.next_in_list
        node.next_in_list = NULL
        if node.flags & DEAD:
            _bury(core, node)
        elif not due:
            node.next_in_list = core.stalled
            core.stalled = node
        else:
            node.flags &= ~STALLED
            _retry(core, node)
        node = following
    if due:
        core.retry_at = hc_now_ns() + RETRY_MS * 1000000


cdef void _retry(Core *core, Node *node) noexcept nogil:
    if not node.has_log:
        _unblock(core, node)
    elif _append_pending(core, node):
        _resume_src(core, node)


cdef void _make_ready(Core *core, Node *node) noexcept nogil:
    if not node.flags & READY:
        node.flags |= READY
        node.next_in_list = core.ready
        core.ready = node


cdef void _serve_ready(Core *core) noexcept nogil:
    cdef Node *node = core.ready
    cdef Node *following
    core.ready = NULL
    while node != NULL:
        following = node.next_in_list
        node.next_in_list = NULL
        node.flags &= ~READY
        if node.flags & DEAD:
            _bury(core, node)
        elif node.kind == CLIENT:
            _serve_client(core, node)
        elif node.kind == SOURCE:
            # while it is blocked the input's drain makes it ready again
            if not node.owner.flags & BLOCKED:
                _feed(core, node)
                if not node.flags & DEAD and not node.owner.flags & BLOCKED:
                    _make_ready(core, node)
        elif not node.flags & (BLOCKED | STALLED | ENDED):
            _src_ready(core, node)
            if not node.flags & (BLOCKED | STALLED | ENDED):
                _make_ready(core, node)
        node = following


# ---- counts, events, the end of a node ----


cdef inline void _count(Core *core, Node *node) noexcept nogil:
    """One system call on behalf of the node."""
    hc_add(&node.syscalls, 1)
    hc_add(&core.syscalls, 1)


cdef inline void _count_bytes(Core *core, Node *node, ssize_t size) noexcept nogil:
    hc_add(&node.bytes, <uint64_t>size)
    hc_add(&core.bytes, <uint64_t>size)


cdef void _report(Core *core, uint64_t node_id, int kind, int64_t value) noexcept nogil:
    cdef uint64_t one = 1
    cdef void *grown
    cdef size_t room
    pthread_mutex_lock(&core.lock)
    if core.notice_count == core.notice_room:
        room = core.notice_room * 2 if core.notice_room else 64
        grown = realloc(core.notices, room * sizeof(Notice))
        if grown == NULL:
            core.lost += 1
            pthread_mutex_unlock(&core.lock)
            return
        core.notices = <Notice *>grown
        core.notice_room = room
    core.notices[core.notice_count].id = node_id
    core.notices[core.notice_count].kind = kind
    core.notices[core.notice_count].value = value
    core.notice_count += 1
    if core.notice_count == 1:
        write(core.notify, &one, 8)
    pthread_mutex_unlock(&core.lock)


cdef void _report_disk(Core *core, Node *node, int error) noexcept nogil:
    if not node.flags & REPORTED:
        node.flags |= REPORTED
        _report(core, node.id, EV_LOG_ERROR, error)


cdef inline void _check_drained(Core *core, Node *node) noexcept nogil:
    cdef int64_t delivered
    if node.expected < 0:
        return
    delivered = <int64_t>node.bytes - <int64_t>node.pending_size
    if delivered >= node.expected:
        node.expected = -1
        _report(core, node.id, EV_DRAINED, delivered)


cdef void _unwatch(Core *core, int *fd) noexcept nogil:
    """Close an fd. Removed from epoll first: others may hold the same open file."""
    if fd[0] >= 0:
        hc_watch(core.epoll, EPOLL_CTL_DEL, fd[0], 0, 0)
        _close_fd(fd)


cdef bint _enlarge(Core *core, Node *node, int fd) noexcept nogil:
    """Make the pipe of a bulk stream bigger, once and while the budget lasts."""
    cdef int size
    if node.flags & ENLARGED:
        return False
    node.flags |= ENLARGED
    if core.pipe_used + BIG_PIPE <= core.pipe_budget // 2:
        size = BIG_PIPE
    elif core.pipe_used + MEDIUM_PIPE <= core.pipe_budget:
        size = MEDIUM_PIPE
    else:
        return False
    size = fcntl(fd, F_SETPIPE_SZ, size)
    _count(core, node)
    if size < 0:
        return False  # no pipe, or the user's limit
    node.pipe_bytes = <uint32_t>size
    core.pipe_used += node.pipe_bytes
    return True


cdef void _return_pipe(Core *core, Node *node) noexcept nogil:
    core.pipe_used -= node.pipe_bytes
    node.pipe_bytes = 0


cdef void _link(Node *node, Node *owner) noexcept nogil:
    node.owner = owner
    node.previous = NULL
    node.next = owner.first
    if owner.first != NULL:
        owner.first.previous = node
    owner.first = node


cdef void _unlink(Node *node) noexcept nogil:
    if node.owner == NULL:
        return
    if node.previous != NULL:
        node.previous.next = node.next
    else:
        node.owner.first = node.next
    if node.next != NULL:
        node.next.previous = node.previous
    node.owner = node.previous = node.next = NULL


cdef void _kill(Core *core, Node *node) noexcept nogil:
    """The node is no more: out of the table, fds closed, memory freed after this batch.

    Its last event is sent after this, so that who gets it finds nothing left.
    """
    cdef uint32_t slot = node.id & SLOT_MASK
    pthread_mutex_lock(&core.lock)
    core.table[slot] = NULL
    core.free_slots[core.free_count] = slot
    core.free_count += 1
    core.node_count -= 1
    pthread_mutex_unlock(&core.lock)
    _unlink(node)
    _unwatch(core, &node.fd)
    _unwatch(core, &node.dst_fd)
    _return_pipe(core, node)
    node.flags |= DEAD
    # a list it is in buries it when it comes by
    if not node.flags & (READY | STALLED):
        _bury(core, node)


cdef void _bury(Core *core, Node *node) noexcept nogil:
    node.next_in_list = core.dead
    core.dead = node


cdef void _free_dead(Core *core) noexcept nogil:
    _free_list(core.dead)
    core.dead = NULL


# ---- outputs: the guest's socket to a log or to dst ----


cdef void _end_output(Core *core, Node *node) noexcept nogil:
    """The guest will send no more."""
    cdef Node *client = node.first
    cdef Node *following
    node.flags |= ENDED
    _unwatch(core, &node.fd)
    _unwatch(core, &node.dst_fd)
    _return_pipe(core, node)
    _report(core, node.id, EV_EOF, <int64_t>node.bytes)
    while client != NULL:
        following = client.next
        if not client.flags & BEHIND:
            _finish_client(core, client)
        client = following


cdef ssize_t _read_guest(Core *core, Node *node, size_t size) noexcept nogil:
    """Bytes now in the buffer; 0 if there are none now or the stream has ended."""
    cdef ssize_t got = read(node.fd, core.buffer, size)
    cdef int error = c_errno
    _count(core, node)
    if got > 0:
        _count_bytes(core, node, got)
        return got
    if got == 0 or not (error == EAGAIN or error == EINTR):
        _end_output(core, node)
    return 0


cdef void _record(Core *core, Node *node) noexcept nogil:
    """Guest to log, or to nowhere."""
    cdef int _round
    cdef ssize_t got
    for _round in range(ROUNDS):
        got = _read_guest(core, node, LOG_READ)
        if got == 0:
            return
        if node.has_log and not _append(core, node, core.buffer, <size_t>got):
            return
        _check_drained(core, node)
        if got < SMALL_READ:
            return


cdef ssize_t _write_log(
    Core *core, Node *node, const uint8_t *data, size_t size, int *error
) noexcept nogil:
    """Append to the live segment, then hand it to the clients; the number of bytes written."""
    cdef Segment *segment = node.segment
    cdef size_t done = 0
    cdef ssize_t put
    error[0] = 0
    while done < size:
        put = pwrite(segment.fd, data + done, size - done, segment.size)
        error[0] = c_errno
        _count(core, node)
        if put <= 0:
            if put < 0 and error[0] == EINTR:
                continue
            break
        done += <size_t>put
        segment.size += put
    if done:
        _serve_fresh(core, node, data, done)
    if node.log_limit and segment.size >= node.log_limit and not node.flags & FULL:
        node.flags |= FULL
        _report(core, node.id, EV_LOG_FULL, segment.size)
    return <ssize_t>done


cdef bint _append(Core *core, Node *node, const uint8_t *data, size_t size) noexcept nogil:
    """False if the log did not take all: the stream waits (or has ended: no memory)."""
    cdef int error
    cdef size_t done = <size_t>_write_log(core, node, data, size, &error)
    if done == size:
        return True
    if not _keep(core, node, data + done, size - done):
        _end_output(core, node)
        return False
    _report_disk(core, node, error)
    _stall(core, node)
    return False


cdef bint _append_pending(Core *core, Node *node) noexcept nogil:
    cdef int error
    cdef ssize_t done = _write_log(
        core, node, node.pending + node.pending_at, node.pending_size, &error
    )
    node.pending_at += <size_t>done
    node.pending_size -= <size_t>done
    if node.pending_size:
        _report_disk(core, node, error)
        _stall(core, node)
        return False
    node.flags &= ~REPORTED
    free(node.pending)
    node.pending = NULL
    _check_drained(core, node)
    return True


cdef void _forward(Core *core, Node *node) noexcept nogil:
    """Guest to dst."""
    cdef int round
    cdef ssize_t got
    cdef int error
    for round in range(ROUNDS):
        if node.flags & GONE:
            _record(core, node)
            return
        if not node.flags & BULK:
            got = _read_guest(core, node, SMALL_READ)
            if got == 0 or not _write_dst(core, node, core.buffer, <size_t>got):
                return
            if got >= BULK_FROM and not node.flags & NO_SPLICE:
                node.flags |= BULK
                node.small = 0
            if got < SMALL_READ:
                return
            continue
        got = splice(
            node.fd, NULL, node.dst_fd, NULL, SPLICE_MAX, SPLICE_F_MOVE | SPLICE_F_NONBLOCK
        )
        error = c_errno
        _count(core, node)
        if got > 0:
            _count_bytes(core, node, got)
            _check_drained(core, node)
            if _is_last_of_bulk(node, got):
                return
        elif got == 0:
            _end_output(core, node)
            return
        elif error == EAGAIN:
            # The guest's socket was readable, so dst is full; later rounds cannot tell.
            if round == 0 and not _enlarge(core, node, node.dst_fd):
                _block(core, node)
                return
            if round:
                return
        elif error == EPIPE:
            _lose_dst(core, node, error)
        elif error == EINVAL:
            node.flags |= NO_SPLICE
            node.flags &= ~BULK
        else:
            if error != EINTR:
                _end_output(core, node)
            return


cdef inline bint _is_last_of_bulk(Node *node, ssize_t got) noexcept nogil:
    """After a splice of `got` bytes: True if there is likely no more now."""
    if got >= SMALL_SPLICE:
        node.small = 0
        return got < SMALL_READ
    node.small += 1
    if node.small >= 8:
        node.small = 0
        node.flags &= ~BULK
    return True


cdef bint _write_dst(Core *core, Node *node, const uint8_t *data, size_t size) noexcept nogil:
    """To an output's dst or an input's guest socket; False if it took not all or is gone."""
    cdef int fd = node.fd if node.kind == INPUT else node.dst_fd
    cdef ssize_t put = write(fd, data, size)
    cdef int error = c_errno
    _count(core, node)
    if put < 0:
        put = 0
        if not (error == EAGAIN or error == EINTR or _is_disk_full(error)):
            _lose_dst(core, node, error)
            return False
    else:
        error = 0
    if node.kind == INPUT:
        _count_bytes(core, node, put)
    if <size_t>put == size:
        _check_drained(core, node)
        return True
    if not _keep(core, node, data + put, size - <size_t>put):
        if node.kind == OUTPUT:
            _end_output(core, node)
        else:
            _lose_dst(core, node, ENOMEM)
        return False
    _check_drained(core, node)
    if _is_disk_full(error):
        _report_disk(core, node, error)
        node.flags |= BLOCKED
        if node.kind == INPUT:
            _pause_sources(core, node)
        _stall(core, node)
    else:
        _block(core, node)
    return False


# ---- clients: a log to a pipe ----


cdef void _serve_fresh(
    Core *core, Node *node, const uint8_t *data, size_t size
) noexcept nogil:
    """What was just appended, to the clients that have all before it."""
    cdef Node *client = node.first
    cdef Node *following
    cdef ssize_t put
    cdef int error
    while client != NULL:
        following = client.next
        if client.flags & BEHIND:
            pass
        elif size >= BULK_FROM:
            client.flags |= BEHIND
            _serve_client(core, client)
        else:
            put = write(client.fd, data, size)
            error = c_errno
            _count(core, client)
            if put < 0 and not (error == EAGAIN or error == EINTR):
                _drop_client(core, client, error)
            else:
                if put > 0:
                    client.position += put
                    _count_bytes(core, client, put)
                if put < <ssize_t>size:
                    client.flags |= BEHIND
                    _await_client(core, client)
        client = following


cdef void _await_client(Core *core, Node *client) noexcept nogil:
    """Go on with this client when its pipe has room."""
    cdef int rc
    if client.flags & UNPOLLABLE:
        _make_ready(core, client)
    elif not client.flags & BLOCKED:
        client.flags |= BLOCKED
        hc_add(&client.stalls, 1)
        hc_add(&core.stalls, 1)
        rc = hc_watch(core.epoll, EPOLL_CTL_MOD, client.fd, EPOLLOUT, <uint64_t>client | 1)
        if rc < 0:
            _drop_client(core, client, -rc)


cdef void _serve_client(Core *core, Node *client) noexcept nogil:
    """Send a client that is BEHIND what the log has for it, as far as its pipe takes it."""
    cdef int round
    cdef int64_t left
    cdef Segment *segment
    cdef ssize_t got
    cdef int error
    for round in range(ROUNDS):
        segment = client.segment
        left = segment.size - client.position
        if left <= 0:
            if segment.next != NULL:
                _next_segment(client)
                continue
            if client.owner == NULL or client.owner.flags & ENDED:
                _finish_client(core, client)
                return
            client.flags &= ~BEHIND
            if client.flags & BLOCKED:
                client.flags &= ~BLOCKED
                # what remains watched is the reader's going away
                hc_watch(core.epoll, EPOLL_CTL_MOD, client.fd, 0, <uint64_t>client | 1)
            return
        got = _copy_log(core, client, left, &error)
        _count(core, client)
        if got > 0:
            client.position += got
            _count_bytes(core, client, got)
        elif got == 0:
            # the file is shorter than what we wrote: somebody truncated it
            _drop_client(core, client, EIO)
            return
        elif error == EAGAIN:
            if round == 0 and _enlarge(core, client, client.fd):
                continue
            break
        elif error == EINVAL and not client.flags & NO_SPLICE:
            client.flags |= NO_SPLICE
        elif error != EINTR:
            _drop_client(core, client, error)
            return
    _await_client(core, client)


cdef ssize_t _copy_log(Core *core, Node *client, int64_t left, int *error) noexcept nogil:
    cdef off_t offset = client.position
    cdef ssize_t got
    if not client.flags & NO_SPLICE:
        got = splice(
            client.segment.fd,
            &offset,
            client.fd,
            NULL,
            <size_t>left if left < SPLICE_MAX else SPLICE_MAX,
            SPLICE_F_MOVE | SPLICE_F_NONBLOCK,
        )
    else:
        if left > SMALL_READ:
            left = SMALL_READ
        got = pread(client.segment.fd, core.spare, <size_t>left, offset)
        if got > 0:
            got = write(client.fd, core.spare, <size_t>got)
    error[0] = c_errno
    return got


cdef void _next_segment(Node *client) noexcept nogil:
    cdef Segment *segment = client.segment
    client.segment = segment.next
    client.segment.refs += 1
    client.position = 0
    segment_release(segment)


cdef void _finish_client(Core *core, Node *client) noexcept nogil:
    _kill(core, client)
    _report(core, client.id, EV_CLIENT_DONE, <int64_t>client.bytes)


cdef void _drop_client(Core *core, Node *client, int error) noexcept nogil:
    _kill(core, client)
    _report(core, client.id, EV_CLIENT_DROPPED, error)


# ---- inputs: sources to the guest's socket ----


cdef void _feed(Core *core, Node *source) noexcept nogil:
    cdef Node *node = source.owner
    cdef int round
    cdef ssize_t got
    cdef int error
    for round in range(ROUNDS):
        if node.flags & BLOCKED:
            return
        if source.flags & BULK and not node.flags & GONE:
            got = splice(
                source.fd, NULL, node.fd, NULL, SPLICE_MAX, SPLICE_F_MOVE | SPLICE_F_NONBLOCK
            )
            error = c_errno
            _count(core, source)
            if got > 0:
                _count_bytes(core, node, got)
                hc_add(&source.bytes, <uint64_t>got)
                if _is_last_of_bulk(source, got):
                    return
            elif got == 0:
                _end_source(core, source)
                return
            elif error == EAGAIN:
                if round == 0:
                    _block(core, node)
                return
            elif error == EPIPE or error == ECONNRESET or error == ENOTCONN:
                _lose_dst(core, node, error)
            elif error == EINVAL:
                source.flags |= NO_SPLICE
                source.flags &= ~BULK
            else:
                if error != EINTR:
                    _end_source(core, source)
                return
            continue
        got = read(source.fd, core.buffer, SMALL_READ)
        error = c_errno
        _count(core, source)
        if got <= 0:
            if got == 0 or not (error == EAGAIN or error == EINTR):
                _end_source(core, source)
            return
        hc_add(&source.bytes, <uint64_t>got)
        if not node.flags & GONE and not _write_dst(core, node, core.buffer, <size_t>got):
            return
        if got >= BULK_FROM and not source.flags & NO_SPLICE:
            source.flags |= BULK
            source.small = 0
        if got < SMALL_READ:
            return


cdef void _end_source(Core *core, Node *source) noexcept nogil:
    cdef int64_t delivered = <int64_t>source.owner.bytes
    _kill(core, source)
    _report(core, source.id, EV_SOURCE_EOF, delivered)


# ---- commands ----


cdef bint _run_commands(Core *core) noexcept nogil:
    """False when the pump is to stop."""
    cdef Command *command
    cdef Command *following
    cdef uint64_t count
    pthread_mutex_lock(&core.lock)
    if core.stopping:
        pthread_mutex_unlock(&core.lock)
        return False
    read(core.wake, &count, 8)
    command = core.commands
    core.commands = NULL
    pthread_mutex_unlock(&core.lock)
    while command != NULL:
        following = command.next
        _run_command(core, command)
        free(command)
        command = following
    return True


cdef Node *_find(Core *core, uint64_t node_id) noexcept nogil:
    cdef Node *node
    pthread_mutex_lock(&core.lock)
    node = look_up(core, node_id)
    pthread_mutex_unlock(&core.lock)
    return node


cdef void _run_command(Core *core, Command *command) noexcept nogil:
    cdef Node *node = _find(core, command.id)
    if node == NULL:
        segment_release(command.segment)
    elif command.op == ATTACH:
        _attach(core, node, command)
    elif command.op == EXPECT:
        node.expected = command.value
        _check_drained(core, node)
    elif command.op == ROTATE:
        _rotate(core, node, command.segment)
    elif node.kind & <int>command.value:
        _remove(core, node)


cdef void _attach(Core *core, Node *node, Command *command) noexcept nogil:
    cdef int rc
    if node.kind == CLIENT:
        _attach_client(core, node, _find(core, command.owner), command.segment)
    elif node.kind == SOURCE:
        _attach_source(core, node, _find(core, command.owner))
    elif node.kind == OUTPUT:
        rc = _watch_src(core, node)
        if rc < 0:
            _fail_src(core, node, -rc)


cdef void _attach_client(
    Core *core, Node *client, Node *owner, Segment *backlog
) noexcept nogil:
    cdef int rc
    cdef Segment *last
    cdef stat info
    if owner == NULL:
        segment_release(backlog)
        _drop_client(core, client, ENOENT)
        return
    _link(client, owner)
    if backlog != NULL:
        # a file that was live until the last rotate() has its size only now
        client.segment = last = backlog
        while True:
            if fstat(last.fd, &info) == 0:
                last.size = info.st_size
            if last.next == NULL:
                break
            client.lag += 1
            last = last.next
        client.lag += 1
        last.next = owner.segment
    else:
        client.segment = owner.segment
    owner.segment.refs += 1
    rc = hc_watch(core.epoll, EPOLL_CTL_ADD, client.fd, 0, <uint64_t>client | 1)
    if rc == -EPERM:
        client.flags |= UNPOLLABLE
    elif rc < 0:
        _drop_client(core, client, -rc)
        return
    if client.position < 0 or client.position > client.segment.size:
        client.position = client.segment.size
    client.flags |= BEHIND
    _serve_client(core, client)


cdef void _attach_source(Core *core, Node *source, Node *owner) noexcept nogil:
    cdef int rc
    if owner == NULL:
        _report(core, source.id, EV_ERROR, ENOENT)
        _kill(core, source)
        return
    _link(source, owner)
    rc = _watch_src(core, source)
    if rc < 0:
        _fail_src(core, source, -rc)
    elif owner.flags & BLOCKED:
        _pause_src(core, source)


cdef void _rotate(Core *core, Node *node, Segment *segment) noexcept nogil:
    cdef Segment *old = node.segment
    cdef Segment *behind
    cdef Node *client = node.first
    cdef Node *following
    cdef int lag
    old.next = segment
    segment.refs += 1
    node.segment = segment
    node.flags &= ~FULL
    while client != NULL:
        following = client.next
        if not client.flags & BEHIND:
            _next_segment(client)
        else:
            lag = 0
            behind = client.segment
            while behind != segment:
                lag += 1
                behind = behind.next
            if lag > core.max_lag + client.lag:
                _drop_client(core, client, EOVERFLOW)
        client = following
    segment_release(old)
    if node.flags & STALLED:
        core.retry_at = 0  # the new file may be on another disk


cdef void _remove(Core *core, Node *node) noexcept nogil:
    cdef Node *child = node.first
    cdef Node *following
    while child != NULL:
        following = child.next
        if child.kind == SOURCE:
            _kill(core, child)
        elif child.flags & BEHIND:
            _unlink(child)  # finishes by itself
        else:
            _finish_client(core, child)
        child = following
    _kill(core, node)
    if node.kind & (OUTPUT | INPUT):
        _report(core, node.id, EV_REMOVED, <int64_t>node.bytes)
