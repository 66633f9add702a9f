"""The nftables table `hypercore`: static rules, and sets whose elements are the microVMs.

The rules never name a VM: they look at the interface group of our TAPs and at the sets. They are
installed once per host, in one atomic batch that leaves the elements of running VMs alone; a VM
adds and removes only its elements (network.py). Nobody else's table is touched. What the rules
mean for guests is in docs/networking.md. This file writes netlink itself: neither `nft` nor
pyroute2 is needed.

Rules are written as tuples of expressions, with the text `nft list table inet hypercore` shows
for them beside.
"""

import errno
import hashlib
import ipaddress
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

TABLE = "hypercore"
INET = 1
"""NFPROTO_INET"""
GROUP = 0x4843
"""interface group of every TAP of a routed microVM: "HC" """

_IPV4, _IPV6 = 2, 10

# -- messages: linux/netfilter/nf_tables.h --

_NEWTABLE, _NEWCHAIN, _GETCHAIN, _DELCHAIN = 0, 3, 4, 5
_NEWRULE, _DELRULE, _NEWSET = 6, 8, 9
_NEWSETELEM, _GETSETELEM = 12, 13
_BATCH_BEGIN, _BATCH_END = 16, 17
_SUBSYSTEM = 10


def _message(kind: int, flags: int, *values: bytes) -> bytes:
    header = struct.pack(">BBH", INET, 0, 0)
    return netlink_message(_SUBSYSTEM << 8 | kind, flags, header, *values)


def _batch(*parts: bytes) -> bytes:
    header = struct.pack(">BBH", 0, 0, _SUBSYSTEM)
    begin = netlink_message(_BATCH_BEGIN, 0, header)
    return b"".join((begin, *parts, netlink_message(_BATCH_END, 0, header)))


def _u32(kind: int, value: int) -> bytes:
    return attr(kind, struct.pack(">I", value & 0xFFFFFFFF))


# -- expressions --

_FIRST = 8  # NFT_REG32_00: sixteen registers of 4 bytes from here

Expression = bytes


def _expression(name: str, *values: bytes) -> Expression:
    return nest(1, text(1, name), nest(2, *values))


def _meta(key: int, register: int = _FIRST) -> Expression:
    return _expression("meta", _u32(1, register), _u32(2, key))


def _payload(base: int, offset: int, size: int, register: int = _FIRST) -> Expression:
    return _expression("payload", _u32(1, register), _u32(2, base), _u32(3, offset), _u32(4, size))


def _equals(value: bytes, *, negate: bool = False) -> Expression:
    return _expression("cmp", _u32(1, _FIRST), _u32(2, int(negate)), nest(3, attr(1, value)))


def _masked(mask: bytes) -> Expression:
    size = len(mask)
    return _expression(
        "bitwise", _u32(1, _FIRST), _u32(2, _FIRST), _u32(3, size),
        nest(4, attr(1, mask)), nest(5, attr(1, bytes(size))),
    )  # fmt: skip


def _in_set(name: str, *, negate: bool = False) -> Expression:
    values = [text(1, name), _u32(2, _FIRST)]
    if negate:
        values.append(_u32(5, 1))
    return _expression("lookup", *values)


def _verdict(code: int, chain: str = "") -> Expression:
    data = [_u32(1, code)] + ([text(2, chain)] if chain else [])
    return _expression("immediate", _u32(1, 0), nest(2, nest(2, *data)))


_IIFTYPE, _IIFNAME, _OIFNAME, _NFPROTO, _L4PROTO, _IIFGROUP, _OIFGROUP = 8, 6, 7, 15, 16, 21, 22
_LINK, _NETWORK, _TRANSPORT = 0, 1, 2

DROP, ACCEPT, RETURN = _verdict(0), _verdict(1), _verdict(-5)
REJECT = _expression("reject", _u32(1, 2), attr(2, b"\x03"))  # icmpx admin-prohibited
MASQUERADE = _expression("masq")


def _jump(chain: str) -> Expression:
    return _verdict(-3, chain)


def _host_u32(value: int) -> bytes:
    return struct.pack("=I", value)


def _ct(key: int, bits: int) -> tuple[Expression, ...]:
    """The connection's state (key 0) or status (key 2) has one of `bits`."""
    load = _expression("ct", _u32(2, key), _u32(1, _FIRST))
    return load, _masked(_host_u32(bits)), _equals(bytes(4), negate=True)


IPV4 = (_meta(_NFPROTO), _equals(bytes([_IPV4])))
IPV6 = (_meta(_NFPROTO), _equals(bytes([_IPV6])))
FROM_GUEST = (_meta(_IIFGROUP), _equals(_host_u32(GROUP)))
TO_GUEST = (_meta(_OIFGROUP), _equals(_host_u32(GROUP)))
REPLY = _ct(0, 2 | 4)  # established, related
PUBLISHED = _ct(2, 0x20)  # IPS_DST_NAT
UDP, TCP = ((_meta(_L4PROTO), _equals(bytes([number]))) for number in (17, 6))
DNS_PORT = (_payload(_TRANSPORT, 2, 2), _equals(b"\0\x35"))


def _icmp(protocol: int, kind: int) -> tuple[Expression, ...]:
    message_type = (_payload(_TRANSPORT, 0, 1), _equals(bytes([kind])))
    return (_meta(_L4PROTO), _equals(bytes([protocol])), *message_type)


# Keys of the sets, as registers one after another. An interface name takes four of them, a MAC
# two, an IPv4 address one.
_SENDER = (
    _meta(_IIFTYPE), _equals(b"\x01\0"), _meta(_IIFNAME), _payload(_LINK, 6, 6, _FIRST + 4)
)  # fmt: skip
_SOURCE4 = (*_SENDER, _payload(_NETWORK, 12, 4, _FIRST + 6))
_SOURCE6 = (*_SENDER, _payload(_NETWORK, 8, 16, _FIRST + 6))
_EXIT4 = (_payload(_NETWORK, 12, 4), _meta(_OIFNAME, _FIRST + 1))
_EXIT6 = (_payload(_NETWORK, 8, 16), _meta(_OIFNAME, _FIRST + 4))
_ASKS4 = (_meta(_IIFNAME), _payload(_NETWORK, 16, 4, _FIRST + 4))
_ASKS6 = (_meta(_IIFNAME), _payload(_NETWORK, 24, 16, _FIRST + 4))
_TARGET4 = (_payload(_NETWORK, 16, 4),)
_TARGET6 = (_payload(_NETWORK, 24, 16),)

# -- sets --

# Numbers of nft's own types, so that `nft list` can print the keys.
_TYPES = {"ipv4_addr": (7, 4), "ipv6_addr": (8, 16), "ether_addr": (9, 8), "ifname": (41, 16)}


@dataclass(frozen=True, slots=True)
class Set:
    name: str
    fields: tuple[str, ...]


GUESTS4 = Set("guests4", ("ifname", "ether_addr", "ipv4_addr"))
GUESTS6 = Set("guests6", ("ifname", "ether_addr", "ipv6_addr"))
"""who may send: a frame from a TAP has to have this MAC and this address"""
EXITS4 = Set("exits4", ("ipv4_addr", "ifname"))
EXITS6 = Set("exits6", ("ipv6_addr", "ifname"))
"""out of which interface a guest's address may go, and is masqueraded"""
RESOLVERS4 = Set("resolvers4", ("ifname", "ipv4_addr"))
RESOLVERS6 = Set("resolvers6", ("ifname", "ipv6_addr"))
"""DNS servers that are the host's own or link-local: open to that guest on port 53 only"""
VM_SETS = (GUESTS4, GUESTS6, EXITS4, EXITS6, RESOLVERS4, RESOLVERS6)

_METADATA4 = Set("metadata4", ("ipv4_addr",))
_METADATA6 = Set("metadata6", ("ipv6_addr",))

# Where clouds answer with credentials, besides 169.254.0.0/16: Alibaba, Azure's wire server,
# Oracle; over IPv6 AWS and Google.
_METADATA = {
    _METADATA4: ("100.100.100.200", "168.63.129.16", "192.0.0.192"),
    _METADATA6: ("fd00:ec2::254", "fd20:ce::254"),
}


def _new_set(wanted: Set, number: int) -> bytes:
    key_type = key_size = 0
    for field in wanted.fields:
        type_number, size = _TYPES[field]
        key_type = key_type << 6 | type_number
        key_size += size
    values = [text(1, TABLE), text(2, wanted.name), _u32(3, 0), _u32(4, key_type)]
    values += [_u32(5, key_size), _u32(10, number)]
    return _message(_NEWSET, CREATE, *values)


def _constants(wanted: Set, addresses: tuple[str, ...]) -> bytes:
    keys = [ipaddress.ip_address(address).packed for address in addresses]
    elements = [nest(1, nest(1, attr(1, key))) for key in keys]
    return _message(_NEWSETELEM, CREATE, text(1, TABLE), text(2, wanted.name), nest(3, *elements))


# -- rules --

Rule = tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Chain:
    name: str
    rules: tuple[Rule, ...]
    hook: tuple[str, int, int] | None = None
    """type, NF_INET_* hook, priority; None: only jumped to"""


def _chains() -> tuple[Chain, ...]:
    """All chains, those that are jumped to first."""
    resolver4 = (*IPV4, *_ASKS4, _in_set("resolvers4"))
    resolver6 = (*IPV6, *_ASKS6, _in_set("resolvers6"))
    dns_allowed = tuple(
        (*protocol, *DNS_PORT, *resolver, ACCEPT)
        for resolver in (resolver4, resolver6)
        for protocol in (UDP, TCP)
    )
    return (
        Chain(
            "source",
            (
                # iifname . ether saddr . ip saddr @guests4 return
                (*IPV4, *_SOURCE4, _in_set("guests4"), RETURN),
                (*IPV6, *_SOURCE6, _in_set("guests6"), RETURN),
                (DROP,),
            ),
        ),
        Chain(
            "to_host",
            (
                # ct state established,related accept
                (*REPLY, ACCEPT),
                # icmp type echo-request accept
                (*IPV4, *_icmp(1, 8), ACCEPT),
                # icmpv6 type { echo-request, nd-neighbor-solicit, nd-neighbor-advert } accept
                *((*IPV6, *_icmp(58, kind), ACCEPT) for kind in (128, 135, 136)),
                # udp/tcp dport 53 iifname . ip daddr @resolvers4 accept
                *dns_allowed,
                (REJECT,),
            ),
        ),
        Chain(
            "from_guest",
            (
                (*REPLY, ACCEPT),
                # ip saddr . oifname != @exits4 reject: another guest, or not the spec's interface
                (*IPV4, *_EXIT4, _in_set("exits4", negate=True), REJECT),
                (*IPV6, *_EXIT6, _in_set("exits6", negate=True), REJECT),
                *dns_allowed,
                # ip daddr 169.254.0.0/16 reject
                (*IPV4, *_TARGET4, _masked(b"\xff\xff\0\0"), _equals(b"\xa9\xfe\0\0"), REJECT),
                (*IPV4, *_TARGET4, _in_set("metadata4"), REJECT),
                (*IPV6, *_TARGET6, _in_set("metadata6"), REJECT),
                (ACCEPT,),
            ),
        ),
        Chain(
            "to_guest",
            (
                (*REPLY, ACCEPT),
                (*PUBLISHED, ACCEPT),
                (DROP,),
            ),
        ),
        # Before connection tracking (-200): a forged frame leaves no trace there.
        Chain("prerouting", ((*FROM_GUEST, _jump("source")),), ("filter", 0, -300)),
        Chain("input", ((*FROM_GUEST, _jump("to_host")),), ("filter", 1, -10)),
        Chain(
            "forward",
            ((*FROM_GUEST, _jump("from_guest")), (*TO_GUEST, _jump("to_guest"))),
            ("filter", 2, -10),
        ),
        Chain(
            "postrouting",
            (
                (*IPV4, *_EXIT4, _in_set("exits4"), MASQUERADE),
                (*IPV6, *_EXIT6, _in_set("exits6"), MASQUERADE),
            ),
            ("nat", 4, 100),
        ),
    )


def _new_chain(chain: Chain) -> bytes:
    values = [text(1, TABLE), text(3, chain.name)]
    if chain.hook:
        kind, number, priority = chain.hook
        values += [nest(4, _u32(1, number), _u32(2, priority)), _u32(5, 1), text(7, kind)]
    return _message(_NEWCHAIN, CREATE, *values)


def _ruleset() -> list[bytes]:
    """Messages that make the table, or make an existing one what it should be."""
    parts = [_message(_NEWTABLE, CREATE, text(1, TABLE), _u32(2, 0))]
    sets = (*VM_SETS, *_METADATA)
    parts += [_new_set(wanted, number) for number, wanted in enumerate(sets, 1)]
    parts += [_constants(wanted, addresses) for wanted, addresses in _METADATA.items()]
    chains = _chains()
    for chain in chains:
        parts.append(_new_chain(chain))
        parts.append(_message(_DELRULE, 0, text(1, TABLE), text(2, chain.name)))
    for chain in chains:
        for rule in chain.rules:
            values = (text(1, TABLE), text(2, chain.name), nest(4, *rule))
            parts.append(_message(_NEWRULE, CREATE | 0x800, *values))  # NLM_F_APPEND
    return parts


_MARK = "version_"


def _version(parts: list[bytes]) -> str:
    return _MARK + hashlib.sha256(b"".join(parts)).hexdigest()[:12]


_RULESET = _ruleset()
VERSION = _version(_RULESET)
"""name of an empty chain that says which rules are in place"""


# -- what others call --


def installed() -> bool:
    """Whether this host has our table with exactly these rules; one netlink query."""
    request = _message(_GETCHAIN, 0, text(1, TABLE), text(3, VERSION))
    try:
        _tap.transact(NETLINK_NETFILTER, request)
    except OSError as exc:
        if exc.errno != errno.ENOENT:
            raise
        return False
    return True


def install() -> None:
    """Make the table or bring its rules up to date, atomically; elements stay."""
    stale = [
        _message(_DELCHAIN, 0, text(1, TABLE), text(3, name))
        for name in _chain_names()
        if name.startswith(_MARK) and name != VERSION
    ]
    mark = _message(_NEWCHAIN, CREATE | ACK, text(1, TABLE), text(3, VERSION))
    try:
        _tap.transact(NETLINK_NETFILTER, _batch(*_RULESET, *stale, mark))
    except OSError as exc:
        # Another process may have removed a stale mark first, with the same rules in its hands.
        if exc.errno != errno.ENOENT or not installed():
            raise


def remove() -> None:
    """Remove the table with all that is in it; fine if there is none."""
    request = _message(2, ACK, text(1, TABLE), _u32(2, 0))  # NFT_MSG_DELTABLE
    try:
        _tap.transact(NETLINK_NETFILTER, _batch(request))
    except OSError as exc:
        if exc.errno != errno.ENOENT:
            raise


def _chain_names() -> list[str]:
    found = []
    for _, payload in dump(NETLINK_NETFILTER, _message(_GETCHAIN, DUMP)):
        values = attrs(payload, 4)
        if values.get(1) == TABLE.encode() + b"\0":
            found.append(values[3].rstrip(b"\0").decode())
    return found


Element = tuple[Set, bytes]
"""a set and a key in it"""


def add(wanted: list[Element], tag: str) -> None:
    """Add elements marked with `tag`, all or none."""
    ops: list[tuple[bool, bytes, bytes, bytes | None]]
    ops = [(True, each.name.encode(), key, None) for each, key in wanted]
    _tap.nft_update(INET, TABLE.encode(), ops, userdata=_comment(tag))


def delete(wanted: list[Element]) -> None:
    """Delete elements, all or none.

    Raises:
        OSError: ENOENT: one of them does not exist.
    """
    ops: list[tuple[bool, bytes, bytes, bytes | None]]
    ops = [(False, each.name.encode(), key, None) for each, key in wanted]
    _tap.nft_update(INET, TABLE.encode(), ops)


def _comment(tag: str) -> bytes:
    """Userdata that `nft list` shows as the element's comment."""
    value = tag.encode() + b"\0"
    return bytes([0, len(value)]) + value


def elements(wanted: Set) -> list[tuple[bytes, str]]:
    """(key, tag) of every element of a set; empty if there is no such set."""
    request = _message(_GETSETELEM, DUMP, text(1, TABLE), text(2, wanted.name))
    try:
        listing = dump(NETLINK_NETFILTER, request)
    except OSError as exc:
        if exc.errno != errno.ENOENT:
            raise
        return []
    found = []
    for _, payload in listing:
        for _, element in each_attr(attrs(payload, 4).get(3, b"")):
            values = attrs(element)
            userdata = values.get(6, b"")
            tag = userdata[2:].rstrip(b"\0").decode("utf-8", "replace")
            found.append((attrs(values[1])[1], tag if userdata[:1] == b"\0" else ""))
    return found


def ifname(name: str) -> bytes:
    """An interface's name as a field of a key."""
    return name.encode().ljust(16, b"\0")


def mac(value: bytes) -> bytes:
    """A MAC address as a field of a key."""
    return value + b"\0\0"
