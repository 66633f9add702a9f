"""Published ports in namespaces of our own: who gets in by them, and who is refused them."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from hypercore import network, nft, ports, ruleset, slots
from hypercore.config import HostConfig
from hypercore.errors import AlreadyExists, InvalidArgument
from hypercore.network_spec import parse_port
from hypercore.spec import NetworkSpec
from tests.integration import netlab
from tests.integration.netlab import HOST4, HOST6, OUTSIDE4, Host, assert_refused, assert_tcp

pytestmark = pytest.mark.usefixtures("root", "instance")


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netlab.own_instance(tmp_path, monkeypatch, f"nameserver {OUTSIDE4}\n")


@pytest.fixture
def host() -> Iterator[Host]:
    with netlab.host() as made:
        yield made


def spec(*texts: str) -> NetworkSpec:
    return NetworkSpec(ports=tuple(parse_port(text) for text in texts))


def test_published_on_all_addresses_is_reached_from_everywhere(host: Host) -> None:
    with netlab.attached_guest("vm-a", spec("8080:80")) as a:
        at4, at6 = (a.address4, 80), (a.address6, 80)
        assert assert_tcp(host.outside, a.netns, HOST4, 8080, at=at4) == OUTSIDE4
        assert_tcp(host.outside, a.netns, HOST6, 8080, at=at6)
        for address in (HOST4, "127.0.0.1", "127.0.0.9", a.gateway4):
            assert_tcp(None, a.netns, address, 8080, at=at4)
        assert_tcp(None, a.netns, HOST6, 8080, at=at6)
        with pytest.raises(ConnectionRefusedError):  # at once: clients then try 127.0.0.1
            netlab.connect(None, "::1", 8080)
        # A guest by the host's address: itself, and another.
        assert_tcp(a.netns, a.netns, HOST4, 8080, at=at4)
        with netlab.attached_guest("vm-b", NetworkSpec()) as b:
            assert_tcp(b.netns, a.netns, HOST4, 8080, at=at4)
            assert_tcp(b.netns, a.netns, HOST6, 8080, at=at6)
            assert_refused(b.netns, a.address4, 80)
            assert_refused(b.netns, HOST4, 80)


def test_udp_and_ranges(host: Host) -> None:
    with (
        netlab.attached_guest("vm-a", spec("5000-5002:6000-6002/udp")) as a,
        netlab.datagrams(a.netns, a.address4, 6002) as server,
        netlab.datagrams(host.outside, OUTSIDE4) as client,
        netlab.datagrams(None, "127.0.0.1") as local,
    ):
        for socket_, address in ((client, HOST4), (local, "127.0.0.1")):
            socket_.sendto(b"question", (address, 5002))
            data, peer = server.recvfrom(100)
            server.sendto(data + b" answered", peer)
            assert socket_.recvfrom(100) == (b"question answered", (address, 5002))


def test_bound_to_one_address(host: Host) -> None:
    with netlab.attached_guest("vm-a", spec(f"{HOST4}:8080:80", "127.0.0.1:8081:80")) as a:
        at = (a.address4, 80)
        assert_tcp(host.outside, a.netns, HOST4, 8080, at=at)
        assert_tcp(None, a.netns, HOST4, 8080, at=at)
        assert_tcp(None, a.netns, "127.0.0.1", 8081, at=at)
        for address, port in (("127.0.0.1", 8080), (HOST4, 8081)):
            with netlab.listen(a.netns, *at), pytest.raises(ConnectionRefusedError):
                netlab.connect(None, address, port)


def test_published_on_loopback_is_closed_to_outside_and_guests(host: Host) -> None:
    """Frames with a loopback address as their destination come to nobody."""
    from hypercore.netlink import link

    loopback = spec("127.0.0.1:8080:4000/udp")
    with (
        netlab.attached_guest("vm-a", loopback) as a,
        netlab.attached("vm-b", spec("9999:9999")) as b,
        netlab.datagrams(a.netns, a.address4, 4000) as server,
        netlab.datagrams(None, "127.0.0.1", 4001) as service,
        netlab.datagrams(None, "127.0.0.1") as local,
    ):
        tap = link(b.tap_name)
        uplink, far = link("up0"), link("out0", netns_fd=host.outside)
        assert tap is not None
        assert uplink is not None
        assert far is not None
        own = b.interfaces[0].addresses[0].partition("/")[0]
        mac = bytes.fromhex(b.mac.replace(":", ""))
        with netlab.inside(host.outside), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("out0", 0))
            for port in (8080, 4001):
                frame = netlab.udp_frame(far.mac, uplink.mac, OUTSIDE4, "127.0.0.1", port, b"no")
                raw.send(frame[len(netlab.HEADER) :])
                os.write(
                    b.tap_fd, netlab.udp_frame(mac, tap.mac, own, "127.0.0.1", port, b"neither")
                )
        local.sendto(b"honest", ("127.0.0.1", 8080))
        local.sendto(b"honest", ("127.0.0.1", 4001))
        assert server.recvfrom(100)[0] == b"honest"
        assert service.recvfrom(100)[0] == b"honest"


def test_port_that_a_program_listens_on(host: Host) -> None:
    wanted = spec("8080:80")
    with netlab.listen(None, "127.0.0.1", 8080):
        for call in (
            lambda: ports.check_free(wanted.ports),
            lambda: network.attach("vm-a", 0, wanted, HostConfig()),
        ):
            with pytest.raises(AlreadyExists, match="port 8080/tcp of the host") as caught:
                call()
            assert f"(pid {os.getpid()})" in caught.value.message
            assert "-p 8081:80" in caught.value.hint
    ports.check_free(wanted.ports)
    assert nft.elements(ruleset.PORTS4) == []


@pytest.mark.parametrize("other", ["8080:81", "127.0.0.1:8080:81", f"{HOST4}:8080:80"])
def test_port_that_another_microvm_has(host: Host, other: str) -> None:
    with netlab.attached("vm-a", spec("8080:80")):
        with pytest.raises(AlreadyExists, match="taken by microVM vm-a"):
            network.attach("vm-b", 1, spec(other), HostConfig())
        assert {tag for _, tag in nft.elements(ruleset.GUESTS4)} == {slots.tag("vm-a")}
        with pytest.raises(OSError, match="in use"):  # nor does a program get it
            netlab.listen(None, "0.0.0.0", 8080)
        with netlab.attached("vm-b", spec("8080:80/udp")):
            pass
    with netlab.attached("vm-b", spec(other)):
        pass
    assert nft.elements(ruleset.PORTS4) == nft.elements(ruleset.BOUND4) == []


def test_port_whose_old_connections_linger(host: Host) -> None:
    with (
        netlab.listen(None, "127.0.0.1", 8080) as server,
        netlab.connect(None, "127.0.0.1", 8080) as client,
    ):
        connection, _ = server.accept()
        connection.close()
        assert client.recv(1) == b""
    wanted = spec("8080:80")
    with netlab.attached("vm-a", wanted), pytest.raises(AlreadyExists):
        ports.check_free(wanted.ports)


def test_address_that_is_not_the_hosts(host: Host) -> None:
    with pytest.raises(InvalidArgument, match=r"192\.0\.2\.77 is no address of this host"):
        network.attach("vm-a", 0, spec("192.0.2.77:8080:80"), HostConfig())


def test_ipv6_ports_that_cannot_be(host: Host) -> None:
    with pytest.raises(InvalidArgument, match="::1") as caught:
        network.attach("vm-a", 0, spec("[::1]:8080:80"), HostConfig())
    assert "-p 127.0.0.1:8080:80" in caught.value.hint
    with netlab.host(ipv6=False), pytest.raises(InvalidArgument, match="has no IPv6 address"):
        network.attach("vm-a", 0, spec("[2001:db8::7]:8080:80"), HostConfig())


def test_forwarding_is_opened_where_an_address_is(host: Host) -> None:
    with netlab.namespace() as other:
        netlab.wire("up1", "out1", other)
        netlab.give_address("up1", "203.0.113.2/24")
        with netlab.inside(other):
            netlab.give_address("out1", "203.0.113.1/24")
        with netlab.attached_guest("vm-a", spec("203.0.113.2:8080:80")) as a:
            assert_tcp(other, a.netns, "203.0.113.2", 8080, at=(a.address4, 80))
        network.restore_host()
        assert Path("/proc/sys/net/ipv4/conf/up1/forwarding").read_text() == "0\n"


def test_leases_tell_who_has_what(host: Host) -> None:
    with netlab.attached("vm-a", spec("8080:80", "127.0.0.1:53-54:5353-5354/udp")):
        found = {str(port) for _, port in ports.leases()}
        assert found == {"8080:80/tcp", "127.0.0.1:53:5353/udp", "127.0.0.1:54:5354/udp"}
