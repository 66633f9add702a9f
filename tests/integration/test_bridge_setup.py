"""A bridge of the host's NIC: what is shown before, what is there after, and the way back."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from pyroute2 import IPRoute

from hypercore import bridge_setup
from hypercore.errors import AlreadyExists, NotFound, Unavailable
from hypercore.netlink import link, links
from tests.integration import netlab
from tests.integration.netlab import HOST4, HOST6, OUTSIDE4, OUTSIDE6, Host

pytestmark = pytest.mark.usefixtures("root")

PORT = 4001


@pytest.fixture
def host() -> Iterator[Host]:
    with netlab.host() as made:
        netlab.give_route("192.0.2.0/24", OUTSIDE4)
        yield made


def _state(name: str) -> tuple[set[Any], set[Any]]:
    with IPRoute() as route:
        index = route.link_lookup(ifname=name)[0]
        addresses = {
            (a.get("address"), a["prefixlen"])
            for a in route.get_addr(index=index)
            if not a["scope"]
        }
        routes = {
            (r.get("dst"), r["dst_len"], r.get("gateway"))
            for family in (2, 10)
            for r in route.get_routes(family=family, table=254)
            if r.get("oif") == index and not str(r.get("dst")).startswith("fe80")
        }
    return addresses, routes


def _talk(host: Host, *, source: str) -> None:
    for outside in (OUTSIDE4, OUTSIDE6):
        peer = netlab.assert_tcp(None, host.outside, outside, PORT, at=(outside, PORT))
        assert peer in (source, HOST6)


def test_addresses_and_routes_move_to_the_bridge(host: Host) -> None:
    before = _state("up0")
    plan = bridge_setup.plan("br0", "up0")
    shown = "\n".join(plan.lines())
    for part in (f"{HOST4}/24", f"{HOST6}/64", "192.0.2.0/24 via", f"{OUTSIDE4} answers"):
        assert part in shown
    assert (_state("up0"), link("br0")) == (before, None)  # a plan changes nothing
    bridge_setup.make(plan)
    assert _state("br0") == before
    assert _state("up0") == (set(), set())
    nic, bridge = link("up0"), link("br0")
    assert nic is not None
    assert bridge is not None
    assert (nic.master, nic.mac, nic.mtu) == (bridge.ifindex, bridge.mac, bridge.mtu)
    _talk(host, source=HOST4)
    with pytest.raises(AlreadyExists, match="up0 is a bridge or in one"):
        bridge_setup.plan("br1", "up0")


def test_all_is_as_before_when_the_gateway_is_lost(host: Host) -> None:
    before, there = _state("up0"), [(each.name, each.master) for each in links()]
    plan = bridge_setup.plan("br0", "up0")

    def lose(_: bridge_setup.Plan, __: object) -> None:
        """Instead of moving them: the addresses stay where nothing comes in any more."""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bridge_setup, "_move", lose)
        with pytest.raises(Unavailable, match=f"{OUTSIDE4} did not answer"):
            bridge_setup.make(plan, patience_s=1.5)
    assert (_state("up0"), [(each.name, each.master) for each in links()]) == (before, there)
    _talk(host, source=HOST4)


def test_all_is_as_before_when_a_step_fails(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _state("up0")
    plan = bridge_setup.plan("br0", "up0")
    real, calls = bridge_setup._add_address, threading.Event()

    def fail_once(address: bytes, ifindex: int) -> None:
        if not calls.is_set():
            calls.set()
            raise OSError(28, "no space")
        real(address, ifindex)

    monkeypatch.setattr(bridge_setup, "_add_address", fail_once)
    with pytest.raises(Exception, match="make bridge br0"):
        bridge_setup.make(plan)
    assert calls.is_set()
    assert (_state("up0"), link("br0")) == (before, None)
    _talk(host, source=HOST4)


@pytest.mark.parametrize(
    ("name", "interface", "error"),
    [("br0", "lo", NotFound), ("br0", "nosuch", NotFound), ("up0", "up0", AlreadyExists)],
)
def test_bridges_that_cannot_be(
    host: Host, name: str, interface: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        bridge_setup.plan(name, interface)
