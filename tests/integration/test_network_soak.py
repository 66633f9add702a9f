"""Many attachments one after the other, and by many processes at once: each its own, none left."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hypercore import network, nft, ruleset, slots
from hypercore.config import HostConfig
from hypercore.netlink import links
from hypercore.network_spec import Port
from hypercore.spec import NetworkSpec
from tests.integration import netlab
from tests.integration.netlab import OUTSIDE4, Host

pytestmark = pytest.mark.usefixtures("root", "instance")

SPECS = (
    NetworkSpec(),
    NetworkSpec(ports=(Port(8080, 80, count=10), Port(53, 53, "udp", "127.0.0.1"))),
    NetworkSpec(name="backend", allow_host=True, egress=("192.0.2.0/24", "2001:db8::/32")),
    NetworkSpec(rate_kbit=1000, dns=("192.0.2.53",), mtu=1400),
    NetworkSpec(mode="none"),
)
CYCLES, PROCESSES, EACH = 200, 6, 10

SPAWNER = """
import os, sys
from hypercore import network, slots
from hypercore.config import HostConfig
from hypercore.spec import NetworkSpec
for n in range(int(sys.argv[2])):
    microvm_id = f"vm-{sys.argv[1]}-{n}"
    slot = slots.acquire(microvm_id)
    made = network.attach(microvm_id, slot, NetworkSpec(name="backend"), HostConfig())
    print(slot, made.interfaces[0].addresses[0], made.mac, flush=True)
sys.stdin.read()
for n in range(int(sys.argv[2])):
    microvm_id = f"vm-{sys.argv[1]}-{n}"
    for slot, owner in slots.owners().items():
        if owner == microvm_id:
            network.detach(microvm_id, slot)
    slots.release(microvm_id)
"""


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netlab.own_instance(tmp_path, monkeypatch, f"nameserver {OUTSIDE4}\n")


@pytest.fixture
def host() -> Iterator[Host]:
    with netlab.host() as made:
        yield made


def _elements() -> list[nft.Element]:
    return [element for each in ruleset.VM_SETS for element, _ in nft.elements(each)]


def test_two_hundred_cycles_leave_nothing(host: Host, tmp_path: Path) -> None:
    before, fds = links(), len(os.listdir("/proc/self/fd"))
    for n in range(CYCLES):
        microvm_id = f"vm-{n}"
        slot = slots.acquire(microvm_id)
        made = network.attach(microvm_id, slot, SPECS[n % len(SPECS)], HostConfig())
        for fd in (made.tap_fd, *made.port_fds):
            if fd >= 0:
                os.close(fd)
        network.detach(microvm_id, slot)
        slots.release(microvm_id)
    assert (links(), _elements(), slots.holders()) == (before, [], {})
    assert len(os.listdir("/proc/self/fd")) <= fds + 1  # the socket for nf_tables
    left = [path.name for path in (tmp_path / "run" / "vm").rglob("*") if path.is_file()]
    assert left == []


def test_many_processes_at_once(host: Host) -> None:
    """From a host on which nothing is prepared: they also race for that."""
    before = links()
    spawners = [
        subprocess.Popen(
            [sys.executable, "-c", SPAWNER, str(n), str(EACH)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(PROCESSES)
    ]
    try:
        told = []
        for each in spawners:
            assert each.stdout is not None
            told += [each.stdout.readline().split() for _ in range(EACH)]
        total = PROCESSES * EACH
        for column in zip(*told, strict=True):  # slots, addresses, MACs
            assert len(set(column)) == total
        assert sorted(int(line[0]) for line in told) == list(range(total))
        assert len(nft.elements(ruleset.MEMBERS)) == total
    finally:
        codes = [each.communicate() and each.returncode for each in spawners]
    assert codes == [0] * PROCESSES
    assert (links(), _elements(), slots.holders()) == (before, [], {})
