"""Published ports: kept free of others while a microVM has them, and led to it by nftables.

The lease of a port is a bound socket that nobody reads: the kernel then refuses it to every other
program and microVM, whatever the addresses, and takes it back when the shim server ends. Packets
never get to it, nftables rewrites them before.
"""

import contextlib
import errno
import ipaddress
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from hypercore import netlink, nft, ruleset
from hypercore.errors import AlreadyExists, InvalidArgument, from_os_error
from hypercore.network_spec import Port

_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
_NUMBERS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}


@contextlib.contextmanager
def reserved(ports: tuple[Port, ...]) -> Iterator[tuple[int, ...]]:
    """The ports' sockets as fds, the caller's; closed if the block fails.

    Raises:
        AlreadyExists: somebody has one of the ports; tells who, if that can be seen.
        InvalidArgument: an address is not the host's.
    """
    with contextlib.ExitStack() as undo:
        made = [undo.enter_context(_bound(port, each)) for port in ports for each in _each(port)]
        yield tuple(each.fileno() for each in made)
        undo.pop_all()
        for each in made:
            each.detach()


def check_free(ports: tuple[Port, ...]) -> None:
    """Raise as `reserved` would; nothing is kept."""
    with reserved(ports) as fds:
        pass
    for fd in fds:
        os.close(fd)


def _each(port: Port) -> range:
    return range(port.host_port, port.host_port + port.count)


def _bound(port: Port, number: int) -> socket.socket:
    """A socket on the port. Old connections of a server that has ended do not keep it from us."""
    try:
        try:
            return _bind(port, number)
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE or port.protocol != "tcp":
                raise
            return _bind(port, number, despite_old_connections=True)
    except OSError as exc:
        where = f"{port.address}:{number}" if port.address else str(number)
        if exc.errno == errno.EADDRNOTAVAIL:
            raise InvalidArgument(
                f"port {where}/{port.protocol} cannot be published:"
                f" {port.address} is no address of this host"
            ) from exc
        if exc.errno != errno.EADDRINUSE:
            raise from_os_error(exc, f"publish port {where}/{port.protocol}") from exc
        raise AlreadyExists(
            f"port {where}/{port.protocol} of the host is taken{_holder(port, number)}",
            hint=f"publish another: -p {number + 1 if number < 65535 else number - 1}:"
            f"{port.guest_port}",
        ) from exc


def _bind(port: Port, number: int, *, despite_old_connections: bool = False) -> socket.socket:
    wanted = _address(port)
    made = socket.socket(wanted[0], _KINDS[port.protocol])
    try:
        if wanted[0] == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(bool(port.address)))
        if despite_old_connections:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((wanted[1], number))
        if despite_old_connections:
            made.listen(1)  # with SO_REUSEADDR bound sockets share, only listeners do not
    except BaseException:
        made.close()
        raise
    return made


def _address(port: Port) -> tuple[int, str]:
    """(family, address) to bind; one socket for both families where there are both."""
    if port.address:
        return socket.AF_INET6 if ":" in port.address else socket.AF_INET, port.address
    if os.path.exists("/proc/net/if_inet6"):
        return socket.AF_INET6, "::"
    return socket.AF_INET, "0.0.0.0"


# -- who has it --


def _holder(port: Port, number: int) -> str:
    for tag, published in leases():
        if published.host_port == number and published.protocol == port.protocol:
            return f" by microVM {tag}"
    inodes = _inodes(port.protocol, number)
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and _has_socket(process, inodes):
            with contextlib.suppress(OSError):
                return f" by {(process / 'comm').read_text().strip()} (pid {process.name})"
    return ""


def _inodes(protocol: str, number: int) -> set[str]:
    """Inodes of the sockets with this local port, from /proc/net (proc(5))."""
    found = set()
    for table in (protocol, f"{protocol}6"):
        with contextlib.suppress(FileNotFoundError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if int(fields[1].rpartition(":")[2], 16) == number and fields[9] != "0":
                    found.add(f"socket:[{fields[9]}]")
    return found


def _has_socket(process: Path, inodes: set[str]) -> bool:
    with contextlib.suppress(OSError):
        for fd in os.listdir(process / "fd"):
            with contextlib.suppress(OSError):
                if os.readlink(process / "fd" / fd) in inodes:
                    return True
    return False


# -- nftables --


def elements(ports: tuple[Port, ...], guest4: bytes, guest6: bytes = b"") -> Iterator[nft.Element]:
    """What leads the ports to a guest.

    Raises:
        InvalidArgument: an IPv6 address of the host for a guest that has none.
    """
    for port in ports:
        bound = ipaddress.ip_address(port.address) if port.address else None
        if bound and bound.version == 6 and bound.is_loopback:
            raise InvalidArgument(
                f"port {port} cannot be published: nothing gets from ::1 to a guest",
                hint=f"use 127.0.0.1: -p 127.0.0.1:{port.host_port}:{port.guest_port}",
            )
        if bound and bound.version == 6 and not guest6:
            raise InvalidArgument(
                f"port {port} cannot be published: the guest has no IPv6 address",
                hint="the interface needs an IPv6 address and default route for that",
            )
        for offset in range(port.count):
            key = nft.protocol(_NUMBERS[port.protocol]) + nft.port(port.host_port + offset)
            target = nft.port(port.guest_port + offset)
            if bound:
                of = ruleset.BOUND4 if bound.version == 4 else ruleset.BOUND6
                guest = guest4 if bound.version == 4 else guest6
                yield nft.Element(of, bound.packed + key, guest + target)
                continue
            yield nft.Element(ruleset.PORTS4, key, guest4 + target)
            if guest6:
                yield nft.Element(ruleset.PORTS6, key, guest6 + target)


def use_loopback(ports: tuple[Port, ...]) -> bool:
    """Whether any of the ports is reached at 127.0.0.0/8 too."""
    return any(not port.address or port.address.startswith("127.") for port in ports)


def links_of(ports: tuple[Port, ...]) -> list[netlink.Link]:
    """The NICs that have the addresses the ports are bound to, no loopbacks."""
    wanted = {ipaddress.ip_address(each.address).packed for each in ports if each.address}
    found = []
    for ifindex in netlink.owners(wanted) if wanted else ():
        link = netlink.link(ifindex=ifindex)
        if link is not None and not link.flags & netlink.IFF_LOOPBACK:
            found.append(link)
    return found


_OF_SETS = ((ruleset.PORTS4, 0), (ruleset.PORTS6, 0), (ruleset.BOUND4, 4), (ruleset.BOUND6, 16))


def leases() -> Iterator[tuple[str, Port]]:
    """(tag, port) of all that are published, one by one."""
    for of, size in _OF_SETS:
        for element, tag in nft.elements(of):
            address = str(ipaddress.ip_address(element.key[:size])) if size else ""
            rest = element.key[size:]
            protocol = next(name for name, each in _NUMBERS.items() if each == rest[0])
            yield (
                tag,
                Port(
                    int.from_bytes(rest[4:6], "big"),
                    int.from_bytes(element.data[-4:-2], "big"),
                    protocol,
                    address,
                ),
            )
