"""What doctor finds in a namespace of our own, and what it mends there."""

import asyncio
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hypercore import doctor, firewalls
from hypercore.config import HostConfig
from tests.integration import netlab
from tests.integration.netlab import OUTSIDE4

pytestmark = pytest.mark.usefixtures("root", "host")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    netlab.own_instance(tmp_path, monkeypatch, f"nameserver {OUTSIDE4}\n")
    monkeypatch.setenv("HYPERCORE_DATA_DIR", str(tmp_path / "data"))
    with netlab.host():
        yield


def _found() -> dict[str, doctor.Diagnosis]:
    return {each.name: each for each in asyncio.run(doctor.examine(HostConfig()))}


def test_host_that_is_well() -> None:
    found = _found()
    for name in ("tun", "nf_tables", "interface", "firewalls", "bridges", "names"):
        assert found[name].level is doctor.Level.OK, found[name]
    assert "up0" in found["interface"].text
    assert OUTSIDE4 in found["names"].text


def test_what_setup_installs_is_missing_with_its_remedy() -> None:
    found = _found()
    assert found["guest assets"].level is doctor.Level.MISSING
    assert found["guest assets"].remedy == "hypercore setup"


def test_firewall_is_opened() -> None:
    for args in ("-N DOCKER-USER", "-P FORWARD DROP", "-A FORWARD -j DOCKER-USER"):
        subprocess.run(["iptables-nft", *args.split()], check=True)
    found = _found()
    assert found["firewalls"].level is doctor.Level.MISSING
    assert "DOCKER-USER" in found["firewalls"].remedy
    said: list[str] = []
    asked: list[HostConfig] = []

    async def set_up(config: HostConfig, report: Callable[[str], None]) -> None:
        asked.append(config)

    asyncio.run(doctor.mend(HostConfig(), list(found.values()), said.append, set_up))
    assert any(line.startswith("firewalls: ") for line in said)
    assert firewalls.closed() == []
    assert asked == [HostConfig()]


def test_pool_that_the_host_routes_to() -> None:
    netlab.give_route("10.210.7.0/24", OUTSIDE4)
    found = _found()
    assert found["addresses"].level is doctor.Level.MISSING
    assert "10.210.7.0/24" in found["addresses"].text


def test_host_without_a_resolver_that_guests_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netlab.own_instance(tmp_path, monkeypatch, "nameserver ::1\n")
    assert _found()["names"].level is doctor.Level.WARNING
    netlab.own_instance(tmp_path, monkeypatch, "nameserver 127.0.0.1\n")
    assert "led to 127.0.0.1" in _found()["names"].text
