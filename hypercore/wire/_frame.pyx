# cython: language_level=3
"""ttrpc 1.2 framing: bytes to frames and back, and the request and response envelopes.

No sockets, no policy: `Parser` cuts a byte stream into frames, the functions encode and decode one
envelope each. Everything a peer sends is read through one cursor that checks each step against
the end, because the peer may be a guest.

Protocol: https://github.com/containerd/ttrpc/blob/main/PROTOCOL.md
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef enum:
    HEADER = 10
    LIMIT = 4194304
    VARINT = 0
    FIXED64 = 1
    LENGTH = 2
    FIXED32 = 5

REQUEST = 1
RESPONSE = 2
DATA = 3
REMOTE_CLOSED = 1
REMOTE_OPEN = 2
NO_DATA = 4
MAX_LENGTH = LIMIT


cdef struct Cursor:
    const uint8_t *at
    const uint8_t *end


cdef inline uint32_t get32(const uint8_t *p) noexcept nogil:
    return <uint32_t>p[0] << 24 | <uint32_t>p[1] << 16 | <uint32_t>p[2] << 8 | p[3]


cdef inline void put32(uint8_t *p, uint32_t value) noexcept nogil:
    p[0] = value >> 24
    p[1] = (value >> 16) & 0xFF
    p[2] = (value >> 8) & 0xFF
    p[3] = value & 0xFF


cdef inline int take_varint(Cursor *c, uint64_t *value) noexcept nogil:
    """0, or -1 when cut short or longer than ten bytes."""
    cdef uint64_t result = 0
    cdef int shift = 0
    cdef uint8_t byte
    while c.at < c.end and shift < 70:
        byte = c.at[0]
        c.at += 1
        result |= <uint64_t>(byte & 0x7F) << shift
        if byte < 0x80:
            value[0] = result
            return 0
        shift += 7
    return -1


cdef inline int take_slice(Cursor *c, Cursor *value) noexcept nogil:
    """0 with the length-delimited bytes in `value`, or -1 when they pass the end."""
    cdef uint64_t size
    if take_varint(c, &size) < 0 or size > <uint64_t>(c.end - c.at):
        return -1
    value.at = c.at
    value.end = c.at + size
    c.at += size
    return 0


cdef inline int take_field(
    Cursor *c, uint64_t *number, int *wire, uint64_t *scalar, Cursor *value
) noexcept nogil:
    """0 with the next field, or -1 when the bytes are no message."""
    cdef uint64_t key
    if take_varint(c, &key) < 0:
        return -1
    number[0] = key >> 3
    wire[0] = key & 7
    if wire[0] == VARINT:
        return take_varint(c, scalar)
    if wire[0] == LENGTH:
        return take_slice(c, value)
    if wire[0] == FIXED64 and c.end - c.at >= 8:
        c.at += 8
        return 0
    if wire[0] == FIXED32 and c.end - c.at >= 4:
        c.at += 4
        return 0
    return -1


cdef inline Cursor cursor(bytes body):
    cdef Cursor c
    c.at = <const uint8_t *>PyBytes_AS_STRING(body)
    c.end = c.at + PyBytes_GET_SIZE(body)
    return c


cdef inline bytes to_bytes(Cursor value):
    return PyBytes_FromStringAndSize(<const char *>value.at, value.end - value.at)


cdef inline Py_ssize_t varint_size(uint64_t value) noexcept nogil:
    cdef Py_ssize_t size = 1
    while value >= 0x80:
        value >>= 7
        size += 1
    return size


cdef inline uint8_t *put_varint(uint8_t *p, uint64_t value) noexcept nogil:
    while value >= 0x80:
        p[0] = <uint8_t>(value & 0x7F) | 0x80
        value >>= 7
        p += 1
    p[0] = <uint8_t>value
    return p + 1


cdef inline Py_ssize_t field_size(Py_ssize_t size) noexcept nogil:
    """Bytes of a length-delimited field with a one-byte key; an empty one is left out."""
    return 1 + varint_size(size) + size if size else 0


cdef inline uint8_t *put_field(uint8_t *p, int number, bytes value):
    cdef Py_ssize_t size = PyBytes_GET_SIZE(value)
    if size == 0:
        return p
    p[0] = number << 3 | LENGTH
    p = put_varint(p + 1, size)
    memcpy(p, PyBytes_AS_STRING(value), size)
    return p + size


cdef inline bytes new_frame(uint32_t stream_id, int type, int flags, Py_ssize_t size):
    """A frame with its header; the caller fills the `size` bytes behind it."""
    if size > LIMIT:
        raise ValueError(f"message of {size} bytes is longer than {LIMIT}")
    cdef bytes frame = PyBytes_FromStringAndSize(NULL, HEADER + size)
    cdef uint8_t *p = <uint8_t *>PyBytes_AS_STRING(frame)
    put32(p, size)
    put32(p + 4, stream_id)
    p[8] = type
    p[9] = flags
    return frame


@cython.final
@cython.auto_pickle(False)
cdef class Parser:
    """Cuts a byte stream into frames, holding at most one unfinished frame.

    A frame longer than `max_length` is dropped as it arrives and reported with None for its body.
    """

    cdef bytearray _pending
    cdef uint64_t _skip
    cdef readonly uint32_t max_length

    def __init__(self, uint32_t max_length=LIMIT):
        self._pending = bytearray()
        self._skip = 0
        self.max_length = max_length

    def feed(self, bytes data not None):
        """Return the frames that `data` completes: (stream id, type, flags, body or None)."""
        cdef list frames = []
        cdef Py_ssize_t used
        if PyByteArray_GET_SIZE(self._pending) == 0:
            used = self._cut(
                <const uint8_t *>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), frames
            )
            if used < PyBytes_GET_SIZE(data):
                self._pending += data[used:]
        else:
            self._pending += data
            used = self._cut(
                <const uint8_t *>PyByteArray_AS_STRING(self._pending),
                PyByteArray_GET_SIZE(self._pending),
                frames,
            )
            if used:
                del self._pending[:used]
        return frames

    cdef Py_ssize_t _cut(self, const uint8_t *data, Py_ssize_t size, list frames) except -1:
        cdef Py_ssize_t offset = 0
        cdef uint32_t length
        if self._skip:
            offset = <Py_ssize_t>min(self._skip, <uint64_t>size)
            self._skip -= offset
        while size - offset >= HEADER:
            length = get32(data + offset)
            if length > self.max_length:
                frames.append((get32(data + offset + 4), data[offset + 8], data[offset + 9], None))
                offset += HEADER
                self._skip = length
                length = <uint32_t>min(self._skip, <uint64_t>(size - offset))
                self._skip -= length
                offset += length
                continue
            if <uint64_t>(size - offset - HEADER) < length:
                break
            frames.append((
                get32(data + offset + 4),
                data[offset + 8],
                data[offset + 9],
                PyBytes_FromStringAndSize(<const char *>data + offset + HEADER, length),
            ))
            offset += HEADER + <Py_ssize_t>length
        return offset


def decode_request(bytes body not None):
    """Return (b"service/method", payload, timeout_ns, metadata pairs). ValueError if malformed."""
    cdef Cursor c = cursor(body)
    cdef Cursor value
    value.at = value.end = c.at
    cdef Cursor service = value
    cdef Cursor method = value
    cdef Cursor payload = value
    cdef uint64_t number = 0, scalar = 0
    cdef int64_t timeout = 0
    cdef int wire = 0
    cdef list metadata = None
    while c.at < c.end:
        if take_field(&c, &number, &wire, &scalar, &value) < 0:
            raise ValueError("malformed request")
        if wire == LENGTH:
            if number == 1:
                service = value
            elif number == 2:
                method = value
            elif number == 3:
                payload = value
            elif number == 5:
                if metadata is None:
                    metadata = []
                metadata.append(_decode_pair(value))
        elif wire == VARINT and number == 4:
            timeout = <int64_t>scalar
    cdef Py_ssize_t head = service.end - service.at, tail = method.end - method.at
    cdef bytes route = PyBytes_FromStringAndSize(NULL, head + 1 + tail)
    cdef char *p = PyBytes_AS_STRING(route)
    memcpy(p, service.at, head)
    p[head] = b"/"
    memcpy(p + head + 1, method.at, tail)
    return route, to_bytes(payload), timeout, () if metadata is None else tuple(metadata)


cdef tuple _decode_pair(Cursor c):
    cdef Cursor value
    value.at = value.end = c.at
    cdef Cursor key = value
    cdef Cursor text = value
    cdef uint64_t number = 0, scalar = 0
    cdef int wire = 0
    while c.at < c.end:
        if take_field(&c, &number, &wire, &scalar, &value) < 0:
            raise ValueError("malformed metadata")
        if wire == LENGTH and number == 1:
            key = value
        elif wire == LENGTH and number == 2:
            text = value
    return to_bytes(key), to_bytes(text)


def decode_response(bytes body not None):
    """Return (code, message, payload); code is 0 when all went well. ValueError if malformed."""
    cdef Cursor c = cursor(body)
    cdef Cursor value
    value.at = value.end = c.at
    cdef Cursor payload = value
    cdef Cursor status = value
    cdef Cursor text = value
    cdef uint64_t number = 0, scalar = 0, code = 0
    cdef int wire = 0
    while c.at < c.end:
        if take_field(&c, &number, &wire, &scalar, &value) < 0:
            raise ValueError("malformed response")
        if wire == LENGTH and number == 1:
            status = value
        elif wire == LENGTH and number == 2:
            payload = value
    while status.at < status.end:
        if take_field(&status, &number, &wire, &scalar, &value) < 0:
            raise ValueError("malformed status")
        if wire == VARINT and number == 1:
            code = scalar & 0x7FFFFFFF
        elif wire == LENGTH and number == 2:
            text = value
    return code, to_bytes(text).decode("utf-8", "replace"), to_bytes(payload)


def encode_frame(uint32_t stream_id, int type, int flags, bytes body not None):
    """A frame with `body` as it is."""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(body)
    cdef bytes frame = new_frame(stream_id, type, flags, size)
    memcpy(PyBytes_AS_STRING(frame) + HEADER, PyBytes_AS_STRING(body), size)
    return frame


def encode_response(uint32_t stream_id, bytes payload not None):
    """A response frame without status: success."""
    cdef bytes frame = new_frame(stream_id, 2, 0, field_size(PyBytes_GET_SIZE(payload)))
    put_field(<uint8_t *>PyBytes_AS_STRING(frame) + HEADER, 2, payload)
    return frame


def encode_error(uint32_t stream_id, uint32_t code, str message not None):
    """A response frame with a status."""
    cdef bytes text = message.encode("utf-8", "replace")
    cdef Py_ssize_t size = field_size(PyBytes_GET_SIZE(text)) + 1 + varint_size(code)
    cdef bytes frame = new_frame(stream_id, 2, 0, field_size(size))
    cdef uint8_t *p = <uint8_t *>PyBytes_AS_STRING(frame) + HEADER
    p[0] = 1 << 3 | LENGTH
    p = put_varint(p + 1, size)
    p[0] = 1 << 3 | VARINT
    p = put_varint(p + 1, code)
    put_field(p, 2, text)
    return frame


def encode_request(
    uint32_t stream_id,
    int flags,
    bytes service not None,
    bytes method not None,
    bytes payload not None,
    uint64_t timeout_ns=0,
    tuple metadata=(),
):
    """A request frame; `metadata` holds (key, value) pairs of bytes."""
    cdef Py_ssize_t size = (
        field_size(PyBytes_GET_SIZE(service))
        + field_size(PyBytes_GET_SIZE(method))
        + field_size(PyBytes_GET_SIZE(payload))
    )
    if timeout_ns:
        size += 1 + varint_size(timeout_ns)
    cdef bytes key, value
    cdef Py_ssize_t pair
    for key, value in metadata:
        size += field_size(
            field_size(PyBytes_GET_SIZE(key)) + field_size(PyBytes_GET_SIZE(value))
        )
    cdef bytes frame = new_frame(stream_id, 1, flags, size)
    cdef uint8_t *p = <uint8_t *>PyBytes_AS_STRING(frame) + HEADER
    p = put_field(p, 1, service)
    p = put_field(p, 2, method)
    p = put_field(p, 3, payload)
    if timeout_ns:
        p[0] = 4 << 3 | VARINT
        p = put_varint(p + 1, timeout_ns)
    for key, value in metadata:
        pair = field_size(PyBytes_GET_SIZE(key)) + field_size(PyBytes_GET_SIZE(value))
        if pair == 0:
            continue
        p[0] = 5 << 3 | LENGTH
        p = put_varint(p + 1, pair)
        p = put_field(p, 1, key)
        p = put_field(p, 2, value)
    return frame
