"""_tap against the kernel: what is made is what was asked for, and goes again."""

import errno
import fcntl
import os
import struct
import threading
from collections.abc import Iterator

import pytest
from pyroute2 import IPRoute

from hypercore import _tap, netlink, nft, ruleset
from hypercore.netlink import link, links
from tests.integration import netlab

pytestmark = pytest.mark.usefixtures("root")

GROUP = 77
MAC, PEER_MAC = b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02"


@pytest.fixture(autouse=True)
def netns() -> Iterator[None]:
    with netlab.namespace() as fd, netlab.inside(fd):
        yield


def test_what_was_asked_for() -> None:
    fd, ifindex = _tap.create(
        b"t0",
        group=GROUP,
        alias=b"of test",
        mtu=1400,
        mac=MAC,
        address4=bytes([10, 1, 0, 1]),
        prefix4=30,
        address6=bytes.fromhex("fd000000000000000000000000000001"),
        prefix6=126,
        neighbour_mac=PEER_MAC,
        neighbour4=bytes([10, 1, 0, 2]),
        neighbour6=bytes.fromhex("fd000000000000000000000000000002"),
    )
    try:
        assert not os.get_inheritable(fd)
        assert not os.get_blocking(fd)
        made = link("t0")
        assert made is not None
        assert made == link(ifindex=ifindex)
        assert (made.mtu, made.mac, made.group, made.alias) == (1400, MAC, GROUP, "of test")
        assert made.flags & 1  # IFF_UP
        assert made.ipv4_setting(netlink.IPV4_FORWARDING) == 1
        with IPRoute() as route:
            addresses = {
                f"{a.get('address')}/{a['prefixlen']}" for a in route.get_addr(index=ifindex)
            }
            neighbours = {
                (n.get("dst"), n.get("lladdr"), n["state"])
                for family in (2, 10)
                for n in route.get_neighbours(family=family, ifindex=ifindex)
            }
        # No link-local address of the kernel's.
        assert addresses == {"10.1.0.1/30", "fd00::1/126"}
        permanent = 0x80
        assert {
            ("10.1.0.2", PEER_MAC.hex(":"), permanent),
            ("fd00::2", PEER_MAC.hex(":"), permanent),
        } <= neighbours
    finally:
        os.close(fd)
    assert link("t0") is None


def test_persistent_device_outlives_its_fd() -> None:
    fd, ifindex = _tap.create(b"t0", group=GROUP, persist=True, owner=1234)
    os.close(fd)
    assert link("t0") is not None
    assert _tap.delete(ifindex) is True
    assert link("t0") is None
    assert _tap.delete(ifindex) is False


def test_delete_by_group_takes_all_of_it_and_nothing_else() -> None:
    fds = [_tap.create(b"t%d" % n, group=GROUP) for n in range(20)]
    other = _tap.create(b"other", group=GROUP + 1)
    moved = [ifindex for _, ifindex in fds[:15]]
    _tap.set_group([*moved, 99999], GROUP + 2)
    assert _tap.delete_group(GROUP + 2) is True
    names = {each.name for each in links()}
    assert names == {"lo", "other"} | {f"t{n}" for n in range(15, 20)}
    assert _tap.delete_group(GROUP + 2) is False
    for fd, _ in (*fds, other):
        os.close(fd)


def test_name_that_is_taken() -> None:
    fd, _ = _tap.create(b"t0", group=GROUP)
    with pytest.raises(OSError, match="create TAP t0") as caught:
        _tap.create(b"t0", group=GROUP)
    assert caught.value.errno == errno.EBUSY
    os.close(fd)


def test_failure_after_creation_leaves_no_device() -> None:
    with pytest.raises(OSError, match="create TAP t0"):
        _tap.create(b"t0", group=GROUP, master=99999)
    with pytest.raises(OSError, match="create TAP t0") as caught:
        _tap.create(b"t0", group=GROUP, mtu=70000)
    assert "mtu" in str(caught.value)  # the kernel's own words
    assert [each.name for each in links()] == ["lo"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": b""},
        {"name": b"x" * 16},
        {"alias": b"x" * 256},
        {"mac": b"123"},
        {"address4": b"12345"},
        {"address6": b"1234"},
        {"neighbour4": b"1234"},
    ],
)
def test_arguments_of_the_wrong_size(arguments: dict[str, bytes]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        _tap.create(arguments.pop("name", b"t0"), group=GROUP, **arguments)  # type: ignore[arg-type]


def test_group_zero_and_no_index_are_refused() -> None:
    with pytest.raises(ValueError, match="group 0"):
        _tap.delete_group(0)
    with pytest.raises(ValueError, match="positive"):
        _tap.delete(0)


def test_other_namespace_and_this_one_unchanged() -> None:
    with netlab.namespace() as other:
        here = os.stat("/proc/thread-self/ns/net").st_ino
        fd, ifindex = _tap.create(b"t0", group=GROUP, netns_fd=other)
        assert os.stat("/proc/thread-self/ns/net").st_ino == here
        assert link("t0") is None
        there = link("t0", netns_fd=other)
        assert there is not None
        assert there.ifindex == ifindex
        assert _tap.delete(ifindex, netns_fd=other)
        os.close(fd)


def test_fd_that_is_no_namespace() -> None:
    with open("/dev/null") as null, pytest.raises(OSError, match="Invalid argument"):
        _tap.create(b"t0", group=GROUP, netns_fd=null.fileno())


def test_redirect_carries_frames_both_ways() -> None:
    with netlab.namespace() as other:
        netlab.wire("v0", "v1", other)
        wire = link("v0")
        assert wire is not None
        fd, ifindex = _tap.create(b"t0", group=GROUP, redirect_to=wire.ifindex)
        with netlab.inside(other):
            netlab.give_address("v1", "10.9.0.1/24")
            far = link("v1")
        assert far is not None
        with netlab.datagrams(other, "10.9.0.1", 4000) as server:
            os.write(fd, netlab.udp_frame(MAC, far.mac, "10.9.0.2", "10.9.0.1", 4000, b"in"))
            data, _ = server.recvfrom(100)
            assert data == b"in"
            # The answer needs ARP first: that question has to come out of the TAP.
            server.sendto(b"out", ("10.9.0.2", 4000))
        os.set_blocking(fd, True)
        while True:
            frame = os.read(fd, 2000)[len(netlab.HEADER) :]
            if frame[12:14] == b"\x08\x06":
                break
        os.close(fd)
        assert ifindex > 0


def test_nft_batch_is_all_or_nothing() -> None:
    nft.install(ruleset.ROUTED)
    one = nft.Element(ruleset.RESOLVERS4, nft.ifname("t0") + bytes([192, 0, 2, 1]))
    nft.add([one], "a")
    assert nft.elements(ruleset.RESOLVERS4) == [(one, "a")]
    absent = nft.Element(ruleset.RESOLVERS4, nft.ifname("t1") + bytes([192, 0, 2, 1]))
    with pytest.raises(FileNotFoundError):
        nft.delete([one, absent])
    assert nft.elements(ruleset.RESOLVERS4) == [(one, "a")]
    nft.delete([one])
    assert nft.elements(ruleset.RESOLVERS4) == []


def test_nft_batch_of_thousands() -> None:
    nft.install(ruleset.ROUTED)
    many = [
        nft.Element(ruleset.RESOLVERS4, nft.ifname("t0") + n.to_bytes(4, "big"))
        for n in range(5000)
    ]
    nft.add(many, "tag" * 50)
    assert {each for each, _ in nft.elements(ruleset.RESOLVERS4)} == set(many)
    nft.delete(many)
    assert nft.elements(ruleset.RESOLVERS4) == []


def test_listing_while_others_write() -> None:
    nft.install(ruleset.ROUTED)
    standing = [
        nft.Element(ruleset.RESOLVERS4, nft.ifname("own") + n.to_bytes(4, "big"))
        for n in range(50)
    ]
    nft.add(standing, "own")
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)

    def churn(name: str) -> None:
        with netlab.inside(here):
            for _ in range(100):
                key = nft.ifname(name) + bytes([10, 0, 0, 1])
                wanted = [nft.Element(ruleset.RESOLVERS4, key)]
                nft.add(wanted, name)
                nft.delete(wanted)

    threads = [threading.Thread(target=churn, args=(f"c{n}",)) for n in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert sum(tag == "own" for _, tag in nft.elements(ruleset.RESOLVERS4)) == 50
    for thread in threads:
        thread.join()
    os.close(here)


def test_vnet_header_is_virtio_1() -> None:
    fd, _ = _tap.create(b"t0", group=GROUP)
    size = struct.unpack("i", fcntl.ioctl(fd, 0x800454D7, b"\0" * 4))[0]  # TUNGETVNETHDRSZ
    assert size == len(netlab.HEADER)
    os.close(fd)


def test_nothing_kept_open_after_close_idle() -> None:
    before = set(os.listdir("/proc/self/fd"))
    nft.installed(ruleset.ROUTED)
    _tap.close_idle()
    _tap.close_idle()
    assert set(os.listdir("/proc/self/fd")) == before
