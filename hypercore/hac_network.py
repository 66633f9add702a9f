"""`[network]` of hac.toml → NetworkSpec. docs/hac.md lists the keys; what they mean on this host
is decided by network.py.
"""

import ipaddress
import re
from collections.abc import Callable
from typing import TypeVar

from hypercore import network_spec
from hypercore.network_spec import NetworkSpec
from hypercore.tomlfile import Table

MODES = ("nat", "bridge", "netns", "none")
MIN_MTU, MAX_MTU = 576, 65521

# Keys that mean something in some modes only.
_OF_MODES = {
    "netns": ("netns",),
    "ports": ("nat",),
    "allow_host": ("nat",),
    "name": ("nat",),
    "egress": ("nat",),
    "address": ("bridge",),
    "gateway": ("bridge",),
    "routes": ("bridge",),
    "rate_limit": ("nat", "bridge"),
    "dns": ("nat", "bridge", "netns"),
    "search": ("nat", "bridge", "netns"),
    "mtu": ("nat", "bridge", "netns"),
}

T = TypeVar("T")


def parse(table: Table, interface: str) -> NetworkSpec:
    """The spec of one table.

    Args:
        interface: the NIC, from [hardware] or the table itself.
    """
    mode = table.choice("mode", "nat", MODES)
    for key, modes in _OF_MODES.items():
        if key in table and mode not in modes:
            wanted = " or ".join(f'"{each}"' for each in modes)
            table.fail(key, f'belongs to mode = {wanted}, but mode is "{mode}"')
    netns_path = table.path("netns")
    if mode == "netns" and netns_path is None:
        table.fail(
            "mode", "needs the path of the network namespace", hint='netns = "/run/netns/…"'
        )
    if interface and mode == "none":
        table.fail("mode", f'contradicts [hardware] interface = "{interface}"')
    mtu = table.integer("mtu", 0, least=0, most=MAX_MTU)
    if 0 < mtu < MIN_MTU:
        table.fail("mtu", f"must be {MIN_MTU} at the least; 0 takes the interface's")
    ports = _each(table, "ports", network_spec.parse_port)
    if problem := network_spec.ports_problem(ports):
        table.fail("ports", problem)
    name = table.text("name")
    if problem := network_spec.name_problem(name):
        table.fail("name", problem)
    address = table.text("address", "dhcp") if _is_text(table, "address") else ""
    dhcp = address == "dhcp"
    addresses = () if address in ("dhcp", "none") else _addresses(table)
    gateways = _each(table, "gateway", _address)
    for gateway in gateways:
        if not any(_is_on_link(gateway, each) for each in addresses):
            table.fail("gateway", f'"{gateway}" is in the network of no address given here')
    rate = table.text("rate_limit")
    return NetworkSpec(
        mode=mode,
        interface=interface,
        netns_path=netns_path,
        dns=_each(table, "dns", _address),
        mtu=mtu,
        search=_each(table, "search", _domain),
        ports=ports,
        allow_host=table.boolean("allow_host", False),
        name=name,
        egress=_each(table, "egress", network_spec.parse_cidr) if "egress" in table else None,
        rate_kbit=_checked(table, "rate_limit", network_spec.parse_rate, rate) if rate else 0,
        addresses=addresses,
        dhcp=dhcp,
        gateways=gateways,
        routes=_each(table, "routes", network_spec.parse_route),
    )


def hostname(table: Table) -> str:
    """The guest's name; empty: not given."""
    name = table.text("hostname")
    if problem := network_spec.hostname_problem(name):
        table.fail("hostname", problem)
    return name


def _is_text(table: Table, key: str) -> bool:
    return key not in table or table.is_text(key)


def _addresses(table: Table) -> tuple[str, ...]:
    return _each(table, "address", network_spec.parse_interface_address)


def _each(table: Table, key: str, parse_one: Callable[[str], T]) -> tuple[T, ...]:
    """A list of texts, or one text, each in its form."""
    texts = (table.text(key),) if key in table and table.is_text(key) else table.texts(key)
    return tuple(_checked(table, key, parse_one, text) for text in texts)


def _checked(table: Table, key: str, parse_one: Callable[[str], T], text: str) -> T:
    try:
        return parse_one(text)
    except ValueError as exc:
        table.fail(key, str(exc))


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError(f'"{text}" is no IP address') from None


def _domain(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?", text):
        raise ValueError(f'"{text}" is no domain')
    return text


def _is_on_link(gateway: str, own: str) -> bool:
    address, interface = ipaddress.ip_address(gateway), ipaddress.ip_interface(own)
    if address.version == 6 and address.is_link_local:
        return interface.version == 6
    return address.version == interface.version and address in interface.network
