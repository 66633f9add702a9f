"""A network namespace around one VMM that opens its TAP by name.

In it lie a TAP and one end of a veth pair, and all frames pass between the two (tc redirect). The
other end is to the host what a TAP is whose fd the VMM gets: same name, tag, addresses and rules,
so the modes need not know the difference. The namespace has no name: it lasts as long as the VMM
in it and the fd, and takes the TAP and both ends of the pair with it.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from hypercore import _tap, netlink

if TYPE_CHECKING:
    from hypercore.tap import Layout

PEER = "host"
"""The inner end of the pair."""
GROUP = 1
"""Interface group inside, where no rules look at it."""

_IFLA_NET_NS_FD = 28
_IFLA_INFO_DATA = 2
_VETH_INFO_PEER = 1


def create(name: str, tag: str, layout: Layout) -> tuple[int, int]:
    """Make the namespace with a TAP called `name`, and a link of that name as `layout` says.

    Returns the namespace's fd, the caller's, and the ifindex of the link; on failure nothing is
    left.

    Raises:
        OSError: EEXIST: the name is taken.
    """
    netns_fd = _tap.new_netns()
    try:
        _connect(name, netns_fd, layout)
        outer = _ifindex(name, layout.netns_fd)
        _tap.create(name.encode(), alias=tag.encode(), existing=outer, **layout.settings())
        inner = _ifindex(PEER, netns_fd)
        _tap.create(PEER.encode(), existing=inner, group=GROUP, mtu=layout.mtu, netns_fd=netns_fd)
        tap_fd, _ = _tap.create(
            name.encode(),
            group=GROUP,
            owner=layout.tap_owner,
            persist=True,
            mtu=layout.mtu,
            redirect_to=inner,
            netns_fd=netns_fd,
        )
        os.close(tap_fd)
    except BaseException:
        os.close(netns_fd)
        raise
    return netns_fd, outer


def _connect(name: str, netns_fd: int, layout: Layout) -> None:
    """The veth pair; addresses and state come later."""
    mtu = [netlink.attr(netlink.IFLA_MTU, struct.pack("=I", layout.mtu))] if layout.mtu else []
    peer = netlink.attr(
        _VETH_INFO_PEER,
        bytes(16)  # struct ifinfomsg
        + netlink.text(netlink.IFLA_IFNAME, PEER)
        + netlink.attr(_IFLA_NET_NS_FD, struct.pack("=I", netns_fd))
        + b"".join(mtu),
    )
    request = netlink.message(
        netlink.RTM_NEWLINK,
        netlink.ACK | netlink.CREATE | netlink.EXCL,
        bytes(16),
        netlink.text(netlink.IFLA_IFNAME, name),
        *mtu,
        netlink.nest(
            netlink.IFLA_LINKINFO,
            netlink.text(netlink.IFLA_INFO_KIND, "veth"),
            netlink.nest(_IFLA_INFO_DATA, peer),
        ),
    )
    _tap.transact(netlink.NETLINK_ROUTE, request, netns_fd=layout.netns_fd)


def _ifindex(name: str, netns_fd: int) -> int:
    found = netlink.link(name, netns_fd=netns_fd)
    if found is None:
        raise FileNotFoundError(f"link {name} went away while it was being set up")
    return found.ifindex
