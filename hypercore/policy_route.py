"""Routes of their own for guests whose interface is not the one the host itself sends by.

Without them the host's routing would send such a guest's traffic to the default NIC, where the
rules refuse it. Packets of these guests carry a mark (ruleset.MARKS). A routing table with the
mark's number holds copies of that NIC's routes of the main table, and a rule leads there. Both are
the host's, one per NIC: made at the first need, refreshed at each attach.
"""

import errno
import socket
import struct

from hypercore import _tap, netlink
from hypercore.netlink import ACK, CREATE, DUMP, EXCL, NETLINK_ROUTE, REPLACE, attr, attrs

_MARK = 0x48430000
"""high half of our marks and table numbers; the low half is the NIC's ifindex"""
_PRIORITY = 0x4843
"""of our rules: before the main table's (32766)"""
_PROTOCOL = 0x48
"""who made a route, as `ip route` shows it"""

_NEWRULE, _DELRULE, _GETRULE = 32, 33, 34
_DELROUTE = 25
_FRA_PRIORITY, _FRA_FWMARK, _FRA_TABLE, _FRA_FWMASK = 6, 10, 15, 16
_RTA_OIF, _RTA_GATEWAY, _RTA_TABLE = 4, 5, 15
# What makes a route: destination, link, gateway, priority, source, metrics, via, preference.
_RTA_KEPT = (1, 4, 5, 6, 7, 8, 18, 20)
_MAIN, _UNICAST, _ONLINK = 254, 1, 4
_FAMILIES = (socket.AF_INET, socket.AF_INET6)


def ensure(nic: netlink.Link) -> int:
    """Make or refresh the routes by `nic`; returns the mark that leads there."""
    mark = _MARK | nic.ifindex & 0xFFFF
    for family in _FAMILIES:
        routes = _routes_by(nic.ifindex, family)
        # What is on the link first: a gateway has to be reachable when its route is made.
        for route in sorted(routes, key=lambda payload: _RTA_GATEWAY in attrs(payload, 12)):
            _copy(route, mark)
        _add_rule(family, mark)
    return mark


def remove_all() -> None:
    """Remove all our rules and their routes."""
    for family in _FAMILIES:
        for kind, payload in netlink.dump(
            NETLINK_ROUTE, netlink.message(_GETRULE, DUMP, bytes([family]) + bytes(11))
        ):
            mark = int.from_bytes(attrs(payload, 12).get(_FRA_FWMARK, b""), "little")
            if kind == _NEWRULE and mark & 0xFFFF0000 == _MARK:
                _send(netlink.message(_DELRULE, ACK, *_rule(family, mark)), errno.ENOENT)
        for payload in _all_routes(family):
            if payload[5] == _PROTOCOL:
                values = [attr(kind, value) for kind, value in attrs(payload, 12).items()]
                request = netlink.message(_DELROUTE, ACK, payload[:12], *values)
                _send(request, errno.ESRCH)


def _all_routes(family: int) -> list[bytes]:
    body = struct.pack("=BBBBBBBBI", family, 0, 0, 0, 0, 0, 0, 0, 0)
    listing = netlink.dump(NETLINK_ROUTE, netlink.message(netlink.RTM_GETROUTE, DUMP, body))
    return [payload for kind, payload in listing if kind == netlink.RTM_NEWROUTE]


def _routes_by(ifindex: int, family: int) -> list[bytes]:
    """Unicast routes of the main table out of one link."""
    link = struct.pack("=i", ifindex)
    return [
        payload
        for payload in _all_routes(family)
        if payload[4] == _MAIN
        and payload[7] == _UNICAST
        and attrs(payload, 12).get(_RTA_OIF) == link
    ]


def _copy(route: bytes, table: int) -> None:
    family, to_bits, from_bits, tos, _, _, scope, kind, flags = struct.unpack_from(
        "=BBBBBBBBI", route
    )
    body = struct.pack(
        "=BBBBBBBBI", family, to_bits, from_bits, tos, 0, _PROTOCOL, scope, kind, flags & _ONLINK
    )
    found = attrs(route, 12)
    values = [attr(key, found[key]) for key in _RTA_KEPT if key in found]
    values.append(attr(_RTA_TABLE, struct.pack("=I", table)))
    _send(netlink.message(netlink.RTM_NEWROUTE, ACK | CREATE | REPLACE, body, *values))


def _rule(family: int, mark: int) -> tuple[bytes, ...]:
    to_table = 1  # FR_ACT_TO_TBL
    return (
        struct.pack("=BBBBBBBBI", family, 0, 0, 0, 0, 0, 0, to_table, 0),
        attr(_FRA_PRIORITY, struct.pack("=I", _PRIORITY)),
        attr(_FRA_FWMARK, struct.pack("=I", mark)),
        attr(_FRA_FWMASK, struct.pack("=I", 0xFFFFFFFF)),
        attr(_FRA_TABLE, struct.pack("=I", mark)),
    )


def _add_rule(family: int, mark: int) -> None:
    request = netlink.message(_NEWRULE, ACK | CREATE | EXCL, *_rule(family, mark))
    _send(request, errno.EEXIST)


def _send(request: bytes, *accepted: int) -> None:
    try:
        _tap.transact(NETLINK_ROUTE, request)
    except OSError as exc:
        if exc.errno not in accepted:
            raise
