"""Networks of our own to test in: namespaces, wires between them, and guests without a VM.

A test's own thread stands in for the host, in a namespace of its own. A guest is a namespace with
a kernel's whole IP stack behind a TAP; its frames are carried to and from the TAP under test as a
VMM would. Set up by pyroute2, so that a mistake in our own netlink is not repeated here.
"""

import contextlib
import ctypes
import errno
import ipaddress
import os
import selectors
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from agent import network as agent_network
from hypercore import _tap, network, recent, resolver, slots
from hypercore.config import HostConfig
from hypercore.proto.agent_pb import Interface
from hypercore.spec import NetworkSpec

PATIENCE_S = 20.0
"""for what has to arrive; nothing waits that long when all is well"""

HEADER = bytes(12)
"""virtio-net header of a frame that asks for no offload"""

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


@contextlib.contextmanager
def inside(netns_fd: int) -> Iterator[None]:
    """This thread in another namespace. Sockets made there stay there."""
    back = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        _check(_libc.setns(netns_fd, _CLONE_NEWNET), "setns")
        try:
            yield
        finally:
            _check(_libc.setns(back, _CLONE_NEWNET), "setns")
    finally:
        os.close(back)


@contextlib.contextmanager
def namespace() -> Iterator[int]:
    """fd of a new network namespace whose loopback is up; it ends with the fd."""
    recent.forget()  # of a namespace that has ended and had this one's inode
    back = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        _check(_libc.unshare(_CLONE_NEWNET), "unshare")
        try:
            fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
            with IPRoute() as route:
                route.link("set", index=1, state="up")
        finally:
            _check(_libc.setns(back, _CLONE_NEWNET), "setns")
    finally:
        os.close(back)
    try:
        yield fd
    finally:
        os.close(fd)


@dataclass
class Host:
    """The namespace of the test's thread, with an uplink `up0` to an `outside`."""

    outside: int
    """fd of the namespace at the other end of up0"""
    files: dict[str, str] = field(default_factory=dict)


OUTSIDE4, OUTSIDE6 = "198.51.100.1", "2001:db8:1::1"
HOST4, HOST6 = "198.51.100.2", "2001:db8:1::2"


def wire(name: str, peer: str, peer_netns: int) -> None:
    """A veth pair: `name` here, `peer` in `peer_netns`; both up."""
    with IPRoute() as route:
        route.link("add", ifname=name, kind="veth", peer={"ifname": peer, "net_ns_fd": peer_netns})
        route.link("set", index=route.link_lookup(ifname=name)[0], state="up")
    with inside(peer_netns), IPRoute() as route:
        route.link("set", index=route.link_lookup(ifname=peer)[0], state="up")


def give_address(name: str, address: str) -> None:
    """Add `address` (with prefix length) to a link of this thread's namespace."""
    parsed = ipaddress.ip_interface(address)
    with IPRoute() as route:
        index = route.link_lookup(ifname=name)[0]
        # nodad: usable at once.
        flags = {"flags": 0x02} if parsed.version == 6 else {}
        route.addr(
            "add", index=index, address=str(parsed.ip), prefixlen=parsed.network.prefixlen, **flags
        )


def give_route(destination: str, gateway: str, *, metric: int = 0) -> None:
    with IPRoute() as route:
        route.route(
            "add", dst=destination, gateway=gateway, **({"priority": metric} if metric else {})
        )


def set_mtu(name: str, mtu: int) -> None:
    with IPRoute() as route:
        route.link("set", index=route.link_lookup(ifname=name)[0], mtu=mtu)


@contextlib.contextmanager
def host(*, ipv4: bool = True, ipv6: bool = True) -> Iterator[Host]:
    """Run the block as a host with one uplink, in namespaces that end with it."""
    with namespace() as here, namespace() as outside, inside(here):
        wire("up0", "out0", outside)
        if ipv4:
            give_address("up0", f"{HOST4}/24")
            with inside(outside):
                give_address("out0", f"{OUTSIDE4}/24")
            give_route("0.0.0.0/0", OUTSIDE4)
        if ipv6:
            give_address("up0", f"{HOST6}/64")
            with inside(outside):
                give_address("out0", f"{OUTSIDE6}/64")
            give_route("::/0", OUTSIDE6)
        yield Host(outside)


class _Cable(threading.Thread):
    """Carries frames between two TAP fds until it is closed."""

    def __init__(self, left: int, right: int) -> None:
        super().__init__(name="cable")
        self._ends = {left: right, right: left}
        self._ended, self._end = os.pipe()

    def run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for fd in (*self._ends, self._ended):
                selector.register(fd, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fd == self._ended:
                        return
                    # A frame that the other side cannot take is lost, as on any wire.
                    with contextlib.suppress(BlockingIOError):
                        os.write(self._ends[key.fd], os.read(key.fd, 70000))

    def close(self) -> None:
        os.write(self._end, b"x")
        self.join()
        os.close(self._end)
        os.close(self._ended)


@dataclass
class Guest:
    netns: int
    interface: Interface
    attachment: network.Attachment

    @property
    def address4(self) -> str:
        return self.interface.addresses[0].partition("/")[0]

    @property
    def address6(self) -> str:
        return self.interface.addresses[1].partition("/")[0]

    @property
    def gateway4(self) -> str:
        return str(self.interface.gateways[0])


@contextlib.contextmanager
def guest(attachment: network.Attachment) -> Iterator[Guest]:
    """A guest behind the TAP of `attachment`, configured by the agent's own code."""
    interface = attachment.interfaces[0]
    with namespace() as netns:
        tap_fd, _ = _tap.create(
            b"nic",
            group=1,
            mtu=interface.mtu,
            mac=bytes.fromhex(interface.mac.replace(":", "")),
            netns_fd=netns,
        )
        try:
            with inside(netns):
                agent_network.configure([interface])  # type: ignore[no-untyped-call]
            cable = _Cable(attachment.tap_fd, tap_fd)
            cable.start()
            try:
                yield Guest(netns, interface, attachment)
            finally:
                cable.close()
        finally:
            os.close(tap_fd)


# -- sockets --


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def listen(netns: int | None, address: str, port: int) -> socket.socket:
    """A TCP listener in a namespace (None: the test's own)."""
    with inside(netns) if netns is not None else contextlib.nullcontext():
        made = socket.socket(_family(address), socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.settimeout(PATIENCE_S)
    try:
        made.bind((address, port))
        made.listen()
    except BaseException:
        made.close()
        raise
    return made


def connect(netns: int | None, address: str, port: int) -> socket.socket:
    with inside(netns) if netns is not None else contextlib.nullcontext():
        made = socket.socket(_family(address), socket.SOCK_STREAM)
    made.settimeout(PATIENCE_S)
    try:
        made.connect((address, port))
    except BaseException:
        made.close()
        raise
    return made


def datagrams(netns: int | None, address: str, port: int = 0) -> socket.socket:
    with inside(netns) if netns is not None else contextlib.nullcontext():
        made = socket.socket(_family(address), socket.SOCK_DGRAM)
    made.settimeout(PATIENCE_S)
    made.bind((address, port))
    return made


@contextlib.contextmanager
def dhcp_server(netns: int | None, device: str, address: str, directory: Path) -> Iterator[Path]:
    """dnsmasq on a device with `address`, as soon as it serves; the path of its leases.

    It grants 192.168.50.100 and 101.
    """
    path = shutil.which("dnsmasq", path="/usr/sbin:/usr/bin:/sbin")
    assert path is not None, "dnsmasq is missing: run scripts/setup.sh packages"
    leases = directory / "leases"
    args = [
        *(path, "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--no-ping"),
        *(f"--interface={device}", "--bind-interfaces", "--user=root", "--log-facility=-"),
        *("--dhcp-range=192.168.50.100,192.168.50.101,255.255.255.0,600",),
        *("--dhcp-authoritative", f"--dhcp-leasefile={leases}", "--pid-file="),
        f"--dhcp-option=option:dns-server,{address}",
        "--dhcp-option=option:domain-name,lan.test",
        "--dhcp-option=option:classless-static-route,10.9.0.0/16,192.168.50.9,"
        f"0.0.0.0/0,{address}",
        "--dhcp-option=option:mtu,1400",
    ]
    with inside(netns) if netns is not None else contextlib.nullcontext():
        server = subprocess.Popen(args, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        said: list[str] = []
        for line in iter(server.stderr.readline, ""):
            said.append(line)
            if "sockets bound" in line:
                break
        else:
            pytest.fail("dnsmasq ended: " + "".join(said))
        yield leases
    finally:
        server.terminate()
        server.communicate()


# -- frames made by hand --


def checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def udp_frame(
    source_mac: bytes,
    target_mac: bytes,
    source: str,
    target: str,
    port: int,
    payload: bytes,
    *,
    source_port: int = 1000,
) -> bytes:
    """A virtio-net header and an Ethernet frame with a UDP datagram."""
    a, b = ipaddress.ip_address(source).packed, ipaddress.ip_address(target).packed
    udp = struct.pack(">HHHH", source_port, port, 8 + len(payload), 0) + payload
    if len(a) == 4:
        ethertype = 0x0800  # UDP's checksum may be absent over IPv4
        ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + a + b
        packet = ip[:10] + struct.pack(">H", checksum(ip)) + ip[12:] + udp
    else:
        ethertype = 0x86DD
        pseudo = a + b + struct.pack(">IHBB", len(udp), 0, 0, 17)
        udp = udp[:6] + struct.pack(">H", checksum(pseudo + udp)) + udp[8:]
        packet = struct.pack(">IHBB", 6 << 28, len(udp), 17, 64) + a + b + udp
    return HEADER + target_mac + source_mac + struct.pack(">H", ethertype) + packet


# -- microVMs' networks, without a VM --


def own_instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resolv_conf: str) -> None:
    """Directories of the test's own, and a resolver file."""
    monkeypatch.setenv("HYPERCORE_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("HYPERCORE_SLOTS_DIR", str(tmp_path / "slots"))
    resolv = tmp_path / "resolv.conf"
    resolv.write_text(resolv_conf)
    monkeypatch.setattr(resolver.discover, "__kwdefaults__", {"files": (resolv,)})


@contextlib.contextmanager
def attached(microvm_id: str, spec: NetworkSpec) -> Iterator[network.Attachment]:
    slot = slots.acquire(microvm_id)
    made = network.attach(microvm_id, slot, spec, HostConfig())
    try:
        yield made
    finally:
        for fd in (made.tap_fd, *made.port_fds, *((made.dhcp.fd,) if made.dhcp else ())):
            os.close(fd)
        network.detach(microvm_id, slot)
        slots.release(microvm_id)


@contextlib.contextmanager
def attached_guest(microvm_id: str, spec: NetworkSpec) -> Iterator[Guest]:
    with attached(microvm_id, spec) as attachment, guest(attachment) as made:
        yield made


def assert_tcp(
    source: int | None, target: int | None, address: str, port: int, *, at: tuple[str, int]
) -> str:
    """TCP from namespace to namespace: to `address` and `port`, and the server is `at` another.

    Returns the address that the server saw.
    """
    with listen(target, *at) as server, connect(source, address, port) as client:
        connection, peer = server.accept()
        with connection:
            client.sendall(b"ping")
            assert connection.recv(4) == b"ping"
            connection.sendall(b"pong")
            assert client.recv(4) == b"pong"
        return str(peer[0])


def assert_refused(source: int | None, address: str, port: int) -> None:
    """The host says at once that this is not allowed; nothing hangs."""
    with pytest.raises(OSError) as caught:  # noqa: PT011
        connect(source, address, port).close()
    assert caught.value.errno in (errno.EHOSTUNREACH, errno.EACCES)
