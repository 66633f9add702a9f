"""TAP devices and netlink in single calls: one system call sequence per operation, no GIL held.

fds, ints and bytes in; fds, ints and bytes out; OSError on failure, with the kernel's own words
where it sent some. Which names, addresses and rules is network.py's and nft.py's business, not
ours. A call works in the network namespace of its thread, or in `netns_fd`; all may be called
from any thread. Only the socket for nf_tables outlives a call (close_idle; _netlink.h says why).
"""

from libc.stddef cimport size_t
from libc.stdint cimport uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport strerror

import errno as _errno

cdef extern from "_tap.h" nogil:
    enum:
        HC_NOTE_SIZE
        NETLINK_ROUTE
        NETLINK_NETFILTER
        NFNL_MSG_BATCH_BEGIN
        NFNL_MSG_BATCH_END

    struct hc_nl:
        size_t len
        char note[128]

    struct hc_reply:
        char *data
        size_t size
        size_t cap

    struct hc_open:
        int nl_fd

    struct hc_tap:
        const char *name
        const char *alias
        uint32_t group
        uint32_t mtu
        int owner
        int persist
        int master
        int redirect_to
        int netns_fd
        const void *mac
        const void *address4
        const void *address6
        const void *neighbour4
        const void *neighbour6
        const void *neighbour_mac
        int prefix4
        int prefix6
        int existing
        int route_localnet
        int ifindex
        char note[128]

    void nl_init(hc_nl *, char *, size_t)
    int nl_commit(hc_nl *, int)
    void nl_attr_u32(hc_nl *, int, uint32_t)
    void nl_end(hc_nl *)
    int open_sockets(hc_open *, int, int, int)
    void link_begin(hc_nl *, int, unsigned int)
    void link_delete(hc_nl *, int, uint32_t)
    int tap_create(hc_tap *)
    int netns_new()
    int packet_open(int, const char *)
    void nft_batch(hc_nl *, int)
    void nft_element(hc_nl *, int, int, int, const char *, const char *, const void *, size_t,
                     const void *, size_t, const void *, size_t, const void *, size_t)
    int nft_commit(hc_nl *)
    int nft_transact(hc_nl *, int, hc_reply *)
    void kept_close()
    int nl_transact(hc_nl *, int, int, hc_reply *)
    enum:
        IFLA_GROUP

cdef extern from "<unistd.h>" nogil:
    int close(int)


cdef _raise(int err, const char *note, str what):
    text = strerror(-err).decode("utf-8", "replace")
    said = note.decode("utf-8", "replace")
    raise OSError(-err, f"{what}: {text}" + (f" ({said})" if said else ""))


cdef const void *_fixed(bytes value, Py_ssize_t size, str what) except? NULL:
    """The bytes of an optional argument of a fixed size; NULL when it is empty."""
    if not value:
        return NULL
    if len(value) != size:
        raise ValueError(f"{what} has {len(value)} bytes, not {size}")
    return <const void *><const char *>value


def create(
    bytes name not None,
    *,
    uint32_t group,
    bytes alias=b"",
    int owner=-1,
    bint persist=False,
    uint32_t mtu=0,
    bytes mac=b"",
    bytes address4=b"",
    int prefix4=32,
    bytes address6=b"",
    int prefix6=128,
    bytes neighbour_mac=b"",
    bytes neighbour4=b"",
    bytes neighbour6=b"",
    int master=0,
    int redirect_to=0,
    int netns_fd=-1,
    int existing=0,
    bint route_localnet=False,
):
    """Create a TAP, configure it and bring it up; return (fd, ifindex).

    `address4` and `address6` are the host's own on the device; with the first, the device also
    forwards, filters reverse paths strictly and answers ARP for that address only. The neighbours
    get permanent entries. With `route_localnet`, packets to and from 127.0.0.0/8 may be routed
    over it. `redirect_to` is an ifindex in the same namespace: all frames pass
    between the two in both directions. On failure nothing is left, except that a redirect that
    fails half way may leave an ingress qdisc on `redirect_to`.

    The fd is non-blocking and CLOEXEC, speaks 12-byte virtio-net headers, and is the caller's. A
    device that is not persistent ends with the last copy of it.

    With `existing`, the ifindex of a link of any kind, that one is configured instead; `name` is
    for messages, and there is no fd: (-1, existing).

    Raises:
        OSError: EBUSY: the name is taken.
    """
    cdef hc_tap t
    cdef int fd
    if not 0 < len(name) <= 15 or len(alias) > 255:
        raise ValueError(f"name {name!r} or alias {alias!r} is empty or too long")
    if (neighbour4 or neighbour6) and not neighbour_mac:
        raise ValueError("a neighbour needs its MAC address")
    t.name = name
    t.alias = alias
    t.group = group
    t.mtu = mtu
    t.owner = owner
    t.persist = persist
    t.master = master
    t.redirect_to = redirect_to
    t.netns_fd = netns_fd
    t.mac = _fixed(mac, 6, "mac")
    t.address4 = _fixed(address4, 4, "address4")
    t.address6 = _fixed(address6, 16, "address6")
    t.neighbour4 = _fixed(neighbour4, 4, "neighbour4")
    t.neighbour6 = _fixed(neighbour6, 16, "neighbour6")
    t.neighbour_mac = _fixed(neighbour_mac, 6, "neighbour_mac")
    t.prefix4 = prefix4
    t.prefix6 = prefix6
    t.existing = existing
    t.route_localnet = route_localnet
    t.note[0] = 0
    with nogil:
        fd = tap_create(&t)
    if fd < 0:
        what = "configure link" if existing else "create TAP"
        _raise(fd, t.note, f"{what} {name.decode('utf-8', 'replace')}")
    return -1 if existing else fd, t.ifindex


def new_netns():
    """fd of a new network namespace, the caller's; it ends with the fd and what runs in it."""
    cdef int fd
    with nogil:
        fd = netns_new()
    if fd < 0:
        _raise(fd, b"", "create a network namespace")
    return fd


def packet_socket(bytes name not None, *, int netns_fd):
    """fd of a packet socket that sends out of a link in another namespace, the caller's."""
    cdef int fd
    cdef const char *link = name
    with nogil:
        fd = packet_open(netns_fd, link)
    if fd < 0:
        _raise(fd, b"", f"open a packet socket on {name.decode('utf-8', 'replace')}")
    return fd


cdef _delete(int ifindex, uint32_t group, int netns_fd):
    cdef hc_open o
    cdef hc_nl n
    cdef char out[256]
    cdef int err
    with nogil:
        nl_init(&n, out, sizeof(out))
        err = open_sockets(&o, netns_fd, NETLINK_ROUTE, 0)
        if err == 0:
            link_delete(&n, ifindex, group)
            err = nl_commit(&n, o.nl_fd)
            close(o.nl_fd)
    if err < 0 and -err != _errno.ENODEV and -err != _errno.EINVAL:
        _raise(err, n.note, f"delete link {ifindex}" if ifindex else f"delete group {group}")
    return err == 0


def delete(int ifindex, *, int netns_fd=-1):
    """Delete one link (16 ms each: RCU grace periods); False when it is gone already."""
    if ifindex <= 0:
        raise ValueError(f"ifindex {ifindex} is not positive")
    return _delete(ifindex, 0, netns_fd)


def delete_group(uint32_t group, *, int netns_fd=-1):
    """Delete all links of a group in one request (0.3-0.6 ms each); False when it has none."""
    if group == 0:
        raise ValueError("group 0 holds every link that is in no group")
    return _delete(0, group, netns_fd)


def set_group(ifindexes, uint32_t group, *, int netns_fd=-1):
    """Put links into a group; those that no longer exist are passed over."""
    cdef hc_open o
    cdef hc_nl n
    cdef char out[256]
    cdef int err, ifindex
    cdef list wanted = [int(i) for i in ifindexes]
    with nogil:
        err = open_sockets(&o, netns_fd, NETLINK_ROUTE, 0)
    if err < 0:
        _raise(err, b"", "open a netlink socket")
    try:
        for ifindex in wanted:
            with nogil:
                nl_init(&n, out, sizeof(out))
                link_begin(&n, ifindex, 0)
                nl_attr_u32(&n, IFLA_GROUP, group)
                nl_end(&n)
                err = nl_commit(&n, o.nl_fd)
            if err < 0 and -err != _errno.ENODEV:
                _raise(err, n.note, f"set group of link {ifindex}")
    finally:
        close(o.nl_fd)


def nft_update(int family, bytes table not None, list ops not None, *, bytes userdata=b""):
    """Add and delete set and map elements in one atomic batch: all of them or none.

    Args:
        family: NFPROTO_* of the table.
        ops: (add, set name, key, data or None, ready-made attributes of the element); False as
            `add` deletes.
        userdata: attached to every element added, at most 255 bytes.

    Raises:
        OSError: ENOENT: no such table, set or (deleting) element; EEXIST: a map has the key with
            other data.
    """
    cdef hc_nl n
    cdef size_t size = 256
    cdef char *out
    cdef int err
    cdef Py_ssize_t i, last = len(ops) - 1
    cdef bint add
    cdef bytes name, key, data, extra
    cdef const char *value
    if not ops:
        return
    if len(userdata) > 255:
        raise ValueError(f"userdata has {len(userdata)} bytes, more than 255")
    for _, name, key, data, extra in ops:
        size += 128 + len(table) + len(name) + len(key) + len(extra) + len(userdata)
        size += len(data) if data is not None else 0
    out = <char *>malloc(size)
    if out == NULL:
        raise MemoryError
    try:
        nl_init(&n, out, size)
        nft_batch(&n, NFNL_MSG_BATCH_BEGIN)
        for i in range(last + 1):
            add, name, key, data, extra = ops[i]
            value = NULL
            if data is not None:
                value = data
            # Refusals are always reported; one acknowledgement, the last one's, is enough.
            nft_element(
                &n, add, i == last, family, table, name, <const char *>key, len(key),
                <const char *>extra, len(extra), value, 0 if data is None else len(data),
                <const char *>userdata, len(userdata),
            )
        nft_batch(&n, NFNL_MSG_BATCH_END)
        with nogil:
            err = nft_commit(&n)
    finally:
        free(out)
    if err < 0:
        _raise(err, n.note, f"update nft table {table.decode('utf-8', 'replace')}")


def transact(int protocol, const unsigned char[::1] request not None, *, bint dump=False,
             int netns_fd=-1):
    """Send ready-made netlink messages; return the answers that are no acknowledgements, as bytes.

    With `dump` waits for the end of the listing.

    Raises:
        OSError: the first refusal; EINTR: what was listed changed meanwhile, list again.
    """
    cdef hc_open o
    cdef hc_nl n
    cdef hc_reply reply
    cdef size_t size = request.shape[0]
    cdef int err
    if size < 16:
        raise ValueError("a netlink message has at least 16 bytes")
    reply.data = NULL
    reply.size = reply.cap = 0
    with nogil:
        nl_init(&n, <char *>&request[0], size)
        n.len = size
        if protocol == NETLINK_NETFILTER and netns_fd < 0:
            err = nft_transact(&n, dump, &reply)
        else:
            err = open_sockets(&o, netns_fd, protocol, 0)
            if err == 0:
                err = nl_transact(&n, o.nl_fd, dump, &reply)
                close(o.nl_fd)
    try:
        if err < 0:
            _raise(err, n.note, "netlink")
        return reply.data[:reply.size] if reply.size else b""
    finally:
        free(reply.data)


def close_idle():
    """Close the socket that is kept for nf_tables; the next call that needs it opens it again."""
    with nogil:
        kept_close()
