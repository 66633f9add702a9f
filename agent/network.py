"""The guest's network as Hello describes it, and the files that tell containers about it.

The containers of a VM share its network namespace: what is set up here is theirs.
"""

import _socket

from agent import files, netlink
from agent.errors import FAILED_PRECONDITION, INVALID_ARGUMENT, RpcError, from_os_error

_NAME_BYTES = 15


def start_loopback():
    """Before anything else: programs expect it."""
    link = netlink.Netlink()
    try:
        link.request(netlink.start_link(1), "start lo")
    finally:
        link.close()


def configure(interfaces):
    """Name, address and start the interfaces, found by MAC. Idempotent."""
    if not interfaces:
        return
    link = netlink.Netlink()
    try:
        links = link.links()
        for interface in interfaces:
            found = links.get(interface.mac.lower())
            if found is None:
                raise RpcError(
                    FAILED_PRECONDITION,
                    f"no network device with MAC {interface.mac!r}; there are: "
                    + (", ".join(sorted(links)) or "none"),
                )
            _configure(link, *found, interface)
    except OSError as exc:
        raise from_os_error(exc, "network:") from exc
    finally:
        link.close()


def _configure(link, index, old_name, interface):
    name = interface.name or old_name
    if len(name.encode()) > _NAME_BYTES or "/" in name:
        raise RpcError(INVALID_ARGUMENT, f"interface name {name!r}")
    new_name = name if name != old_name else ""
    link.request(netlink.change_link(index, new_name, interface.mtu), f"name {name}")
    if any(":" in text for text in interface.addresses):
        _ignore_advertisements(name)
    link.request(netlink.start_link(index), f"start {name}")
    for text in interface.addresses:
        address, prefix = parse_cidr(text)
        link.request(netlink.add_address(index, address, prefix), f"add {text} to {name}")
    for text in interface.gateways:
        gateway = parse_address(text)
        anywhere = bytes(len(gateway))
        link.request(netlink.add_route(index, anywhere, 0, gateway), f"add route via {text}")
    for route in interface.routes:
        destination, prefix = parse_cidr(route.destination)
        gateway = parse_address(route.gateway) if route.gateway else b""
        request = netlink.add_route(index, destination, prefix, gateway)
        link.request(request, f"add route {route.destination} via {route.gateway or name}")
    for neighbour in interface.neighbours:
        address = parse_address(neighbour.address)
        mac = parse_mac(neighbour.mac)
        link.request(netlink.add_neighbour(index, address, mac), f"add {neighbour.address}")


def _ignore_advertisements(name):
    """The addresses are Hello's: a router on the link adds none of its own."""
    path = f"/proc/sys/net/ipv6/conf/{name}/accept_ra"
    try:
        files.write(path, b"0")
    except FileNotFoundError:
        pass  # a kernel without IPv6


def parse_address(text):
    """An IPv4 or IPv6 address as 4 or 16 bytes."""
    family = _socket.AF_INET6 if ":" in text else _socket.AF_INET
    try:
        return _socket.inet_pton(family, text)
    except OSError as exc:
        raise RpcError(INVALID_ARGUMENT, f"{text!r} is no IP address") from exc


def parse_mac(text):
    """ "02:00:00:00:00:01" as 6 bytes."""
    try:
        mac = bytes.fromhex(text.replace(":", ""))
    except ValueError:
        mac = b""
    if len(mac) != 6:
        raise RpcError(INVALID_ARGUMENT, f"{text!r} is no MAC address")
    return mac


def parse_cidr(text):
    """ "10.0.0.2/30" as (packed address, 30); without a prefix, the host alone."""
    head, slash, tail = text.partition("/")
    address = parse_address(head)
    bits = len(address) * 8
    if not slash:
        return address, bits
    if not tail.isdigit() or int(tail) > bits:
        raise RpcError(INVALID_ARGUMENT, f"{text!r}: no prefix length")
    return address, int(tail)


def container_files(hello):
    """Files for containers' roots as {path: content}: what the host said in Hello."""
    made = {}
    if hello.dns_servers or hello.dns_search:
        lines = [f"nameserver {server}" for server in hello.dns_servers]
        if hello.dns_search:
            lines.append("search " + " ".join(hello.dns_search))
        made["/etc/resolv.conf"] = _text(lines)
    if hello.hostname:
        made["/etc/hostname"] = _text([hello.hostname])
    lines = [
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        "ff02::1\tip6-allnodes",
        "ff02::2\tip6-allrouters",
    ]
    if hello.hostname:
        addresses = [text for link in hello.interfaces for text in link.addresses]
        own = [text.partition("/")[0] for text in addresses] or ["127.0.1.1"]
        lines += [f"{address}\t{hello.hostname}" for address in own]
    made["/etc/hosts"] = _text(lines)
    return made


def set_hostname(name):
    """The VM's own; containers have theirs from config.json."""
    if name:
        try:
            _socket.sethostname(name)
        except OSError as exc:
            files.log(f"hostname {name!r}: {exc.strerror}")


def _text(lines):
    return ("\n".join(lines) + "\n").encode()
