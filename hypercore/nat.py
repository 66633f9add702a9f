"""Mode nat: a routed TAP with a /30 of its own, masqueraded out of the spec's interface.

The guest reaches what that interface reaches, and neither the host's services nor other guests:
the rules are in ruleset.py, this file adds the guest's elements to their sets.
"""

import functools
import hashlib
import ipaddress
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hypercore import (
    host_settings,
    netlink,
    network_names,
    nft,
    policy_route,
    ports,
    recent,
    resolver,
    ruleset,
    slots,
    tap,
    uplink,
)
from hypercore.attachment import GUEST_NIC, Attachment, Record, recorded
from hypercore.errors import ResourceExhausted
from hypercore.proto.agent_pb import Interface
from hypercore.spec import NetworkSpec

_IPV6_MTU_MIN = 1280


@dataclass(frozen=True, slots=True)
class _Plan:
    """Addresses of one slot: host and guest share a /30, and a /126 where there is IPv6."""

    host4: bytes
    guest4: bytes
    host6: bytes = b""
    guest6: bytes = b""


def attach(
    microvm_id: str, slot: int, spec: NetworkSpec, pool: str, tap_owner: int = -1
) -> Attachment:
    """Create the TAP and open the rules for it; the table is in place."""
    way_out = _way_out(spec.interface)
    nic = way_out.link
    mtu = uplink.mtu(spec.mtu, nic)
    ipv6 = mtu >= _IPV6_MTU_MIN and way_out.has_ipv6
    plan = _plan(slot, pool, ipv6=ipv6)
    _check_guest_address(plan.guest4, pool)
    for other in ports.links_of(spec.ports):
        host_settings.forward_ipv4(other)
    dns = resolver.choose(microvm_id, spec, ipv6=ipv6, led=True)
    if dns.loopback:
        # The rules lead what the guest asks its gateway there.
        gateway = (socket.inet_ntop(socket.AF_INET, plan.host4),)
        dns = resolver.Resolvers(gateway, dns.search, dns.loopback)
    mac = mac_of(microvm_id)
    mark = 0 if way_out.is_default else policy_route.ensure(nic)
    name = tap.name_of(slot)
    elements = (
        *_elements(name, mac, plan, nic.name, dns, mark),
        *_permissions(name, spec),
        *ports.elements(spec.ports, plan.guest4, plan.guest6),
    )
    layout = tap.Layout(
        group=ruleset.ROUTED_GROUP,
        mtu=mtu,
        host4=plan.host4,
        host6=plan.host6,
        guest4=plan.guest4,
        guest6=plan.guest6,
        guest_mac=mac,
        tap_owner=tap_owner,
        route_localnet=ports.use_loopback(spec.ports) or bool(dns.loopback),
    )
    with (
        ports.reserved(spec.ports) as port_fds,
        recorded(microvm_id, Record(elements)),
        tap.created(microvm_id, slot, layout) as made,
    ):
        nft.add(list(elements), slots.tag(microvm_id))
    return Attachment(
        tap_name=made.name,
        tap_fd=made.fd,
        netns_fd=made.netns_fd,
        ifindex=made.ifindex,
        mac=mac.hex(":"),
        interfaces=(_interface(mac, plan, mtu),),
        dns_servers=dns.servers,
        dns_search=dns.search,
        port_fds=port_fds,
    )


@recent.remembered
def _way_out(interface: str) -> uplink.Uplink:
    """The uplink, forwarding what comes from it."""
    found = uplink.find(interface)
    host_settings.forward_ipv4(found.link)
    if found.has_ipv6 and found.link.mtu >= _IPV6_MTU_MIN:
        host_settings.forward_ipv6(found.link)
    return found


def mac_of(microvm_id: str) -> bytes:
    """The guest's MAC address: locally administered, always the same for the same id."""
    digest = hashlib.sha256(microvm_id.encode()).digest()
    return bytes([digest[0] & 0xFC | 0x02]) + digest[1:6]


def _elements(
    name: str, mac: bytes, plan: _Plan, nic: str, dns: resolver.Resolvers, mark: int
) -> Iterator[nft.Element]:
    """What opens the table for one guest."""
    device, exit_nic, sender = nft.ifname(name), nft.ifname(nic), nft.mac(mac)
    yield nft.Element(ruleset.GUESTS4, device + sender + plan.guest4)
    yield nft.Element(ruleset.EXITS4, plan.guest4 + exit_nic)
    if plan.guest6:
        yield nft.Element(ruleset.GUESTS6, device + sender + plan.guest6)
        yield nft.Element(ruleset.EXITS6, plan.guest6 + exit_nic)
    if dns.loopback:
        resolver4 = socket.inet_aton(dns.loopback)
        yield nft.Element(ruleset.LOCAL_RESOLVERS, device + plan.host4, resolver4)
    for server in () if dns.loopback else dns.servers:
        address = ipaddress.ip_address(server)
        wanted = ruleset.RESOLVERS4 if address.version == 4 else ruleset.RESOLVERS6
        yield nft.Element(wanted, device + address.packed)
    if mark:
        yield nft.Element(ruleset.MARKS, device, nft.host_u32(mark))


def _permissions(name: str, spec: NetworkSpec) -> Iterator[nft.Element]:
    """What a guest may beyond the usual, or may not."""
    device = nft.ifname(name)
    if spec.allow_host:
        yield nft.Element(ruleset.HOST_USERS, device)
    if spec.name:
        number = nft.host_u32(network_names.number_of(spec.name))
        yield nft.Element(ruleset.NETWORKS, device, number)
        yield nft.Element(ruleset.MEMBERS, number + device)
    if spec.rate_kbit:
        for of in (ruleset.UPLOADS, ruleset.DOWNLOADS):
            yield nft.Element(of, device, rate=spec.rate_kbit * 125)
    if spec.egress is None:
        return
    yield nft.Element(ruleset.RESTRICTED, device)
    allowed4 = [ipaddress.IPv4Network(each) for each in spec.egress if ":" not in each]
    allowed6 = [ipaddress.IPv6Network(each) for each in spec.egress if ":" in each]
    # Intervals that overlap are refused by the kernel, so they are joined here.
    for four in ipaddress.collapse_addresses(allowed4):
        first, last = four.network_address.packed, four.broadcast_address.packed
        yield nft.Element(ruleset.EGRESS4, device + first, last=device + last)
    for six in ipaddress.collapse_addresses(allowed6):
        first, last = six.network_address.packed, six.broadcast_address.packed
        yield nft.Element(ruleset.EGRESS6, device + first, last=device + last)


def _interface(mac: bytes, plan: _Plan, mtu: int) -> Interface:
    addresses = [f"{socket.inet_ntop(socket.AF_INET, plan.guest4)}/30"]
    gateways = [socket.inet_ntop(socket.AF_INET, plan.host4)]
    if plan.guest6:
        addresses.append(f"{socket.inet_ntop(socket.AF_INET6, plan.guest6)}/126")
        gateways.append(socket.inet_ntop(socket.AF_INET6, plan.host6))
    return Interface(
        name=GUEST_NIC, mac=mac.hex(":"), addresses=addresses, gateways=gateways, mtu=mtu
    )


# -- addresses --


def _plan(slot: int, pool_text: str, *, ipv6: bool) -> _Plan:
    first, size = _pool(pool_text)
    if 4 * slot + 4 > size:
        raise ResourceExhausted(
            f"slot {slot} is beyond the address pool {pool_text}, which serves"
            f" {size // 4} microVMs",
            hint='set a larger "pool" in [network] of the host\'s config.toml',
        )
    base4 = first + 4 * slot
    host4, guest4 = struct.pack(">I", base4 + 1), struct.pack(">I", base4 + 2)
    if not ipv6:
        return _Plan(host4, guest4)
    base6 = _ipv6_pool() + 4 * slot
    return _Plan(host4, guest4, (base6 + 1).to_bytes(16, "big"), (base6 + 2).to_bytes(16, "big"))


@functools.cache
def _pool(text: str) -> tuple[int, int]:
    """(first address, number of addresses) of the pool."""
    network = ipaddress.IPv4Network(text)
    return int(network.network_address), network.num_addresses


@functools.cache
def _ipv6_pool() -> int:
    """A unique local /64 (RFC 4193), the same on every boot of this host."""
    try:
        seed = Path("/etc/machine-id").read_bytes()
    except FileNotFoundError:
        seed = socket.gethostname().encode()
    random40 = hashlib.sha256(b"hypercore network " + seed).digest()[:5]
    return int.from_bytes(b"\xfd" + random40 + bytes(10), "big")


def check_pool(pool: str) -> None:
    """Refuse a pool of which the host's own routes already lead some address somewhere."""
    network = ipaddress.IPv4Network(pool)
    for route in netlink.routes(socket.AF_INET):
        if len(route.destination) == 4:
            taken = ipaddress.IPv4Network((route.destination, route.prefix_length))
            if taken.overlaps(network):
                _refuse_clash(route, pool)


def _check_guest_address(address: bytes, pool: str) -> None:
    """The same for one guest's address, in one query, for routes that came later."""
    route = netlink.route_to(address, entry=True)
    if route is not None:
        _refuse_clash(route, pool)


def _refuse_clash(route: netlink.Route, pool: str) -> None:
    if route.prefix_length <= 1:  # 0/1 and 128/1 is how VPNs spell a default route
        return
    device = next((li for li in netlink.links() if li.ifindex == route.ifindex), None)
    if device is not None and device.group == ruleset.ROUTED_GROUP:
        return
    network = ipaddress.IPv4Network((route.destination, route.prefix_length))
    raise ResourceExhausted(
        f"the address pool {pool} clashes with this host's route to {network}"
        + (f" (dev {device.name})" if device else ""),
        hint='set a free private network as "pool" in [network] of the host\'s config.toml,'
        " or HYPERCORE_NETWORK_POOL",
    )
