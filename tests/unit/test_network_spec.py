"""The text forms of the network's spec: flags, hac.toml, annotations."""

from pathlib import Path

import pytest

from hypercore import dhcp, hac, network_spec
from hypercore.errors import InvalidArgument
from hypercore.network_spec import NetworkSpec, Port, Route
from hypercore.spec import HardwareSpec, MicroVMSpec, from_annotations, to_annotations

FULL = NetworkSpec(
    interface="ens2",
    dns=("192.0.2.53",),
    mtu=1400,
    search=("lan.test", "example.org"),
    ports=(Port(8080, 80), Port(7000, 7100, "udp", "2001:db8::1", 10)),
    allow_host=True,
    name="backend",
    egress=("192.0.2.0/24", "2001:db8::/32"),
    rate_kbit=100_000,
)
BRIDGED = NetworkSpec(
    mode="bridge",
    interface="br0",
    addresses=("192.0.2.7/24", "2001:db8::7/64"),
    dhcp=False,
    gateways=("192.0.2.1",),
    routes=(Route("10.9.0.0/16", "192.0.2.9"),),
)


@pytest.mark.parametrize(
    "network",
    [FULL, BRIDGED, NetworkSpec(), NetworkSpec(egress=()), NetworkSpec(mode="none")],
)
def test_annotations_there_and_back(network: NetworkSpec) -> None:
    spec = MicroVMSpec("vm", "qemu", HardwareSpec(), network)
    assert from_annotations("vm", to_annotations(spec)).network == network


@pytest.mark.parametrize(
    ("key", "value"),
    [("ports", "80:x"), ("egress", "192.0.2.1/24"), ("mtu", "big"), ("name", "a b")],
)
def test_annotation_that_is_wrong(key: str, value: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"io\.hypercore\.network\.{key} = '{value}'"):
        from_annotations("vm", {f"io.hypercore.network.{key}": value})


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("80", Port(80, 80)),
        ("8080:80", Port(8080, 80)),
        ("8080:80/UDP", Port(8080, 80, "udp")),
        ("127.0.0.1:8080:80", Port(8080, 80, address="127.0.0.1")),
        ("127.0.0.1::80", Port(80, 80, address="127.0.0.1")),
        ("[2001:db8::1]:8080:80/tcp", Port(8080, 80, address="2001:db8::1")),
        ("0.0.0.0:8080:80", Port(8080, 80)),
        ("8000-8009:9000-9009", Port(8000, 9000, count=10)),
        ("65535", Port(65535, 65535)),
    ],
)
def test_ports(text: str, port: Port) -> None:
    assert network_spec.parse_port(text) == port
    assert network_spec.parse_port(str(port)) == port


@pytest.mark.parametrize(
    "text",
    ["", "x", "0", "65536", "80-79", "80:", "1-2:3", "80/sctp", "1.2.3:80:80", "::1:80:80",
     "[127.0.0.1]:80:80", "80:80:80:80", "-1", "80 ", "８0", "host:80:80"],
)  # fmt: skip
def test_ports_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        network_spec.parse_port(text)


def test_ports_together() -> None:
    def problem(*texts: str) -> str:
        return network_spec.ports_problem(tuple(map(network_spec.parse_port, texts)))

    assert problem("80", "80/udp", "127.0.0.1:81:81", "127.0.0.2:81:82") == ""
    assert problem("8080:80", "8080:81") == "publishes port 8080/tcp twice"
    assert problem("80-90", "127.0.0.1:85:1") == "publishes port 85/tcp twice"
    assert problem("1-1001") == "publishes more than 1000 ports"


@pytest.mark.parametrize(
    ("text", "kbit"), [("64kbit", 64), ("100mbit", 100_000), ("1gbit", 10**6)]
)
def test_rates(text: str, kbit: int) -> None:
    assert network_spec.parse_rate(text) == kbit


@pytest.mark.parametrize("text", ["", "0mbit", "1kbit", "101gbit", "10", "10mb", "1.5mbit"])
def test_rates_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        network_spec.parse_rate(text)


def _parse(tmp_path: Path, text: str) -> NetworkSpec:
    path = tmp_path / "hac.toml"
    path.write_text(f'[hardware]\nref = "alpine"\n{text}')
    return hac.parse(path, check_host=False).network


def test_hac_file_with_everything(tmp_path: Path) -> None:
    nat = _parse(
        tmp_path,
        """interface = "ens2"
[network]
dns = "192.0.2.53"
search = ["lan.test", "example.org"]
mtu = 1400
ports = ["8080:80", "[2001:db8::1]:7000-7009:7100-7109/udp"]
allow_host = true
name = "backend"
egress = ["192.0.2.0/24", "2001:db8::/32"]
rate_limit = "100mbit"
""",
    )
    assert nat == FULL
    bridged = _parse(
        tmp_path,
        """interface = "br0"
[network]
mode = "bridge"
address = ["192.0.2.7/24", "2001:db8::7/64"]
gateway = "192.0.2.1"
routes = ["10.9.0.0/16 via 192.0.2.9"]
""",
    )
    assert bridged == BRIDGED


@pytest.mark.parametrize(
    ("text", "dhcp_wanted"), [("", True), ('address = "dhcp"', True), ('address = "none"', False)]
)
def test_hac_file_and_dhcp(tmp_path: Path, text: str, dhcp_wanted: bool) -> None:
    spec = _parse(tmp_path, f'[network]\nmode = "bridge"\n{text}\n')
    assert (spec.dhcp, spec.addresses) == (dhcp_wanted, ())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('ports = ["80:x"]', "ports"),
        ('ports = ["80", "80:81"]', "twice"),
        ('mode = "bridge"\nports = ["80"]', 'belongs to mode = "nat"'),
        ('address = "192.0.2.7/24"', 'belongs to mode = "bridge"'),
        ('mode = "bridge"\naddress = "192.0.2.7"', "no prefix length"),
        ('mode = "bridge"\naddress = "192.0.2.7/24"\ngateway = "10.0.0.1"', "is in the network"),
        ('mode = "bridge"\nroutes = ["10.0.0.0/8"]', "CIDR via ADDRESS"),
        ('egress = ["192.0.2.1/24"]', "no network"),
        ('name = "has space"', "must be letters"),
        ('rate_limit = "fast"', "must be a rate"),
        ('search = ["a\\nb"]', "no domain"),
        ('hostname = "-x"', "must be letters"),
        ("allow_host = 1", "true or false"),
    ],
)
def test_hac_file_that_is_wrong(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=r"hac\.toml:\d+: \[network\]") as caught:
        _parse(tmp_path, f"[network]\n{text}\n")
    assert words in caught.value.message


@pytest.mark.parametrize("size", range(0, 320, 7))
def test_dhcp_answers_cut_short_are_no_trouble(size: int) -> None:
    bootp = bytes([2, 1, 6, 0]) + bytes(232) + b"\x63\x82\x53\x63" + b"\x35\x01\x05\x79\x20abc"
    frame = bytes(14) + b"\x45" + bytes(27) + bootp
    found = dhcp.parse(frame[:size])
    assert found is None or found.kind == dhcp.ACK
