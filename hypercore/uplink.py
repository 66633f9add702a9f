"""The host's NIC that carries a microVM's traffic: found, or refused with the names of others.

Asks the routing tables where they would send; sends nothing.
"""

import ipaddress
import socket
from dataclasses import dataclass

from hypercore import netlink, tap
from hypercore.errors import InvalidArgument, StateError

_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8
_MTU_MIN, _MTU_MAX = 576, 65521  # the least any IPv4 host takes; the most a TAP can carry
# Addresses of nobody, to ask the routing tables where they would send what is not near.
_FAR4 = ipaddress.IPv4Address("240.0.0.1").packed
_FAR6 = ipaddress.IPv6Address("2000::").packed


@dataclass(frozen=True, slots=True)
class Uplink:
    """A NIC and what the routing tables say of it."""

    link: netlink.Link
    has_ipv6: bool
    """it has an address to send from and a way out of its own network"""
    is_default: bool
    """the host itself sends by it what is not near"""


def find(interface: str) -> Uplink:
    """The NIC named `interface`, or the one with the default route if that is empty.

    Raises:
        InvalidArgument: there is none.
        StateError: it is down.
    """
    # Of IPv6 only the entry: with more, the kernel looks at every address of the host for the
    # best source, 0.4 ms with 500 TAPs.
    default4, default6 = netlink.route_to(_FAR4), netlink.route_to(_FAR6, entry=True)
    nic = link(interface) if interface else _default(default4 or default6)
    defaults = [route for route in (default4, default6) if route is not None]
    own6 = default6
    if own6 is None or own6.ifindex != nic.ifindex:
        own6 = netlink.route_to(_FAR6, ifindex=nic.ifindex, entry=True)
    return Uplink(
        link=nic,
        has_ipv6=own6 is not None and own6.ifindex == nic.ifindex and _has_address6(nic),
        is_default=all(route.ifindex == nic.ifindex for route in defaults),
    )


def link(interface: str) -> netlink.Link:
    """The link named `interface`, up and no loopback; raises as `find`."""
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


def _default(route: netlink.Route | None) -> netlink.Link:
    if route is not None and (found := netlink.link(ifindex=route.ifindex)):
        return found
    nics = ", ".join(names())
    raise InvalidArgument(
        "interface is not set, and this host has no default route to tell which one to use",
        hint='set interface to one of its network interfaces, or mode = "none" in [network]'
        + (f" (it has {nics})" if nics else ""),
    )


def _has_address6(nic: netlink.Link) -> bool:
    return bool(netlink.addresses(nic.ifindex, (socket.AF_INET6,)))


def names() -> list[str]:
    """The host's NICs, without loopbacks and our own TAPs."""
    links = netlink.links()
    return sorted(
        each.name for each in links if not each.flags & _IFF_LOOPBACK and not tap.is_ours(each)
    )


def mtu(asked: int, nic: netlink.Link) -> int:
    """The MTU of a guest behind `nic`: what was asked for, else the NIC's own."""
    if not asked:
        return min(nic.mtu, _MTU_MAX)
    if not _MTU_MIN <= asked <= _MTU_MAX:
        raise InvalidArgument(f"mtu = {asked}: must be {_MTU_MIN} to {_MTU_MAX}")
    return asked
