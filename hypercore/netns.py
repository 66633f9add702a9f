"""Mode netns: the network namespace that CNI or somebody else prepared becomes the guest's.

The TAP lies beside the namespace's own device, and all frames pass between the two (tc redirect).
The guest takes over that device's MAC, addresses, routes, fixed neighbours and MTU, so that the
network outside sees no difference. What the guest may reach is the business of whoever made the
namespace.
"""

import contextlib
import errno
import fcntl
import ipaddress
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from hypercore import netlink, resolver, tap, uplink
from hypercore.attachment import (
    GUEST_NIC,
    Attachment,
    Record,
    Redirect,
    recorded,
)
from hypercore.errors import AlreadyExists, InvalidArgument, NotFound
from hypercore.proto.agent_pb import Interface, Neighbour, Route
from hypercore.spec import NetworkSpec

_NS_GET_NSTYPE, _CLONE_NEWNET = 0xB703, 0x40000000
_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8
_FAMILIES = (socket.AF_INET, socket.AF_INET6)


def attach(microvm_id: str, slot: int, spec: NetworkSpec, tap_owner: int = -1) -> Attachment:
    """Create the TAP inside the namespace and connect it to the device there."""
    if spec.netns_path is None:
        raise InvalidArgument(
            'network mode = "netns" needs the path of a network namespace',
            hint='netns = "/run/netns/…" in [network]',
        )
    with _opened(spec.netns_path) as netns_fd:
        device = _find_device(spec, netns_fd)
        mtu = uplink.mtu(spec.mtu, device)
        addresses = netlink.addresses(device.ifindex, netns_fd=netns_fd)
        gateways, routes = _ways(device.ifindex, netns_fd)
        neighbours = [
            Neighbour(address=str(ipaddress.ip_address(address)), mac=mac.hex(":"))
            for address, mac in netlink.fixed_neighbours(device.ifindex, netns_fd=netns_fd)
        ]
        has_ipv6 = any(":" in address for address in addresses)
        dns = resolver.choose(microvm_id, spec, ipv6=has_ipv6)
        redirect = Redirect(str(spec.netns_path), os.fstat(netns_fd).st_ino, device.ifindex)
        if netlink.has_ingress(device.ifindex, netns_fd=netns_fd):
            raise AlreadyExists(
                f"{device.name} in {spec.netns_path} has an ingress qdisc already",
                hint="another microVM may use this network namespace; remove it first",
            )
        layout = tap.Layout(
            group=tap.REDIRECTED_GROUP,
            mtu=mtu,
            redirect_to=device.ifindex,
            netns_fd=netns_fd,
            tap_owner=tap_owner,
        )
        with (
            recorded(microvm_id, Record(redirects=(redirect,))),
            _undone_on_failure(redirect),
            tap.created(microvm_id, slot, layout) as made,
        ):
            pass
    mac = device.mac.hex(":")
    return Attachment(
        tap_name=made.name,
        tap_fd=made.fd,
        netns_fd=made.netns_fd,
        ifindex=made.ifindex,
        mac=mac,
        interfaces=(
            Interface(
                name=GUEST_NIC,
                mac=mac,
                addresses=addresses,
                gateways=gateways,
                mtu=mtu,
                routes=routes,
                neighbours=neighbours,
            ),
        ),
        dns_servers=dns.servers,
        dns_search=dns.search,
    )


def undo(redirect: Redirect) -> None:
    """Give a namespace's device back its frames; fine if either is gone."""
    try:
        with _opened(Path(redirect.netns_path)) as netns_fd:
            # The path may belong to another namespace by now.
            if os.fstat(netns_fd).st_ino == redirect.netns_inode:
                netlink.delete_ingress(redirect.ifindex, netns_fd=netns_fd)
    except (NotFound, InvalidArgument):
        return


@contextlib.contextmanager
def _undone_on_failure(redirect: Redirect) -> Iterator[None]:
    try:
        yield
    except BaseException:
        undo(redirect)
        raise


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as exc:
        raise NotFound(f"netns = {str(path)!r}: no such network namespace") from exc
    try:
        if not _is_network_namespace(fd):
            raise InvalidArgument(f"netns = {str(path)!r}: not a network namespace")
        yield fd
    finally:
        os.close(fd)


def _is_network_namespace(fd: int) -> bool:
    try:
        return fcntl.ioctl(fd, _NS_GET_NSTYPE) == _CLONE_NEWNET
    except OSError as exc:
        if exc.errno != errno.ENOTTY:
            raise
        return False


def _find_device(spec: NetworkSpec, netns_fd: int) -> netlink.Link:
    """The device to take over: the one named, else the one with a default route, else the one."""
    there = [
        link
        for link in netlink.links(netns_fd=netns_fd)
        if link.flags & _IFF_UP and not link.flags & _IFF_LOOPBACK and not tap.is_ours(link)
    ]
    names = ", ".join(link.name for link in there) or "none"
    if spec.interface:
        for link in there:
            if link.name == spec.interface:
                return link
        raise InvalidArgument(
            f"interface = {spec.interface!r}: no such interface that is up in {spec.netns_path}",
            hint=f"it has {names}",
        )
    for family in _FAMILIES:
        for route in netlink.routes(family, netns_fd=netns_fd):
            for link in there:
                if route.prefix_length == 0 and route.ifindex == link.ifindex:
                    return link
    if len(there) == 1:
        return there[0]
    raise InvalidArgument(
        f"netns = {str(spec.netns_path)!r}: cannot tell which interface is meant",
        hint=f"set interface; that are up: {names}",
    )


def _ways(ifindex: int, netns_fd: int) -> tuple[list[str], list[Route]]:
    """Gateways of the default routes, and the other routes, those on the link first."""
    gateways: list[str] = []
    routes: list[Route] = []
    for family, any_network in ((socket.AF_INET, "0.0.0.0/0"), (socket.AF_INET6, "::/0")):
        there = [
            route
            for route in netlink.routes(family, netns_fd=netns_fd)
            if route.ifindex == ifindex and route.is_made
        ]
        default = next((route for route in there if not route.prefix_length), None)
        if default is not None and default.gateway:
            gateways.append(str(ipaddress.ip_address(default.gateway)))
        for route in sorted(there, key=lambda route: bool(route.gateway)):
            if not route.prefix_length and route.gateway:
                continue
            network = ipaddress.ip_address(route.destination) if route.destination else ""
            routes.append(
                Route(
                    destination=f"{network}/{route.prefix_length}" if network else any_network,
                    gateway=str(ipaddress.ip_address(route.gateway)) if route.gateway else "",
                )
            )
    return gateways, routes
