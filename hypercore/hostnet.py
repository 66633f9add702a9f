"""What this host's network looks like, from /proc. Changes nothing; network.py does."""

import errno
import socket
import struct
from pathlib import Path

_RTF_UP = 0x1
_RTF_REJECT = 0x200


def interfaces() -> list[str]:
    """Names of the network interfaces, sorted."""
    return sorted(name for _index, name in socket.if_nameindex())


def default_interface() -> str:
    """The NIC with the IPv4 default route of the lowest metric, else IPv6's; "" without one."""
    return _lowest(_ipv4_defaults()) or _lowest(_ipv6_defaults())


def _lowest(routes: list[tuple[int, str]]) -> str:
    return min(routes)[1] if routes else ""


def _ipv4_defaults() -> list[tuple[int, str]]:
    routes = []
    for line in _lines("/proc/net/route")[1:]:
        fields = line.split()
        name, destination, flags, metric, mask = (fields[i] for i in (0, 1, 3, 6, 7))
        if destination == mask == "00000000" and _usable(int(flags, 16), name):
            routes.append((int(metric), name))
    return routes


def _ipv6_defaults() -> list[tuple[int, str]]:
    routes = []
    for line in _lines("/proc/net/ipv6_route"):
        fields = line.split()
        destination, length, metric, flags, name = (fields[i] for i in (0, 1, 5, 8, 9))
        if int(destination, 16) == 0 and length == "00" and _usable(int(flags, 16), name):
            # The kernel prints the metric as it prints all of this file: big-endian hex.
            routes.append((struct.unpack(">I", bytes.fromhex(metric))[0], name))
    return routes


def _usable(flags: int, name: str) -> bool:
    return bool(flags & _RTF_UP) and not flags & _RTF_REJECT and name != "lo"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError as exc:
        if exc.errno not in (errno.ENOENT, errno.EINVAL):
            raise
        return []  # a kernel without IPv6, or a network namespace without /proc/net
