"""Put a NIC into a new bridge with the host's addresses on it, and back: only when asked by name.

The host's own connectivity is at stake. So the plan can be seen before, the change is made by one
process that no signal interrupts half way, and it is taken back when a gateway that answered
before does not answer after. Nothing is written to the host's configuration: it lasts until a
reboot.
"""

import contextlib
import ipaddress
import signal
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass

from hypercore import _tap, netlink, tap
from hypercore.errors import AlreadyExists, InvalidArgument, NotFound, Unavailable, from_os_error
from hypercore.netlink import ACK, CREATE, DUMP, EXCL, NETLINK_ROUTE, REPLACE, attr, attrs

_DELADDR, _DELLINK = 21, 17
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_MAIN, _KERNEL, _UNICAST, _ONLINK, _UNIVERSE = 254, 2, 1, 4, 0
_RTA_OIF, _RTA_GATEWAY = 4, 5
_RTA_KEPT = (1, 5, 6, 7, 8, 18, 20)
_IFA_KEPT = (1, 2, 4)  # address, local, broadcast
_NODAD = 0x02
_RTMGRP_NEIGH, _NEWNEIGH, _NUD_REACHABLE, _NDA_DST = 0x4, 28, 0x02, 1
_DISCARD_PORT = 9
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

PATIENCE_S = 10.0
"""for a gateway to answer; spanning trees of switches are slower, so they should know the port"""


@dataclass(frozen=True, slots=True)
class Plan:
    """What moves from one link to the other, as the kernel has it."""

    source: netlink.Link
    bridge_name: str
    addresses: tuple[bytes, ...]
    routes: tuple[bytes, ...]
    gateways: tuple[str, ...]

    def lines(self) -> list[str]:
        """What will be done, for people."""
        name = self.bridge_name
        return [
            f"make bridge {name} with the MAC address and MTU of {self.source.name}",
            f"put {self.source.name} into it",
            *(f"move {_shown_address(each)} to {name}" for each in self.addresses),
            *(f"move the route to {_shown_route(each)} to {name}" for each in self.routes),
            *(f"check that {each} answers, else take it all back" for each in self.gateways),
        ]


def plan(bridge_name: str, interface: str) -> Plan:
    """What making the bridge would change.

    Raises:
        NotFound: there is no such NIC.
        AlreadyExists: the bridge is there, or the NIC is in one.
    """
    source = netlink.link(interface)
    if source is None or source.flags & netlink.IFF_LOOPBACK or tap.is_ours(source):
        raise NotFound(f"there is no NIC {interface!r} to put into a bridge")
    if source.master or source.kind == "bridge":
        raise AlreadyExists(f"{interface} is a bridge or in one already")
    if not 0 < len(bridge_name.encode()) <= 15 or not bridge_name.replace("-", "").isalnum():
        raise InvalidArgument(f"{bridge_name!r} is no name for a bridge")
    if netlink.link(bridge_name) is not None:
        raise AlreadyExists(f"there is a link {bridge_name!r} already")
    routes = tuple(_routes(source.ifindex))
    gateways = dict.fromkeys(
        str(ipaddress.ip_address(found[_RTA_GATEWAY]))
        for found in (attrs(each, 12) for each in routes)
        if _RTA_GATEWAY in found and len(found[_RTA_GATEWAY]) == 4
    )
    return Plan(source, bridge_name, tuple(_addresses(source.ifindex)), routes, tuple(gateways))


def make(wanted: Plan, patience_s: float = PATIENCE_S) -> None:
    """Carry out a plan; when this fails, all is as before.

    Raises:
        Unavailable: a gateway that answered before does not answer after.
    """
    answering = [each for each in wanted.gateways if _answers(each, wanted.source, patience_s)]
    with _uninterrupted():
        try:
            bridge = _make_bridge(wanted)
            _move(wanted, bridge)
            silent = [each for each in answering if not _answers(each, bridge, patience_s)]
        except BaseException as exc:
            _take_back(wanted)
            if isinstance(exc, OSError):
                raise from_os_error(exc, f"make bridge {wanted.bridge_name}") from exc
            raise
        if silent:
            _take_back(wanted)
            raise Unavailable(
                f"{', '.join(silent)} did not answer through bridge {wanted.bridge_name}:"
                " all is as before",
                hint="the network may refuse a bridge: another MAC address, port security",
            )


def _make_bridge(wanted: Plan) -> netlink.Link:
    kind = netlink.nest(netlink.IFLA_LINKINFO, netlink.text(netlink.IFLA_INFO_KIND, "bridge"))
    _send(
        netlink.message(
            netlink.RTM_NEWLINK,
            ACK | CREATE | EXCL,
            bytes(16),
            netlink.text(netlink.IFLA_IFNAME, wanted.bridge_name),
            attr(netlink.IFLA_ADDRESS, wanted.source.mac),
            kind,
        )
    )
    made = netlink.link(wanted.bridge_name)
    if made is None:
        raise NotFound(f"bridge {wanted.bridge_name} went away while it was being made")
    _change(wanted.source.ifindex, attr(netlink.IFLA_MASTER, struct.pack("=I", made.ifindex)))
    _change(made.ifindex, attr(netlink.IFLA_MTU, struct.pack("=I", wanted.source.mtu)), up=True)
    return made


def _move(wanted: Plan, bridge: netlink.Link) -> None:
    for address in wanted.addresses:
        _delete_address(address)
        _add_address(address, bridge.ifindex)
    _add_routes(wanted.routes, bridge.ifindex)


def _take_back(wanted: Plan) -> None:
    """Whatever of it was done. The end of the bridge frees the NIC and takes its addresses."""
    bridge = netlink.link(wanted.bridge_name)
    if bridge is not None:
        _send(
            netlink.message(_DELLINK, ACK, struct.pack("=BBHiII", 0, 0, 0, bridge.ifindex, 0, 0))
        )
    there = list(_addresses(wanted.source.ifindex))
    for address in wanted.addresses:
        if address not in there:
            _add_address(address, wanted.source.ifindex)
    _add_routes(wanted.routes, wanted.source.ifindex)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """The session that asked for it may hang on the NIC itself."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# -- whether a neighbour answers --


def _answers(address: str, link: netlink.Link, patience_s: float) -> bool:
    """Whether the neighbour says by ARP that it is there, now."""
    packed = ipaddress.ip_address(address).packed
    deadline = time.monotonic() + patience_s
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE) as news:
        news.bind((0, _RTMGRP_NEIGH))
        while (left := deadline - time.monotonic()) > 0:
            _forget_neighbour(packed, link.ifindex)
            with (
                contextlib.suppress(OSError),
                socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe,
            ):
                probe.sendto(b"", (address, _DISCARD_PORT))
            news.settimeout(min(left, 1.0))
            with contextlib.suppress(TimeoutError):
                while not _is_reachable(news.recv(65536), packed, link.ifindex):
                    pass
                return True
    return False


def _forget_neighbour(packed: bytes, ifindex: int) -> None:
    """An entry that is fresh would hide that nobody answers any more."""
    body = struct.pack("=BxxxiHBB", socket.AF_INET, ifindex, 0, 0, 0)
    with contextlib.suppress(OSError):
        _send(netlink.message(29, ACK, body, attr(_NDA_DST, packed)))


def _is_reachable(news: bytes, packed: bytes, ifindex: int) -> bool:
    return any(
        kind == _NEWNEIGH
        and struct.unpack_from("=iH", payload, 4) == (ifindex, _NUD_REACHABLE)
        and attrs(payload, 12).get(_NDA_DST) == packed
        for kind, payload in netlink.messages(news)
    )


# -- addresses and routes as the kernel has them --


def _addresses(ifindex: int) -> Iterator[bytes]:
    """Global addresses of a link, without what cannot be given back."""
    for family in _FAMILIES:
        body = struct.pack("=BBBBI", family, 0, 0, 0, ifindex)
        for kind, payload in netlink.dump(
            NETLINK_ROUTE, netlink.message(netlink.RTM_GETADDR, DUMP, body)
        ):
            _, prefix, _, scope, index = struct.unpack_from("=BBBBI", payload)
            if kind == netlink.RTM_NEWADDR and index == ifindex and scope == _UNIVERSE:
                found = attrs(payload, 8)
                kept = b"".join(attr(key, found[key]) for key in _IFA_KEPT if key in found)
                yield struct.pack("=BBBBI", family, prefix, _NODAD, scope, index) + kept


def _add_address(address: bytes, ifindex: int) -> None:
    body = address[:4] + struct.pack("=I", ifindex)
    _send(netlink.message(netlink.RTM_NEWADDR, ACK | CREATE | REPLACE, body, address[8:]))


def _delete_address(address: bytes) -> None:
    _send(netlink.message(_DELADDR, ACK, address[:8], address[8:]))


def _routes(ifindex: int) -> Iterator[bytes]:
    """Routes of the main table by a link; those that its addresses bring are not among them."""
    link = struct.pack("=i", ifindex)
    for family in _FAMILIES:
        body = struct.pack("=BBBBBBBBI", family, 0, 0, 0, 0, 0, 0, 0, 0)
        request = netlink.message(netlink.RTM_GETROUTE, DUMP, body)
        for kind, payload in netlink.dump(NETLINK_ROUTE, request):
            table, protocol, _, route_type = payload[4:8]
            if kind != netlink.RTM_NEWROUTE or (table, route_type) != (_MAIN, _UNICAST):
                continue
            if protocol != _KERNEL and attrs(payload, 12).get(_RTA_OIF) == link:
                yield payload


def _add_routes(routes: tuple[bytes, ...], ifindex: int) -> None:
    # What is on the link first: a gateway has to be reachable when its route is made.
    for route in sorted(routes, key=lambda payload: _RTA_GATEWAY in attrs(payload, 12)):
        found = attrs(route, 12)
        flags = struct.unpack_from("=I", route, 8)[0] & _ONLINK
        values = [attr(key, found[key]) for key in _RTA_KEPT if key in found]
        values.append(attr(_RTA_OIF, struct.pack("=i", ifindex)))
        body = route[:8] + struct.pack("=I", flags)
        _send(netlink.message(netlink.RTM_NEWROUTE, ACK | CREATE | REPLACE, body, *values))


def _change(ifindex: int, *values: bytes, up: bool = False) -> None:
    flags = netlink.IFF_UP if up else 0
    body = struct.pack("=BBHiII", 0, 0, 0, ifindex, flags, flags)
    _send(netlink.message(netlink.RTM_NEWLINK, ACK, body, *values))


def _send(request: bytes) -> None:
    _tap.transact(NETLINK_ROUTE, request)


def _shown_address(address: bytes) -> str:
    found = attrs(address, 8)
    return f"{ipaddress.ip_address(found.get(2) or found[1])}/{address[1]}"


def _shown_route(route: bytes) -> str:
    found = attrs(route, 12)
    to = f"{ipaddress.ip_address(found[1])}/{route[1]}" if 1 in found else "anywhere"
    way = found.get(_RTA_GATEWAY)
    return f"{to} via {ipaddress.ip_address(way)}" if way else to
