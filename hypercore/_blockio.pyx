"""Disk images: stamp an ext4 from a template, clone, sparse copy, look at a superblock, loop.

fds in, ints out; no paths and no policy: block.py has those. Every call may wait for the disk
and releases the GIL for it. What is probed may come from a guest or a stranger and is trusted
in nothing.
"""

import os

cimport cython
from libc.errno cimport (
    EBUSY,
    EEXIST,
    EINTR,
    EINVAL,
    EIO,
    ENOMEM,
    ENOSYS,
    ENXIO,
    EOPNOTSUPP,
    EXDEV,
)
from libc.errno cimport errno as c_errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

from hypercore._linux cimport (
    ECANCELED,
    EUCLEAN,
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    O_CLOEXEC,
    O_RDONLY,
    O_RDWR,
    POLLIN,
    S_ISBLK,
    SEEK_DATA,
    SEEK_HOLE,
    close,
    copy_file_range,
    fallocate,
    fstat,
    ftruncate,
    lseek,
    off_t,
    open,
    poll,
    pollfd,
    pread,
    pwrite,
    stat,
    write,
)

cdef extern from *:
    """
    #include <linux/fs.h>
    #include <linux/loop.h>
    #include <linux/major.h>
    #include <sys/ioctl.h>
    #include <sys/sysmacros.h>
    #ifndef LOOP_CONFIGURE
    #define LOOP_CONFIGURE 0x4C0A
    struct loop_config {
        uint32_t fd, block_size;
        struct loop_info64 info;
        uint64_t reserved[8];
    };
    #endif

    /* The loop device's own fd, or -errno. */
    static int hc_loop_configure(int device, int file, int read_only, uint64_t offset,
                                 uint64_t size) {
        struct loop_config config;
        memset(&config, 0, sizeof config);
        config.fd = file;
        config.info.lo_offset = offset;
        config.info.lo_sizelimit = size;
        config.info.lo_flags = LO_FLAGS_AUTOCLEAR | (read_only ? LO_FLAGS_READ_ONLY : 0);
        return ioctl(device, LOOP_CONFIGURE, &config) ? -errno : 0;
    }

    static uint32_t hc_crc32c(uint32_t crc, const uint8_t *bytes, size_t count) {
        while (count--) {
            crc ^= *bytes++;
            for (int bit = 0; bit < 8; bit++)
                crc = (crc >> 1) ^ (0x82F63B78 & -(crc & 1));
        }
        return crc;
    }
    """
    int hc_loop_configure(
        int device, int file, int read_only, uint64_t offset, uint64_t size
    ) nogil
    uint32_t hc_crc32c(uint32_t crc, const uint8_t *bytes, size_t count) nogil
    int ioctl(int fd, unsigned long request, ...) nogil
    unsigned long FICLONE
    unsigned long BLKGETSIZE64
    unsigned long LOOP_CTL_GET_FREE
    unsigned long LOOP_CLR_FD

cdef enum:
    BLOCK = 4096
    SCAN = 256 * 1024
    COPY_STEP = 16 * 1024 * 1024
    COPY_BUFFER = 256 * 1024
    LOOP_ATTEMPTS = 64
    SUPERBLOCK = 1024
    SUPERBLOCK_SIZE = 1024
    # fields of struct ext4_super_block (kernel Documentation/filesystems/ext4/super.rst)
    EXT4_LOG_BLOCK_SIZE = 0x18
    EXT4_BLOCKS_LO = 0x04
    EXT4_MAGIC = 0x38
    EXT4_FEATURE_INCOMPAT = 0x60
    EXT4_FEATURE_RO_COMPAT = 0x64
    EXT4_UUID = 0x68
    EXT4_BLOCKS_HI = 0x150
    EXT4_CHECKSUM = 0x3FC
    INCOMPAT_64BIT = 0x80
    INCOMPAT_CSUM_SEED = 0x2000
    RO_COMPAT_METADATA_CSUM = 0x400


cdef struct Segment:
    off_t offset
    size_t size
    uint8_t *bytes


cdef int _raise(int error, str what) except -1:
    raise OSError(error, os.strerror(error), what)


cdef inline uint32_t _le32(const uint8_t *at) noexcept nogil:
    return at[0] | <uint32_t>at[1] << 8 | <uint32_t>at[2] << 16 | <uint32_t>at[3] << 24


cdef inline uint64_t _le64(const uint8_t *at) noexcept nogil:
    return _le32(at) | <uint64_t>_le32(at + 4) << 32


cdef inline uint32_t _be32(const uint8_t *at) noexcept nogil:
    return at[3] | <uint32_t>at[2] << 8 | <uint32_t>at[1] << 16 | <uint32_t>at[0] << 24


cdef inline uint64_t _be64(const uint8_t *at) noexcept nogil:
    return _be32(at + 4) | <uint64_t>_be32(at) << 32


cdef inline void _put_le32(uint8_t *at, uint32_t value) noexcept nogil:
    at[0] = value & 0xFF
    at[1] = (value >> 8) & 0xFF
    at[2] = (value >> 16) & 0xFF
    at[3] = value >> 24


cdef inline uint32_t _checksum(const uint8_t *superblock) noexcept nogil:
    return hc_crc32c(~<uint32_t>0, superblock, EXT4_CHECKSUM)


cdef bint _is_zero(const uint8_t *bytes, size_t size) noexcept nogil:
    return bytes[0] == 0 and memcmp(bytes, bytes + 1, size - 1) == 0


cdef int64_t _size(int fd) noexcept nogil:
    """Bytes of a file or block device, or -errno."""
    cdef stat info
    cdef uint64_t size = 0
    if fstat(fd, &info) < 0:
        return -c_errno
    if S_ISBLK(info.st_mode):
        if ioctl(fd, BLKGETSIZE64, &size) < 0:
            return -c_errno
        return <int64_t>size
    return info.st_size


cdef ssize_t _read_at(int fd, uint8_t *into, size_t size, off_t offset) noexcept nogil:
    """Bytes read, fewer than `size` only at the end of the file, or -errno."""
    cdef size_t done = 0
    cdef ssize_t got
    while done < size:
        got = pread(fd, into + done, size - done, offset + <off_t>done)
        if got < 0:
            if c_errno == EINTR:
                continue
            return -c_errno
        if got == 0:
            break
        done += <size_t>got
    return <ssize_t>done


cdef int _write_at(int fd, const uint8_t *data, size_t size, off_t offset) noexcept nogil:
    """0 or -errno."""
    cdef ssize_t put
    while size:
        put = pwrite(fd, data, size, offset)
        if put < 0:
            if c_errno == EINTR:
                continue
            return -c_errno
        data += put
        size -= <size_t>put
        offset += put
    return 0


cdef int _next_data(int fd, off_t size, off_t *start, off_t *end) noexcept nogil:
    """The next run of data at or after `start[0]`: 1, 0 if there is none, or -errno."""
    cdef off_t data = lseek(fd, start[0], SEEK_DATA)
    if data < 0:
        if c_errno == ENXIO:
            return 0
        if c_errno != EINVAL:
            return -c_errno
        # no holes known here (a block device on older kernels): all of it is data
        if start[0] >= size:
            return 0
        end[0] = size
        return 1
    cdef off_t hole = lseek(fd, data, SEEK_HOLE)
    if hole < 0:
        return -c_errno
    start[0] = data
    end[0] = hole if hole < size else size
    return 1 if start[0] < end[0] else 0


@cython.final
cdef class Template:
    """The blocks of an ext4 image that are not zero, kept in memory to stamp new images."""

    cdef Segment *segments
    cdef size_t count
    cdef off_t length
    cdef bint checksummed

    def __cinit__(self):
        self.segments = NULL
        self.count = 0

    def __init__(self):
        raise TypeError("made by load_template()")

    def __dealloc__(self):
        cdef size_t i
        for i in range(self.count):
            free(self.segments[i].bytes)
        free(self.segments)

    @property
    def size(self):
        """Bytes of an image."""
        return self.length

    @property
    def data_bytes(self):
        """Bytes that are written for one image."""
        cdef size_t i
        cdef size_t total = 0
        for i in range(self.count):
            total += self.segments[i].size
        return total

    def write(self, int dst_fd, const unsigned char[::1] uuid16 not None):
        """Make the empty file `dst_fd` an image with this UUID; the rest of it is one hole.

        Not synced. On failure the file holds part of an image: the caller removes it.
        """
        if uuid16.shape[0] != 16:
            raise ValueError(f"a UUID has 16 bytes, not {uuid16.shape[0]}")
        cdef const uint8_t *uuid = &uuid16[0]
        cdef int rc
        with nogil:
            rc = self._stamp(dst_fd, uuid)
        if rc < 0:
            _raise(-rc, "stamp image")

    cdef int _stamp(self, int fd, const uint8_t *uuid) noexcept nogil:
        cdef stat info
        cdef uint8_t superblock[SUPERBLOCK_SIZE]
        cdef size_t i
        cdef int rc
        if fstat(fd, &info) < 0:
            return -c_errno
        if info.st_size != 0:
            return -EEXIST
        if ftruncate(fd, self.length) < 0:
            return -c_errno
        for i in range(1, self.count):
            rc = _write_at(
                fd, self.segments[i].bytes, self.segments[i].size, self.segments[i].offset
            )
            if rc < 0:
                return rc
        # the superblock last: an image that is cut short is no image
        rc = _write_at(
            fd,
            self.segments[0].bytes + SUPERBLOCK + SUPERBLOCK_SIZE,
            self.segments[0].size - SUPERBLOCK - SUPERBLOCK_SIZE,
            SUPERBLOCK + SUPERBLOCK_SIZE,
        )
        if rc < 0:
            return rc
        memcpy(superblock, self.segments[0].bytes + SUPERBLOCK, SUPERBLOCK_SIZE)
        memcpy(superblock + EXT4_UUID, uuid, 16)
        if self.checksummed:
            _put_le32(superblock + EXT4_CHECKSUM, _checksum(superblock))
        return _write_at(fd, superblock, SUPERBLOCK_SIZE, SUPERBLOCK)

    cdef int _append(self, const uint8_t *block, off_t offset) noexcept nogil:
        cdef Segment *last
        cdef void *grown
        if self.count:
            last = &self.segments[self.count - 1]
            if last.offset + <off_t>last.size == offset:
                grown = realloc(last.bytes, last.size + BLOCK)
                if grown == NULL:
                    return -ENOMEM
                last.bytes = <uint8_t *>grown
                memcpy(last.bytes + last.size, block, BLOCK)
                last.size += BLOCK
                return 0
        grown = realloc(self.segments, (self.count + 1) * sizeof(Segment))
        if grown == NULL:
            return -ENOMEM
        self.segments = <Segment *>grown
        last = &self.segments[self.count]
        last.bytes = <uint8_t *>malloc(BLOCK)
        if last.bytes == NULL:
            return -ENOMEM
        memcpy(last.bytes, block, BLOCK)
        last.offset = offset
        last.size = BLOCK
        self.count += 1
        return 0

    cdef int _load(self, int fd) noexcept nogil:
        cdef uint8_t *buffer
        cdef off_t start = 0
        cdef off_t end = 0
        cdef off_t at
        cdef ssize_t got
        cdef int rc = 0
        if self.length % BLOCK:
            return -EINVAL
        buffer = <uint8_t *>malloc(SCAN)
        if buffer == NULL:
            return -ENOMEM
        while rc == 0:
            rc = _next_data(fd, self.length, &start, &end)
            if rc <= 0:
                break
            rc = 0
            start -= start % BLOCK
            while start < end and rc == 0:
                got = _read_at(fd, buffer, SCAN, start)
                if got < BLOCK:
                    rc = <int>got if got < 0 else -EIO
                    break
                got -= got % BLOCK
                at = 0
                while at < got and rc == 0:
                    # block 0 always: it holds the superblock
                    if start + at == 0 or not _is_zero(buffer + at, BLOCK):
                        rc = self._append(buffer + at, start + at)
                    at += BLOCK
                start += got
        free(buffer)
        return rc


def load_template(int fd):
    """Read the ext4 image in `fd` for stamping; `fd` is not needed any more then.

    Raises:
        OSError: EINVAL if it is not a whole ext4 of 4 KiB blocks whose UUID can be replaced: its
            metadata checksums must not depend on the UUID (feature metadata_csum_seed).
    """
    cdef Template template = Template.__new__(Template)
    cdef int rc
    cdef int64_t size = _size(fd)
    if size < 0:
        _raise(<int>-size, "stat template")
    template.length = size
    kind, block_size, used_bytes, _ = probe_image(fd)
    if kind != "ext4" or used_bytes > size or block_size != BLOCK:
        _raise(EINVAL, f"template: {kind or 'unknown'} image of {used_bytes} bytes")
    with nogil:
        rc = template._load(fd)
    if rc < 0:
        _raise(-rc, "read template")
    cdef const uint8_t *superblock = template.segments[0].bytes + SUPERBLOCK
    template.checksummed = (
        _le32(superblock + EXT4_FEATURE_RO_COMPAT) & RO_COMPAT_METADATA_CSUM
    ) != 0
    if template.checksummed and not _le32(superblock + EXT4_FEATURE_INCOMPAT) & INCOMPAT_CSUM_SEED:
        _raise(EINVAL, "template: ext4 without metadata_csum_seed")
    return template


def clone(int src_fd, int dst_fd):
    """Make `dst_fd` share the blocks of `src_fd` (FICLONE); EOPNOTSUPP or EXDEV if it cannot."""
    cdef int rc = 0
    with nogil:
        if ioctl(dst_fd, FICLONE, src_fd) < 0:
            rc = -c_errno
    if rc < 0:
        _raise(-rc, "clone")


cdef int _cancelled(int fd) noexcept nogil:
    cdef pollfd wait
    if fd < 0:
        return 0
    wait.fd = fd
    wait.events = POLLIN
    wait.revents = 0
    return poll(&wait, 1, 0) > 0


cdef int64_t _copy_range(
    int src, int dst, off_t start, size_t size, bint *plain, uint8_t **buffer
) noexcept nogil:
    """Copy `size` bytes at most; the number copied, or -errno."""
    cdef off_t source = start
    cdef off_t target = start
    cdef ssize_t got
    cdef int rc
    if not plain[0]:
        got = copy_file_range(src, &source, dst, &target, size, 0)
        if got > 0:
            return got
        if got < 0 and c_errno not in (EXDEV, EINVAL, ENOSYS, EOPNOTSUPP):
            return 0 if c_errno == EINTR else -c_errno
        # 0 too: some filesystems say so where read() does better
        plain[0] = True
    if buffer[0] == NULL:
        buffer[0] = <uint8_t *>malloc(COPY_BUFFER)
        if buffer[0] == NULL:
            return -ENOMEM
    got = _read_at(src, buffer[0], size if size < COPY_BUFFER else COPY_BUFFER, start)
    if got <= 0:
        return got if got < 0 else -EIO
    rc = _write_at(dst, buffer[0], <size_t>got, start)
    return rc if rc < 0 else got


cdef int64_t _copy(int src, int dst, int progress_fd, int cancel_fd) noexcept nogil:
    cdef off_t start = 0
    cdef off_t end = 0
    cdef int64_t size = _size(src)
    cdef int64_t total = 0
    cdef int64_t got
    cdef bint plain = False
    cdef uint8_t *buffer = NULL
    cdef uint64_t step
    cdef int rc
    if size < 0:
        return size
    if ftruncate(dst, size) < 0:
        return -c_errno
    while True:
        rc = _next_data(src, size, &start, &end)
        if rc <= 0:
            got = rc
            break
        got = 0
        while start < end:
            if _cancelled(cancel_fd):
                got = -ECANCELED
                break
            step = <uint64_t>(end - start)
            got = _copy_range(
                src, dst, start, step if step < COPY_STEP else COPY_STEP, &plain, &buffer
            )
            if got < 0:
                break
            start += got
            total += got
            step = <uint64_t>got
            if progress_fd >= 0 and got > 0:
                write(progress_fd, &step, 8)
        if got < 0:
            break
    free(buffer)
    return got if got < 0 else total


def copy_sparse(int src_fd, int dst_fd, int progress_fd=-1, int cancel_fd=-1):
    """Copy all data of `src_fd` to the empty file `dst_fd`, keep its holes; return bytes copied.

    Args:
        progress_fd: an eventfd; its counter grows by the bytes copied.
        cancel_fd: once it is readable the copy ends with ECANCELED, after 16 MiB at most.
    """
    cdef int64_t rc
    with nogil:
        rc = _copy(src_fd, dst_fd, progress_fd, cancel_fd)
    if rc < 0:
        _raise(<int>-rc, "copy image")
    return rc


def probe_image(int fd):
    """What the image holds: (kind, block_size, size_bytes, uuid16), by its superblock.

    kind is "ext4", "erofs", "xfs", "btrfs", "qcow2", or "" for anything else, an ext2 or ext3
    among them being an "ext4" (one driver serves all). size_bytes is the filesystem's own idea
    of its size, which a file cut short does not reach.

    Raises:
        OSError: EUCLEAN if a superblock is there but damaged.
    """
    cdef uint8_t head[SUPERBLOCK + SUPERBLOCK_SIZE]
    cdef uint8_t btrfs[0x100]
    cdef const uint8_t *superblock = head + SUPERBLOCK
    cdef ssize_t got
    cdef uint32_t shift
    cdef uint64_t blocks
    memset(head, 0, sizeof(head))
    memset(btrfs, 0, sizeof(btrfs))
    with nogil:
        got = _read_at(fd, head, sizeof(head), 0)
        if got >= 0:
            got = _read_at(fd, btrfs, sizeof(btrfs), 0x10000)
    if got < 0:
        _raise(<int>-got, "read superblock")

    if superblock[EXT4_MAGIC] == 0x53 and superblock[EXT4_MAGIC + 1] == 0xEF:
        shift = _le32(superblock + EXT4_LOG_BLOCK_SIZE)
        if shift > 6:
            _raise(EUCLEAN, "ext4 superblock")
        if (
            _le32(superblock + EXT4_FEATURE_RO_COMPAT) & RO_COMPAT_METADATA_CSUM
            and _le32(superblock + EXT4_CHECKSUM)
            != _checksum(superblock)
        ):
            _raise(EUCLEAN, "ext4 superblock")
        blocks = _le32(superblock + EXT4_BLOCKS_LO)
        if _le32(superblock + EXT4_FEATURE_INCOMPAT) & INCOMPAT_64BIT:
            blocks |= <uint64_t>_le32(superblock + EXT4_BLOCKS_HI) << 32
        return "ext4", 1024 << shift, int(blocks) << (10 + shift), _bytes(superblock + EXT4_UUID)
    if _le32(superblock) == 0xE0F5E1E2:
        shift = superblock[12]
        if shift < 9 or shift > 16:
            _raise(EUCLEAN, "erofs superblock")
        return "erofs", 1 << shift, int(_le32(superblock + 36)) << shift, _bytes(superblock + 48)
    if memcmp(head, <const char *>b"XFSB", 4) == 0:
        return (
            "xfs", _be32(head + 4), int(_be64(head + 8)) * _be32(head + 4), _bytes(head + 32)
        )  # fmt: skip
    if memcmp(head, <const char *>b"QFI\xfb", 4) == 0:
        shift = _be32(head + 20)
        if shift < 9 or shift > 21:
            _raise(EUCLEAN, "qcow2 header")
        return "qcow2", 1 << shift, _be64(head + 24), bytes(16)
    if memcmp(btrfs + 0x40, <const char *>b"_BHRfS_M", 8) == 0:
        return "btrfs", _le32(btrfs + 0x90), _le64(btrfs + 0x70), _bytes(btrfs + 0x20)
    return "", 0, 0, bytes(16)


cdef bytes _bytes(const uint8_t *uuid):
    return (<const char *>uuid)[:16]


def preallocate(int fd, off_t size, bint keep_size):
    """Reserve the blocks of the first `size` bytes, so that writing them cannot fail later."""
    cdef int rc = 0
    with nogil:
        while fallocate(fd, FALLOC_FL_KEEP_SIZE if keep_size else 0, 0, size) < 0:
            rc = -c_errno
            if rc != -EINTR:
                break
            rc = 0
    if rc < 0:
        _raise(-rc, "preallocate")


def discard(int fd, off_t offset, off_t length):
    """Give the blocks of a range back to the filesystem; it reads as zeros."""
    cdef int rc = 0
    with nogil:
        if fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length) < 0:
            rc = -c_errno
    if rc < 0:
        _raise(-rc, "discard")


cdef int _attach(
    int fd, bint read_only, uint64_t offset, uint64_t size, int *minor
) noexcept nogil:
    """The fd of a new loop device over `fd`, or -errno."""
    cdef char path[32]
    cdef int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC)
    cdef int device
    cdef int rc = -EBUSY
    cdef int _attempt
    if control < 0:
        return -c_errno
    for _attempt in range(LOOP_ATTEMPTS):
        minor[0] = ioctl(control, LOOP_CTL_GET_FREE)
        if minor[0] < 0:
            rc = -c_errno
            break
        snprintf(path, sizeof(path), "/dev/loop%d", minor[0])
        device = open(path, (O_RDONLY if read_only else O_RDWR) | O_CLOEXEC)
        if device < 0:
            rc = -c_errno
            break
        rc = hc_loop_configure(device, fd, read_only, offset, size)
        if rc == 0:
            rc = device
            break
        close(device)
        # somebody else took this number between the two calls
        if rc != -EBUSY:
            break
    close(control)
    return rc


def loop_attach(int fd, bint read_only, uint64_t offset=0, uint64_t size=0):
    """A loop device over `fd`: (loop_fd, minor). It goes when its last user has closed it.

    `size` 0 means up to the end of the file.
    """
    cdef int minor = -1
    cdef int rc
    with nogil:
        rc = _attach(fd, read_only, offset, size, &minor)
    if rc < 0:
        _raise(-rc, "attach loop device")
    return rc, minor


def loop_detach(int loop_fd):
    """Detach what loop_attach returned and close `loop_fd`; while mounted it stays till umount."""
    cdef int rc = 0
    with nogil:
        if ioctl(loop_fd, LOOP_CLR_FD, 0) < 0 and c_errno != ENXIO:
            rc = -c_errno
        close(loop_fd)
    if rc < 0:
        _raise(-rc, "detach loop device")
