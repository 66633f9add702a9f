"""The pump: moves every byte between guests and their logs, FIFOs and attach clients.

One thread without the GIL serves thousands of streams. Not here: who is connected to what, and
what happens at a process's exit; that is the shim server's.

How it works:

* Level-triggered epoll. Small traffic is read and written through one shared buffer (a pipe
  merges it into few pages); a stream that proves to be bulk is spliced, without a copy.
  A destination is watched only while it is full, and its source then only for edges: a source
  that has hung up would be reported for ever otherwise.
* A log is written first, then its clients. A client that keeps up gets small pieces straight from
  the buffer; one that does not, and all bulk, is spliced from the log file. So a client costs no
  memory, can be as slow as it likes, and sees each byte of the log once, in order.
* Callers put commands in a queue and get ids at once; the thread alone touches streams. The lock
  guards the queue, the events and the table of ids, and is held for a few instructions.

Blocking system calls in the thread are those on files: log writes and reads of an old log that has
left the page cache.
"""

import os
import warnings
from enum import IntEnum

cimport cython
from libc.errno cimport ENOMEM
from libc.errno cimport errno as c_errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

from hypercore._linux cimport F_GETFL, F_SETFL, O_NONBLOCK, fcntl, getpid, read, write
from hypercore._pumploop cimport (
    ATTACH,
    CLIENT,
    EXPECT,
    INPUT,
    OUTPUT,
    REMOVE,
    ROTATE,
    SLOT_BITS,
    SLOT_MASK,
    SOURCE,
    Command,
    Core,
    Node,
    Notice,
    Segment,
    hc_load,
    look_up,
    loop_clear,
    loop_init,
    loop_start,
    pthread_join,
    pthread_mutex_destroy,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    segment_open,
)


class Event(IntEnum):
    """What `Pump.events` reports; the comment says what the value is."""

    EOF = 1  # bytes read from the guest in all; the stream's fds are closed, its log is not
    DRAINED = 2  # bytes delivered, at least what expect() asked for
    DST_GONE = 3  # errno; the other side of an output's dst or an input's guest socket is closed
    LOG_FULL = 4  # bytes of the segment; once a segment
    LOG_ERROR = 5  # errno; the stream waits and tries again, reported once until it succeeds
    SOURCE_EOF = 6  # bytes of the whole input delivered to the guest; the source is gone
    CLIENT_DONE = 7  # bytes this client got, which is all there was; the client is gone
    CLIENT_DROPPED = 8  # errno: EPIPE its reader went away, EOVERFLOW it lagged; it is gone
    REMOVED = 9  # bytes in all; remove() is complete
    ERROR = 10  # errno: the kernel refused to watch the stream or memory ran out; EOF follows


cdef void _disown(Node *node) noexcept nogil:
    """Free a node that was never handed over; its fds stay the caller's."""
    free(node.segment)
    free(node)


cdef int _raise(int error, str what) except -1:
    raise OSError(error, os.strerror(error), what)


cdef int _set_nonblocking(int fd) noexcept nogil:
    cdef int flags = fcntl(fd, F_GETFL)
    if flags < 0:
        return -c_errno
    if flags & O_NONBLOCK:
        return 0
    return -c_errno if fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 else 0


@cython.final
cdef class Pump:
    """See the module. One for a server; its methods never wait and any thread may call them.

    Args:
        log_limit: bytes of a log segment at which LOG_FULL is sent; 0: never.
        max_lag: a client that has more whole segments before it than this when a log is rotated
            is dropped (a backlog it was added with not counted).
        pipe_budget: bytes by which pipes of bulk streams may be enlarged in all.

    The pump owns each fd that a method accepted and closes it; if the method raises, the caller
    still owns it. Fds are made non-blocking, for their other holders too: give it pipes and
    sockets of your own, not a shared terminal.

    Ids are never used again. Methods given an id of a stream that is gone raise KeyError, except
    remove(), remove_client() and remove_source(), which do nothing then.
    """

    cdef Core core
    cdef int owner_pid
    cdef int64_t log_limit
    cdef bint started
    cdef bint closed

    def __cinit__(self, *, int64_t log_limit=0, int max_lag=4, uint64_t pipe_budget=128 << 20):
        cdef int rc
        memset(&self.core, 0, sizeof(Core))
        self.owner_pid = getpid()
        self.log_limit = log_limit
        self.core.max_lag = max_lag
        self.core.pipe_budget = pipe_budget
        rc = loop_init(&self.core)
        if rc < 0:
            _raise(-rc, "pump")

    def __dealloc__(self):
        if self.started and not self.closed and self.owner_pid == getpid():
            warnings.warn("Pump was not closed", ResourceWarning, stacklevel=1)
        self._shut()
        pthread_mutex_destroy(&self.core.lock)

    def start(self):
        """Start the thread. What was added before waits for it."""
        self._check_open()
        if self.started:
            return
        cdef int rc = loop_start(&self.core)
        if rc:
            _raise(rc, "start pump thread")
        self.started = True

    def close(self):
        """Stop at once and close every fd; what was not delivered is lost. Idempotent."""
        self._shut()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.close()

    cdef void _shut(self) noexcept:
        cdef uint64_t one = 1
        if self.closed:
            return
        self.closed = True
        with nogil:
            # after a fork the thread is the parent's alone
            if self.started and self.owner_pid == getpid():
                pthread_mutex_lock(&self.core.lock)
                self.core.stopping = True
                pthread_mutex_unlock(&self.core.lock)
                write(self.core.wake, &one, 8)
                pthread_join(self.core.thread, NULL)
            loop_clear(&self.core)

    cdef int _check_open(self) except -1:
        if self.closed:
            raise ValueError("the pump is closed")
        return 0

    # ---- what callers use ----

    @property
    def event_fd(self):
        """Readable while events wait; belongs to the pump. Read by events() alone."""
        return self.core.notify

    def events(self):
        """What has happened since the last call: [(id, Event, value)], in order."""
        cdef Notice *notices = NULL
        cdef size_t count
        cdef size_t i
        cdef uint64_t drained
        cdef uint64_t lost
        self._check_open()
        with nogil:
            pthread_mutex_lock(&self.core.lock)
            count = self.core.notice_count
            lost = self.core.lost
            if count:
                notices = <Notice *>malloc(count * sizeof(Notice))
                if notices != NULL:
                    memcpy(notices, self.core.notices, count * sizeof(Notice))
                    self.core.notice_count = 0
                    read(self.core.notify, &drained, 8)
            pthread_mutex_unlock(&self.core.lock)
        if lost or (count and notices == NULL):
            free(notices)
            raise MemoryError("the pump had no memory for its events")
        result = [(notices[i].id, notices[i].kind, notices[i].value) for i in range(count)]
        free(notices)
        return result

    def add_output(self, int src_fd, *, int log_fd=-1, int dst_fd=-1, int64_t log_limit=-1):
        """Move what the guest writes to `src_fd` into a log, or into `dst_fd`, or nowhere.

        A log is appended to, may have attach clients, and never waits for one. A dst_fd (FIFO,
        pipe, socket, terminal, file) that is full makes the guest wait; if it goes away the
        stream is read on and discarded. With neither the bytes are counted and dropped.

        Args:
            log_fd: a file open for reading and writing.
            log_limit: bytes of the log at which LOG_FULL is sent; 0 never, -1 the pump's.

        Returns:
            The stream's id. After Event.EOF it stays, for late clients, until remove().
        """
        cdef Node *node
        if log_fd >= 0 and dst_fd >= 0:
            raise ValueError("an output has a log_fd or a dst_fd, not both")
        node = self._new(OUTPUT, src_fd)
        try:
            if dst_fd >= 0:
                self._prepare(dst_fd)
            if log_fd >= 0:
                self._open_segment(log_fd, True, &node.segment)
                node.has_log = True
            node.dst_fd = dst_fd
            node.log_limit = self.log_limit if log_limit < 0 else log_limit
            return self._attach(node, 0, NULL)
        except BaseException:
            _disown(node)
            raise

    def add_client(self, uint64_t stream_id, int dst_fd, int64_t offset, *, backlog=()):
        """Copy a log to `dst_fd`: from byte `offset` of its present file on, then what comes.

        -1 begins with what comes next. `backlog` are fds of older, rotated files to send before
        the present one, oldest first (the pump owns them too); `offset` is in the first then.
        A client holds up nobody. After the stream's EOF it gets the rest and ends with
        CLIENT_DONE.
        """
        cdef Node *node
        cdef Segment *first = NULL
        cdef Segment *last = NULL
        cdef Segment *segment = NULL
        if offset < -1:
            raise ValueError(f"offset {offset}")
        if backlog and offset < 0:
            raise ValueError("a backlog needs an offset to begin at")
        node = self._new(CLIENT, dst_fd)
        try:
            for fd in backlog:
                self._open_segment(fd, False, &segment)
                if first == NULL:
                    first = segment
                else:
                    last.next = segment
                last = segment
            node.position = offset
            return self._attach(node, stream_id, first)
        except BaseException:
            while first != NULL:
                segment = first.next
                free(first)
                first = segment
            _disown(node)
            raise

    def add_input(self, int dst_fd):
        """Move what sources bring into the guest's stdin socket `dst_fd`. Returns the id."""
        cdef Node *node = self._new(INPUT, dst_fd)
        try:
            return self._attach(node, 0, NULL)
        except BaseException:
            _disown(node)
            raise

    def add_source(self, uint64_t stream_id, int src_fd):
        """Let `src_fd` (pipe, FIFO, terminal, file) feed an input; several may. Returns its id.

        At its end SOURCE_EOF is sent, after its last byte has been delivered.
        """
        cdef Node *node = self._new(SOURCE, src_fd)
        try:
            return self._attach(node, stream_id, NULL)
        except BaseException:
            _disown(node)
            raise

    def rotate(self, uint64_t stream_id, int new_log_fd):
        """Go on in `new_log_fd`. Clients still read the old file to its end first."""
        cdef Segment *segment = NULL
        self._check_open()
        self._find(stream_id, OUTPUT, True)
        self._open_segment(new_log_fd, True, &segment)
        try:
            self._send(ROTATE, stream_id, 0, segment)
        except BaseException:
            free(segment)
            raise

    def expect(self, uint64_t stream_id, int64_t total):
        """Send DRAINED once `total` bytes of an output have been read and delivered."""
        self._check_open()
        self._find(stream_id, OUTPUT, False)
        self._send(EXPECT, stream_id, total, NULL)

    def remove(self, uint64_t stream_id):
        """Forget a stream and close its fds, delivered or not; Event.REMOVED when it is done.

        Clients of an output still get what its log holds, as at EOF; sources of an input end.
        """
        self._check_open()
        self._send(REMOVE, stream_id, OUTPUT | INPUT, NULL)

    def remove_client(self, uint64_t client_id):
        """Close a client's fd now. No event."""
        self._check_open()
        self._send(REMOVE, client_id, CLIENT, NULL)

    def remove_source(self, uint64_t source_id):
        """Close a source's fd now, what it still holds unread. No event."""
        self._check_open()
        self._send(REMOVE, source_id, SOURCE, NULL)

    def counters(self, uint64_t node_id):
        """(bytes, syscalls, stalls) of a stream, client or source so far."""
        cdef Node *node
        cdef uint64_t count = 0
        cdef uint64_t syscalls = 0
        cdef uint64_t stalls = 0
        self._check_open()
        with nogil:
            pthread_mutex_lock(&self.core.lock)
            node = look_up(&self.core, node_id)
            if node != NULL:
                count = hc_load(&node.bytes)
                syscalls = hc_load(&node.syscalls)
                stalls = hc_load(&node.stalls)
            pthread_mutex_unlock(&self.core.lock)
        if node == NULL:
            raise KeyError(node_id)
        return count, syscalls, stalls

    def totals(self):
        """(bytes, syscalls, stalls, open streams, clients and sources) of the whole pump."""
        cdef uint32_t nodes
        with nogil:
            pthread_mutex_lock(&self.core.lock)
            nodes = self.core.node_count
            pthread_mutex_unlock(&self.core.lock)
        return (
            hc_load(&self.core.bytes),
            hc_load(&self.core.syscalls),
            hc_load(&self.core.stalls),
            nodes,
        )

    # ---- the callers' half: table, commands ----

    cdef int _prepare(self, int fd) except -1:
        cdef int rc = _set_nonblocking(fd)
        if rc < 0:
            _raise(-rc, f"fd {fd}")
        return 0

    cdef int _open_segment(self, int fd, bint live, Segment **out) except -1:
        cdef int rc = segment_open(fd, live, out)
        if rc < 0:
            _raise(-rc, f"log fd {fd}")
        return 0

    cdef Node *_new(self, int kind, int fd) except NULL:
        cdef Node *node
        self._check_open()
        self._prepare(fd)
        node = <Node *>calloc(1, sizeof(Node))
        if node == NULL:
            raise MemoryError()
        node.kind = kind
        node.fd = fd
        node.dst_fd = -1
        node.expected = -1
        return node

    cdef uint64_t _attach(self, Node *node, uint64_t owner_id, Segment *backlog) except 0:
        """Give the node an id and hand it to the thread; from here on the pump owns its fds."""
        cdef Command *command
        cdef uint64_t node_id = 0
        cdef int rc
        if node.kind == CLIENT:
            self._find(owner_id, OUTPUT, True)
        elif node.kind == SOURCE:
            self._find(owner_id, INPUT, False)
        command = <Command *>calloc(1, sizeof(Command))
        if command == NULL:
            raise MemoryError()
        command.op = ATTACH
        command.owner = owner_id
        command.segment = backlog
        with nogil:
            pthread_mutex_lock(&self.core.lock)
            rc = self._enter(node)
            if rc == 0:
                # the node may be gone as soon as the lock is
                node_id = command.id = node.id
                self._queue(command)
            pthread_mutex_unlock(&self.core.lock)
            if rc < 0:
                free(command)
        if rc < 0:
            raise MemoryError()
        self._wake()
        return node_id

    cdef int _find(self, uint64_t node_id, int kind, bint with_log) except -1:
        """KeyError unless there is such a stream; ValueError if it needs a log and has none."""
        cdef Node *node
        cdef bint has_log = False
        with nogil:
            pthread_mutex_lock(&self.core.lock)
            node = look_up(&self.core, node_id)
            if node != NULL and node.kind != kind:
                node = NULL
            if node != NULL:
                has_log = node.has_log
            pthread_mutex_unlock(&self.core.lock)
        if node == NULL:
            raise KeyError(node_id)
        if with_log and not has_log:
            raise ValueError(f"stream {node_id} has no log")
        return 0

    cdef int _send(self, int op, uint64_t node_id, int64_t value, Segment *segment) except -1:
        cdef Command *command = <Command *>calloc(1, sizeof(Command))
        if command == NULL:
            raise MemoryError()
        command.op = op
        command.id = node_id
        command.value = value
        command.segment = segment
        with nogil:
            pthread_mutex_lock(&self.core.lock)
            self._queue(command)
            pthread_mutex_unlock(&self.core.lock)
        self._wake()
        return 0

    cdef void _wake(self) noexcept:
        cdef uint64_t one = 1
        write(self.core.wake, &one, 8)

    cdef void _queue(self, Command *command) noexcept nogil:
        if self.core.commands == NULL:
            self.core.commands = command
        else:
            self.core.last_command.next = command
        self.core.last_command = command

    cdef int _enter(self, Node *node) noexcept nogil:
        """Put the node in the table and make room for its events: neither can fail later then."""
        cdef uint32_t size
        cdef uint32_t slot
        cdef void *grown
        cdef size_t room = self.core.notice_count + 6 * (<size_t>self.core.node_count + 1)
        if not self.core.free_count:
            size = self.core.table_size * 2 if self.core.table_size else 64
            if size > SLOT_MASK + 1:
                return -ENOMEM
            grown = realloc(self.core.table, size * sizeof(Node *))
            if grown == NULL:
                return -ENOMEM
            self.core.table = <Node **>grown
            grown = realloc(self.core.free_slots, size * sizeof(uint32_t))
            if grown == NULL:
                return -ENOMEM
            self.core.free_slots = <uint32_t *>grown
            slot = size
            while slot > self.core.table_size:
                slot -= 1
                self.core.table[slot] = NULL
                self.core.free_slots[self.core.free_count] = slot
                self.core.free_count += 1
            self.core.table_size = size
        if self.core.notice_room < room:
            grown = realloc(self.core.notices, 2 * room * sizeof(Notice))
            if grown == NULL:
                return -ENOMEM
            self.core.notices = <Notice *>grown
            self.core.notice_room = 2 * room
        self.core.free_count -= 1
        slot = self.core.free_slots[self.core.free_count]
        self.core.serial += 1
        node.id = self.core.serial << SLOT_BITS | slot
        self.core.table[slot] = node
        self.core.node_count += 1
        return 0
