"""Fixtures of the tier that needs KVM: an instance whose guests run on it.

It runs on a machine whose KVM runs stock kernels, and by `make test-kvm` in the lab anywhere else.
There a command takes seconds and a boot up to a minute, so one VM of each provider serves all.
Cloud Hypervisor, which no registry has, is among them where HYPERCORE_CLOUD_HYPERVISOR names it.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hypercore.providers import kvm_probe
from tests.functional import instance, leaks
from tests.functional.conftest import SHELL_REF, pytest_terminal_summary, shell_archive
from tests.functional.instance import Instance
from tests.integration import netlab
from tests.lab.get_firecracker import firecracker

__all__ = ["hypercore", "pytest_terminal_summary", "shell_archive"]

CLOUD_HYPERVISOR = os.environ.get("HYPERCORE_CLOUD_HYPERVISOR", "")
PROVIDERS = ("firecracker", *(("cloud-hypervisor",) if CLOUD_HYPERVISOR else ()), "qemu")
"""The first is the one that is chosen when none is named."""


@pytest.fixture(scope="session")
def firecracker_binary() -> Path:
    """The one among our tools, which is all the lab has, else the tests' own."""
    ours = instance.shared_data_dir() / "tools/bin/firecracker"
    return ours if ours.exists() else firecracker()


@pytest.fixture(scope="session")
def uplink(root: None) -> Iterator[str]:
    """Name of a link of this host's that leads to nothing but netlab.OUTSIDE4."""
    name = "hct-up"
    with netlab.namespace() as outside:
        netlab.wire(name, "out", outside)
        netlab.give_address(name, f"{netlab.HOST4}/24")
        with netlab.inside(outside):
            netlab.give_address("out", f"{netlab.OUTSIDE4}/24")
        # The last way that this host would ever go.
        netlab.give_route("0.0.0.0/0", netlab.OUTSIDE4, metric=2**31)
        yield name


@pytest.fixture(scope="session")
def hypercore(
    root: None, firecracker_binary: Path, shell_archive: Path, uplink: str
) -> Iterator[Instance]:
    """An instance with containerd running, SHELL_REF, and Firecracker configured.

    Without `hypercore setup`, which fetches what this clone misses: the lab is offline.
    """
    if problem := kvm_probe.probe():
        pytest.skip(f"{problem} (`make test-kvm` brings its own)")
    with instance.instance(instance.shared_data_dir()) as made:
        lines = ["[binaries]", f'firecracker = "{firecracker_binary}"']
        if CLOUD_HYPERVISOR:
            lines.append(f'cloud-hypervisor = "{CLOUD_HYPERVISOR}"')
        (made.data_dir / "config.toml").write_text("\n".join([*lines, ""]))
        (made.data_dir / "hac.toml").write_text(f'[hardware]\ninterface = "{uplink}"\n')
        made.run("containerd", "start")
        made.run("image", "load", shell_archive)
        # Starts the shim server, which stays; and shows that it goes without a jail.
        first = made.boot("spawn", "--rm", "--no-jail", SHELL_REF, "echo", "Hello")
        assert first.out == "Hello\n", first
        before = leaks.take(made)
        yield made
        left = leaks.compare(made, before)
        assert not left, "the host is not as before:\n" + "\n".join(left)
