"""Headers of tar archives, written and read. Not for the files they describe.

Host and guest share this file, so it imports nothing. Written: ustar, with pax headers where that
is too small. Read: that, GNU's long names, and what else is only a matter of numbers. What an
archive says is not trusted: extensions are bounded, and names are the caller's to check.

Format: pax(1) of POSIX; GNU tar's manual, "Basic Tar Format".
"""

BLOCK = 512
END = bytes(2 * BLOCK)
MAX_EXTENSION = 1 << 20
"""Bytes of pax and GNU headers before one entry."""

REGULAR, HARD_LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = (
    b"0", b"1", b"2", b"3", b"4", b"5", b"6",
)  # fmt: skip
XATTR = b"SCHILY.xattr."

_KINDS = (REGULAR, HARD_LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO)
_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL = b"L", b"K", b"x", b"g"
_MAX_7, _MAX_11 = 0o7777777, 0o77777777777


class TarError(ValueError):
    """The bytes are no tar archive that this module reads."""


class Entry:
    """One member; names are bytes, `xattrs` by full name."""

    __slots__ = (
        "gid", "kind", "link", "major", "minor", "mode", "mtime_ns", "name", "size", "uid",
        "xattrs",
    )  # fmt: skip

    def __init__(
        self,
        name,
        kind,
        mode=0,
        uid=0,
        gid=0,
        size=0,
        mtime_ns=0,
        link=b"",
        major=0,
        minor=0,
        xattrs=None,
    ):
        self.name = name
        self.kind = kind
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.size = size
        self.mtime_ns = mtime_ns
        self.link = link
        self.major = major
        self.minor = minor
        self.xattrs = xattrs or {}

    def encode(self):
        """The header's blocks; `size` bytes and padding() follow it."""
        seconds, rest_ns = divmod(self.mtime_ns, 10**9)
        records = b""
        if len(self.name) > 100:
            records += _record(b"path", self.name)
        if len(self.link) > 100:
            records += _record(b"linkpath", self.link)
        for name, value in ((b"uid", self.uid), (b"gid", self.gid)):
            if value > _MAX_7:
                records += _record(name, b"%d" % value)
        if self.size > _MAX_11:
            records += _record(b"size", b"%d" % self.size)
        if rest_ns or not 0 <= seconds <= _MAX_11:
            records += _record(b"mtime", _decimal(self.mtime_ns))
        for name in sorted(self.xattrs):
            records += _record(XATTR + name, self.xattrs[name])
        head = b""
        if records:
            extension = Entry(b"././@PaxHeader", _PAX, 0o644, size=len(records))
            head = extension._block() + records + padding(len(records))
        return head + self._block()

    def _block(self):
        seconds = self.mtime_ns // 10**9
        fields = (
            self.name[:100].ljust(100, b"\0"),
            b"%07o\0" % (self.mode & 0o7777),
            b"%07o\0" % (self.uid if self.uid <= _MAX_7 else 0),
            b"%07o\0" % (self.gid if self.gid <= _MAX_7 else 0),
            b"%011o\0" % (self.size if self.size <= _MAX_11 else 0),
            b"%011o\0" % (seconds if 0 <= seconds <= _MAX_11 else 0),
            b"        ",
            self.kind,
            self.link[:100].ljust(100, b"\0"),
            b"ustar\00000",
            bytes(64),
            b"%07o\0" % (self.major & _MAX_7),
            b"%07o\0" % (self.minor & _MAX_7),
        )
        block = b"".join(fields).ljust(BLOCK, b"\0")
        return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def padding(size):
    """What follows `size` bytes of data, up to the next header."""
    return bytes(-size % BLOCK)


def _record(name, value):
    """`length name=value`, where the length counts its own digits."""
    rest = b" " + name + b"=" + value + b"\n"
    size = len(rest) + 1
    while len(b"%d" % size) + len(rest) != size:
        size = len(b"%d" % size) + len(rest)
    return b"%d" % size + rest


def _decimal(mtime_ns):
    sign = b"-" if mtime_ns < 0 else b""
    seconds, rest = divmod(abs(mtime_ns), 10**9)
    return sign + b"%d.%09d" % (seconds, rest)


class Reader:
    """The entries of one archive, in order.

    Args:
        read: read(n) returns up to n bytes, and none at the end only.
    """

    def __init__(self, read):
        self._read = read
        self._left = 0
        self._padding = 0
        self._global = {}

    def next(self):
        """The next entry, or None at the archive's end. What was left of the last is skipped."""
        while self._left or self._padding:
            wanted = min(self._left + self._padding, 65536)
            self._exactly(wanted)
            skipped = min(wanted, self._left)
            self._left -= skipped
            self._padding -= wanted - skipped
        extended = dict(self._global)
        budget = MAX_EXTENSION
        while True:
            block = self._exactly(BLOCK, True)
            if block is None or not any(block):
                return None
            kind, size = _checked(block)
            if kind not in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL):
                break
            budget -= size + BLOCK
            if budget < 0:
                raise TarError(f"headers longer than {MAX_EXTENSION} bytes before one entry")
            body = self._exactly(size + -size % BLOCK)[:size]
            if kind == _LONG_NAME:
                extended[b"path"] = body.rstrip(b"\0")
            elif kind == _LONG_LINK:
                extended[b"linkpath"] = body.rstrip(b"\0")
            elif kind == _PAX:
                _parse_records(body, extended)
            else:
                _parse_records(body, self._global)
                extended.update(self._global)
        entry = _entry(block, kind, size, extended)
        self._left = entry.size
        self._padding = -entry.size % BLOCK
        if entry.kind != REGULAR:
            entry.size = 0
        return entry

    def data(self, limit):
        """Up to `limit` bytes of the entry's data; none once it has no more."""
        if not self._left:
            return b""
        part = self._read(min(limit, self._left))
        if not part:
            raise TarError("the archive is cut short")
        self._left -= len(part)
        return part

    def _exactly(self, size, may_end=False):
        """`size` bytes, or None if it `may_end` here and does."""
        parts = []
        left = size
        while left:
            part = self._read(left)
            if not part:
                if may_end and left == size:
                    return None
                raise TarError("the archive is cut short")
            parts.append(part)
            left -= len(part)
        return b"".join(parts)


def _checked(block):
    """(kind, size) of a header whose checksum is right."""
    stored = _number(block[148:156])
    if stored != sum(block) - sum(block[148:156]) + 8 * 32:
        raise TarError("no tar header where one must be")
    return block[156:157], _number(block[124:136])


def _entry(block, kind, size, extended):
    for name in extended:
        if name.startswith(b"GNU.sparse."):
            raise TarError("sparse files in archives are not supported")
    name = _text(block[0:100])
    if block[257:265] == b"ustar\00000" and block[345:346] != b"\0":
        name = _text(block[345:500]) + b"/" + name
    name = extended.get(b"path", name)
    if kind in (b"\0", b"7"):
        kind = REGULAR
    if kind == REGULAR and name.endswith(b"/"):
        kind = DIRECTORY  # as before ustar
    if kind not in _KINDS:
        raise TarError(f"entry {name!r} is of a kind {kind!r} that is not supported")
    mtime = extended.get(b"mtime")
    return Entry(
        name,
        kind,
        _number(block[100:108]) & 0o7777,
        _pax_number(extended, b"uid", _number(block[108:116])),
        _pax_number(extended, b"gid", _number(block[116:124])),
        _pax_number(extended, b"size", size),
        _number(block[136:148]) * 10**9 if mtime is None else _parse_decimal(mtime),
        extended.get(b"linkpath", _text(block[157:257])),
        _number(block[329:337]) if kind in (CHARACTER, BLOCK_DEVICE) else 0,
        _number(block[337:345]) if kind in (CHARACTER, BLOCK_DEVICE) else 0,
        {k[len(XATTR) :]: v for k, v in extended.items() if k.startswith(XATTR)},
    )


def _text(field):
    return field.split(b"\0", 1)[0]


def _number(field):
    """An octal number in ASCII, or GNU's big-endian one."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & (1 << (8 * len(field) - 1)) - 1
        if value >> 63:
            raise TarError("a number in a header is negative or too large")
        return value
    text = _text(field).strip()
    try:
        return int(text, 8) if text else 0
    except ValueError:
        raise TarError(f"{field!r} in a header is no number") from None


def _pax_number(extended, name, otherwise):
    text = extended.get(name)
    if text is None:
        return otherwise
    if not text.isdigit() or len(text) > 19:
        raise TarError(f"{name!r} of an entry is {text[:40]!r}")
    return int(text)


def _parse_decimal(text):
    sign = -1 if text.startswith(b"-") else 1
    seconds, _, rest = text.lstrip(b"-").partition(b".")
    if not seconds.isdigit() or len(seconds) > 18 or (rest and not rest.isdigit()):
        raise TarError(f"the time of an entry is {text[:40]!r}")
    return sign * (int(seconds) * 10**9 + int(rest[:9].ljust(9, b"0")))


def _parse_records(body, into):
    place = 0
    while place < len(body):
        digits, _, _ = body[place : place + 20].partition(b" ")
        size = int(digits) if digits.isdigit() else 0
        name, equals, value = body[place + len(digits) + 1 : place + size].partition(b"=")
        if not equals or not value.endswith(b"\n") or place + size > len(body):
            raise TarError("a broken pax header")
        into[name] = value[:-1]
        place += size
