"""The network of a VMM that opens its TAP by name: like any other, and gone with its namespace."""

import contextlib
import dataclasses
import fcntl
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hypercore import netlink, network, nft, resolver, ruleset, slots
from hypercore.config import HostConfig
from hypercore.errors import AlreadyExists
from hypercore.netlink import link, links
from hypercore.network import Attachment
from hypercore.spec import NetworkSpec
from tests.integration import netlab
from tests.integration.netlab import HOST4, HOST6, OUTSIDE4, OUTSIDE6, Guest, Host

pytestmark = pytest.mark.usefixtures("root", "instance")

VM_ID = "vm-named"
OWNER = 1_900_000_007
TUNSETIFF, TUNSETVNETHDRSZ = 0x400454CA, 0x400454D8
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x2, 0x1000, 0x4000
TCP_PORT = 4001
PATIENCE_S = 10


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERCORE_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("HYPERCORE_SLOTS_DIR", str(tmp_path / "slots"))
    resolv = tmp_path / "resolv.conf"
    resolv.write_text(f"nameserver {OUTSIDE4}\n")
    monkeypatch.setattr(resolver.discover, "__kwdefaults__", {"files": (resolv,)})


@pytest.fixture
def host() -> Iterator[Host]:
    with netlab.host() as made:
        yield made


def attach(slot: int) -> Attachment:
    return network.attach(VM_ID, slot, NetworkSpec(), HostConfig(), tap_owner=OWNER)


@contextlib.contextmanager
def attached() -> Iterator[Attachment]:
    """A network that ends as its VMM would end it: by the last fd of the namespace."""
    slot = slots.acquire(VM_ID)
    made = attach(slot)
    try:
        yield made
    finally:
        os.close(made.netns_fd)
        network.detach(VM_ID, slot)
        slots.release(VM_ID)


def open_by_name(netns_fd: int, name: str) -> int:
    """The TAP's fd, as a VMM inside the namespace gets it."""
    with netlab.inside(netns_fd):
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("=i", len(netlab.HEADER)))
    return fd


@contextlib.contextmanager
def guest() -> Iterator[Guest]:
    with attached() as attachment:
        tap_fd = open_by_name(attachment.netns_fd, attachment.tap_name)
        try:
            with netlab.guest(dataclasses.replace(attachment, tap_fd=tap_fd)) as made:
                yield made
        finally:
            os.close(tap_fd)


@pytest.mark.parametrize(("outside", "own"), [(OUTSIDE4, HOST4), (OUTSIDE6, HOST6)])
def test_the_guest_reaches_out_and_not_the_host(host: Host, outside: str, own: str) -> None:
    with guest() as vm:
        with (
            netlab.listen(host.outside, outside, TCP_PORT) as server,
            netlab.connect(vm.netns, outside, TCP_PORT) as client,
        ):
            connection, peer = server.accept()
            with connection:
                assert peer[0] == own
                for _ in range(64):  # more than a frame each, for the offloads
                    client.sendall(b"x" * 16384)
                    assert len(connection.recv(16384, socket.MSG_WAITALL)) == 16384
        with netlab.listen(None, own, TCP_PORT), pytest.raises(OSError):  # noqa: PT011
            netlab.connect(vm.netns, own, TCP_PORT).close()


def test_the_host_reaches_the_guest(host: Host) -> None:
    with (
        guest() as vm,
        netlab.listen(vm.netns, vm.address4, TCP_PORT),
        netlab.connect(None, vm.address4, TCP_PORT),
    ):
        pass


def test_the_hosts_side_is_as_that_of_a_tap_with_an_fd(host: Host) -> None:
    slot = slots.acquire(VM_ID)
    ordinary = network.attach(VM_ID, slot, NetworkSpec(), HostConfig())
    wanted = link(ordinary.tap_name)
    assert wanted is not None
    wanted_elements = [(e, tag) for s in ruleset.VM_SETS for e, tag in nft.elements(s)]
    os.close(ordinary.tap_fd)
    network.detach(VM_ID, slot)
    slots.release(VM_ID)
    with attached() as named:
        found = link(named.tap_name)
        assert found is not None
        assert found.kind == "veth"
        for name in ("name", "group", "alias", "mtu"):
            assert getattr(found, name) == getattr(wanted, name), name
        assert found.ipv4_setting(netlink.IPV4_FORWARDING) == 1
        assert [(e, t) for s in ruleset.VM_SETS for e, t in nft.elements(s)] == wanted_elements
        assert (named.mac, named.interfaces) == (ordinary.mac, ordinary.interfaces)
        (tap,) = (each for each in links(netns_fd=named.netns_fd) if each.kind == "tun")
        assert (tap.name, tap.mtu) == (named.tap_name, wanted.mtu)


def test_it_ends_with_its_namespace(host: Host) -> None:
    slot = slots.acquire(VM_ID)
    made = attach(slot)
    os.close(made.netns_fd)
    deadline = time.monotonic() + PATIENCE_S  # the kernel ends namespaces in the background
    while link(made.tap_name) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    network.detach(VM_ID, slot)
    slots.release(VM_ID)
    assert not [e for s in ruleset.VM_SETS for e in nft.elements(s)]


def test_detach_does_not_wait_for_the_namespace(host: Host) -> None:
    slot = slots.acquire(VM_ID)
    made = attach(slot)
    try:
        network.detach(VM_ID, slot)
        assert link(made.tap_name) is None
    finally:
        os.close(made.netns_fd)
        slots.release(VM_ID)


def test_a_name_that_is_taken_leaves_nothing(host: Host) -> None:
    slot = slots.acquire(VM_ID)
    made = attach(slot)
    before = sorted(os.listdir("/proc/self/fd"))
    try:
        with pytest.raises(AlreadyExists, match=f"TAP {made.tap_name} for slot {slot}"):
            attach(slot)
        assert sorted(os.listdir("/proc/self/fd")) == before
    finally:
        os.close(made.netns_fd)
        network.detach(VM_ID, slot)
        slots.release(VM_ID)
