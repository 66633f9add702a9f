"""Mode netns after CNI: namespaces that Debian's plugins, or hands, have made ready for a pod."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from hypercore import network
from hypercore.config import HostConfig
from hypercore.errors import InvalidArgument
from hypercore.netlink import link
from hypercore.spec import NetworkSpec
from tests.integration import netlab
from tests.integration.netlab import HOST4, OUTSIDE4, Host, assert_tcp

pytestmark = pytest.mark.usefixtures("root", "instance")

PLUGINS = Path("/usr/lib/cni")
CONTAINER = "hc-test"
PORT = 4001


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netlab.own_instance(tmp_path, monkeypatch, f"nameserver {OUTSIDE4}\n")


@pytest.fixture
def host() -> Iterator[Host]:
    with netlab.host(ipv6=False) as made:
        yield made


def _plugin(name: str, command: str, netns: int, config: dict[str, Any]) -> dict[str, Any]:
    if not (PLUGINS / name).exists():
        pytest.fail(f"{PLUGINS / name} is missing: run scripts/setup.sh packages")
    environ = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": CONTAINER,
        "CNI_NETNS": f"/proc/{os.getpid()}/fd/{netns}",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(PLUGINS),
    }
    done = subprocess.run(
        [PLUGINS / name], input=json.dumps(config).encode(), env=environ, capture_output=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout, done.stderr)
    answer: dict[str, Any] = json.loads(done.stdout or b"{}")
    return answer


@contextmanager
def _pod(tmp_path: Path, host_port: int) -> Iterator[int]:
    """A namespace as bridge, host-local and portmap leave it: a port of the host leads to it."""
    shared = {"cniVersion": "0.4.0", "name": "pods"}
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": True,
        "mtu": 1450,
        "ipam": {
            "type": "host-local",
            "dataDir": str(tmp_path / "cni"),
            "subnet": "10.88.0.0/16",
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.99.0.0/16", "gw": "10.88.0.77"}],
        },
    }
    mapping = {"hostPort": host_port, "containerPort": PORT, "protocol": "tcp"}
    portmap = {"type": "portmap", "runtimeConfig": {"portMappings": [mapping]}}
    with netlab.namespace() as netns:
        result = _plugin("bridge", "ADD", netns, shared | bridge)
        try:
            _plugin("portmap", "ADD", netns, shared | portmap | {"prevResult": result})
            try:
                yield netns
            finally:
                _plugin("portmap", "DEL", netns, shared | portmap)
        finally:
            _plugin("bridge", "DEL", netns, shared | bridge)


def test_after_bridge_host_local_and_portmap(host: Host, tmp_path: Path) -> None:
    # portmap and bridge route: as its documentation asks, the host forwards.
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    with _pod(tmp_path, 8080) as netns:
        spec = NetworkSpec(mode="netns", netns_path=Path(f"/proc/{os.getpid()}/fd/{netns}"))
        with netlab.attached_guest("vm-a", spec) as vm:
            assert vm.interface.mtu == 1450
            assert vm.interface.gateways == ["10.88.0.1"]
            assert [(r.destination, r.gateway) for r in vm.interface.routes] == [
                ("10.99.0.0/16", "10.88.0.77")
            ]
            assert assert_tcp(vm.netns, host.outside, OUTSIDE4, PORT, at=(OUTSIDE4, PORT)) == HOST4
            at = (vm.address4, PORT)
            assert_tcp(host.outside, vm.netns, HOST4, 8080, at=at)
            assert_tcp(None, vm.netns, vm.address4, PORT, at=at)


def test_routes_and_fixed_neighbours_are_taken_over() -> None:
    """As calico does it: an address alone, a gateway outside its network, a fixed neighbour."""
    with netlab.namespace() as here, netlab.namespace() as pod, netlab.inside(here):
        netlab.wire("cali0", "eth0", pod)
        netlab.give_address("cali0", "169.254.1.1/32")
        gateway = link("cali0")
        assert gateway is not None
        with IPRoute() as route:
            route.route("add", dst="10.88.0.5/32", oif=gateway.ifindex)
        with netlab.inside(pod):
            netlab.give_address("eth0", "10.88.0.5/32")
            own = link("eth0")
            assert own is not None
            with IPRoute() as route:
                index = own.ifindex
                route.route("add", dst="169.254.1.1/32", oif=index, scope=253)
                route.route("add", dst="0.0.0.0/0", gateway="169.254.1.1", oif=index)
                route.neigh(
                    "add", dst="169.254.1.1", lladdr=gateway.mac.hex(":"), ifindex=index, state=128
                )
        path = Path(f"/proc/{os.getpid()}/fd/{pod}")
        with netlab.attached_guest("vm-a", NetworkSpec(mode="netns", netns_path=path)) as vm:
            told = vm.interface
            assert [(r.destination, r.gateway) for r in told.routes] == [("169.254.1.1/32", "")]
            assert told.gateways == ["169.254.1.1"]
            assert [(n.address, n.mac) for n in told.neighbours] == [
                ("169.254.1.1", gateway.mac.hex(":"))
            ]
            at = ("169.254.1.1", PORT)
            assert assert_tcp(vm.netns, here, *at, at=at) == "10.88.0.5"
            with netlab.inside(vm.netns), IPRoute() as route:
                (known,) = [n for n in route.get_neighbours() if n.get("dst") == "169.254.1.1"]
                assert known["state"] == 128


def test_namespace_without_a_path() -> None:
    with pytest.raises(InvalidArgument, match="needs the path"):
        network.attach("vm-a", 0, NetworkSpec(mode="netns"), HostConfig())
