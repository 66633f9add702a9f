"""A microVM's network: its TAP, its addresses, its elements in our nft table, and their removal.

Runs inside the shim server: synchronous, well under a millisecond per VM, no pyroute2. Orders
_tap (devices) and nft (rules); owns no process and no file but the record of host settings that
were changed. docs/networking.md tells what users see of it.
"""

import contextlib
import errno
import functools
import hashlib
import ipaddress
import logging
import os
import socket
import struct
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from hypercore import _tap, netlink, nft, paths, resolver, slots
from hypercore.config import HostConfig
from hypercore.errors import (
    AlreadyExists,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    StateError,
    from_os_error,
)
from hypercore.proto.agent_pb import Interface
from hypercore.spec import NetworkSpec

logger = logging.getLogger(__name__)

MODES = ("nat", "none")
GUEST_NIC = "eth0"
DOOMED = nft.GROUP + 1
"""interface group of TAPs on their way out: deleted together, in one request"""

_ALIAS_PREFIX = "hypercore:"
_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8
_MTU_MIN, _MTU_MAX = 576, 65521  # the least any IPv4 host takes; the most a TAP can carry
_IPV6_MTU_MIN = 1280
_DELETE_TRIES = 20
# Addresses of nobody, to ask the routing tables where they would send what is not near. Nothing is
# ever sent there.
_FAR4 = ipaddress.IPv4Address("240.0.0.1").packed
_FAR6 = ipaddress.IPv6Address("2000::").packed


@dataclass(frozen=True, slots=True)
class Attachment:
    """A microVM's end of the network.

    `tap_fd` is the caller's to hand to the VMM and to close; the TAP ends with its last copy.
    Without a network: -1, and nothing to configure.
    """

    tap_name: str = ""
    tap_fd: int = -1
    ifindex: int = 0
    mac: str = ""
    interfaces: tuple[Interface, ...] = ()
    dns_servers: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Plan:
    """Addresses of one slot: host and guest share a /30, and a /126 where there is IPv6."""

    host4: bytes
    guest4: bytes
    host6: bytes = b""
    guest6: bytes = b""


# -- host --


def prepare_host(config: HostConfig) -> None:
    """Put the static nft table in place; idempotent, one netlink query when it is there.

    Raises:
        NotFound: no /dev/net/tun, or a kernel without nf_tables.
        ResourceExhausted: the host itself routes to addresses of the pool.
    """
    if not os.path.exists("/dev/net/tun"):
        raise NotFound("/dev/net/tun does not exist", hint="load its module: modprobe tun")
    _check_table()
    _check_pool(config.network_pool)


def _check_table() -> None:
    try:
        if not nft.installed():
            nft.install()
            _restore_elements()
    except OSError as exc:
        if exc.errno in (errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EINVAL, errno.ENOENT):
            raise NotFound(
                f"the kernel refuses our nftables rules: {exc.strerror}",
                hint="load its modules: modprobe nf_tables nft_masq nft_reject_inet",
            ) from exc
        raise from_os_error(exc, f"install the nftables table {nft.TABLE}") from exc


def _restore_elements() -> None:
    """Open the table again for VMs that run: somebody may have flushed the whole ruleset, as
    restarting nftables.service does."""
    for microvm_id in slots.owners().values():
        nft.add(_read_record(paths.MicroVMPaths(microvm_id).network), slots.tag(microvm_id))


def restore_host() -> None:
    """Remove our nft table and set back what was changed on the host; idempotent.

    For the case that no microVM is left: guests that still run lose their network.
    """
    nft.remove()
    record = paths.host_settings()
    try:
        lines = record.read_text().splitlines()
    except FileNotFoundError:
        return
    for line in reversed(lines):
        path, old, new = line.split("\t")
        # Somebody else's later choice, or a device that is gone, is left alone.
        with contextlib.suppress(FileNotFoundError):
            if _get(path) == new:
                Path(path).write_text(old)
    record.unlink()


def _get(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 64).decode().strip()
    finally:
        os.close(fd)


def _set(path: str, value: str) -> None:
    """Change a kernel setting if it differs, and record what it was before."""
    old = _get(path)
    if old == value:
        return
    record = paths.host_settings()
    record.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, f"{path}\t{old}\t{value}\n".encode())
    finally:
        os.close(fd)
    Path(path).write_text(value)


def _forward_ipv4(uplink: netlink.Link) -> None:
    """Let answers in from `uplink`. Per device: the host does not become a router elsewhere."""
    if not uplink.ipv4_setting(netlink.IPV4_FORWARDING):
        _set(f"/proc/sys/net/ipv4/conf/{uplink.name}/forwarding", "1")


def _forward_ipv6(uplink: netlink.Link) -> None:
    """The kernel has one switch for all of IPv6, and a forwarding host no longer listens to router
    advertisements, unless accept_ra is 2: without that the host would lose its own address."""
    _keep_router_advertisements(uplink)
    switch = "/proc/sys/net/ipv6/conf/all/forwarding"
    if _get(switch) == "0":
        for device in netlink.links():
            if not device.flags & _IFF_LOOPBACK and not device.alias.startswith(_ALIAS_PREFIX):
                _keep_router_advertisements(device)
        _set(switch, "1")


def _keep_router_advertisements(device: netlink.Link) -> None:
    if device.ipv6_setting(netlink.IPV6_ACCEPT_RA) == 1:
        _set(f"/proc/sys/net/ipv6/conf/{device.name}/accept_ra", "2")


# -- addresses --


def mac_of(microvm_id: str) -> bytes:
    """The guest's MAC address: locally administered, always the same for the same id."""
    digest = hashlib.sha256(microvm_id.encode()).digest()
    return bytes([digest[0] & 0xFC | 0x02]) + digest[1:6]


def _plan(slot: int, pool_text: str, *, ipv6: bool) -> _Plan:
    pool = ipaddress.IPv4Network(pool_text)
    if 4 * slot + 4 > pool.num_addresses:
        raise ResourceExhausted(
            f"slot {slot} is beyond the address pool {pool_text}, which serves"
            f" {pool.num_addresses // 4} microVMs",
            hint='set a larger "pool" in [network] of the host\'s config.toml',
        )
    base4 = int(pool.network_address) + 4 * slot
    host4, guest4 = struct.pack(">I", base4 + 1), struct.pack(">I", base4 + 2)
    if not ipv6:
        return _Plan(host4, guest4)
    base6 = _ipv6_pool() + 4 * slot
    return _Plan(host4, guest4, (base6 + 1).to_bytes(16, "big"), (base6 + 2).to_bytes(16, "big"))


@functools.cache
def _ipv6_pool() -> int:
    """A unique local /64 (RFC 4193), the same on every boot of this host."""
    try:
        seed = Path("/etc/machine-id").read_bytes()
    except FileNotFoundError:
        seed = socket.gethostname().encode()
    random40 = hashlib.sha256(b"hypercore network " + seed).digest()[:5]
    return int.from_bytes(b"\xfd" + random40 + bytes(10), "big")


def _check_pool(pool: str) -> None:
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
    if device is not None and device.group == nft.GROUP:
        return
    network = ipaddress.IPv4Network((route.destination, route.prefix_length))
    raise ResourceExhausted(
        f"the address pool {pool} clashes with this host's route to {network}"
        + (f" (dev {device.name})" if device else ""),
        hint='set a free private network as "pool" in [network] of the host\'s config.toml,'
        " or HYPERCORE_NETWORK_POOL",
    )


# -- uplink --


def _uplink(interface: str) -> netlink.Link:
    """The NIC that carries the traffic."""
    if not interface:
        return _default_uplink()
    found = netlink.link(interface)
    if found is None or found.flags & _IFF_LOOPBACK:
        raise InvalidArgument(
            f"interface = {interface!r}: this host has no such network interface",
            hint="it has " + (", ".join(_nic_names()) or "none"),
        )
    if not found.flags & _IFF_UP:
        raise StateError(
            f"interface = {interface!r}: the interface is down",
            hint=f"bring it up: ip link set {interface} up",
        )
    return found


def _default_uplink() -> netlink.Link:
    for far in (_FAR4, _FAR6):
        route = netlink.route_to(far)
        if route is not None and (found := netlink.link(ifindex=route.ifindex)):
            return found
    nics = ", ".join(_nic_names())
    raise InvalidArgument(
        "interface is not set, and this host has no default route to tell which one to use",
        hint='set interface to one of its network interfaces, or mode = "none" in [network]'
        + (f" (it has {nics})" if nics else ""),
    )


def _nic_names() -> list[str]:
    return sorted(
        li.name
        for li in netlink.links()
        if not li.flags & _IFF_LOOPBACK and not li.alias.startswith(_ALIAS_PREFIX)
    )


def _has_ipv6(uplink: netlink.Link) -> bool:
    """Whether the uplink has an address to send from and a way out of its own network."""
    route = netlink.route_to(_FAR6, ifindex=uplink.ifindex)
    if route is None or route.ifindex != uplink.ifindex or not route.source:
        return False
    is_link_local = route.source[0] == 0xFE and route.source[1] & 0xC0 == 0x80
    return not is_link_local


def _mtu(spec: NetworkSpec, uplink: netlink.Link) -> int:
    if not spec.mtu:
        return min(uplink.mtu, _MTU_MAX)
    if not _MTU_MIN <= spec.mtu <= _MTU_MAX:
        raise InvalidArgument(f"mtu = {spec.mtu}: must be {_MTU_MIN} to {_MTU_MAX}")
    return spec.mtu


# -- one microVM --


def attach(microvm_id: str, slot: int, spec: NetworkSpec, config: HostConfig) -> Attachment:
    """Create the network of a microVM; on failure nothing of it is left.

    Raises:
        InvalidArgument: an unknown mode or interface, naming what the host has.
        ResourceExhausted: the pool is used up or clashes with a route of the host.
    """
    if spec.mode == "none":
        return Attachment()
    if spec.mode != "nat":
        raise InvalidArgument(
            f"network mode = {spec.mode!r}: unknown", hint="known ones: " + ", ".join(MODES)
        )
    uplink = _uplink(spec.interface)
    try:
        return _attach_nat(microvm_id, slot, spec, config, uplink)
    except OSError as exc:
        raise from_os_error(exc, f"attach microVM {microvm_id} to the network") from exc


def _attach_nat(
    microvm_id: str, slot: int, spec: NetworkSpec, config: HostConfig, uplink: netlink.Link
) -> Attachment:
    mtu = _mtu(spec, uplink)
    ipv6 = mtu >= _IPV6_MTU_MIN and _has_ipv6(uplink)
    plan = _plan(slot, config.network_pool, ipv6=ipv6)
    _check_guest_address(plan.guest4, config.network_pool)
    _check_table()
    _forward_ipv4(uplink)
    if ipv6:
        _forward_ipv6(uplink)
    dns = _dns(microvm_id, spec, ipv6=ipv6)
    mac = mac_of(microvm_id)
    with _tap_device(microvm_id, slot, plan, mtu, mac) as (name, tap_fd, ifindex):
        elements = list(_elements(name, mac, plan, uplink.name, dns.servers))
        record = paths.MicroVMPaths(microvm_id).network
        _write_record(record, elements)
        try:
            nft.add(elements, slots.tag(microvm_id))
        except BaseException:
            record.unlink()
            raise
    mac_text = mac.hex(":")
    return Attachment(
        tap_name=name,
        tap_fd=tap_fd,
        ifindex=ifindex,
        mac=mac_text,
        interfaces=(_interface(mac_text, plan, mtu),),
        dns_servers=dns.servers,
        dns_search=dns.search,
    )


@contextlib.contextmanager
def _tap_device(
    microvm_id: str, slot: int, plan: _Plan, mtu: int, mac: bytes
) -> Iterator[tuple[str, int, int]]:
    """(name, fd, ifindex) of a new TAP, which goes again if the block fails."""
    name = f"hc{slot}"
    try:
        tap_fd, ifindex = _tap.create(
            name.encode(),
            group=nft.GROUP,
            alias=(_ALIAS_PREFIX + slots.tag(microvm_id)).encode(),
            mtu=mtu,
            address4=plan.host4,
            prefix4=30,
            address6=plan.host6,
            prefix6=126,
            neighbour_mac=mac,
            neighbour4=plan.guest4,
            neighbour6=plan.guest6,
        )
    except OSError as exc:
        if exc.errno != errno.EBUSY:
            raise
        taken = netlink.link(name)
        raise AlreadyExists(
            f"TAP {name} for slot {slot} of microVM {microvm_id} exists already"
            + (f" ({taken.alias})" if taken and taken.alias else ""),
            hint="remove what is left of it: hypercore cleanup",
        ) from exc
    try:
        yield name, tap_fd, ifindex
    except BaseException:
        os.close(tap_fd)
        raise


def _elements(
    name: str, mac: bytes, plan: _Plan, uplink: str, servers: tuple[str, ...]
) -> Iterator[nft.Element]:
    """What opens the table for one guest."""
    tap, exit_nic, sender = nft.ifname(name), nft.ifname(uplink), nft.mac(mac)
    yield nft.GUESTS4, tap + sender + plan.guest4
    yield nft.EXITS4, plan.guest4 + exit_nic
    if plan.guest6:
        yield nft.GUESTS6, tap + sender + plan.guest6
        yield nft.EXITS6, plan.guest6 + exit_nic
    for server in servers:
        address = ipaddress.ip_address(server)
        yield nft.RESOLVERS4 if address.version == 4 else nft.RESOLVERS6, tap + address.packed


def _write_record(path: Path, elements: list[nft.Element]) -> None:
    """Intent before the deed: what `detach` finds again at once, without listing every VM's."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_text("".join(f"{wanted.name} {key.hex()}\n" for wanted, key in elements))


def _read_record(path: Path) -> list[nft.Element]:
    by_name = {wanted.name: wanted for wanted in nft.VM_SETS}
    found = []
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text().splitlines():
            name, _, key = line.partition(" ")
            if name in by_name:
                found.append((by_name[name], bytes.fromhex(key)))
    return found


def _interface(mac: str, plan: _Plan, mtu: int) -> Interface:
    addresses = [f"{socket.inet_ntop(socket.AF_INET, plan.guest4)}/30"]
    gateways = [socket.inet_ntop(socket.AF_INET, plan.host4)]
    if plan.guest6:
        addresses.append(f"{socket.inet_ntop(socket.AF_INET6, plan.guest6)}/126")
        gateways.append(socket.inet_ntop(socket.AF_INET6, plan.host6))
    return Interface(name=GUEST_NIC, mac=mac, addresses=addresses, gateways=gateways, mtu=mtu)


def _dns(microvm_id: str, spec: NetworkSpec, *, ipv6: bool) -> resolver.Resolvers:
    found = resolver.discover(ipv4=True, ipv6=ipv6)
    if spec.dns:
        for server in spec.dns:
            if not resolver.usable(server, ipv4=True, ipv6=True):
                raise InvalidArgument(
                    f"dns = {server!r}: not an address that a guest can reach",
                    hint="give IPv4 or IPv6 addresses of DNS servers, none on a loopback",
                )
        return resolver.Resolvers(spec.dns, found.search)
    if not found.servers:
        logger.warning(
            "microVM %s: the host's DNS server is on its own loopback or there is none; names do"
            " not resolve in the guest unless dns is set in [network]",
            microvm_id,
        )
    return found


def detach(microvm_id: str, slot: int) -> None:
    """Remove what `attach` made; needs neither guest nor VMM, fine if nothing is left."""
    tag = slots.tag(microvm_id)
    record = paths.MicroVMPaths(microvm_id).network
    try:
        try:
            nft.delete(_read_record(record))
        except OSError as exc:
            # Some of them are gone, and so none was deleted: look which ones there are.
            if exc.errno != errno.ENOENT:
                raise
            _delete_elements(lambda owner: owner == tag)
        left = netlink.link(f"hc{slot}")
        if left is not None and left.alias == _ALIAS_PREFIX + tag:
            _tap.delete(left.ifindex)
        record.unlink(missing_ok=True)
    except OSError as exc:
        raise from_os_error(exc, f"detach microVM {microvm_id} from the network") from exc


def _delete_elements(is_wanted: Callable[[str], bool]) -> None:
    """Delete the elements whose tag `is_wanted`, found by listing all."""
    for _ in range(_DELETE_TRIES):
        found = [
            (wanted, key)
            for wanted in nft.VM_SETS
            for key, tag in nft.elements(wanted)
            if is_wanted(tag)
        ]
        try:
            nft.delete(found)
        except OSError as exc:
            # Somebody else removed one of them first: the batch did nothing, look again.
            if exc.errno != errno.ENOENT:
                raise
            continue
        return
    raise StateError(
        f"elements of the nftables table {nft.TABLE} keep changing while being removed",
        hint="try again: hypercore cleanup",
    )


def reclaim_all(live_ids: Collection[str]) -> None:
    """Remove every TAP and nft element of this instance whose microVM is not in `live_ids`."""

    def is_dead(tag: str) -> bool:
        microvm_id = slots.untag(tag)
        return bool(microvm_id) and microvm_id not in live_ids

    try:
        _delete_elements(is_dead)
        doomed = [
            li.ifindex
            for li in netlink.links()
            if li.alias.startswith(_ALIAS_PREFIX) and is_dead(li.alias.removeprefix(_ALIAS_PREFIX))
        ]
        if doomed:
            _tap.set_group(doomed, DOOMED)
            _tap.delete_group(DOOMED)
    except OSError as exc:
        raise from_os_error(exc, "reclaim TAPs and nft elements") from exc
