"""Modes bridge and netns in namespaces of our own."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from hypercore import attachment, netlink, network, nft, resolver, ruleset, slots
from hypercore.config import HostConfig
from hypercore.errors import AlreadyExists, InvalidArgument, NotFound
from hypercore.netlink import link, links
from hypercore.network import Attachment
from hypercore.proto.agent_pb import Interface
from hypercore.spec import NetworkSpec
from tests.integration import netlab
from tests.integration.netlab import attached

pytestmark = pytest.mark.usefixtures("root", "instance")

LAN4, LAN6 = "192.168.50.1", "2001:db8:50::1"
POD4, POD6 = "10.88.0.5", "2001:db8:88::5"
GATEWAY4, GATEWAY6 = "10.88.0.1", "2001:db8:88::1"
PORT = 4000


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERCORE_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("HYPERCORE_SLOTS_DIR", str(tmp_path / "slots"))
    resolv = tmp_path / "resolv.conf"
    resolv.write_text("nameserver 192.0.2.53\n")
    monkeypatch.setattr(resolver.discover, "__kwdefaults__", {"files": (resolv,)})


@pytest.fixture
def here() -> Iterator[int]:
    with netlab.namespace() as fd, netlab.inside(fd):
        yield fd


# -- bridge --


@pytest.fixture
def lan(here: int) -> Iterator[int]:
    """Another machine's namespace, on the wire of up0, which the host has in its bridge br0."""
    with netlab.namespace() as fd:
        netlab.wire("up0", "lan0", fd)
        with IPRoute() as route:
            route.link("add", ifname="br0", kind="bridge")
            bridge = route.link_lookup(ifname="br0")[0]
            route.link("set", index=route.link_lookup(ifname="up0")[0], master=bridge)
            route.link("set", index=bridge, state="up")
        with netlab.inside(fd):
            netlab.give_address("lan0", f"{LAN4}/24")
            netlab.give_address("lan0", f"{LAN6}/64")
        yield fd


def bridged(made: Attachment, *addresses: str) -> Attachment:
    """The attachment with addresses that the network there would give."""
    (interface,) = made.interfaces
    given = Interface(
        name=interface.name, mac=interface.mac, mtu=interface.mtu, addresses=list(addresses)
    )
    return Attachment(made.tap_name, made.tap_fd, made.ifindex, made.mac, (given,))


def datagram_arrives(source: int, target: int, address: str, family_any: str) -> None:
    with (
        netlab.datagrams(target, address, PORT) as server,
        netlab.datagrams(source, family_any) as client,
    ):
        client.sendto(b"there", (address, PORT))
        data, peer = server.recvfrom(100)
        server.sendto(data + b" and back", peer)
        assert client.recvfrom(100)[0] == b"there and back"


@pytest.mark.parametrize("interface", ["up0", "br0"])
def test_guest_is_a_neighbour_in_the_bridged_network(lan: int, interface: str) -> None:
    with attached("vm-a", NetworkSpec(mode="bridge", interface=interface)) as made:
        assert made.interfaces[0].addresses == []
        told = bridged(made, "192.168.50.7/24", "2001:db8:50::7/64")
        with netlab.guest(told) as vm:
            datagram_arrives(vm.netns, lan, LAN4, "0.0.0.0")
            datagram_arrives(lan, vm.netns, "192.168.50.7", "0.0.0.0")
            datagram_arrives(vm.netns, lan, LAN6, "::")


def test_bridged_frames_with_a_foreign_mac_are_dropped(lan: int) -> None:
    with attached("vm-a", NetworkSpec(mode="bridge", interface="up0")) as made:
        with netlab.inside(lan):
            far = link("lan0")
        assert far is not None
        mac = bytes.fromhex(made.mac.replace(":", ""))
        with netlab.datagrams(lan, LAN4, PORT) as server:

            def send(source_mac: bytes, payload: bytes) -> None:
                source = "192.168.50.7"
                frame = netlab.udp_frame(source_mac, far.mac, source, LAN4, PORT, payload)
                os.write(made.tap_fd, frame)

            send(b"\x02\0\0\0\0\x66", b"forged")
            send(mac, b"honest")
            assert server.recvfrom(100)[0] == b"honest"


def test_bridged_guest_plays_no_dhcp_server(lan: int) -> None:
    with attached("vm-a", NetworkSpec(mode="bridge", interface="up0")) as made:
        with netlab.inside(lan):
            far = link("lan0")
        assert far is not None
        mac = bytes.fromhex(made.mac.replace(":", ""))
        with netlab.datagrams(lan, LAN4, 68) as client:
            for port, payload in ((67, b"offer"), (1000, b"honest")):
                frame = netlab.udp_frame(
                    mac, far.mac, "192.168.50.7", LAN4, 68, payload, source_port=port
                )
                os.write(made.tap_fd, frame)
            assert client.recvfrom(100)[0] == b"honest"


def test_bridged_guests_do_not_reach_each_other(lan: int) -> None:
    spec = NetworkSpec(mode="bridge", interface="up0")
    with (
        attached("vm-a", spec) as a,
        attached("vm-b", spec) as b,
        netlab.guest(bridged(b, "192.168.50.8/24")) as other,
        netlab.inside(lan),
    ):
        far = link("lan0")
        with netlab.inside(other.netns):
            neighbour = link("eth0")
        assert far is not None
        assert neighbour is not None
        mac = bytes.fromhex(a.mac.replace(":", ""))
        with (
            netlab.datagrams(other.netns, "192.168.50.8", PORT) as server,
            netlab.datagrams(lan, LAN4, PORT) as stranger,
        ):
            frame = netlab.udp_frame(
                mac, neighbour.mac, "192.168.50.7", "192.168.50.8", PORT, b"neighbour"
            )
            os.write(a.tap_fd, frame)
            stranger.sendto(b"stranger", ("192.168.50.8", PORT))
            assert server.recvfrom(100)[0] == b"stranger"


def test_interface_that_is_in_no_bridge(here: int) -> None:
    with netlab.namespace() as other:
        netlab.wire("up0", "lan0", other)
        with pytest.raises(InvalidArgument, match="'up0': it is no bridge") as caught:
            network.attach("vm-a", 0, NetworkSpec(mode="bridge", interface="up0"), HostConfig())
        assert 'mode = "nat"' in caught.value.hint


def test_bridge_mode_leaves_nothing(lan: int) -> None:
    before = links()
    with attached("vm-a", NetworkSpec(mode="bridge", interface="up0")):
        assert [tag for _, tag in nft.elements(ruleset.SENDERS)] == [slots.tag("vm-a")]
    assert links() == before
    assert nft.elements(ruleset.SENDERS) == []
    network.restore_host()
    assert not nft.installed(ruleset.BRIDGED)


# -- netns --


@pytest.fixture
def pod(here: int) -> Iterator[tuple[int, NetworkSpec]]:
    """A namespace as CNI leaves it, with its eth0 wired to this thread's namespace."""
    with netlab.namespace() as fd:
        netlab.wire("pod0", "eth0", fd)
        netlab.set_mtu("pod0", 1450)
        netlab.give_address("pod0", f"{GATEWAY4}/16")
        netlab.give_address("pod0", f"{GATEWAY6}/64")
        with netlab.inside(fd):
            netlab.set_mtu("eth0", 1450)
            netlab.give_address("eth0", f"{POD4}/16")
            netlab.give_address("eth0", f"{POD6}/64")
            netlab.give_route("0.0.0.0/0", GATEWAY4)
            netlab.give_route("::/0", GATEWAY6)
        yield fd, NetworkSpec(mode="netns", netns_path=Path(f"/proc/self/fd/{fd}"))


def test_guest_takes_over_the_namespaces_device(pod: tuple[int, NetworkSpec], here: int) -> None:
    netns, spec = pod
    with attached("vm-a", spec) as made:
        device = link("eth0", netns_fd=netns)
        assert device is not None
        (interface,) = made.interfaces
        assert interface.mac == made.mac == device.mac.hex(":")
        assert interface.mtu == 1450
        assert interface.addresses == [f"{POD4}/16", f"{POD6}/64"]
        assert interface.gateways == [GATEWAY4, GATEWAY6]
        assert made.dns_servers == ("192.0.2.53",)
        assert link(made.tap_name) is None
        with netlab.guest(made) as vm:
            datagram_arrives(vm.netns, here, GATEWAY4, "0.0.0.0")
            datagram_arrives(here, vm.netns, POD4, "0.0.0.0")
            datagram_arrives(vm.netns, here, GATEWAY6, "::")


def test_namespace_is_as_before_and_may_be_used_again(
    pod: tuple[int, NetworkSpec], here: int
) -> None:
    netns, spec = pod
    before = links(netns_fd=netns)
    device = link("eth0", netns_fd=netns)
    assert device is not None
    for name in ("vm-a", "vm-b"):
        with attached(name, spec):
            assert netlink.has_ingress(device.ifindex, netns_fd=netns)
        assert not netlink.has_ingress(device.ifindex, netns_fd=netns)
        assert links(netns_fd=netns) == before
    datagram_arrives(netns, here, GATEWAY4, "0.0.0.0")


def test_second_microvm_in_the_same_namespace(pod: tuple[int, NetworkSpec]) -> None:
    netns, spec = pod
    device = link("eth0", netns_fd=netns)
    assert device is not None
    with attached("vm-a", spec):
        with pytest.raises(AlreadyExists, match="eth0"):
            network.attach("vm-b", 9, spec, HostConfig())
        network.detach("vm-b", 9)
        assert netlink.has_ingress(device.ifindex, netns_fd=netns)


def test_failure_gives_the_device_back(pod: tuple[int, NetworkSpec]) -> None:
    netns, spec = pod
    before = links(netns_fd=netns)
    device = link("eth0", netns_fd=netns)
    assert device is not None
    with netlab.inside(netns), IPRoute() as route:
        route.link("add", ifname="hc0", kind="bridge")
    with pytest.raises(AlreadyExists):
        network.attach("vm-a", 0, spec, HostConfig())
    with netlab.inside(netns), IPRoute() as route:
        route.link("del", ifname="hc0")
    assert not netlink.has_ingress(device.ifindex, netns_fd=netns)
    assert links(netns_fd=netns) == before
    assert attachment.read_record("vm-a") == attachment.Record()


def test_namespace_that_is_gone_at_detach(pod: tuple[int, NetworkSpec]) -> None:
    _, spec = pod
    slot = slots.acquire("vm-a")
    made = network.attach("vm-a", slot, spec, HostConfig())
    os.close(made.tap_fd)
    (redirect,) = attachment.read_record("vm-a").redirects
    for path, inode in (("/run/netns/no-such", redirect.netns_inode), (redirect.netns_path, 1)):
        moved = attachment.Redirect(path, inode, redirect.ifindex)
        attachment.write_record("vm-a", attachment.Record(redirects=(moved,)))
        network.detach("vm-a", slot)
    assert attachment.read_record("vm-a") == attachment.Record()


def test_paths_that_are_no_namespace(here: int, tmp_path: Path) -> None:
    def attach(path: Path | None) -> None:
        network.attach("vm-a", 0, NetworkSpec(mode="netns", netns_path=path), HostConfig())

    with pytest.raises(NotFound, match="no-such"):
        attach(tmp_path / "no-such")
    with pytest.raises(InvalidArgument, match="not a network namespace"):
        attach(Path("/proc/self/ns/mnt"))
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgument, match="not a network namespace"):
        attach(tmp_path / "file")
    with pytest.raises(InvalidArgument, match="needs the path"):
        attach(None)


def test_namespace_without_a_device(here: int) -> None:
    with netlab.namespace() as empty:
        spec = NetworkSpec(mode="netns", netns_path=Path(f"/proc/self/fd/{empty}"))
        with pytest.raises(InvalidArgument, match="cannot tell"):
            network.attach("vm-a", 0, spec, HostConfig())


def test_namespaces_interface_by_name(pod: tuple[int, NetworkSpec]) -> None:
    _, spec = pod
    unknown = NetworkSpec(mode="netns", netns_path=spec.netns_path, interface="eth7")
    with pytest.raises(InvalidArgument, match="eth7") as caught:
        network.attach("vm-a", 0, unknown, HostConfig())
    assert caught.value.hint == "it has eth0"
    known = NetworkSpec(mode="netns", netns_path=spec.netns_path, interface="eth0")
    with attached("vm-a", known):
        pass
