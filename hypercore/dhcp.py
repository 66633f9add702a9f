"""A DHCPv4 client for a guest (RFC 2131, 2132, 3442), at the host's end of its link.

Messages go into the guest's network as if the guest had sent them, and its answers are watched on
their way to it: the guest needs no client, and the host knows the address before it boots. One
exchange at a time; when to renew is lease.py's.
"""

import asyncio
import contextlib
import ctypes
import fcntl
import ipaddress
import os
import random
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from hypercore.attachment import LeaseLink as Link
from hypercore.errors import DeadlineExceeded, Unavailable

DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK, RELEASE = range(1, 8)

_SERVER_PORT, _CLIENT_PORT = 67, 68
_COOKIE = b"\x63\x82\x53\x63"
_BROADCAST_FLAG = 0x8000
_MASK, _ROUTERS, _DNS, _HOSTNAME, _DOMAIN, _MTU = 1, 3, 6, 12, 15, 26
_ADDRESS, _SECONDS, _KIND, _SERVER, _WANTED, _T1, _T2 = 50, 51, 53, 54, 55, 58, 59
_CLIENT_ID, _SEARCH, _ROUTES, _END = 61, 119, 121, 255
_ASKED = bytes((_MASK, _ROUTERS, _DNS, _DOMAIN, _MTU, _SEARCH, _ROUTES, _T1, _T2))

_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 8.0
_ETH_P_ALL, _SO_ATTACH_FILTER = 0x0003, 26
_TUNGETVNETHDRSZ = 0x800454D7
_FOREVER = 0xFFFFFFFF

# What comes for a DHCP client over IPv4: ethertype IP, UDP, no later fragment, port 68.
_FILTER = (
    (0x28, 0, 0, 12), (0x15, 0, 8, 0x0800), (0x30, 0, 0, 23), (0x15, 0, 6, 17),
    (0x28, 0, 0, 20), (0x45, 4, 0, 0x1FFF), (0xB1, 0, 0, 14), (0x48, 0, 0, 16),
    (0x15, 0, 1, _CLIENT_PORT), (0x06, 0, 0, 0x40000), (0x06, 0, 0, 0),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Lease:
    """What a server has granted."""

    address: str
    prefix_length: int
    server: str
    seconds: int
    """0: for good"""
    renew_s: int
    rebind_s: int
    server_mac: bytes = b"\xff" * 6
    gateways: tuple[str, ...] = ()
    routes: tuple[tuple[str, str], ...] = ()
    """destination and gateway, empty: on the link"""
    dns: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    mtu: int = 0


@dataclass(frozen=True, slots=True)
class Message:
    """An answer."""

    kind: int
    xid: int
    chaddr: bytes
    address: str
    source_mac: bytes
    options: dict[int, bytes] = field(default_factory=dict)


class Refused(Unavailable):
    """The server says that the address is not to be used (any more)."""


async def acquire(link: Link, hostname: str, deadline: float) -> Lease:
    """Get an address for the guest behind `link`.

    Args:
        deadline: of the event loop's clock.

    Raises:
        DeadlineExceeded: no server has granted one.
    """
    with _listener(link) as answers:
        while True:
            xid = random.getrandbits(32)
            discover = _request(link, DISCOVER, xid, hostname=hostname)
            offer = await _exchange(link, answers, discover, xid, (OFFER,), deadline)
            server = offer.options.get(_SERVER, b"")
            more = ((_ADDRESS, socket.inet_aton(offer.address)), (_SERVER, server))
            request = _request(link, REQUEST, xid, more, hostname=hostname)
            answer = await _exchange(link, answers, request, xid, (ACK, NAK), deadline)
            if answer.kind == ACK and (lease := _lease(answer)) is not None:
                return lease


async def renew(link: Link, lease: Lease, hostname: str, deadline: float) -> Lease:
    """Have the lease extended by whichever server answers.

    Raises:
        Refused: the address is to be given up.
        DeadlineExceeded: no answer.
    """
    xid = random.getrandbits(32)
    with _listener(link) as answers:
        request = _request(link, REQUEST, xid, address=lease.address, hostname=hostname)
        answer = await _exchange(
            link, answers, request, xid, (ACK, NAK), deadline, source=lease.address
        )
    renewed = _lease(answer) if answer.kind == ACK else None
    if renewed is None or renewed.address != lease.address:
        raise Refused(
            f"the DHCP server {lease.server} does not extend the lease of {lease.address}"
        )
    return renewed


def release(link: Link, lease: Lease) -> None:
    """Give the address back; the server's answer is not waited for, there is none."""
    more = ((_SERVER, socket.inet_aton(lease.server)),)
    message = _request(link, RELEASE, random.getrandbits(32), more, address=lease.address)
    with contextlib.suppress(OSError):
        _send(link, message, lease.server_mac, lease.address, lease.server)


async def _exchange(
    link: Link,
    answers: socket.socket,
    request: bytes,
    xid: int,
    wanted: tuple[int, ...],
    deadline: float,
    source: str = "0.0.0.0",
) -> Message:
    """Send until an answer comes, ever more seldom (RFC 2131, 4.1)."""
    loop = asyncio.get_running_loop()
    wait_s = _FIRST_WAIT_S
    while True:
        _send(link, request, source=source)
        until = min(loop.time() + wait_s + random.uniform(-0.2, 0.2), deadline)
        while (left := until - loop.time()) > 0:
            try:
                async with asyncio.timeout(left):
                    frame = await loop.sock_recv(answers, 4096)
            except TimeoutError:
                break
            answer = parse(frame)
            if answer is None or answer.kind not in wanted:
                continue
            if (answer.xid, answer.chaddr) == (xid, link.mac):
                return answer
        if loop.time() >= deadline:
            raise DeadlineExceeded(
                f"no DHCP server answers for {link.mac.hex(':')} on the bridge of {link.name}",
                hint='give an address in [network] of hac.toml, or address = "none"',
            )
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


# -- the link --


@contextlib.contextmanager
def _listener(link: Link) -> Iterator[socket.socket]:
    """A socket that sees the DHCP answers on their way to the guest, and nothing else."""
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
    code = b"".join(struct.pack("=HBBI", *each) for each in _FILTER)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HP", len(_FILTER), ctypes.addressof(buffer))
    with socket.socket(socket.AF_PACKET, kind, 0) as made:
        made.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
        made.bind((link.name, _ETH_P_ALL))
        yield made


def _send(
    link: Link,
    payload: bytes,
    target_mac: bytes = b"\xff" * 6,
    source: str = "0.0.0.0",
    target: str = "255.255.255.255",
) -> None:
    udp = struct.pack(">HHHH", _CLIENT_PORT, _SERVER_PORT, 8 + len(payload), 0) + payload
    header = struct.pack(">BBHHHBBH", 0x45, 0x10, 20 + len(udp), 0, 0, 64, 17, 0)
    header += socket.inet_aton(source) + socket.inet_aton(target)
    packet = header[:10] + struct.pack(">H", _checksum(header)) + header[12:] + udp
    frame = target_mac + link.mac + b"\x08\x00" + packet
    # A VMM chooses the header's size when the guest's driver starts, and it is the same TAP.
    size = bytearray(4)
    if link.is_tap:
        fcntl.ioctl(link.fd, _TUNGETVNETHDRSZ, size)
    os.write(link.fd, bytes(int.from_bytes(size, "little")) + frame)


def _checksum(header: bytes) -> int:
    total: int = sum(struct.unpack(f">{len(header) // 2}H", header))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


# -- messages --


def _request(
    link: Link,
    kind: int,
    xid: int,
    more: tuple[tuple[int, bytes], ...] = (),
    *,
    address: str = "0.0.0.0",
    hostname: str = "",
) -> bytes:
    """A message of the client's; with `address` it has that already."""
    fixed = struct.pack(
        ">BBBBIHH", 1, 1, 6, 0, xid, 0, 0 if address != "0.0.0.0" else _BROADCAST_FLAG
    )
    fixed += socket.inet_aton(address) + bytes(12) + link.mac + bytes(10 + 64 + 128)
    options = [(_KIND, bytes([kind])), (_CLIENT_ID, b"\1" + link.mac), *more]
    if kind != RELEASE:
        options.append((_WANTED, _ASKED))
        if hostname:
            options.append((_HOSTNAME, hostname.encode()))
    packed = b"".join(bytes([key, len(value)]) + value for key, value in options)
    message = fixed + _COOKIE + packed + bytes([_END])
    return message + bytes(max(300 - len(message), 0))  # BOOTP's least; some relays insist


def parse(frame: bytes) -> Message | None:
    """The answer in an Ethernet frame; None for anything else or anything broken."""
    try:
        start = 14 + 4 * (frame[14] & 0xF) + 8
        bootp = frame[start:]
        op, hardware, size, _, xid = struct.unpack_from(">BBBBI", bootp)
        if (op, hardware, size) != (2, 1, 6) or bootp[236:240] != _COOKIE:
            return None
        options = _options(bootp[240:])
        return Message(
            kind=options[_KIND][0],
            xid=xid,
            chaddr=bootp[28:34],
            address=socket.inet_ntoa(bootp[16:20]),
            source_mac=frame[6:12],
            options=options,
        )
    except (IndexError, KeyError, struct.error, OSError):
        return None


def _options(data: bytes) -> dict[int, bytes]:
    """Options by number; the parts of one that is split are joined (RFC 3396)."""
    found: dict[int, bytes] = {}
    at = 0
    while at < len(data) and data[at] != _END:
        if data[at] == 0:
            at += 1
            continue
        size = data[at + 1]
        found[data[at]] = found.get(data[at], b"") + data[at + 2 : at + 2 + size]
        at += 2 + size
    return found


def _lease(answer: Message) -> Lease | None:
    """What an ACK grants; None if it makes no sense."""
    options = answer.options

    def number(key: int, default: int) -> int:
        return int.from_bytes(options[key], "big") if key in options else default

    def addresses(key: int) -> tuple[str, ...]:
        value = options.get(key, b"")
        return tuple(socket.inet_ntoa(value[n : n + 4]) for n in range(0, len(value) - 3, 4))

    mask = options.get(_MASK, b"\xff\xff\xff\xff")
    server = addresses(_SERVER)
    try:
        prefix = ipaddress.IPv4Network((0, socket.inet_ntoa(mask))).prefixlen
        routes = _classless(options.get(_ROUTES, b""))
    except (ValueError, OSError, IndexError):
        return None
    if not server or answer.address == "0.0.0.0":
        return None
    seconds = number(_SECONDS, _FOREVER)
    seconds = 0 if seconds == _FOREVER else max(seconds, 1)
    # With classless routes the routers do not count (RFC 3442).
    gateways = tuple(way for to, way in routes if to == "0.0.0.0/0" and way)
    domain = options.get(_DOMAIN, b"").rstrip(b"\0").decode("ascii", "replace")
    return Lease(
        address=answer.address,
        prefix_length=prefix,
        server=server[0],
        seconds=seconds,
        renew_s=min(number(_T1, seconds // 2), seconds) or seconds // 2,
        rebind_s=min(number(_T2, seconds * 7 // 8), seconds) or seconds * 7 // 8,
        server_mac=answer.source_mac,
        gateways=gateways[:1] if routes else addresses(_ROUTERS)[:1],
        routes=tuple((to, way) for to, way in routes if to != "0.0.0.0/0"),
        dns=addresses(_DNS)[:3],
        search=(domain,) if domain and all(c.isalnum() or c in "-._" for c in domain) else (),
        mtu=number(_MTU, 0) if 576 <= number(_MTU, 0) <= 65521 else 0,
    )


def _classless(data: bytes) -> list[tuple[str, str]]:
    """Option 121: prefix length, as many bytes of the destination as matter, gateway."""
    routes = []
    at = 0
    while at < len(data):
        prefix = data[at]
        size = (prefix + 7) // 8
        destination = data[at + 1 : at + 1 + size].ljust(4, b"\0")
        gateway = socket.inet_ntoa(data[at + 1 + size : at + 5 + size])
        network = ipaddress.IPv4Network((destination, prefix), strict=False)
        routes.append((str(network), "" if gateway == "0.0.0.0" else gateway))
        at += 5 + size
    return routes
