"""Real guests behind real TAPs, in network namespaces of the test's own."""

import asyncio
import errno
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop
from pyroute2 import IPRoute

from hypercore import nft, ruleset
from hypercore.attachment import Attachment
from hypercore.config import HostConfig
from hypercore.microvm import MicroVM
from hypercore.netlink import links
from hypercore.reclaim import reclaim
from hypercore.spec import HardwareSpec, MicroVMSpec, NetworkSpec, RootDisks
from tests.functional import instance
from tests.integration import netlab

VM_ID = "vm-network"
POD4, GATEWAY4 = "10.88.0.5", "10.88.0.1"
CONFIG = HostConfig(boot_timeout_s=instance.BOOT_DEADLINE_S)

pytestmark = [
    pytest.mark.usefixtures("place"),
    pytest.mark.timeout(2 * instance.BOOT_DEADLINE_S + 30),
]


@pytest.fixture
def place(root: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    shared = instance.shared_data_dir()
    if not (shared / "guest" / "current").exists():
        pytest.fail(f"no guest assets in {shared}: run make setup")
    data_dir = Path(tempfile.mkdtemp(prefix="hct-", dir="/var/tmp"))
    run_dir = Path(tempfile.mkdtemp(prefix="hct-", dir="/run"))
    monkeypatch.setenv("HYPERCORE_DATA_DIR", str(data_dir))
    monkeypatch.setenv("HYPERCORE_RUN_DIR", str(run_dir))
    monkeypatch.setenv("HYPERCORE_SLOTS_DIR", str(run_dir / "slots"))
    try:
        for name in instance.SHARED:
            (data_dir / name).symlink_to(shared / name)
        yield
    finally:
        reclaim(VM_ID)
        shutil.rmtree(run_dir)
        shutil.rmtree(data_dir)


def answers(address: str) -> bool:
    """Whether somebody at `address` says that nobody listens there."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as client:
        client.settimeout(netlab.PATIENCE_S)
        return client.connect_ex((address, 4000)) == errno.ECONNREFUSED


def boot_and_ask(network: NetworkSpec) -> Attachment:
    """Boot a guest, see that it answers from here at each of its addresses, and delete it."""

    async def live() -> Attachment:
        spec = MicroVMSpec(VM_ID, "qemu", HardwareSpec(), network, hostname="guest")
        microvm = MicroVM(spec, RootDisks(), CONFIG)
        try:
            await microvm.start()
            (interface,) = microvm.attachment.interfaces
            addresses = [text.partition("/")[0] for text in interface.addresses]
            silent = [each for each in addresses if not await asyncio.to_thread(answers, each)]
            assert silent == []
            return microvm.attachment
        finally:
            await microvm.delete()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        return loop.run(live())


def test_guest_in_mode_nat() -> None:
    with netlab.host():
        netlab.set_mtu("up0", 1400)
        before = {each.name for each in links()}
        attachment = boot_and_ask(NetworkSpec(interface="up0"))
        (interface,) = attachment.interfaces
        assert (interface.mtu, len(interface.addresses)) == (1400, 2)
        assert {each.name for each in links()} == before
        assert [e for each in ruleset.VM_SETS for e in nft.elements(each)] == []


def test_guest_in_mode_netns() -> None:
    with netlab.namespace() as here, netlab.namespace() as pod, netlab.inside(here):
        netlab.wire("pod0", "eth0", pod)
        netlab.give_address("pod0", f"{GATEWAY4}/16")
        with netlab.inside(pod):
            netlab.give_address("eth0", f"{POD4}/16")
            netlab.give_route("0.0.0.0/0", GATEWAY4)
        path = Path(f"/proc/{os.getpid()}/fd/{pod}")
        attachment = boot_and_ask(NetworkSpec(mode="netns", netns_path=path))
        assert attachment.interfaces[0].addresses == [f"{POD4}/16"]
        assert [each.name for each in links(netns_fd=pod)] == ["lo", "eth0"]
        assert answers(POD4)  # the namespace itself again


def test_guest_in_mode_bridge_gets_its_address_by_dhcp(tmp_path: Path) -> None:
    lan = "192.168.50.1"
    with netlab.namespace() as here, netlab.inside(here):
        with IPRoute() as route:
            route.link("add", ifname="br0", kind="bridge")
            route.link("set", index=route.link_lookup(ifname="br0")[0], state="up")
        netlab.give_address("br0", f"{lan}/24")
        with netlab.dhcp_server(None, "br0", lan, tmp_path) as leases:
            attachment = boot_and_ask(NetworkSpec(mode="bridge", interface="br0"))
            assert leases.read_text() == ""  # released
    (interface,) = attachment.interfaces
    assert interface.addresses[0] in ("192.168.50.100/24", "192.168.50.101/24")
    assert (interface.gateways, attachment.dns_servers) == ([lan], (lan,))
