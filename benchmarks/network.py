"""What network adds to a spawn: attach and detach in mode nat, with none and with 500 TAPs up.

In a network namespace of its own, beside the same TAP made by hand with pyroute2 in the same run:
device, address, up, and nothing of rules or neighbours.
"""

import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from pyroute2 import IPRoute

from hypercore import _tap, network, slots, tap
from hypercore.config import HostConfig
from hypercore.spec import NetworkSpec
from tests.functional.instance import Instance
from tests.integration import netlab

RUNS = 50
STANDING = 500
_TUNSETIFF, _IFF_TAP_NO_PI = 0x400454CA, 0x1002


def samples(made: Instance, runs: int) -> dict[str, list[float]]:
    series: dict[str, list[float]] = {}
    with ExitStack() as stack:
        stack.enter_context(_directories(made))
        stack.enter_context(netlab.host())
        network.prepare_host(HostConfig())
        _measure(series, "no TAP up", runs)
        fds = [_attach(f"standing-{n}") for n in range(STANDING)]
        try:
            _measure(series, f"{STANDING} TAPs up", runs)
            begun = time.perf_counter()
            network.reclaim_all(())
            series[f"reclaim {STANDING} TAPs at once"] = [_ms(begun)] * runs
        finally:
            for fd in fds:
                os.close(fd)
            _tap.delete_group(tap.DOOMED_GROUP)
            for n in range(STANDING):
                slots.release(f"standing-{n}")
            _tap.close_idle()
    return series


@contextmanager
def _directories(made: Instance) -> Iterator[None]:
    """State in the instance's run directory, slots apart from the host's."""
    wanted = {
        "HYPERCORE_RUN_DIR": str(made.run_dir / "bench"),
        "HYPERCORE_SLOTS_DIR": str(made.run_dir / "bench" / "slots"),
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _measure(series: dict[str, list[float]], condition: str, runs: int) -> None:
    """Rounds alternate between ours and by hand, so that load hits both."""
    for name in ("attach", "detach", "by hand (pyroute2)"):
        series[f"{name}, {condition}"] = []
    with IPRoute() as route:
        for n in range(runs):
            slot = slots.acquire(f"vm-{n}")
            begun = time.perf_counter()
            attached = network.attach(f"vm-{n}", slot, NetworkSpec(), HostConfig())
            series[f"attach, {condition}"].append(_ms(begun))
            os.close(attached.tap_fd)  # as the VMM's end does
            begun = time.perf_counter()
            network.detach(f"vm-{n}", slot)
            series[f"detach, {condition}"].append(_ms(begun))
            slots.release(f"vm-{n}")
            begun = time.perf_counter()
            fd = _by_hand(route)
            series[f"by hand (pyroute2), {condition}"].append(_ms(begun))
            os.close(fd)


def _attach(microvm_id: str) -> int:
    slot = slots.acquire(microvm_id)
    return network.attach(microvm_id, slot, NetworkSpec(), HostConfig()).tap_fd


def _by_hand(route: IPRoute) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", b"byhand", _IFF_TAP_NO_PI))
    index = route.link_lookup(ifname="byhand")[0]
    route.addr("add", index=index, address="192.168.250.1", prefixlen=30)
    route.link("set", index=index, state="up")
    return fd


def _ms(begun: float) -> float:
    return (time.perf_counter() - begun) * 1000
