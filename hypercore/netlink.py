"""Netlink messages built and read in Python, and the few rtnetlink questions we ask.

For what is asked a handful of times per VM or once per host; what is on the hot path is built in
_tap.pyx. No pyroute2: its import costs 180 ms.
"""

import errno
import socket
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from hypercore import _tap

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12

REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
CREATE, EXCL, REPLACE = 0x400, 0x200, 0x100

RTM_NEWLINK, RTM_GETLINK = 16, 18
RTM_SETLINK = 19
RTM_NEWADDR, RTM_GETADDR = 20, 22
RTM_NEWROUTE, RTM_GETROUTE = 24, 26
RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 36, 37, 38

_NESTED = 0x8000
_TYPE_MASK = 0x3FFF
_DUMP_TRIES = 100

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER = 1, 3, 4, 10
IFLA_LINKINFO, IFLA_IFALIAS, IFLA_AF_SPEC, IFLA_GROUP, IFLA_EXT_MASK = 18, 20, 26, 27, 29
IFLA_INFO_KIND = 1
_IFLA_INET_CONF, _IFLA_INET6_CONF = 1, 2
IPV4_FORWARDING = 1
IPV6_ACCEPT_RA = 3
_RTEXT_FILTER_SKIP_STATS = 1 << 3

RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PREFSRC, RTA_MULTIPATH = 1, 4, 5, 7, 9
_RTN_UNICAST, _RTPROT_KERNEL, _RT_TABLE_MAIN = 1, 2, 254
_RTM_F_FIB_MATCH = 0x2000


def attr(kind: int, value: bytes) -> bytes:
    """One attribute, padded to 4 bytes."""
    return struct.pack("=HH", len(value) + 4, kind) + value + bytes(-len(value) % 4)


def nest(kind: int, *attrs: bytes) -> bytes:
    return attr(kind | _NESTED, b"".join(attrs))


def text(kind: int, value: str) -> bytes:
    return attr(kind, value.encode() + b"\0")


def message(kind: int, flags: int, body: bytes, *attrs: bytes) -> bytes:
    payload = body + bytes(-len(body) % 4) + b"".join(attrs)
    return struct.pack("=IHHII", len(payload) + 16, kind, REQUEST | flags, 0, 0) + payload


def messages(reply: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, payload) of each message of an answer."""
    offset = 0
    while offset + 16 <= len(reply):
        length, kind = struct.unpack_from("=IH", reply, offset)
        if length < 16:
            return
        yield kind, reply[offset + 16 : offset + length]
        offset += length + (-length % 4)


def attrs(payload: bytes, offset: int = 0) -> dict[int, bytes]:
    """Attributes of `payload` from `offset` on; of a repeated one the last."""
    return dict(each_attr(payload, offset))


def each_attr(payload: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    while offset + 4 <= len(payload):
        length, kind = struct.unpack_from("=HH", payload, offset)
        if length < 4:
            return
        yield kind & _TYPE_MASK, payload[offset + 4 : offset + length]
        offset += length + (-length % 4)


def dump(protocol: int, request: bytes, *, netns_fd: int = -1) -> list[tuple[int, bytes]]:
    """A complete listing; listed again when it changed under our hands."""
    for _ in range(_DUMP_TRIES):
        try:
            return list(messages(_tap.transact(protocol, request, dump=True, netns_fd=netns_fd)))
        except OSError as exc:
            if exc.errno != errno.EINTR:
                raise
    raise OSError(errno.EINTR, f"netlink listing changed {_DUMP_TRIES} times while being read")


@dataclass(frozen=True, slots=True)
class Link:
    """A network device as the kernel shows it."""

    ifindex: int
    name: str
    mtu: int
    mac: bytes
    flags: int
    group: int = 0
    master: int = 0
    alias: str = ""
    kind: str = ""
    per_family: bytes = field(default=b"", repr=False, compare=False)
    """settings of IPv4 and IPv6 on this device (IFLA_AF_SPEC)"""

    def ipv4_setting(self, number: int) -> int:
        """A setting by its IPV4_DEVCONF number; 0 where IPv4 is off."""
        values = attrs(attrs(self.per_family).get(socket.AF_INET, b"")).get(_IFLA_INET_CONF, b"")
        return _int32(values, number - 1)

    def ipv6_setting(self, number: int) -> int:
        """A setting by its DEVCONF number; 0 where IPv6 is off."""
        values = attrs(attrs(self.per_family).get(socket.AF_INET6, b"")).get(_IFLA_INET6_CONF, b"")
        return _int32(values, number)


def _int32(values: bytes, index: int) -> int:
    return int.from_bytes(values[4 * index : 4 * index + 4], "little", signed=True)


def _link(payload: bytes) -> Link:
    ifindex, flags = struct.unpack_from("=iI", payload, 4)
    found = attrs(payload, 16)

    def number(kind: int) -> int:
        return int.from_bytes(found.get(kind, b""), "little")

    info = attrs(found.get(IFLA_LINKINFO, b""))
    return Link(
        ifindex=ifindex,
        name=_string(found.get(IFLA_IFNAME, b"")),
        mtu=number(IFLA_MTU),
        mac=found.get(IFLA_ADDRESS, b""),
        flags=flags,
        group=number(IFLA_GROUP),
        master=number(IFLA_MASTER),
        alias=_string(found.get(IFLA_IFALIAS, b"")),
        kind=_string(info.get(IFLA_INFO_KIND, b"")),
        per_family=found.get(IFLA_AF_SPEC, b""),
    )


def _string(value: bytes) -> str:
    return value.rstrip(b"\0").decode("utf-8", "replace")


def _skip_stats() -> bytes:
    return attr(IFLA_EXT_MASK, struct.pack("=I", _RTEXT_FILTER_SKIP_STATS))


def link(name: str = "", *, ifindex: int = 0, netns_fd: int = -1) -> Link | None:
    """The link of that name or ifindex, or None."""
    encoded = name.encode()
    if len(encoded) > 15 or not (encoded or ifindex):
        return None
    values = [attr(IFLA_IFNAME, encoded + b"\0")] if encoded else []
    body = struct.pack("=BBHiII", 0, 0, 0, ifindex, 0, 0)
    request = message(RTM_GETLINK, 0, body, *values, _skip_stats())
    try:
        reply = _tap.transact(NETLINK_ROUTE, request, netns_fd=netns_fd)
    except OSError as exc:
        if exc.errno != errno.ENODEV:
            raise
        return None
    return next(_link(payload) for _, payload in messages(reply))


def links(*, netns_fd: int = -1) -> list[Link]:
    request = message(RTM_GETLINK, DUMP, bytes(16), _skip_stats())
    return [_link(payload) for _, payload in dump(NETLINK_ROUTE, request, netns_fd=netns_fd)]


@dataclass(frozen=True, slots=True)
class Route:
    """An entry of the routing tables, or what they say about one destination."""

    destination: bytes
    """empty: any"""
    prefix_length: int
    ifindex: int
    gateway: bytes
    source: bytes
    """address the host would send from"""
    is_unicast: bool
    """leads to a link; not one of the host's own addresses, a broadcast, a blackhole"""
    is_made: bool = True
    """in the main table and not of the kernel's own making, as those of an address are"""


def _route(payload: bytes) -> Route:
    found = attrs(payload, 12)
    hop = found.get(RTA_OIF) or found.get(RTA_MULTIPATH, b"")[4:8]  # struct rtnexthop
    return Route(
        destination=found.get(RTA_DST, b""),
        prefix_length=payload[1],
        ifindex=int.from_bytes(hop, "little"),
        gateway=found.get(RTA_GATEWAY, b""),
        source=found.get(RTA_PREFSRC, b""),
        is_unicast=payload[7] == _RTN_UNICAST,
        is_made=payload[4] == _RT_TABLE_MAIN and payload[5] != _RTPROT_KERNEL,
    )


def _route_request(family: int, destination_bits: int, flags: int) -> bytes:
    return struct.pack("=BBBBBBBBI", family, destination_bits, 0, 0, 0, 0, 0, 0, flags)


def route_to(address: bytes, *, ifindex: int = 0, entry: bool = False) -> Route | None:
    """The route to `address`, out of link `ifindex` if given; None: there is none.

    With `entry` the routing table's entry that matched, with its prefix length.
    """
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    body = _route_request(family, 8 * len(address), _RTM_F_FIB_MATCH if entry else 0)
    values = [attr(RTA_DST, address)]
    if ifindex:
        values.append(attr(RTA_OIF, struct.pack("=i", ifindex)))
    try:
        reply = _tap.transact(NETLINK_ROUTE, message(RTM_GETROUTE, 0, body, *values))
    except OSError as exc:
        if exc.errno not in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL):
            raise
        return None
    found = [_route(payload) for kind, payload in messages(reply) if kind == RTM_NEWROUTE]
    return found[0] if found and found[0].is_unicast else None


def routes(family: int, *, netns_fd: int = -1) -> list[Route]:
    """All routes of all tables that lead to a link."""
    request = message(RTM_GETROUTE, DUMP, _route_request(family, 0, 0))
    listing = dump(NETLINK_ROUTE, request, netns_fd=netns_fd)
    found = [_route(payload) for kind, payload in listing if kind == RTM_NEWROUTE]
    return [route for route in found if route.is_unicast]


IFF_UP, IFF_LOOPBACK = 0x1, 0x8

_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RT_SCOPE_UNIVERSE = 0


def addresses(
    ifindex: int,
    families: tuple[int, ...] = (socket.AF_INET, socket.AF_INET6),
    *,
    netns_fd: int = -1,
) -> list[str]:
    """The link's global addresses with their prefix lengths."""
    found = []
    for family in families:
        body = struct.pack("=BBBBI", family, 0, 0, 0, ifindex)
        request = message(RTM_GETADDR, DUMP, body)
        for kind, payload in dump(NETLINK_ROUTE, request, netns_fd=netns_fd):
            if kind != RTM_NEWADDR:
                continue
            _, prefix, _, scope, index = struct.unpack_from("=BBBBI", payload)
            values = attrs(payload, 8)
            packed = values.get(_IFA_LOCAL) or values.get(_IFA_ADDRESS)
            if packed and index == ifindex and scope == _RT_SCOPE_UNIVERSE:
                found.append(f"{socket.inet_ntop(family, packed)}/{prefix}")
    return found


_RTM_NEWNEIGH, _RTM_GETNEIGH, _NDA_DST, _NDA_LLADDR, _NUD_PERMANENT = 28, 30, 1, 2, 0x80


def fixed_neighbours(ifindex: int, *, netns_fd: int = -1) -> list[tuple[bytes, bytes]]:
    """(address, MAC) of the neighbours that somebody made known on a link for good."""
    found = []
    request = message(_RTM_GETNEIGH, DUMP, bytes(12))
    for kind, payload in dump(NETLINK_ROUTE, request, netns_fd=netns_fd):
        index, state = struct.unpack_from("=iH", payload, 4)
        values = attrs(payload, 12)
        if kind != _RTM_NEWNEIGH or index != ifindex or not state & _NUD_PERMANENT:
            continue
        address, mac = values.get(_NDA_DST, b""), values.get(_NDA_LLADDR, b"")
        if mac and len(address) in (4, 16):
            found.append((address, mac))
    return found


def owners(wanted: Collection[bytes]) -> set[int]:
    """ifindexes of the links that have one of these addresses."""
    found = set()
    for _, payload in dump(NETLINK_ROUTE, message(RTM_GETADDR, DUMP, bytes(8))):
        values = attrs(payload, 8)
        if (values.get(_IFA_LOCAL) or values.get(_IFA_ADDRESS)) in wanted:
            found.add(struct.unpack_from("=I", payload, 4)[0])
    return found


_INGRESS_HANDLE, _INGRESS_PARENT = 0xFFFF0000, 0xFFFFFFF1


def _ingress(ifindex: int) -> bytes:
    return struct.pack("=BBHiIII", 0, 0, 0, ifindex, _INGRESS_HANDLE, _INGRESS_PARENT, 0)


def has_ingress(ifindex: int, *, netns_fd: int = -1) -> bool:
    """Whether the link has an ingress qdisc."""
    request = message(RTM_GETQDISC, ACK, _ingress(ifindex))
    try:
        _tap.transact(NETLINK_ROUTE, request, netns_fd=netns_fd)
    except OSError as exc:
        # EINVAL: there was one before, and its place is empty now.
        if exc.errno not in (errno.ENOENT, errno.EINVAL):
            raise
        return False
    return True


def delete_ingress(ifindex: int, *, netns_fd: int = -1) -> None:
    """Delete the link's ingress qdisc with its filters; fine if either is gone."""
    request = message(RTM_DELQDISC, ACK, _ingress(ifindex))
    try:
        _tap.transact(NETLINK_ROUTE, request, netns_fd=netns_fd)
    except OSError as exc:
        if exc.errno not in (errno.ENOENT, errno.ENODEV, errno.EINVAL):
            raise
