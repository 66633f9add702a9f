"""What the user asked of the network, frozen; and its text forms, in hac.toml, flags, annotations.

A parser here raises ValueError with the problem alone; whoever called it knows which key or flag
it was and says so. Nothing here looks at the host.
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PROTOCOLS = ("tcp", "udp")
MAX_PORTS = 1000
"""published by one microVM: each holds a socket of the shim server's"""

_PORT = re.compile(
    r"(?:(?P<host>[^/]*):)?(?P<guest>[0-9]+(?:-[0-9]+)?)(?:/(?P<protocol>[A-Za-z]+))?"
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,14}")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_RATE = re.compile(r"([1-9][0-9]*)(kbit|mbit|gbit)")
_KBIT = {"kbit": 1, "mbit": 1000, "gbit": 1000_000}


@dataclass(frozen=True, slots=True)
class Port:
    """Ports of the host that lead to a guest: `count` of them in a row."""

    host_port: int
    guest_port: int
    protocol: str = "tcp"
    address: str = ""
    """of the host; empty: all of them"""
    count: int = 1

    def __str__(self) -> str:
        """As `parse_port` reads it."""
        address = f"[{self.address}]" if ":" in self.address else self.address
        parts = [address] if address else []
        parts += [_span(self.host_port, self.count), _span(self.guest_port, self.count)]
        return ":".join(parts) + f"/{self.protocol}"


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the guest's, by a gateway on its link."""

    destination: str
    gateway: str

    def __str__(self) -> str:
        return f"{self.destination} via {self.gateway}"


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """How a microVM reaches the network."""

    mode: str = "nat"
    """nat, bridge, netns or none"""
    interface: str = ""
    """host NIC that carries the traffic; empty: the one with the default route"""
    netns_path: Path | None = None
    dns: tuple[str, ...] = ()
    """empty: the host's resolvers"""
    mtu: int = 0
    """0: the interface's"""
    search: tuple[str, ...] = ()
    """empty: the host's search domains"""
    ports: tuple[Port, ...] = ()
    """published by the host; mode nat"""
    allow_host: bool = False
    """the guest may use the host's services; mode nat"""
    name: str = ""
    """microVMs whose networks have the same name reach each other; mode nat"""
    egress: tuple[str, ...] | None = None
    """CIDRs that the guest may open connections to, besides its DNS servers; None: all"""
    rate_kbit: int = 0
    """limit of each direction, in 1000 bit/s; 0: none"""
    addresses: tuple[str, ...] = ()
    """the guest's own, with prefix lengths; mode bridge"""
    dhcp: bool = True
    """without `addresses`: the guest's IPv4 address is the network's to give; mode bridge"""
    gateways: tuple[str, ...] = ()
    routes: tuple[Route, ...] = ()


def parse_port(text: str) -> Port:
    """[[ADDRESS:]PORT:]PORT[/PROTOCOL], PORT being a number or a range; the last is the guest's.

    An IPv6 address is written in brackets. With one PORT the host's has the same number.
    """
    match = _PORT.fullmatch(text)
    if match is None:
        raise ValueError("must be of the form [[ADDRESS:]HOSTPORT:]GUESTPORT[/tcp|udp]")
    protocol = (match["protocol"] or "tcp").lower()
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r} is not one of " + ", ".join(PROTOCOLS))
    address, colon, host = (match["host"] or "").rpartition(":")
    if colon:
        address = _host_address(address)
    guest_port, count = _range(match["guest"])
    host_port, host_count = _range(host) if host else (guest_port, count)
    if count != host_count:
        raise ValueError(f"{host_count} ports of the host for {count} of the guest")
    return Port(host_port, guest_port, protocol, address, count)


def _host_address(text: str) -> str:
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        raise ValueError(f"{text!r} is no IP address of the host") from None
    if (address.version == 6) != (bare != text):
        raise ValueError(f"{text!r}: an IPv6 address, and no other, is written in brackets")
    if address.is_unspecified:
        # 0.0.0.0 and [::] each say "all", and so does leaving it out.
        return ""
    return str(address)


def _range(text: str) -> tuple[int, int]:
    """(first, count) of a port or a range of them."""
    first, _, last = text.partition("-")
    if not all(part.isdecimal() for part in (first, last or first)):
        raise ValueError(f"{text!r} is no port and no range of ports")
    low, high = int(first), int(last or first)
    if not 1 <= low <= high <= 65535:
        raise ValueError(f"{text!r} is no port from 1 to 65535 or range of them")
    return low, high - low + 1


def _span(first: int, count: int) -> str:
    return str(first) if count == 1 else f"{first}-{first + count - 1}"


def ports_problem(ports: tuple[Port, ...]) -> str:
    """What is wrong with these ports together; empty: nothing."""
    if sum(port.count for port in ports) > MAX_PORTS:
        return f"publishes more than {MAX_PORTS} ports"
    taken: dict[tuple[str, int], list[Port]] = {}
    for port in ports:
        for number in range(port.host_port, port.host_port + port.count):
            others = taken.setdefault((port.protocol, number), [])
            if any(not each.address or not port.address or each.address == port.address
                   for each in others):  # fmt: skip
                return f"publishes port {number}/{port.protocol} twice"
            others.append(port)
    return ""


def parse_route(text: str) -> Route:
    """DESTINATION via GATEWAY, the destination being a CIDR."""
    destination, separator, gateway = (part.strip() for part in text.partition(" via "))
    if not separator:
        raise ValueError("must be of the form CIDR via ADDRESS")
    network = parse_cidr(destination)
    try:
        way = ipaddress.ip_address(gateway)
    except ValueError:
        raise ValueError(f"{gateway!r} is no IP address") from None
    if way.version != ipaddress.ip_network(network).version:
        raise ValueError("destination and gateway are of different IP versions")
    return Route(network, str(way))


def parse_cidr(text: str) -> str:
    """A network such as 192.0.2.0/24; an address alone is a network of one."""
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as exc:
        raise ValueError(f"{text!r} is no network such as 192.0.2.0/24: {exc}") from None


def parse_interface_address(text: str) -> str:
    """An address of the guest's with its prefix length, such as 192.0.2.7/24."""
    if "/" not in text:
        raise ValueError(f"{text!r} has no prefix length, as in 192.0.2.7/24")
    try:
        return str(ipaddress.ip_interface(text))
    except ValueError:
        raise ValueError(f"{text!r} is no address such as 192.0.2.7/24") from None


def parse_rate(text: str) -> int:
    """A rate such as 100mbit, in kbit."""
    match = _RATE.fullmatch(text)
    if match is None:
        raise ValueError("must be a rate such as 500kbit, 100mbit or 1gbit")
    rate = int(match[1]) * _KBIT[match[2]]
    if not 64 <= rate <= 100 * 1000_000:
        raise ValueError("must be from 64kbit to 100gbit")
    return rate


def name_problem(name: str) -> str:
    if not name or _NAME.fullmatch(name):
        return ""
    return "must be letters, digits, _ and -, beginning with one of the first, at most 15"


def hostname_problem(name: str) -> str:
    if not name or (len(name) <= 63 and re.fullmatch(_LABEL, name)):
        return ""
    return "must be letters, digits and - between them, at most 63"


# -- OCI annotations --


def to_values(spec: NetworkSpec) -> dict[str, str]:
    """Key → value, those with a value; from_values is the inverse."""
    values = {
        "mode": spec.mode,
        "interface": spec.interface,
        "netns": str(spec.netns_path or ""),
        "dns": ",".join(spec.dns),
        "mtu": str(spec.mtu or ""),
        "search": ",".join(spec.search),
        "ports": ",".join(map(str, spec.ports)),
        "allow-host": "true" if spec.allow_host else "",
        "name": spec.name,
        "egress": "" if spec.egress is None else ",".join(spec.egress) or "none",
        "rate-kbit": str(spec.rate_kbit or ""),
        "addresses": ",".join(spec.addresses),
        "dhcp": "" if spec.dhcp else "false",
        "gateways": ",".join(spec.gateways),
        "routes": ",".join(map(str, spec.routes)),
    }
    return {key: value for key, value in values.items() if value}


KEYS = frozenset(
    ("mode", "interface", "netns", "dns", "mtu", "search", "ports", "allow-host", "name", "egress",
     "rate-kbit", "addresses", "dhcp", "gateways", "routes")
)  # fmt: skip


def from_values(values: Mapping[str, str]) -> NetworkSpec:
    """The spec of these values; without a mode there is no network.

    Raises:
        ValueError: a value is not of its form, naming its key.
    """

    def texts(key: str) -> tuple[str, ...]:
        return tuple(part for part in values.get(key, "").split(",") if part)

    def number(key: str) -> int:
        text = values.get(key) or "0"
        if not text.isdecimal():
            raise ValueError(f"{text!r} is no number")
        return int(text)

    egress = texts("egress")
    key = ""
    try:
        key = "ports"
        ports = tuple(parse_port(text) for text in texts(key))
        if problem := ports_problem(ports):
            raise ValueError(problem)
        key = "routes"
        routes = tuple(parse_route(text) for text in texts(key))
        key = "egress"
        allowed = tuple(parse_cidr(text) for text in egress if egress != ("none",))
        key = "addresses"
        addresses = tuple(parse_interface_address(text) for text in texts(key))
        key = "mtu"
        mtu = number(key)
        key = "rate-kbit"
        rate_kbit = number(key)
        key = "name"
        if problem := name_problem(values.get(key, "")):
            raise ValueError(problem)
    except ValueError as exc:
        raise ValueError(f"network.{key} = {values.get(key, '')!r}: {exc}") from exc
    return NetworkSpec(
        mode=values.get("mode", "none"),
        interface=values.get("interface", ""),
        netns_path=Path(values["netns"]) if values.get("netns") else None,
        dns=texts("dns"),
        mtu=mtu,
        search=texts("search"),
        ports=ports,
        allow_host=values.get("allow-host") == "true",
        name=values.get("name", ""),
        egress=allowed if egress else None,
        rate_kbit=rate_kbit,
        addresses=addresses,
        dhcp=values.get("dhcp") != "false",
        gateways=texts("gateways"),
        routes=routes,
    )
