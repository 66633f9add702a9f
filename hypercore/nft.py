"""nftables by netlink: expressions, rules, and a table that is installed as a whole.

Mechanism only; which tables, sets and rules hypercore has is ruleset.py's. Nobody else's table is
touched, and neither `nft` nor pyroute2 is needed. The numbers are linux/netfilter/nf_tables.h's.
"""

import errno
import functools
import hashlib
import struct
from dataclasses import dataclass

from hypercore import _tap
from hypercore.netlink import (
    ACK,
    CREATE,
    DUMP,
    NETLINK_NETFILTER,
    attr,
    attrs,
    dump,
    each_attr,
    nest,
    text,
)
from hypercore.netlink import message as netlink_message

INET, BRIDGE = 1, 7
"""families of tables (NFPROTO_*)"""

_NEWTABLE, _DELTABLE = 0, 2
_NEWCHAIN, _GETCHAIN, _DELCHAIN = 3, 4, 5
_NEWRULE, _GETRULE, _DELRULE, _NEWSET = 6, 7, 8, 9
_NEWSETELEM, _GETSETELEM = 12, 13
_BATCH_BEGIN, _BATCH_END = 16, 17
_SUBSYSTEM = 10
_APPEND = 0x800


def _message(family: int, kind: int, flags: int, *values: bytes) -> bytes:
    header = struct.pack(">BBH", family, 0, 0)
    return netlink_message(_SUBSYSTEM << 8 | kind, flags, header, *values)


def _batch(*parts: bytes) -> bytes:
    header = struct.pack(">BBH", 0, 0, _SUBSYSTEM)
    begin = netlink_message(_BATCH_BEGIN, 0, header)
    return b"".join((begin, *parts, netlink_message(_BATCH_END, 0, header)))


def _u32(kind: int, value: int) -> bytes:
    return attr(kind, struct.pack(">I", value & 0xFFFFFFFF))


# -- expressions --

Expression = bytes
Rule = tuple[Expression, ...]

REGISTER = 8
"""NFT_REG32_00, the first of sixteen registers of 4 bytes; the keys of sets start here"""

IIFTYPE, IIFNAME, OIFNAME, NFPROTO, L4PROTO, IIFGROUP, OIFGROUP = 8, 6, 7, 15, 16, 21, 22
PROTOCOL, _PRIORITY_KEY, _MARK_KEY = 1, 2, 3
LINK, NETWORK, TRANSPORT = 0, 1, 2
CT_STATE, CT_STATUS = 0, 2
PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING = range(5)
"""hooks of base chains (NF_INET_*)"""


def _expression(name: str, *values: bytes) -> Expression:
    return nest(1, text(1, name), nest(2, *values))


def meta(key: int, register: int = REGISTER) -> Expression:
    """Load what the kernel knows of the packet."""
    return _expression("meta", _u32(1, register), _u32(2, key))


def payload(base: int, offset: int, size: int, register: int = REGISTER) -> Expression:
    """Load bytes of the packet, counted from a header's start."""
    return _expression("payload", _u32(1, register), _u32(2, base), _u32(3, offset), _u32(4, size))


def ct(key: int) -> Expression:
    """Load what connection tracking knows."""
    return _expression("ct", _u32(2, key), _u32(1, REGISTER))


def address_type() -> Expression:
    """Load what the destination is to this host (RTN_*)."""
    return _expression("fib", _u32(1, REGISTER), _u32(2, 3), _u32(3, 2))


def equals(value: bytes, *, negate: bool = False) -> Expression:
    return _expression("cmp", _u32(1, REGISTER), _u32(2, int(negate)), nest(3, attr(1, value)))


def masked(mask: bytes) -> Expression:
    return _expression(
        "bitwise", _u32(1, REGISTER), _u32(2, REGISTER), _u32(3, len(mask)),
        nest(4, attr(1, mask)), nest(5, attr(1, bytes(len(mask)))),
    )  # fmt: skip


def look_up(name: str) -> Expression:
    """Load what the map has for the key; without an entry the rule ends here."""
    return _expression("lookup", text(1, name), _u32(2, REGISTER), _u32(3, REGISTER))


def set_mark_by(name: str) -> Expression:
    """Mark the packet with what the map has for the key."""
    return look_up(name) + _expression("meta", _u32(2, _MARK_KEY), _u32(3, REGISTER))


def set_priority_by(name: str) -> Expression:
    """Give the packet the priority (traffic class) that the map has for the key."""
    return look_up(name) + _expression("meta", _u32(2, _PRIORITY_KEY), _u32(3, REGISTER))


def priority() -> Expression:
    """Load the packet's priority."""
    return meta(_PRIORITY_KEY)


def lead_to(family: int, port_register: int) -> Expression:
    """Rewrite the destination to the address that is loaded, and the port unless 0 (dnat)."""
    values = [_u32(1, 1), _u32(2, family), _u32(3, REGISTER)]
    if port_register:
        values.append(_u32(5, port_register))
    return _expression("nat", *values)


def come_from(family: int, address: bytes) -> Rule:
    """Rewrite the source (snat)."""
    load = _expression("immediate", _u32(1, REGISTER), nest(2, attr(1, address)))
    return load, _expression("nat", _u32(1, 0), _u32(2, family), _u32(3, REGISTER))


def in_set(name: str, *, negate: bool = False) -> Expression:
    values = [text(1, name), _u32(2, REGISTER)]
    if negate:
        values.append(_u32(5, 1))
    return _expression("lookup", *values)


def _verdict(code: int, chain: str = "") -> Expression:
    data = [_u32(1, code)] + ([text(2, chain)] if chain else [])
    return _expression("immediate", _u32(1, 0), nest(2, nest(2, *data)))


def jump(chain: str) -> Expression:
    return _verdict(-3, chain)


DROP, ACCEPT, RETURN = _verdict(0), _verdict(1), _verdict(-5)
REJECT = _expression("reject", _u32(1, 2), attr(2, b"\x03"))  # icmpx admin-prohibited
MASQUERADE = _expression("masq")


def host_u32(value: int) -> bytes:
    """A number as the kernel compares it where it is not from the packet."""
    return struct.pack("=I", value)


# -- tables --

# Numbers of nft's own types, so that `nft list` can print the keys.
_TYPES = {
    "ipv4_addr": (7, 4),
    "ipv6_addr": (8, 16),
    "ether_addr": (9, 8),
    "inet_proto": (12, 4),
    "inet_service": (13, 4),
    "mark": (19, 4),
    "classid": (23, 4),
    "ifname": (41, 16),
}
_IS_INTERVAL, _IS_MAP, _IS_CONCATENATION = 0x4, 0x8, 0x80


@dataclass(frozen=True, slots=True)
class Set:
    """A set whose elements come and go; with `constants`, one whose elements stay.

    With `data`, the types of what belongs to each key, it is a map. With `intervals` an element is
    a range in each of its fields, of which there are two or more.
    """

    family: int
    table: str
    name: str
    fields: tuple[str, ...]
    constants: tuple[bytes, ...] = ()
    data: tuple[str, ...] = ()
    intervals: bool = False


@dataclass(frozen=True, slots=True)
class Element:
    """A key in a set, or a key and its data in a map, or the first and last key of an interval.

    With a rate, the key is only found when packets come faster (bytes per second); not read back.
    """

    of: Set
    key: bytes
    data: bytes = b""
    last: bytes = b""
    rate: int = 0


@dataclass(frozen=True, slots=True)
class Chain:
    name: str
    rules: tuple[Rule, ...]
    hook: tuple[str, int, int] | None = None
    """type, number of the hook, priority; None: only jumped to"""


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A table as it should be; chains that are jumped to come first."""

    family: int
    name: str
    sets: tuple[Set, ...]
    chains: tuple[Chain, ...]


def ifname(name: str) -> bytes:
    """An interface's name as a field of a key."""
    return name.encode().ljust(16, b"\0")


def mac(value: bytes) -> bytes:
    """A MAC address as a field of a key."""
    return value + b"\0\0"


def protocol(number: int) -> bytes:
    """A transport protocol as a field of a key."""
    return bytes([number, 0, 0, 0])


def port(number: int) -> bytes:
    """A port as a field of a key or of data."""
    return struct.pack(">HH", number, 0)


def _type(fields: tuple[str, ...]) -> tuple[int, int]:
    """(number, size) of the concatenation of these types."""
    number = size = 0
    for field in fields:
        field_number, field_size = _TYPES[field]
        number = number << 6 | field_number
        size += field_size
    return number, size


def _new_set(wanted: Set, number: int) -> bytes:
    key_type, key_size = _type(wanted.fields)
    flags = _IS_MAP if wanted.data else 0
    values = [text(1, wanted.table), text(2, wanted.name)]
    if wanted.intervals:
        flags |= _IS_INTERVAL | _IS_CONCATENATION
        sizes = [nest(1, _u32(1, _TYPES[field][1])) for field in wanted.fields]
        values.append(nest(9, nest(2, *sizes)))
    values += [_u32(3, flags), _u32(4, key_type), _u32(5, key_size), _u32(10, number)]
    if wanted.data:
        data_type, data_size = _type(wanted.data)
        values += [_u32(6, data_type), _u32(7, data_size)]
    return _message(wanted.family, _NEWSET, CREATE, *values)


def _constants(wanted: Set) -> bytes:
    elements = [nest(1, nest(1, attr(1, key))) for key in wanted.constants]
    names = text(1, wanted.table), text(2, wanted.name)
    return _message(wanted.family, _NEWSETELEM, CREATE, *names, nest(3, *elements))


def _new_chain(table: Table, chain: Chain) -> bytes:
    values = [text(1, table.name), text(3, chain.name)]
    if chain.hook:
        kind, number, priority = chain.hook
        values += [nest(4, _u32(1, number), _u32(2, priority)), _u32(5, 1), text(7, kind)]
    return _message(table.family, _NEWCHAIN, CREATE, *values)


def _rules(table: Table) -> bytes:
    """Messages that make the table, or make an existing one what it should be."""
    name = text(1, table.name)
    parts = [_message(table.family, _NEWTABLE, CREATE, name, _u32(2, 0))]
    parts += [_new_set(wanted, number) for number, wanted in enumerate(table.sets, 1)]
    parts += [_constants(wanted) for wanted in table.sets if wanted.constants]
    for chain in table.chains:
        parts.append(_new_chain(table, chain))
        parts.append(_message(table.family, _DELRULE, 0, name, text(2, chain.name)))
    for chain in table.chains:
        for rule in chain.rules:
            values = (name, text(2, chain.name), nest(4, *rule))
            parts.append(_message(table.family, _NEWRULE, CREATE | _APPEND, *values))
    return b"".join(parts)


_MARK = "version_"


@functools.cache
def _mark(table: Table) -> str:
    """Name of an empty chain that says which rules are in place."""
    return _MARK + hashlib.sha256(_rules(table)).hexdigest()[:12]


def installed(table: Table) -> bool:
    """Whether this host has the table with exactly these rules; one netlink query."""
    names = text(1, table.name), text(3, _mark(table))
    try:
        _tap.transact(NETLINK_NETFILTER, _message(table.family, _GETCHAIN, 0, *names))
    except OSError as exc:
        if exc.errno != errno.ENOENT:
            raise
        return False
    return True


def replace(table: Table) -> None:
    """Install the table in the place of one whose sets are of other types.

    Elements stay where they still fit; those with a rate lose it.
    """
    kept = [each for of in table.sets if not of.constants for each in elements(of)]
    name = text(1, table.name)
    removal = _message(table.family, _DELTABLE, 0, name, _u32(2, 0))
    mark = _message(table.family, _NEWCHAIN, CREATE | ACK, name, text(3, _mark(table)))
    _tap.transact(NETLINK_NETFILTER, _batch(removal, _rules(table), mark))
    for element, tag in kept:
        try:
            add([element], tag)
        except OSError as exc:
            if exc.errno not in (errno.EINVAL, errno.ENOENT, errno.EEXIST):
                raise


def install(table: Table) -> None:
    """Make the table or bring its rules up to date, atomically; elements stay.

    Raises:
        OSError: EEXIST: one of its sets is there with other types.
    """
    name, current = text(1, table.name), _mark(table)
    stale = [
        _message(table.family, _DELCHAIN, 0, name, text(3, chain))
        for chain in _chain_names(table)
        if chain.startswith(_MARK) and chain != current
    ]
    mark = _message(table.family, _NEWCHAIN, CREATE | ACK, name, text(3, current))
    try:
        _tap.transact(NETLINK_NETFILTER, _batch(_rules(table), *stale, mark))
    except OSError as exc:
        # Another process may have removed a stale mark first, with the same rules in its hands.
        if exc.errno != errno.ENOENT or not installed(table):
            raise


def remove(table: Table) -> None:
    """Remove the table with all that is in it; fine if there is none."""
    request = _message(table.family, _DELTABLE, ACK, text(1, table.name), _u32(2, 0))
    try:
        _tap.transact(NETLINK_NETFILTER, _batch(request))
    except OSError as exc:
        if exc.errno != errno.ENOENT:
            raise


def _chain_names(table: Table) -> list[str]:
    return [
        each.name for each in chains() if (each.family, each.table) == (table.family, table.name)
    ]


@dataclass(frozen=True, slots=True)
class Found:
    """A chain of anybody's."""

    family: int
    table: str
    name: str
    hook: int
    """-1: not a base chain"""
    policy: bytes


def chains() -> list[Found]:
    """All chains of all tables."""
    found = []
    for _, body in dump(NETLINK_NETFILTER, _message(0, _GETCHAIN, DUMP)):
        values = attrs(body, 4)
        hook = attrs(values.get(4, b"")).get(1)
        found.append(
            Found(
                family=body[0],
                table=values[1].rstrip(b"\0").decode(),
                name=values[3].rstrip(b"\0").decode(),
                hook=int.from_bytes(hook, "big") if hook is not None else -1,
                policy=values.get(5, b""),
            )
        )
    return found


def rules(family: int, table: str, chain: str) -> list[bytes]:
    """The list of expressions of each rule of a chain; empty if there is no such chain."""
    request = _message(family, _GETRULE, DUMP, text(1, table), text(2, chain))
    try:
        listing = dump(NETLINK_NETFILTER, request)
    except OSError as exc:
        if exc.errno != errno.ENOENT:
            raise
        return []
    return [attrs(body, 4).get(4, b"") for _, body in listing]


# -- elements --


def add(wanted: list[Element], tag: str) -> None:
    """Add elements marked with `tag`; all of one table's or none of them."""
    _update(wanted, is_addition=True, userdata=_comment(tag))


def delete(wanted: list[Element]) -> None:
    """Delete elements; all of one table's or none of them.

    Raises:
        OSError: ENOENT: one of them does not exist.
    """
    _update(wanted, is_addition=False)


def _update(wanted: list[Element], *, is_addition: bool, userdata: bytes = b"") -> None:
    by_table: dict[tuple[int, str], list[tuple[bool, bytes, bytes, bytes | None, bytes]]] = {}
    for each in wanted:
        ops = by_table.setdefault((each.of.family, each.of.table), [])
        more = _more(each, is_addition=is_addition)
        ops.append((is_addition, each.of.name.encode(), each.key, each.data or None, more))
    for (family, table), ops in by_table.items():
        _tap.nft_update(family, table.encode(), ops, userdata=userdata)


_MIN_BURST = 128 * 1024
"""bytes: a packet before it is cut to size for the wire has up to 64 KiB"""


def burst(rate: int) -> int:
    """Bytes that an element with this rate lets pass at once: those of 50 ms."""
    return max(rate // 20, _MIN_BURST)


def _more(element: Element, *, is_addition: bool) -> bytes:
    """Attributes of the element besides key and data."""
    more = nest(10, attr(1, element.last)) if element.last else b""
    if element.rate and is_addition:
        rate, second = attr(1, struct.pack(">Q", element.rate)), attr(2, struct.pack(">Q", 1))
        over = (rate, second, _u32(3, burst(element.rate)), _u32(4, 1), _u32(5, 1))
        more += nest(7, text(1, "limit"), nest(2, *over))
    return more


def _comment(tag: str) -> bytes:
    """Userdata that `nft list` shows as the element's comment."""
    value = tag.encode() + b"\0"
    return bytes([0, len(value)]) + value


def elements(wanted: Set) -> list[tuple[Element, str]]:
    """(element, tag) of all in a set; empty if there is no such set."""
    names = text(1, wanted.table), text(2, wanted.name)
    try:
        listing = dump(NETLINK_NETFILTER, _message(wanted.family, _GETSETELEM, DUMP, *names))
    except OSError as exc:
        if exc.errno != errno.ENOENT:
            raise
        return []
    found = []
    for _, body in listing:
        for _, element in each_attr(attrs(body, 4).get(3, b"")):
            values = attrs(element)
            userdata = values.get(6, b"")
            tag = userdata[2:].rstrip(b"\0").decode("utf-8", "replace")
            data = attrs(values[2])[1] if 2 in values else b""
            last = attrs(values[10])[1] if 10 in values else b""
            made = Element(wanted, attrs(values[1])[1], data, last)
            found.append((made, tag if userdata[:1] == b"\0" else ""))
    return found
