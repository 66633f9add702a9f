"""The host's NIC that carries a microVM's traffic: found, or refused with the names of others.

Asks the routing tables where they would send; sends nothing.
"""

import ipaddress

from hypercore import netlink, tap
from hypercore.errors import InvalidArgument, StateError

_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8
_MTU_MIN, _MTU_MAX = 576, 65521  # the least any IPv4 host takes; the most a TAP can carry
# Addresses of nobody, to ask the routing tables where they would send what is not near.
_FAR4 = ipaddress.IPv4Address("240.0.0.1").packed
_FAR6 = ipaddress.IPv6Address("2000::").packed


def find(interface: str) -> netlink.Link:
    """The NIC named `interface`, or the one with the default route if that is empty.

    Raises:
        InvalidArgument: there is none.
        StateError: it is down.
    """
    if not interface:
        return _default()
    found = netlink.link(interface)
    if found is None or found.flags & _IFF_LOOPBACK:
        raise InvalidArgument(
            f"interface = {interface!r}: this host has no such network interface",
            hint="it has " + (", ".join(names()) or "none"),
        )
    if not found.flags & _IFF_UP:
        raise StateError(
            f"interface = {interface!r}: the interface is down",
            hint=f"bring it up: ip link set {interface} up",
        )
    return found


def _default() -> netlink.Link:
    for far in (_FAR4, _FAR6):
        route = netlink.route_to(far)
        if route is not None and (found := netlink.link(ifindex=route.ifindex)):
            return found
    nics = ", ".join(names())
    raise InvalidArgument(
        "interface is not set, and this host has no default route to tell which one to use",
        hint='set interface to one of its network interfaces, or mode = "none" in [network]'
        + (f" (it has {nics})" if nics else ""),
    )


def is_default(link: netlink.Link) -> bool:
    """Whether the host itself sends by this NIC what is not near."""
    routes = [route for far in (_FAR4, _FAR6) if (route := netlink.route_to(far))]
    return all(route.ifindex == link.ifindex for route in routes)


def names() -> list[str]:
    """The host's NICs, without loopbacks and our own TAPs."""
    links = netlink.links()
    return sorted(
        link.name for link in links if not link.flags & _IFF_LOOPBACK and not tap.is_ours(link)
    )


def has_ipv6(link: netlink.Link) -> bool:
    """Whether it has an address to send from and a way out of its own network."""
    route = netlink.route_to(_FAR6, ifindex=link.ifindex)
    if route is None or route.ifindex != link.ifindex or not route.source:
        return False
    is_link_local = route.source[0] == 0xFE and route.source[1] & 0xC0 == 0x80
    return not is_link_local


def mtu(asked: int, link: netlink.Link) -> int:
    """The MTU of a guest behind `link`: what was asked for, else the link's own."""
    if not asked:
        return min(link.mtu, _MTU_MAX)
    if not _MTU_MIN <= asked <= _MTU_MAX:
        raise InvalidArgument(f"mtu = {asked}: must be {_MTU_MIN} to {_MTU_MAX}")
    return asked
