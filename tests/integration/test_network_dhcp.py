"""Mode bridge with addresses: by a DHCP server in that network, or told in the spec."""

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from hypercore import network, nft, ruleset, slots
from hypercore.attachment import Attachment
from hypercore.config import HostConfig
from hypercore.errors import DeadlineExceeded
from hypercore.lease import Leaseholder
from hypercore.netlink import link
from hypercore.network_spec import Route
from hypercore.spec import NetworkSpec
from tests.integration import netlab
from tests.integration.netlab import assert_tcp, attached

pytestmark = pytest.mark.usefixtures("root", "instance")

LAN = "192.168.50.1"
PORT = 4001
BRIDGED = NetworkSpec(mode="bridge", interface="br0")


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netlab.own_instance(tmp_path, monkeypatch, "nameserver 192.0.2.53\n")


@pytest.fixture
def lan() -> Iterator[int]:
    """Another machine's namespace on the wire of up0, which the host has in its bridge br0."""
    with netlab.namespace() as here, netlab.namespace() as there, netlab.inside(here):
        netlab.wire("up0", "lan0", there)
        with IPRoute() as route:
            route.link("add", ifname="br0", kind="bridge")
            bridge = route.link_lookup(ifname="br0")[0]
            route.link("set", index=route.link_lookup(ifname="up0")[0], master=bridge)
            route.link("set", index=bridge, state="up")
        with netlab.inside(there):
            netlab.give_address("lan0", f"{LAN}/24")
        yield there


async def _leased(holder: Leaseholder, made: Attachment, patience_s: float = 20) -> Attachment:
    return await holder.acquire(made, asyncio.get_running_loop().time() + patience_s)


@pytest.mark.parametrize("where", ["lan", "host"])
def test_two_microvms_get_addresses(lan: int, tmp_path: Path, where: str) -> None:
    """From a server elsewhere, or on the host's own bridge as libvirt has it."""
    if where == "host":
        with netlab.inside(lan), IPRoute() as route:
            route.flush_addr(index=route.link_lookup(ifname="lan0")[0])
            netlab.give_address("lan0", "192.168.50.9/24")
        netlab.give_address("br0", f"{LAN}/24")
    server: tuple[int | None, str] = (lan, "lan0") if where == "lan" else (None, "br0")

    with (
        netlab.dhcp_server(*server, LAN, tmp_path) as leases,
        _lent("vm-a") as a,
        _lent("vm-b") as b,
        asyncio.Runner() as loop,
    ):
        holders = [Leaseholder("vm-a", a, "alpha"), Leaseholder("vm-b", b, "beta")]
        told = loop.run(_all_leased(holders, (a, b)))
        try:
            addresses = sorted(each.interfaces[0].addresses for each in told)
            assert addresses == [["192.168.50.100/24"], ["192.168.50.101/24"]]
            for each in told:
                (interface,) = each.interfaces
                assert (interface.mtu, interface.gateways) == (1400, [LAN])
                assert [(r.destination, r.gateway) for r in interface.routes] == [
                    ("10.9.0.0/16", "192.168.50.9")
                ]
                assert (each.dns_servers, each.dns_search) == ((LAN,), ("lan.test",))
            names = {line.split()[3] for line in leases.read_text().splitlines()}
            assert names == {"alpha", "beta"}
            with netlab.guest(told[0]) as vm:
                assert_tcp(vm.netns, server[0], LAN, PORT, at=(LAN, PORT))
            loop.run(holders[0].renew())
        finally:
            for holder in holders:
                loop.run(holder.close())
        # Released: the range of two serves a third.
        with _lent("vm-c") as c:
            loop.run(_once("vm-c", c))
    for of in (ruleset.FIXED4, ruleset.OWNERS4, ruleset.SENDERS):
        assert nft.elements(of) == []


async def _all_leased(
    holders: list[Leaseholder], attachments: tuple[Attachment, ...]
) -> list[Attachment]:
    return await asyncio.gather(*map(_leased, holders, attachments))


@contextlib.contextmanager
def _lent(microvm_id: str) -> Iterator[Attachment]:
    """An attachment whose DHCP link the Leaseholder closes."""
    slot = slots.acquire(microvm_id)
    made = network.attach(microvm_id, slot, BRIDGED, HostConfig())
    try:
        yield made
    finally:
        os.close(made.tap_fd)
        network.detach(microvm_id, slot)
        slots.release(microvm_id)


async def _once(microvm_id: str, made: Attachment) -> None:
    holder = Leaseholder(microvm_id, made, "")
    try:
        assert (await _leased(holder, made)).interfaces[0].addresses
    finally:
        await holder.close()


def test_no_server_answers(lan: int) -> None:
    async def live(made: Attachment) -> None:
        holder = Leaseholder("vm-a", made, "alpha")
        try:
            await _leased(holder, made, patience_s=0.5)
        finally:
            await holder.close()

    with _lent("vm-a") as made, pytest.raises(DeadlineExceeded, match="no DHCP server") as caught:
        asyncio.run(live(made))
    assert 'address = "none"' in caught.value.hint


def test_address_and_routes_of_the_spec(lan: int) -> None:
    spec = NetworkSpec(
        mode="bridge",
        interface="br0",
        addresses=("192.168.50.7/24", "2001:db8:50::7/64"),
        gateways=(LAN,),
        routes=(Route("10.9.0.0/16", "192.168.50.9"),),
    )
    with netlab.inside(lan):
        netlab.give_address("lan0", "2001:db8:50::1/64")
        netlab.give_address("lan0", "192.0.2.80/32")
    with netlab.attached_guest("vm-a", spec) as vm:
        assert vm.attachment.dhcp is None
        seen = [
            assert_tcp(vm.netns, lan, address, PORT, at=(address, PORT))
            for address in (LAN, "192.0.2.80", "2001:db8:50::1")
        ]
        assert seen == ["192.168.50.7", "192.168.50.7", "2001:db8:50::7"]
        with netlab.inside(vm.netns), IPRoute() as route:
            gateways = {r.get("dst"): r.get("gateway") for r in route.get_routes(family=2)}
        assert gateways["10.9.0.0"] == "192.168.50.9"


def test_addresses_that_are_not_the_guests_are_dropped(lan: int) -> None:
    """IPv4, IPv6, ARP and ND: what a bridged guest with known addresses says of others."""
    own4, own6 = "192.168.50.7", "2001:db8:50::7"
    spec = NetworkSpec(
        mode="bridge", interface="br0", addresses=(f"{own4}/24", f"{own6}/64"), gateways=(LAN,)
    )
    with netlab.inside(lan):
        far = link("lan0")
        netlab.give_address("lan0", "2001:db8:50::1/64")
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    assert far is not None
    with raw, attached("vm-a", spec) as made:
        raw.bind(("lan0", 3))
        raw.settimeout(netlab.PATIENCE_S)
        mac = bytes.fromhex(made.mac.replace(":", ""))
        lies = [
            netlab.udp_frame(mac, far.mac, "192.168.50.8", LAN, PORT, b"lie"),
            netlab.udp_frame(mac, far.mac, "2001:db8:50::8", "2001:db8:50::1", PORT, b"lie"),
            _arp(mac, mac, "192.168.50.8"),
            _arp(mac, b"\x02\0\0\0\0\x66", own4),
            _advertisement(mac, far.mac, own6, "2001:db8:50::8"),
        ]
        truths = [
            netlab.udp_frame(mac, far.mac, own4, LAN, PORT, b"truth"),
            netlab.udp_frame(mac, far.mac, own6, "2001:db8:50::1", PORT, b"truth"),
            _arp(mac, mac, own4),
            _advertisement(mac, far.mac, own6, own6),
        ]
        for frame in (*lies, *truths):
            os.write(made.tap_fd, frame)
        arrived: list[bytes] = []
        wanted = [frame[len(netlab.HEADER) :] for frame in truths]
        while not arrived or arrived[-1] != wanted[-1]:
            frame = raw.recv(2000)
            if frame[6:12] == mac or frame[22:28] == b"\x02\0\0\0\0\x66":
                arrived.append(frame)
        assert arrived == wanted


def _arp(mac: bytes, sender_mac: bytes, sender: str) -> bytes:
    body = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 2) + sender_mac + socket.inet_aton(sender)
    return (
        netlab.HEADER + b"\xff" * 6 + mac + b"\x08\x06" + body + bytes(6) + socket.inet_aton(LAN)
    )


def _advertisement(mac: bytes, target_mac: bytes, source: str, about: str) -> bytes:
    """A neighbour advertisement that overrides what was known."""
    a, b = (socket.inet_pton(socket.AF_INET6, x) for x in (source, "2001:db8:50::1"))
    icmp = struct.pack(">BBHI", 136, 0, 0, 0x20000000) + socket.inet_pton(socket.AF_INET6, about)
    icmp += b"\2\1" + mac
    pseudo = a + b + struct.pack(">II", len(icmp), 58)
    icmp = icmp[:2] + struct.pack(">H", netlab.checksum(pseudo + icmp)) + icmp[4:]
    packet = struct.pack(">IHBB", 6 << 28, len(icmp), 58, 255) + a + b + icmp
    return netlab.HEADER + target_mac + mac + b"\x86\xdd" + packet
