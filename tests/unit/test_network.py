"""What network decides without asking the kernel: MAC addresses, modes, resolvers."""

from pathlib import Path

import pytest

from hypercore import attachment, nat, netlink, network, nft, paths, resolver, ruleset
from hypercore.config import HostConfig
from hypercore.errors import InvalidArgument
from hypercore.resolver import Resolvers
from hypercore.spec import NetworkSpec


def test_mac_is_the_ids_own_and_locally_administered() -> None:
    macs = {nat.mac_of(f"vm-{n}") for n in range(1000)}
    assert len(macs) == 1000
    assert all(mac[0] & 0x03 == 0x02 and len(mac) == 6 for mac in macs)
    assert nat.mac_of("vm-1") == nat.mac_of("vm-1")


def test_mode_none_needs_nothing() -> None:
    made = network.attach("vm-a", 0, NetworkSpec(mode="none"), HostConfig())
    assert made == network.Attachment()
    assert made.tap_fd == -1


def test_unknown_mode() -> None:
    with pytest.raises(InvalidArgument, match="mode = 'nta'") as caught:
        network.attach("vm-a", 0, NetworkSpec(mode="nta"), HostConfig())
    assert "nat" in caught.value.hint


@pytest.mark.parametrize(
    "spec",
    [
        NetworkSpec(mode="bridge", egress=()),
        NetworkSpec(mode="bridge", name="backend"),
        NetworkSpec(mode="netns", netns_path=Path("/run/netns/x"), rate_kbit=64),
        NetworkSpec(mode="netns", netns_path=Path("/run/netns/x"), allow_host=True),
    ],
)
def test_isolation_that_a_mode_does_not_have_is_refused(spec: NetworkSpec) -> None:
    with pytest.raises(InvalidArgument, match="means nothing in network mode"):
        network.attach("vm-a", 0, spec, HostConfig())


def test_netlink_attributes_there_and_back() -> None:
    inner = netlink.nest(1, netlink.text(2, "name"), netlink.attr(3, b"\1\2\3\4\5"))
    body = netlink.message(16, netlink.ACK, b"\0" * 4, inner, netlink.attr(9, b""))
    assert len(body) % 4 == 0
    ((kind, payload),) = netlink.messages(body)
    assert kind == 16
    found = netlink.attrs(payload, 4)
    assert found[9] == b""
    assert netlink.attrs(found[1]) == {2: b"name\0", 3: b"\1\2\3\4\5"}


@pytest.mark.parametrize("size", range(20))
def test_netlink_answers_cut_short_are_no_trouble(size: int) -> None:
    reply = netlink.message(16, 0, bytes(4), netlink.attr(1, b"abc"))
    for _, payload in netlink.messages(reply[:size] + bytes(8)):
        netlink.attrs(payload, 4)


def test_record_there_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERCORE_RUN_DIR", str(tmp_path))
    record = attachment.Record(
        (
            nft.Element(ruleset.EXITS4, b"\1" * 20),
            nft.Element(ruleset.SENDERS, b"\2" * 24),
            nft.Element(ruleset.MARKS, b"\3" * 16, b"\4" * 4),
            nft.Element(ruleset.EGRESS4, b"\5" * 20, last=b"\6" * 20),
            nft.Element(ruleset.UPLOADS, b"\7" * 16, rate=1000),
        ),
        (attachment.Redirect("/run/netns/a b", 77, 3),),
    )
    assert attachment.read_record("vm-a") == attachment.Record()
    attachment.write_record("vm-a", record)
    assert attachment.read_record("vm-a") == record
    path = paths.MicroVMPaths("vm-a").network
    path.write_text(path.read_text() + "element 1 of-another-version 00 \nelement 1")
    assert attachment.read_record("vm-a") == record
    text = path.read_text()
    for size in range(len(text)):  # a full disk, at any byte
        path.write_text(text[:size])
        attachment.read_record("vm-a")
    attachment.remove_record("vm-a")
    attachment.remove_record("vm-a")
    assert not path.exists()


# -- resolvers --


def test_resolv_conf() -> None:
    content = """# comment
nameserver 192.0.2.53
nameserver 192.0.2.53
domain old.example
search a.example b.example .
nameserver 2001:db8::53
options ndots:2
nameserver
"""
    assert resolver.parse(content) == Resolvers(
        ("192.0.2.53", "2001:db8::53"), ("a.example", "b.example")
    )


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("192.0.2.1", True),
        ("169.254.169.254", True),
        ("2001:db8::1", True),
        ("127.0.0.53", False),
        ("::1", False),
        ("0.0.0.0", False),
        ("fe80::1%eth0", False),
        ("not-an-address", False),
    ],
)
def test_servers_a_guest_can_reach(server: str, expected: bool) -> None:
    assert resolver.usable(server, ipv4=True, ipv6=True) is expected


def test_stub_is_passed_over_for_the_real_servers(tmp_path: Path) -> None:
    stub, real = tmp_path / "stub", tmp_path / "real"
    stub.write_text("nameserver 127.0.0.53\nsearch lan.example\n")
    real.write_text("nameserver 192.0.2.53\nnameserver 2001:db8::53\n")
    files = (tmp_path / "absent", stub, real)
    both = resolver.discover(ipv4=True, ipv6=True, files=files)
    assert both == Resolvers(("192.0.2.53", "2001:db8::53"), ("lan.example",))
    assert resolver.discover(ipv4=True, ipv6=False, files=files).servers == ("192.0.2.53",)


def test_host_with_a_loopback_resolver_only(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 127.0.0.1\nsearch lan.example\n")
    found = resolver.discover(ipv4=True, ipv6=True, files=(path,))
    assert found == Resolvers((), ("lan.example",), "127.0.0.1")


def test_no_more_servers_than_a_resolver_reads(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("".join(f"nameserver 192.0.2.{n}\n" for n in range(9)))
    assert len(resolver.discover(ipv4=True, ipv6=True, files=(path,)).servers) == 3
