"""Beside iptables rules such as docker's: theirs stay, and guests get out once they are let."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hypercore import firewalls, network
from hypercore.config import HostConfig
from hypercore.spec import NetworkSpec
from tests.integration import netlab
from tests.integration.netlab import HOST4, OUTSIDE4, Host, assert_refused, assert_tcp

pytestmark = pytest.mark.usefixtures("root", "instance")

PORT = 4001
DOCKER = """\
-N DOCKER-USER
-P FORWARD DROP
-A FORWARD -j DOCKER-USER
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A DOCKER-USER -j RETURN
-t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
"""
UFW = """\
-N ufw-before-forward
-P INPUT DROP
-P FORWARD DROP
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -j ufw-before-forward
-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
"""


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netlab.own_instance(tmp_path, monkeypatch, f"nameserver {OUTSIDE4}\n")


@pytest.fixture
def host() -> Iterator[Host]:
    with netlab.host(ipv6=False) as made:
        yield made


def _iptables(rules: str) -> str:
    path = shutil.which("iptables-nft", path="/usr/sbin:/sbin")
    assert path is not None, "iptables is missing: run scripts/setup.sh packages"
    for line in rules.splitlines():
        subprocess.run([path, *line.split()], check=True, capture_output=True)
    return subprocess.run([path, "-S"], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(("rules", "chain"), [(DOCKER, "DOCKER-USER"), (UFW, "FORWARD")])
def test_guests_get_out_beside_a_firewall_that_forwards_nothing(
    host: Host, rules: str, chain: str
) -> None:
    before = _iptables(rules)
    with netlab.attached_guest("vm-a", NetworkSpec()) as a:
        (found,) = firewalls.closed()
        assert str(found) == "table ip filter chain FORWARD"
        assert f"iptables -w -I {chain} -i hc+ -j ACCEPT" in found.remedy
        firewalls.open_for_taps(found)
        assert firewalls.closed() == []
        assert_tcp(a.netns, host.outside, OUTSIDE4, PORT, at=(OUTSIDE4, PORT))
        assert_tcp(None, a.netns, a.address4, PORT, at=(a.address4, PORT))
        # They allow all that our TAPs send; ours still does not.
        assert_refused(a.netns, HOST4, PORT)
        with netlab.attached_guest("vm-b", NetworkSpec()) as b:
            assert_refused(a.netns, b.address4, PORT)
    after = _iptables("")
    added = {f"-A {chain} -i hc+ -j ACCEPT", f"-A {chain} -o hc+ -j ACCEPT"}
    assert set(after.splitlines()) - set(before.splitlines()) == added
    network.restore_host()
    assert _iptables("") == after


def test_firewall_that_is_not_iptables(host: Host) -> None:
    own = "table inet own { chain f { type filter hook forward priority 0; policy drop; }; }"
    subprocess.run(["nft", own], check=True)
    (found,) = firewalls.closed()
    assert found.commands == ()
    assert 'iifname "hc*" accept' in found.remedy
    subprocess.run(["nft", 'add rule inet own f iifname "hc*" accept'], check=True)
    assert firewalls.closed() == [found]
    subprocess.run(["nft", 'add rule inet own f oifname "hc*" accept'], check=True)
    assert firewalls.closed() == []


def test_no_other_firewall(host: Host) -> None:
    network.prepare_host(HostConfig())
    assert firewalls.closed() == []
