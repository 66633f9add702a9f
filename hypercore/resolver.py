"""The DNS servers and search domains that a guest can use in the host's place.

Reads the host's resolver files; asks nothing over the network and runs no forwarder.
"""

import functools
import ipaddress
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hypercore import recent
from hypercore.errors import InvalidArgument
from hypercore.network_spec import NetworkSpec

logger = logging.getLogger(__name__)

FILES = (
    Path("/etc/resolv.conf"),
    Path("/run/systemd/resolve/resolv.conf"),
    Path("/run/NetworkManager/no-stub-resolv.conf"),
)
"""Looked at in this order: the later ones name the real servers where the first names a stub of
the host's own on a loopback address, useless inside a guest."""

MAX_SERVERS = 3
"""what glibc and musl read of a resolv.conf"""


@dataclass(frozen=True, slots=True)
class Resolvers:
    servers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    loopback: str = ""
    """the host's server, where it has none but that: an IPv4 address on its loopback"""


def choose(
    microvm_id: str, spec: NetworkSpec, *, ipv4: bool = True, ipv6: bool, led: bool = False
) -> Resolvers:
    """What a microVM is told: the servers and domains asked for in its spec, else the host's.

    Args:
        led: the guest can be led to a server on the host's loopback, so that is worth telling.
    """
    asked = spec.dns
    for server in asked:
        if not usable(server, ipv4=True, ipv6=True):
            raise InvalidArgument(
                f"dns = {server!r}: not an address that a guest can reach",
                hint="give IPv4 or IPv6 addresses of DNS servers, none on a loopback",
            )
    found = _discover(ipv4, ipv6)
    search = spec.search or found.search
    if asked:
        return Resolvers(asked, search)
    if not found.servers and not (led and found.loopback):
        logger.warning(
            "microVM %s: the host's DNS server is on its own loopback or there is none; names do"
            " not resolve in the guest unless dns is set in [network]",
            microvm_id,
        )
    return Resolvers(found.servers, search, found.loopback)


@recent.remembered
def _discover(ipv4: bool, ipv6: bool) -> Resolvers:
    return discover(ipv4=ipv4, ipv6=ipv6)


def discover(*, ipv4: bool, ipv6: bool, files: Iterable[Path] = FILES) -> Resolvers:
    """The host's DNS servers that a guest with these address families reaches.

    None when the host has none, or only one on its own loopback.
    """
    search: tuple[str, ...] = ()
    loopback = ""
    for path in files:
        try:
            content = path.read_text(errors="replace")
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        found = parse(content)
        search = search or found.search
        loopback = loopback or next((s for s in found.servers if s.startswith("127.")), "")
        servers = tuple(s for s in found.servers if usable(s, ipv4=ipv4, ipv6=ipv6))
        if servers:
            return Resolvers(servers[:MAX_SERVERS], search)
    return Resolvers((), search, loopback)


@functools.lru_cache(maxsize=8)
def parse(content: str) -> Resolvers:
    """What a resolv.conf(5) says; of `search` and `domain` the last line counts."""
    servers: list[str] = []
    search: tuple[str, ...] = ()
    for line in content.splitlines():
        word, *rest = line.split() or [""]
        if word == "nameserver" and rest and rest[0] not in servers:
            servers.append(rest[0])
        elif word in ("search", "domain"):
            search = tuple(domain for domain in rest if domain != ".")
    return Resolvers(tuple(servers), search)


@functools.lru_cache(maxsize=64)
def usable(server: str, *, ipv4: bool, ipv6: bool) -> bool:
    """Whether a guest can send to `server`: no loopback, no address that needs a zone."""
    try:
        address = ipaddress.ip_address(server)
    except ValueError:
        return False
    if address.is_loopback or address.is_unspecified:
        return False
    if address.version == 4:
        return ipv4
    return ipv6 and not address.is_link_local
