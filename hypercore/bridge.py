"""Mode bridge: the TAP joins the bridge that holds the spec's interface.

The guest is a neighbour in that network: what it reaches is the network's business. Its addresses
are the spec's or, asked for by lease.py, those of a DHCP server there. Here: frames with its own
MAC and addresses only, no playing DHCP server or router, and nothing between guests of this host.
No bridge is made here, and no NIC moved into one.
"""

import ipaddress
import os
import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

from hypercore import (
    _tap,
    netlink,
    nft,
    resolver,
    ruleset,
    slots,
    tap,
    uplink,
    vmm_netns,
)
from hypercore.attachment import (
    GUEST_NIC,
    Attachment,
    LeaseLink,
    Record,
    read_record,
    recorded,
    write_record,
)
from hypercore.errors import InvalidArgument
from hypercore.nat import mac_of
from hypercore.proto.agent_pb import Interface, Route
from hypercore.spec import NetworkSpec

IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_AF_BRIDGE = 7
_IFLA_PROTINFO, _IFLA_BRPORT_ISOLATED = 12, 33


def attach(microvm_id: str, slot: int, spec: NetworkSpec, tap_owner: int = -1) -> Attachment:
    """Create the TAP in its bridge; the table is in place."""
    bridge = find_bridge(_nic(spec.interface))
    mtu = uplink.mtu(spec.mtu, bridge)
    dns = resolver.choose(microvm_id, spec, ipv6=True)
    mac = mac_of(microvm_id)
    device = nft.ifname(tap.name_of(slot))
    elements = [nft.Element(ruleset.SENDERS, device + nft.mac(mac))]
    if spec.rate_kbit:
        elements += [
            nft.Element(of, device, rate=spec.rate_kbit * 125)
            for of in (ruleset.BRIDGED_UPLOADS, ruleset.BRIDGED_DOWNLOADS)
        ]
    layout = tap.Layout(
        group=ruleset.BRIDGED_GROUP,
        mtu=mtu,
        bridge_ifindex=bridge.ifindex,
        tap_owner=tap_owner,
    )
    elements += _fixed(device, [ipaddress.ip_interface(each).ip for each in spec.addresses])
    with (
        recorded(microvm_id, Record(tuple(elements))),
        tap.created(microvm_id, slot, layout) as made,
    ):
        _isolate(made.ifindex)
        nft.add(elements, slots.tag(microvm_id))
        wants_lease = spec.dhcp and not spec.addresses
        link = _dhcp_link(made, mac) if wants_lease else None
    interface = Interface(
        name=GUEST_NIC,
        mac=mac.hex(":"),
        addresses=list(spec.addresses),
        gateways=list(spec.gateways),
        mtu=mtu,
        routes=[Route(destination=r.destination, gateway=r.gateway) for r in spec.routes],
    )
    return Attachment(
        tap_name=made.name,
        tap_fd=made.fd,
        netns_fd=made.netns_fd,
        ifindex=made.ifindex,
        mac=mac.hex(":"),
        interfaces=(interface,),
        dns_servers=dns.servers,
        dns_search=dns.search,
        dhcp=link,
        dns_is_default=not spec.dns and not spec.search,
    )


def fix_address(microvm_id: str, tap_name: str, address: str) -> None:
    """From now on the guest sends from this IPv4 address alone."""
    elements = _fixed(nft.ifname(tap_name), [ipaddress.ip_address(address)])
    record = read_record(microvm_id)
    write_record(microvm_id, replace(record, elements=(*record.elements, *elements)))
    nft.add(elements, slots.tag(microvm_id))


def _fixed(device: bytes, own: Sequence[IPAddress]) -> list[nft.Element]:
    """What lets a guest send from its own addresses only, in the IP versions it has one of."""
    elements = []
    for version, fixed, owners in (
        (4, ruleset.FIXED4, ruleset.OWNERS4),
        (6, ruleset.FIXED6, ruleset.OWNERS6),
    ):
        packed = [address.packed for address in own if address.version == version]
        if packed:
            elements.append(nft.Element(fixed, device))
            elements += [nft.Element(owners, device + each) for each in dict.fromkeys(packed)]
    return elements


def _dhcp_link(made: tap.Tap, mac: bytes) -> LeaseLink:
    if made.fd >= 0:
        return LeaseLink(made.name, mac, os.dup(made.fd))
    fd = _tap.packet_socket(vmm_netns.PEER.encode(), netns_fd=made.netns_fd)
    return LeaseLink(made.name, mac, fd, is_tap=False)


def _nic(interface: str) -> netlink.Link:
    return uplink.link(interface) if interface else uplink.find("").link


def find_bridge(nic: netlink.Link) -> netlink.Link:
    """The bridge that is, or holds, this link."""
    if nic.kind == "bridge":
        return nic
    master = netlink.link(ifindex=nic.master) if nic.master else None
    if master is None or master.kind != "bridge":
        raise InvalidArgument(
            f'interface = {nic.name!r}: it is no bridge and in none, as mode = "bridge" needs',
            hint='make a bridge of it in the host\'s network configuration, or use mode = "nat"',
        )
    return master


def _isolate(ifindex: int) -> None:
    """Isolated ports of a bridge do not reach each other, only the others."""
    body = struct.pack("=BBHiII", _AF_BRIDGE, 0, 0, ifindex, 0, 0)
    isolated = netlink.nest(_IFLA_PROTINFO, netlink.attr(_IFLA_BRPORT_ISOLATED, b"\1"))
    request = netlink.message(netlink.RTM_SETLINK, netlink.ACK, body, isolated)
    _tap.transact(netlink.NETLINK_ROUTE, request)
