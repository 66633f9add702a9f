"""Mode bridge: the TAP joins the bridge that holds the spec's interface.

The guest is a neighbour in that network: its addresses are the network's business, as is what it
reaches. Here: frames with its own MAC only, no playing DHCP server or router, and nothing between
guests of this host. No bridge is ever made, and no NIC moved into one.
"""

import struct

from hypercore import _tap, netlink, nft, resolver, ruleset, slots, tap, uplink
from hypercore.attachment import GUEST_NIC, Attachment, Record, recorded
from hypercore.errors import InvalidArgument
from hypercore.nat import mac_of
from hypercore.proto.agent_pb import Interface
from hypercore.spec import NetworkSpec

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
    with (
        recorded(microvm_id, Record(tuple(elements))),
        tap.created(microvm_id, slot, layout) as made,
    ):
        _isolate(made.ifindex)
        nft.add(elements, slots.tag(microvm_id))
    return Attachment(
        tap_name=made.name,
        tap_fd=made.fd,
        netns_fd=made.netns_fd,
        ifindex=made.ifindex,
        mac=mac.hex(":"),
        interfaces=(Interface(name=GUEST_NIC, mac=mac.hex(":"), mtu=mtu),),
        dns_servers=dns.servers,
        dns_search=dns.search,
    )


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
