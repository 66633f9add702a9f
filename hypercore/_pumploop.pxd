# The pump's data, shared by its two halves: _pump.pyx (callers) and _pumploop.pyx (the thread).

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from *:
    """
    #include <pthread.h>
    #include <signal.h>
    #define hc_load(at) __atomic_load_n(at, __ATOMIC_RELAXED)
    #define hc_add(at, n) __atomic_store_n(at, *(at) + (n), __ATOMIC_RELAXED)
    """
    ctypedef struct pthread_t:
        pass
    ctypedef struct pthread_mutex_t:
        pass
    uint64_t hc_load(uint64_t *at) nogil
    void hc_add(uint64_t *at, uint64_t n) nogil
    int pthread_join(pthread_t thread, void **result) nogil
    int pthread_mutex_init(pthread_mutex_t *mutex, void *attributes) nogil
    int pthread_mutex_destroy(pthread_mutex_t *mutex) nogil
    int pthread_mutex_lock(pthread_mutex_t *mutex) nogil
    int pthread_mutex_unlock(pthread_mutex_t *mutex) nogil

cdef enum:
    EV_EOF = 1
    EV_DRAINED = 2
    EV_DST_GONE = 3
    EV_LOG_FULL = 4
    EV_LOG_ERROR = 5
    EV_SOURCE_EOF = 6
    EV_CLIENT_DONE = 7
    EV_CLIENT_DROPPED = 8
    EV_REMOVED = 9
    EV_ERROR = 10

cdef enum:
    OUTPUT = 1
    CLIENT = 2
    INPUT = 4
    SOURCE = 8

# Node.flags
cdef enum:
    BULK = 1  # spliced
    NO_SPLICE = 2  # one side cannot
    BLOCKED = 4  # the destination is full and watched
    DST_WATCHED = 8  # the destination is in the epoll set
    STALLED = 16  # the disk is full; in the stalled list
    READY = 32  # an fd that epoll cannot watch; in the ready list
    ENDED = 64  # EOF of a guest's stream
    GONE = 128  # the destination went away: discard
    FULL = 256  # LOG_FULL was sent for this segment
    BEHIND = 512  # a client that reads from the log file
    ENLARGED = 1024  # F_SETPIPE_SZ was tried
    DEAD = 2048  # freed at the end of the batch
    REPORTED = 4096  # LOG_ERROR was sent
    UNPOLLABLE = 8192

cdef enum:
    SMALL_READ = 32 * 1024  # one read of small traffic: fits the first-level cache
    LOG_READ = 128 * 1024
    BULK_FROM = 16 * 1024  # a read of that much makes a stream bulk
    SMALL_SPLICE = 8 * 1024  # eight splices of less in a row end that
    SPLICE_MAX = 1024 * 1024
    ROUNDS = 16  # of one stream before the others get their turn
    BATCH = 256
    RETRY_MS = 100
    BIG_PIPE = 1024 * 1024
    MEDIUM_PIPE = 256 * 1024
    SLOT_BITS = 20
    SLOT_MASK = (1 << 20) - 1

# Command.op
cdef enum:
    ATTACH = 1
    REMOVE = 2
    ROTATE = 3
    EXPECT = 4

cdef struct Segment:
    # one file of a log; the next one's owner is this one
    int fd
    int refs
    int64_t size
    Segment *next

cdef struct Node:
    # never changed: callers look at these
    int kind
    bint has_log
    uint64_t id
    # the thread's own, but for what a caller fills in before it hands the node over
    int flags
    int fd  # OUTPUT, INPUT: the guest's socket. CLIENT, SOURCE: the client's pipe
    int dst_fd  # OUTPUT without a log
    int small
    int lag  # CLIENT: files of its backlog, by which it may be further behind
    uint32_t pipe_bytes  # what F_SETPIPE_SZ took from the budget
    uint64_t bytes
    uint64_t syscalls
    uint64_t stalls
    int64_t expected  # -1: nothing
    int64_t log_limit
    uint8_t *pending  # read, not yet delivered
    size_t pending_at
    size_t pending_size
    Segment *segment  # OUTPUT: the live one. CLIENT: the one it reads
    int64_t position  # CLIENT: in its segment
    Node *owner  # CLIENT: its output. SOURCE: its input
    Node *first  # OUTPUT: clients. INPUT: sources
    Node *previous
    Node *next
    Node *next_in_list  # ready, stalled or dead list

cdef struct Command:
    int op
    uint64_t id
    uint64_t owner
    int64_t value
    Segment *segment
    Command *next

cdef struct Notice:
    uint64_t id
    int kind
    int64_t value

cdef struct Core:
    pthread_t thread
    pthread_mutex_t lock
    int epoll
    int wake
    int notify
    bint stopping
    uint8_t *buffer
    uint8_t *spare  # for a client's read while `buffer` is being handed out
    int max_lag
    uint64_t pipe_budget
    uint64_t pipe_used
    # guarded by the lock
    Node **table
    uint32_t *free_slots
    uint32_t table_size
    uint32_t free_count
    uint32_t node_count
    uint64_t serial
    Command *commands
    Command *last_command
    Notice *notices
    size_t notice_count
    size_t notice_room
    uint64_t lost  # events for which there was no memory
    # the thread's own
    Node *ready
    Node *stalled
    Node *dead
    int64_t retry_at
    uint64_t bytes
    uint64_t syscalls
    uint64_t stalls


cdef inline Node *look_up(Core *core, uint64_t node_id) noexcept nogil:
    """With the lock held."""
    cdef uint32_t slot = node_id & SLOT_MASK
    if slot >= core.table_size or core.table[slot] == NULL:
        return NULL
    return core.table[slot] if core.table[slot].id == node_id else NULL


cdef int loop_init(Core *core) noexcept nogil
cdef int loop_start(Core *core) noexcept nogil
cdef void loop_clear(Core *core) noexcept nogil
cdef int segment_open(int fd, bint live, Segment **out) noexcept nogil
cdef void segment_release(Segment *segment) noexcept nogil
