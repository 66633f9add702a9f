"""network and nft in namespaces of our own: who reaches whom, and what is left afterwards."""

import contextlib
import dataclasses
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from hypercore import attachment, netlink, network, nft, paths, resolver, ruleset, slots
from hypercore.config import HostConfig
from hypercore.errors import AlreadyExists, InvalidArgument, ResourceExhausted, StateError
from hypercore.netlink import link, links
from hypercore.network import Attachment
from hypercore.spec import NetworkSpec
from tests.integration import netlab
from tests.integration.netlab import HOST4, HOST6, OUTSIDE4, OUTSIDE6, Guest, Host

pytestmark = pytest.mark.usefixtures("root", "instance")

METADATA = "169.254.169.254"
UDP_PORT, TCP_PORT = 4000, 4001


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories of our own, and a resolver file that names a server outside."""
    monkeypatch.setenv("HYPERCORE_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("HYPERCORE_SLOTS_DIR", str(tmp_path / "slots"))
    resolv = tmp_path / "resolv.conf"
    resolv.write_text(f"search example.net\nnameserver {OUTSIDE4}\n")
    monkeypatch.setattr(resolver.discover, "__kwdefaults__", {"files": (resolv,)})


@pytest.fixture
def host() -> Iterator[Host]:
    with netlab.host() as made:
        yield made


@contextlib.contextmanager
def attached(microvm_id: str, spec: NetworkSpec | None = None) -> Iterator[Attachment]:
    slot = slots.acquire(microvm_id)
    made = network.attach(microvm_id, slot, spec or NetworkSpec(), HostConfig())
    try:
        yield made
    finally:
        os.close(made.tap_fd)
        network.detach(microvm_id, slot)
        slots.release(microvm_id)


@contextlib.contextmanager
def guest(microvm_id: str = "vm-a", spec: NetworkSpec | None = None) -> Iterator[Guest]:
    with attached(microvm_id, spec) as attachment, netlab.guest(attachment) as made:
        yield made


def elements() -> list[tuple[str, str]]:
    return [(each.name, tag) for each in ruleset.VM_SETS for _, tag in nft.elements(each)]


def assert_tcp(source: int | None, target: int | None, address: str, bind: str = "") -> str:
    """TCP from namespace to namespace; returns the address the server saw."""
    with (
        netlab.listen(target, bind or address, TCP_PORT) as server,
        netlab.connect(source, address, TCP_PORT) as client,
    ):
        connection, peer = server.accept()
        with connection:
            client.sendall(b"ping")
            assert connection.recv(4) == b"ping"
            connection.sendall(b"pong")
            assert client.recv(4) == b"pong"
        return str(peer[0])


def assert_refused(source: int, address: str, port: int = TCP_PORT) -> None:
    """The host says at once that this is not allowed; nothing hangs."""
    with pytest.raises(OSError) as caught:  # noqa: PT011
        netlab.connect(source, address, port).close()
    assert caught.value.errno in (errno.EHOSTUNREACH, errno.EACCES)


# -- nat --


@pytest.mark.parametrize(("outside", "own"), [(OUTSIDE4, HOST4), (OUTSIDE6, HOST6)])
def test_guest_reaches_out_from_the_uplinks_address(host: Host, outside: str, own: str) -> None:
    with guest() as vm:
        assert assert_tcp(vm.netns, host.outside, outside) == own


@pytest.mark.parametrize("outside", [OUTSIDE4, OUTSIDE6])
def test_udp_there_and_back(host: Host, outside: str) -> None:
    with (
        guest() as vm,
        netlab.datagrams(host.outside, outside, UDP_PORT) as server,
        netlab.datagrams(vm.netns, "::" if ":" in outside else "0.0.0.0") as client,
    ):
        client.sendto(b"question", (outside, UDP_PORT))
        data, peer = server.recvfrom(100)
        server.sendto(data + b" answered", peer)
        assert client.recvfrom(100)[0] == b"question answered"


def test_bulk_with_offloads(host: Host) -> None:
    size = 4 << 20
    with (
        guest() as vm,
        netlab.listen(host.outside, OUTSIDE4, TCP_PORT) as server,
        netlab.connect(vm.netns, OUTSIDE4, TCP_PORT) as client,
    ):
        connection, _ = server.accept()
        with connection:
            connection.settimeout(netlab.PATIENCE_S)
            data = os.urandom(1 << 16)
            received = bytearray()
            for _ in range(size // len(data)):
                client.sendall(data)
                while len(received) < len(data):
                    received += connection.recv(1 << 20)
                assert received == data
                received.clear()


def test_what_the_guest_is_told(host: Host) -> None:
    netlab.set_mtu("up0", 1400)
    with attached("vm-a") as made:
        (interface,) = made.interfaces
        assert (interface.name, interface.mtu, interface.mac) == ("eth0", 1400, made.mac)
        assert interface.addresses[0] == "10.210.0.2/30"
        assert interface.gateways[0] == "10.210.0.1"
        assert interface.addresses[1].startswith("fd")
        assert made.dns_servers == (OUTSIDE4,)
        assert made.dns_search == ("example.net",)
        tap = link(made.tap_name)
        assert tap is not None
        assert (tap.ifindex, tap.mtu, tap.group) == (made.ifindex, 1400, ruleset.ROUTED_GROUP)
        assert "vm-a" in tap.alias


def test_mtu_9000_carries_large_datagrams(host: Host) -> None:
    netlab.set_mtu("up0", 9000)
    with netlab.inside(host.outside):
        netlab.set_mtu("out0", 9000)
    payload = os.urandom(8900)
    with (
        guest() as vm,
        netlab.datagrams(host.outside, OUTSIDE4, UDP_PORT) as server,
        netlab.datagrams(vm.netns, "0.0.0.0") as client,
    ):
        client.sendto(payload, (OUTSIDE4, UDP_PORT))
        assert server.recvfrom(10000)[0] == payload


def test_uplink_with_ipv6_only() -> None:
    with netlab.host(ipv4=False) as only6, guest() as vm:
        assert assert_tcp(vm.netns, only6.outside, OUTSIDE6) == HOST6


def test_uplink_without_ipv6() -> None:
    with netlab.host(ipv6=False) as only4, guest() as vm:
        assert len(vm.interface.addresses) == 1
        assert assert_tcp(vm.netns, only4.outside, OUTSIDE4) == HOST4


# -- isolation --


@pytest.mark.parametrize("address", [HOST4, HOST6, "gateway"])
def test_guest_does_not_reach_the_hosts_services(host: Host, address: str) -> None:
    with guest() as vm:
        target = vm.gateway4 if address == "gateway" else address
        with netlab.listen(None, target, TCP_PORT):
            assert_refused(vm.netns, target)


def test_host_reaches_its_guest(host: Host) -> None:
    with guest() as vm:
        assert_tcp(None, vm.netns, vm.address4)
        assert_tcp(None, vm.netns, vm.address6)


def test_guest_does_not_reach_its_neighbour(host: Host) -> None:
    with (
        guest("vm-a") as a,
        guest("vm-b") as b,
        netlab.listen(b.netns, b.address4, TCP_PORT),
    ):
        assert_refused(a.netns, b.address4)
        assert_refused(a.netns, b.address6)


def test_guest_does_not_reach_cloud_metadata(host: Host) -> None:
    with netlab.inside(host.outside):
        for address in (f"{METADATA}/32", "100.100.100.200/32", "fd00:ec2::254/128"):
            netlab.give_address("out0", address)
    with IPRoute() as route:
        route.route("add", dst="169.254.0.0/16", gateway=OUTSIDE4)
    with guest() as vm:
        for address in (METADATA, "100.100.100.200", "fd00:ec2::254"):
            with netlab.listen(host.outside, address, 80):
                netlab.connect(None, address, 80).close()
                assert_refused(vm.netns, address, 80)


def test_dns_server_at_the_metadata_address_answers_on_its_port_alone(host: Host) -> None:
    with netlab.inside(host.outside):
        netlab.give_address("out0", f"{METADATA}/32")
    with (
        guest(spec=NetworkSpec(dns=(METADATA,))) as vm,
        netlab.datagrams(host.outside, METADATA, 53) as server,
        netlab.datagrams(vm.netns, "0.0.0.0") as client,
        netlab.listen(host.outside, METADATA, 80),
    ):
        client.sendto(b"name?", (METADATA, 53))
        data, peer = server.recvfrom(100)
        server.sendto(data, peer)
        assert client.recvfrom(100)[0] == b"name?"
        assert_refused(vm.netns, METADATA, 80)


def test_dns_server_on_the_host_itself(host: Host) -> None:
    with (
        guest(spec=NetworkSpec(dns=(HOST4,))) as vm,
        netlab.datagrams(None, HOST4, 53) as server,
        netlab.datagrams(vm.netns, "0.0.0.0") as client,
        netlab.listen(None, HOST4, TCP_PORT),
    ):
        client.sendto(b"name?", (HOST4, 53))
        data, peer = server.recvfrom(100)
        server.sendto(data, peer)
        assert client.recvfrom(100)[0] == b"name?"
        assert_refused(vm.netns, HOST4)


def test_outside_reaches_no_guest(host: Host) -> None:
    with (
        guest() as vm,
        netlab.datagrams(vm.netns, "0.0.0.0", UDP_PORT) as inside,
        netlab.datagrams(host.outside, OUTSIDE4, UDP_PORT) as stranger,
    ):
        with netlab.inside(host.outside):
            netlab.give_route("10.210.0.0/16", HOST4)
        stranger.sendto(b"unasked", (vm.address4, UDP_PORT))
        # What the guest asked for comes after it, on the same way.
        inside.sendto(b"hello", (OUTSIDE4, UDP_PORT))
        _, peer = stranger.recvfrom(100)
        stranger.sendto(b"answer", peer)
        assert inside.recvfrom(100)[0] == b"answer"


def test_traffic_leaves_by_the_specs_interface_alone(host: Host) -> None:
    with netlab.namespace() as other:
        netlab.wire("up1", "out1", other)
        netlab.give_address("up1", "203.0.113.2/24")
        with netlab.inside(other):
            netlab.give_address("out1", "203.0.113.1/24")
        with (
            guest(spec=NetworkSpec(interface="up0")) as vm,
            netlab.listen(other, "203.0.113.1", TCP_PORT),
        ):
            netlab.connect(None, "203.0.113.1", TCP_PORT).close()
            assert_refused(vm.netns, "203.0.113.1")
            assert_tcp(vm.netns, host.outside, OUTSIDE4)


def test_interface_that_is_not_the_hosts_default(host: Host) -> None:
    """The guest's traffic goes by its own interface, the host's as before."""
    far4, far6 = "192.0.2.80", "2001:db8:80::80"
    with netlab.namespace() as other:
        netlab.wire("up1", "out1", other)
        netlab.give_address("up1", "203.0.113.2/24")
        netlab.give_address("up1", "2001:db8:2::2/64")
        with netlab.inside(other):
            for address in ("203.0.113.1/24", "2001:db8:2::1/64", f"{far4}/32", f"{far6}/128"):
                netlab.give_address("out1", address)
        with netlab.inside(host.outside):
            netlab.give_address("out0", f"{far4}/32")
        netlab.give_route("0.0.0.0/0", "203.0.113.1", metric=500)
        netlab.give_route("::/0", "2001:db8:2::1", metric=5000)
        for _ in range(2):
            with guest(spec=NetworkSpec(interface="up1")) as vm:
                assert assert_tcp(vm.netns, other, far4) == "203.0.113.2"
                assert assert_tcp(vm.netns, other, far6) == "2001:db8:2::2"
                assert assert_tcp(None, host.outside, far4) == HOST4
                with guest("vm-b") as usual:
                    assert assert_tcp(usual.netns, host.outside, far4) == HOST4
        network.restore_host()
        with IPRoute() as route:
            for family in (2, 10):
                assert not [r for r in route.get_rules(family=family) if r.get("fwmark")]
                tables = {r.get("table") for r in route.get_routes(family=family)}
                assert tables <= {253, 254, 255}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("forged", ["mac", "address", "neighbour"])
def test_forged_frames_are_dropped(host: Host, family: int, forged: str) -> None:
    outside = OUTSIDE4 if family == 4 else OUTSIDE6
    with (
        attached("vm-a") as a,
        attached("vm-b") as b,
        netlab.datagrams(host.outside, outside, UDP_PORT) as server,
    ):
        index = 0 if family == 4 else 1
        own = a.interfaces[0].addresses[index].partition("/")[0]
        neighbour = b.interfaces[0].addresses[index].partition("/")[0]
        mac = bytes.fromhex(a.mac.replace(":", ""))
        tap = link(a.tap_name)
        assert tap is not None
        source_mac, source = {
            "mac": (b"\x02\0\0\0\0\x66", own),
            "address": (mac, "10.210.0.77" if family == 4 else "2001:db8:1::77"),
            "neighbour": (mac, neighbour),
        }[forged]

        def frame(from_mac: bytes, address: str, payload: bytes) -> bytes:
            return netlab.udp_frame(from_mac, tap.mac, address, outside, UDP_PORT, payload)

        os.write(a.tap_fd, frame(source_mac, source, b"forged"))
        os.write(a.tap_fd, frame(mac, own, b"honest"))
        assert server.recvfrom(100)[0] == b"honest"


# -- the host's side --


def test_forwarding_is_opened_where_needed_and_restored(host: Host) -> None:
    def setting(name: str) -> str:
        return Path(f"/proc/sys/net/{name}").read_text().strip()

    names = (
        "ipv4/conf/up0/forwarding",
        "ipv6/conf/all/forwarding",
        "ipv6/conf/up0/accept_ra",
        "ipv4/ip_forward",
    )
    before = [setting(name) for name in names]
    with attached("vm-a"), attached("vm-b"):
        assert [setting(name) for name in names] == ["1", "1", "2", "0"]
        assert setting("ipv4/conf/up0/rp_filter") == "0"
    network.restore_host()
    assert [setting(name) for name in names] == before
    assert not nft.installed(ruleset.ROUTED)
    network.restore_host()


def test_preparing_twice_changes_nothing(host: Host) -> None:
    assert not network.is_prepared()
    network.prepare_host(HostConfig())
    assert network.is_prepared()
    with attached("vm-a"):
        there = elements()
        network.prepare_host(HostConfig())
        nft.install(ruleset.ROUTED)
        assert elements() == there
        assert nft.installed(ruleset.ROUTED)


def test_table_that_somebody_flushed_comes_back_with_its_guests(host: Host) -> None:
    with guest("vm-a") as vm:
        there = elements()
        nft.remove(ruleset.ROUTED)
        with attached("vm-b"):
            assert set(there) < set(elements())
            assert assert_tcp(vm.netns, host.outside, OUTSIDE4) == HOST4


def test_rules_of_another_version_are_replaced(host: Host) -> None:
    chains = tuple(
        dataclasses.replace(chain, rules=chain.rules[:1]) for chain in ruleset.ROUTED.chains
    )
    other = dataclasses.replace(ruleset.ROUTED, chains=chains)
    with guest("vm-a") as vm:
        there = elements()
        nft.install(other)
        assert not nft.installed(ruleset.ROUTED)
        network.prepare_host(HostConfig())
        assert nft.installed(ruleset.ROUTED)
        assert not nft.installed(other)
        assert elements() == there
        assert_refused(vm.netns, HOST4)
        assert assert_tcp(vm.netns, host.outside, OUTSIDE4) == HOST4


def test_sets_of_another_version_are_replaced(host: Host) -> None:
    sets = tuple(
        dataclasses.replace(each, data=("ifname",)) if each is ruleset.NETWORKS else each
        for each in ruleset.ROUTED.sets
    )
    with guest("vm-a") as vm:
        there = elements()
        network.restore_host()
        nft.install(dataclasses.replace(ruleset.ROUTED, sets=sets))
        nft.add([nft.Element(ruleset.HOST_USERS, nft.ifname("hc99"))], "somebody else")
        network.prepare_host(HostConfig())
        assert nft.installed(ruleset.ROUTED)
        assert set(elements()) == {*there, ("host_users", "somebody else")}
        with attached("vm-b", NetworkSpec(name="backend")):
            assert assert_tcp(vm.netns, host.outside, OUTSIDE4) == HOST4


def test_detach_leaves_nothing_and_may_be_repeated(host: Host) -> None:
    before = links()
    with attached("vm-a"), attached("vm-b"):
        pass
    assert elements() == []
    assert links() == before
    assert not paths.MicroVMPaths("vm-a").network.exists()
    network.detach("vm-a", 0)
    network.detach("never-was", 5)


def test_detach_without_its_record_or_table(host: Host) -> None:
    slot = slots.acquire("vm-a")
    made = network.attach("vm-a", slot, NetworkSpec(), HostConfig())
    absent = attachment.Record((nft.Element(ruleset.GUESTS4, bytes(28)),))
    attachment.write_record("vm-a", absent)
    network.detach("vm-a", slot)
    assert elements() == []
    assert link(made.tap_name) is None
    os.close(made.tap_fd)
    made = network.attach("vm-a", slot, NetworkSpec(), HostConfig())
    os.close(made.tap_fd)
    nft.remove(ruleset.ROUTED)
    network.detach("vm-a", slot)


def test_tap_ends_with_the_last_fd(host: Host) -> None:
    with attached("vm-a") as made:
        copy = os.dup(made.tap_fd)
        assert link(made.tap_name) is not None
    assert link(made.tap_name) is None  # detach does not wait for the VMM
    os.close(copy)


def test_reclaim_spares_the_living_and_other_instances(
    host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def attach(microvm_id: str) -> Attachment:
        return network.attach(microvm_id, slots.acquire(microvm_id), NetworkSpec(), HostConfig())

    made = [attach(name) for name in ("dead-1", "alive", "dead-2")]
    with monkeypatch.context() as other:
        other.setenv("HYPERCORE_RUN_DIR", str(tmp_path / "other"))
        made.append(attach("dead-1"))
    network.reclaim_all({"alive"})
    assert [link(each.tap_name) is not None for each in made] == [False, True, False, True]
    left = {tag for _, tag in elements()}
    assert left == {f"alive@{tmp_path}/run", f"dead-1@{tmp_path}/other"}
    for each in made:
        os.close(each.tap_fd)


@pytest.mark.parametrize("mode", ["nat", "netns"])
@pytest.mark.parametrize(
    "step", ["attachment.write_record", "_tap.create", "_tap.nft_update", "at the end"]
)
def test_killed_at_each_step(host: Host, mode: str, step: str) -> None:
    """Whoever attaches dies by SIGKILL right after a step; detach finds all there is."""
    before = links(), links(netns_fd=host.outside)
    network.prepare_host(HostConfig())
    module, _, name = step.partition(".")
    code = f"""
import os, signal, types
from hypercore import attachment, netlink, network, nft, tap, _tap
from hypercore.config import HostConfig
from hypercore.network_spec import Port
from hypercore.spec import NetworkSpec
def die(function):
    def wrapper(*args, **kwargs):
        function(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)
    return wrapper
if {module!r} == "_tap":  # a compiled module's names are where they are used
    names = {{key: getattr(_tap, key) for key in dir(_tap) if not key.startswith("__")}}
    names[{name!r}] = die(names[{name!r}])
    tap._tap = nft._tap = types.SimpleNamespace(**names)
elif {module!r} == "attachment":
    attachment.{name or "write_record"} = die(attachment.write_record)
more = dict(
    ports=(Port(8080, 80),), name="backend", allow_host=True, egress=("192.0.2.0/24",),
    rate_kbit=99,
) if {mode!r} == "nat" else {{}}
spec = NetworkSpec(mode={mode!r}, **more, netns_path={f"/proc/{os.getpid()}/fd/{host.outside}"!r})
network.attach("vm-a", 0, spec, HostConfig())
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert paths.MicroVMPaths("vm-a").network.exists()
    network.detach("vm-a", 0)
    assert elements() == []
    assert (links(), links(netns_fd=host.outside)) == before
    device = link("out0", netns_fd=host.outside)
    assert device is not None
    assert not netlink.has_ingress(device.ifindex, netns_fd=host.outside)
    assert not paths.MicroVMPaths("vm-a").network.exists()


def test_failure_leaves_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    before = links()

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(nft, "add", refuse)
    with pytest.raises(ResourceExhausted):
        network.attach("vm-a", 0, NetworkSpec(), HostConfig())
    assert links() == before
    assert not paths.MicroVMPaths("vm-a").network.exists()


def test_nft_can_print_our_tables(host: Host) -> None:
    """Some rules that the kernel takes make nft abort, and a host's own tools with it."""
    network.prepare_host(HostConfig())
    nft.install(ruleset.BRIDGED)
    done = subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True, text=True)
    for table in ruleset.TABLES:
        for chain in table.chains:
            assert f"chain {chain.name} {{" in done.stdout
    assert "iifname . ether saddr . ip saddr @guests4 return" in done.stdout


# -- what bad input gets --


def test_unknown_interface_names_those_there_are(host: Host) -> None:
    with attached("vm-a"), pytest.raises(InvalidArgument) as caught:
        network.attach("vm-b", 9, NetworkSpec(interface="ens9"), HostConfig())
    assert "interface = 'ens9'" in caught.value.message
    assert caught.value.hint == "it has up0"


def test_interface_that_is_down(host: Host) -> None:
    with IPRoute() as route:
        route.link("set", index=route.link_lookup(ifname="up0")[0], state="down")
    with pytest.raises(StateError, match="is down"):
        network.attach("vm-a", 0, NetworkSpec(interface="up0"), HostConfig())


def test_no_default_route() -> None:
    with (
        netlab.host(ipv4=False, ipv6=False),
        pytest.raises(InvalidArgument, match="no default route") as caught,
    ):
        network.attach("vm-a", 0, NetworkSpec(), HostConfig())
    assert 'mode = "none"' in caught.value.hint


@pytest.mark.parametrize("destination", ["10.0.0.0/8", "10.210.0.0/30", "10.210.0.2/32"])
def test_pool_that_clashes_with_a_route(host: Host, destination: str) -> None:
    netlab.give_route(destination, OUTSIDE4)
    for call in (
        lambda: network.prepare_host(HostConfig()),
        lambda: network.attach("vm-a", 0, NetworkSpec(), HostConfig()),
    ):
        with pytest.raises(ResourceExhausted) as caught:
            call()
        assert "10.210.0.0/16" in caught.value.message
        assert destination in caught.value.message
        assert "up0" in caught.value.message
    network.prepare_host(HostConfig(network_pool="172.30.0.0/16"))


def test_vpn_style_default_routes_do_not_clash(host: Host) -> None:
    for half in ("0.0.0.0/1", "128.0.0.0/1"):
        netlab.give_route(half, OUTSIDE4)
    network.prepare_host(HostConfig())
    with attached("vm-a"):
        pass


def test_pool_is_used_up(host: Host) -> None:
    config = HostConfig(network_pool="10.99.0.0/29")
    with pytest.raises(ResourceExhausted, match="serves 2 microVMs"):
        network.attach("vm-a", 2, NetworkSpec(), config)


def test_tap_that_exists_already(host: Host) -> None:
    with attached("vm-a"), pytest.raises(AlreadyExists, match="vm-a"):
        network.attach("vm-b", 0, NetworkSpec(), HostConfig())


@pytest.mark.parametrize("mtu", [10, 70000])
def test_mtu_out_of_range(host: Host, mtu: int) -> None:
    with pytest.raises(InvalidArgument, match=f"mtu = {mtu}"):
        network.attach("vm-a", 0, NetworkSpec(mtu=mtu), HostConfig())


def test_dns_server_no_guest_reaches(host: Host) -> None:
    with pytest.raises(InvalidArgument, match=r"127\.0\.0\.53"):
        network.attach("vm-a", 0, NetworkSpec(dns=("127.0.0.53",)), HostConfig())
