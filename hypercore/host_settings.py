"""Kernel settings of the host that microVMs need: forwarding, and nothing more.

Changed only when needed and written down before, so that they can be set back.
"""

import contextlib
import os
from pathlib import Path

from hypercore import netlink, paths, tap

_IFF_LOOPBACK = 0x8


def forward_ipv4(uplink: netlink.Link) -> None:
    """Let answers in from `uplink`. Per device: the host does not become a router elsewhere."""
    if not uplink.ipv4_setting(netlink.IPV4_FORWARDING):
        _change(f"/proc/sys/net/ipv4/conf/{uplink.name}/forwarding", "1")


def forward_ipv6(uplink: netlink.Link) -> None:
    """Forward IPv6: the kernel has one switch for all devices.

    A host that forwards no longer listens to router advertisements, unless accept_ra is 2. Without
    that it would lose the addresses and the route it has from them.
    """
    _keep_router_advertisements(uplink)
    switch = "/proc/sys/net/ipv6/conf/all/forwarding"
    if _read(switch) == "0":
        for link in netlink.links():
            if not link.flags & _IFF_LOOPBACK and not tap.is_ours(link):
                _keep_router_advertisements(link)
        _change(switch, "1")


def _keep_router_advertisements(link: netlink.Link) -> None:
    if link.ipv6_setting(netlink.IPV6_ACCEPT_RA) == 1:
        _change(f"/proc/sys/net/ipv6/conf/{link.name}/accept_ra", "2")


def restore() -> None:
    """Set back what was changed; what somebody else has changed since, or is gone, stays."""
    record = paths.host_settings()
    try:
        lines = record.read_text().splitlines()
    except FileNotFoundError:
        return
    for line in reversed(lines):
        path, old, new = line.split("\t")
        with contextlib.suppress(FileNotFoundError):
            if _read(path) == new:
                Path(path).write_text(old)
    record.unlink()


def _change(path: str, value: str) -> None:
    old = _read(path)
    if old == value:
        return
    record = paths.host_settings()
    record.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # One short append: whole even when several processes do the same.
    fd = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, f"{path}\t{old}\t{value}\n".encode())
    finally:
        os.close(fd)
    Path(path).write_text(value)


def _read(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 64).decode().strip()
    finally:
        os.close(fd)
