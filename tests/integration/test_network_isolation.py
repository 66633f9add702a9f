"""What a guest may reach when it is told to: the host, its network by name, an egress list."""

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from hypercore import network, network_names, network_state, nft, paths, ruleset, slots
from hypercore.config import HostConfig
from hypercore.netlink import link
from hypercore.network_spec import parse_port
from hypercore.spec import NetworkSpec
from tests.integration import netlab
from tests.integration.netlab import HOST4, HOST6, OUTSIDE4, OUTSIDE6, Host
from tests.integration.netlab import assert_refused as refused
from tests.integration.netlab import assert_tcp as tcp

pytestmark = pytest.mark.usefixtures("root", "instance")

PORT = 4001


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netlab.own_instance(tmp_path, monkeypatch, f"nameserver {OUTSIDE4}\n")


@pytest.fixture
def host() -> Iterator[Host]:
    with netlab.host() as made:
        yield made


def test_guest_that_may_use_the_host(host: Host) -> None:
    with netlab.attached_guest("vm-a", NetworkSpec(allow_host=True)) as a:
        for address in (HOST4, HOST6, a.gateway4):
            tcp(a.netns, None, address, PORT, at=(address, PORT))
        with netlab.attached_guest("vm-b", NetworkSpec()) as b:
            refused(b.netns, HOST4, PORT)
            refused(a.netns, b.address4, PORT)


def test_guests_of_one_network_reach_each_other_and_no_others(host: Host) -> None:
    backend, other = NetworkSpec(name="backend"), NetworkSpec(name="other")
    with (
        netlab.attached_guest("vm-a", backend) as a,
        netlab.attached_guest("vm-b", replace(backend, egress=())) as b,
        netlab.attached_guest("vm-c", other) as c,
        netlab.attached_guest("vm-d", NetworkSpec()) as d,
    ):
        for source, target in ((a, b), (b, a)):
            for address in (target.address4, target.address6):
                tcp(source.netns, target.netns, address, PORT, at=(address, PORT))
        for source in (c, d):
            refused(source.netns, a.address4, PORT)
            refused(source.netns, a.address6, PORT)
            refused(a.netns, source.address4, PORT)
        tcp(a.netns, host.outside, OUTSIDE4, PORT, at=(OUTSIDE4, PORT))
        refused(b.netns, OUTSIDE4, PORT)
    assert set(network_names.names().values()) == {"backend", "other"}


def test_numbers_of_networks_are_their_own(
    instance: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_names, "_COUNT", 3)  # so that they collide
    numbers = [network_names.number_of(name) for name in ("a", "b", "c")]
    assert len(set(numbers)) == 3
    assert [network_names.number_of(name) for name in ("a", "b", "c")] == numbers
    assert all(number & 0xF == 0 for number in numbers)
    assert len(os.listdir(paths.network_names_dir())) == 3


def test_egress_list(host: Host) -> None:
    allowed = ("198.51.100.0/28", "198.51.100.1", "2001:db8:1::/64", "203.0.113.0/24")
    with netlab.inside(host.outside):
        for address in ("198.51.100.20/32", "198.51.100.53/32", "2001:db8:2::1/128"):
            netlab.give_address("out0", address)
    only = NetworkSpec(egress=allowed, dns=("198.51.100.53",))
    with netlab.attached_guest("vm-a", only) as a, netlab.attached_guest("vm-b", only):
        for address in (OUTSIDE4, OUTSIDE6):
            tcp(a.netns, host.outside, address, PORT, at=(address, PORT))
        for address in ("198.51.100.20", "198.51.100.53", "2001:db8:2::1"):
            refused(a.netns, address, PORT)
        with (
            netlab.datagrams(host.outside, "198.51.100.53", 53) as server,
            netlab.datagrams(a.netns, "0.0.0.0") as client,
        ):
            client.sendto(b"name?", ("198.51.100.53", 53))
            data, peer = server.recvfrom(100)
            server.sendto(data, peer)
            assert client.recvfrom(100)[0] == b"name?"
        # The host still gets in, and is answered.
        tcp(None, a.netns, a.address4, PORT, at=(a.address4, PORT))
    assert nft.elements(ruleset.EGRESS4) == nft.elements(ruleset.EGRESS6) == []


def test_empty_egress_list_allows_nothing(host: Host) -> None:
    with netlab.attached_guest("vm-a", NetworkSpec(egress=())) as a:
        for address in (OUTSIDE4, OUTSIDE6, HOST4):
            refused(a.netns, address, PORT)


# -- names --


@pytest.mark.parametrize("stub", ["127.0.0.1", "127.0.0.53"])
def test_resolver_on_the_hosts_loopback(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stub: str
) -> None:
    """The guest asks its gateway; the resolver is asked by the loopback, and nothing else is."""
    netlab.own_instance(tmp_path, monkeypatch, f"nameserver {stub}\n")
    with (
        netlab.attached_guest("vm-a", NetworkSpec(egress=())) as a,
        netlab.datagrams(None, stub, 53) as server,
        netlab.datagrams(a.netns, "0.0.0.0") as client,
    ):
        assert a.attachment.dns_servers == (a.gateway4,)
        client.sendto(b"name?", (a.gateway4, 53))
        data, peer = server.recvfrom(100)
        assert peer[0] == "127.0.0.1"
        server.sendto(data + b" here", peer)
        assert client.recvfrom(100) == (b"name? here", (a.gateway4, 53))
        tcp(a.netns, None, a.gateway4, 53, at=(stub, 53))
        with netlab.listen(None, stub, PORT):
            refused(a.netns, a.gateway4, PORT)
        refused(a.netns, HOST4, 53)


def test_dns_and_search_domains_asked_for(host: Host) -> None:
    asked = NetworkSpec(dns=("192.0.2.53",), search=("corp.example",))
    with netlab.attached("vm-a", asked) as made:
        assert (made.dns_servers, made.dns_search) == (asked.dns, asked.search)


# -- rates --


@pytest.mark.parametrize("direction", ["up", "down"])
def test_rate_limit(host: Host, direction: str) -> None:
    """What comes through is what the burst and the time allow; another guest is not slowed."""
    kbit, size, count = 800, 1000, 1000
    limited = NetworkSpec(rate_kbit=kbit)
    with (
        netlab.attached_guest("vm-a", limited) as a,
        netlab.attached_guest("vm-b", NetworkSpec()) as b,
    ):
        assert _arriving(host, b, direction, size, 100)[0] == 100 * size
        received, elapsed_s = _arriving(host, a, direction, size, count)
        headers = 1 + 28 / size
        allowed = nft.burst(kbit * 125) + kbit * 125 * elapsed_s
        assert nft.burst(kbit * 125) / 2 < received * headers <= allowed
        assert received < count * size
    assert nft.elements(ruleset.UPLOADS) == nft.elements(ruleset.DOWNLOADS) == []


def _arriving(
    host: Host, vm: netlab.Guest, direction: str, size: int, count: int
) -> tuple[int, float]:
    """Bytes of `count` datagrams that come through, and the time from the first to the last."""
    source, target, address = (
        (vm.netns, host.outside, OUTSIDE4) if direction == "up" else (None, vm.netns, vm.address4)
    )
    with (
        netlab.datagrams(target, address, PORT) as server,
        netlab.datagrams(source, "0.0.0.0") as client,
    ):
        begun = time.monotonic()
        received = 0
        for n in range(1, count + 1):
            with contextlib.suppress(PermissionError):  # what the host's own rules drop
                client.sendto(bytes(size), (address, PORT))
            # No more under way than the queues of the TAPs and the socket take.
            patience_s = 1.0 if n == count else 0.0
            while n % 50 == 0 and select.select([server], [], [], patience_s)[0]:
                received += len(server.recv(size))
        return received, time.monotonic() - begun


# -- lies about addresses --


def _arp(kind: int, mac: bytes, sender: str, target: str) -> bytes:
    packed = struct.pack(">HHBBH", 1, 0x0800, 6, 4, kind)
    addresses = mac + socket.inet_aton(sender) + bytes(6) + socket.inet_aton(target)
    return netlab.HEADER + b"\xff" * 6 + mac + b"\x08\x06" + packed + addresses


def _neighbours(ifindex: int) -> dict[str, str]:
    with IPRoute() as route:
        return {
            each.get("dst"): each.get("lladdr")
            for each in route.get_neighbours(ifindex=ifindex)
            if each.get("lladdr") and not each.get("dst").startswith("ff")
        }


def test_lies_by_arp_change_nothing(host: Host) -> None:
    """The host goes on knowing the guest alone, and answers for its one address only."""
    with netlab.attached("vm-a", NetworkSpec()) as a, netlab.attached("vm-b", NetworkSpec()) as b:
        device = link(a.tap_name)
        assert device is not None
        mac = bytes.fromhex(a.mac.replace(":", ""))
        own, gateway = a.interfaces[0].addresses[0].partition("/")[0], a.interfaces[0].gateways[0]
        known = _neighbours(device.ifindex)
        assert known[own] == a.mac
        neighbour = b.interfaces[0].addresses[0].partition("/")[0]
        for kind, sender_mac, sender in (
            (2, b"\x02\0\0\0\0\x66", own),
            (2, mac, neighbour),
            (2, mac, OUTSIDE4),
            (1, mac, OUTSIDE4),
        ):
            os.write(a.tap_fd, _arp(kind, sender_mac, sender, gateway))
        os.write(a.tap_fd, _arp(1, mac, own, HOST4))  # which addresses has the host elsewhere?
        os.write(a.tap_fd, _arp(1, mac, own, gateway))
        answered: list[str] = []
        os.set_blocking(a.tap_fd, True)
        while not answered or answered[-1] != gateway:
            frame = os.read(a.tap_fd, 2000)[len(netlab.HEADER) :]
            if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\2":
                answered.append(socket.inet_ntoa(frame[28:32]))
        assert answered == [gateway]
        assert _neighbours(device.ifindex) == known


def test_lies_by_neighbour_discovery_change_nothing(host: Host) -> None:
    with netlab.attached_guest("vm-a", NetworkSpec()) as a:
        device = link(a.attachment.tap_name)
        assert device is not None
        known = _neighbours(device.ifindex)
        target = socket.inet_pton(socket.AF_INET6, a.address6)
        with (
            netlab.inside(a.netns),
            socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as raw,
        ):
            raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
            raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 255)
            # An overriding advertisement of its own address at another MAC, and of another's.
            for address in (target, socket.inet_pton(socket.AF_INET6, OUTSIDE6)):
                advert = struct.pack(">BBHI", 136, 0, 0, 0x20000000) + address
                option = b"\2\1\x02\0\0\0\0\x66"
                raw.sendto(advert + option, (a.interface.gateways[1], 0))
            tcp(a.netns, host.outside, OUTSIDE6, PORT, at=(OUTSIDE6, PORT))
        assert _neighbours(device.ifindex) == known


# -- what is shown of it --


def test_state_tells_what_everybody_has(host: Host) -> None:
    spec = NetworkSpec(
        name="backend",
        allow_host=True,
        egress=("192.0.2.0/24",),
        ports=(parse_port("127.0.0.1:8080:80"),),
    )
    with netlab.attached("vm-a", spec) as a, netlab.attached("vm-b", NetworkSpec()):
        first, second = network_state.connections()
        assert first == network_state.Connection(
            microvm_id=slots.tag("vm-a"),
            tap_name=a.tap_name,
            slot=0,
            mode="nat",
            addresses=tuple(each.partition("/")[0] for each in a.interfaces[0].addresses),
            mac=a.mac,
            network="backend",
            ports=("127.0.0.1:8080:80/tcp",),
            allow_host=True,
            restricted=True,
            egress=("192.0.2.0-192.0.2.255",),
            live=True,
        )
        assert (second.microvm_id, second.network, second.ports) == (slots.tag("vm-b"), "", ())
        assert network_state.prune() == []
    assert network_state.connections() == []


def test_prune_removes_what_nobody_holds_and_in_the_end_all(host: Host) -> None:
    slot = slots.acquire("vm-a")
    made = network.attach("vm-a", slot, NetworkSpec(), HostConfig())
    with netlab.attached("vm-b", NetworkSpec()):
        slots.release("vm-a")  # as if only that had been given back
        assert network_state.prune() == [f"{made.tap_name} of {slots.tag('vm-a')}"]
        assert [each.microvm_id for each in network_state.connections()] == [slots.tag("vm-b")]
        assert nft.installed(ruleset.ROUTED)
    os.close(made.tap_fd)
    assert network_state.prune() == ["nftables tables and settings of the host"]
    assert not nft.installed(ruleset.ROUTED)
    assert Path("/proc/sys/net/ipv4/conf/up0/forwarding").read_text() == "0\n"
