"""The TAP of a microVM: its name, its tag, and how it goes again.

A TAP whose fd is the VMM's ends with the VMM, whatever dies. This file finds and removes those
that did not, such as after an fd was kept by somebody else.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hypercore import _tap, netlink, slots, vmm_netns
from hypercore.errors import AlreadyExists
from hypercore.ruleset import BRIDGED_GROUP

REDIRECTED_GROUP = BRIDGED_GROUP + 1
"""interface group of TAPs in other namespaces: theirs are other rules"""
DOOMED_GROUP = BRIDGED_GROUP + 2
"""interface group of TAPs on their way out: deleted together, in one request"""

_ALIAS_PREFIX = "hypercore:"


@dataclass(frozen=True, slots=True)
class Tap:
    name: str
    fd: int
    ifindex: int
    netns_fd: int = -1
    """namespace of a TAP that the VMM opens by name; `fd` is -1 then"""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the TAP sits in its network namespace; empty or 0: not at all."""

    group: int
    mtu: int
    host4: bytes = b""
    host6: bytes = b""
    guest4: bytes = b""
    guest6: bytes = b""
    guest_mac: bytes = b""
    bridge_ifindex: int = 0
    redirect_to: int = 0
    netns_fd: int = -1
    tap_owner: int = -1
    """uid of a VMM that opens its TAP by name; -1: it gets the TAP's fd"""
    route_localnet: bool = False
    """something on 127.0.0.0/8 is led to the guest, or the guest to it"""

    def settings(self) -> dict[str, Any]:
        """What _tap.create is to do to the device."""
        return {
            "group": self.group,
            "mtu": self.mtu,
            "address4": self.host4,
            "prefix4": 30,
            "address6": self.host6,
            "prefix6": 126,
            "neighbour_mac": self.guest_mac,
            "neighbour4": self.guest4,
            "neighbour6": self.guest6,
            "master": self.bridge_ifindex,
            "redirect_to": self.redirect_to,
            "netns_fd": self.netns_fd,
            "route_localnet": self.route_localnet,
        }


def name_of(slot: int) -> str:
    return f"hc{slot}"


def is_ours(link: netlink.Link) -> bool:
    """Whether hypercore made the link, this instance or another."""
    return link.alias.startswith(_ALIAS_PREFIX)


@contextlib.contextmanager
def created(microvm_id: str, slot: int, layout: Layout) -> Iterator[Tap]:
    """A new TAP that is up; it goes again if the block fails.

    For a VMM that opens its TAP by name, what has the settings and the ifindex is the host's side
    of it: vmm_netns.py tells.

    Raises:
        AlreadyExists: there is a device of its name.
        OSError: as _tap.create.
    """
    name = name_of(slot)
    alias = _ALIAS_PREFIX + slots.tag(microvm_id)
    try:
        if layout.tap_owner < 0:
            fd, ifindex = _tap.create(name.encode(), alias=alias.encode(), **layout.settings())
            made = Tap(name, fd, ifindex)
        else:
            fd, ifindex = vmm_netns.create(name, alias, layout)
            made = Tap(name, -1, ifindex, netns_fd=fd)
    except OSError as exc:
        if exc.errno not in (errno.EBUSY, errno.EEXIST):
            raise
        taken = netlink.link(name, netns_fd=layout.netns_fd)
        raise AlreadyExists(
            f"TAP {name} for slot {slot} of microVM {microvm_id} exists already"
            + (f" ({taken.alias})" if taken and taken.alias else ""),
            hint="remove what is left of it: hypercore cleanup",
        ) from exc
    try:
        yield made
    except BaseException:
        os.close(fd)
        raise


def delete(microvm_id: str, slot: int) -> None:
    """Delete the TAP of a microVM if it is still there and really its own."""
    left = netlink.link(name_of(slot))
    if left is not None and left.alias == _ALIAS_PREFIX + slots.tag(microvm_id):
        _tap.delete(left.ifindex)


def delete_all(is_wanted: Callable[[str], bool]) -> None:
    """Delete all TAPs whose tag `is_wanted`, in one go."""
    doomed = [
        link.ifindex
        for link in netlink.links()
        if is_ours(link) and is_wanted(link.alias.removeprefix(_ALIAS_PREFIX))
    ]
    if doomed:
        _tap.set_group(doomed, DOOMED_GROUP)
        _tap.delete_group(DOOMED_GROUP)
