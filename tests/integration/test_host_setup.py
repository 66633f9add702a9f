"""`hypercore setup` on this host: what it finds, what it makes, and that a second run is idle.

The guest assets' build takes minutes and is the functional tier's, which runs the whole set-up.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from hypercore import apt_install, host_setup, paths
from hypercore.config import HostConfig
from hypercore.errors import PermissionDenied, Unavailable
from tests.integration import own_containerd

pytestmark = pytest.mark.usefixtures("root")


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Iterator[HostConfig]:
    """New directories with the tools of the host's own."""
    own_containerd.require_binary()
    tools, cache = paths.tools_dir(), paths.data_dir() / "cache"
    steps = [step for step in host_setup.STEPS if step.name != "guest assets"]
    monkeypatch.setattr(host_setup, "STEPS", tuple(steps))
    with own_containerd.directories():
        paths.tools_dir().symlink_to(tools)
        (paths.data_dir() / "cache").symlink_to(cache)
        yield HostConfig(containerd_socket=paths.containerd_socket())


def tree() -> set[Path]:
    return {*paths.data_dir().rglob("*"), *paths.run_dir().rglob("*")}


def test_check_changes_nothing(config: HostConfig) -> None:
    before = tree()
    found = dict(asyncio.run(host_setup.check(config)))
    assert not found["service"].ready
    assert not found["demo image"].ready
    # Probing a provider is remembered until the next boot.
    assert {path for path in tree() - before if "probe" not in str(path)} == set()


def test_apply_makes_what_is_missing_once(config: HostConfig) -> None:
    lines: list[str] = []
    asyncio.run(host_setup.apply(config, lines.append))
    assert "demo image: made docker.io/hypercore/hello:latest" in lines
    assert all(finding.ready for _, finding in asyncio.run(host_setup.check(config)))

    again: list[str] = []
    asyncio.run(host_setup.apply(config, again.append))
    assert [line.split(":")[0] for line in again] == [step.name for step in host_setup.STEPS]


def test_apply_needs_root(config: HostConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(PermissionDenied):
        asyncio.run(host_setup.apply(config, print))
    monkeypatch.undo()


def test_configured_containerd_that_is_none(config: HostConfig) -> None:
    bad = HostConfig(binaries={"containerd": Path("/bin/true")})
    found = dict(asyncio.run(host_setup.check(bad)))
    assert not found["containerd"].ready
    with pytest.raises(Unavailable, match=r"\[binaries\] containerd = '/bin/true'"):
        asyncio.run(host_setup.apply(bad, print))


def test_host_without_apt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(Unavailable, match="missing: the thing"):
        asyncio.run(apt_install.install({"package": "the thing"}, print))


def test_nothing_to_install_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    asyncio.run(apt_install.install({}, print))
