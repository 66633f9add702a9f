"""Provider cloud-hypervisor without a VMM: what is rendered, and what is made of its words."""

from dataclasses import replace
from pathlib import Path

import pytest

from hypercore.paths import MicroVMPaths
from hypercore.providers.base import FIRST_FD, Bind, BootSpec, Probe
from hypercore.providers.cloud_hypervisor import (
    CloudHypervisorProvider,
    parse_version,
    render_vm,
)
from hypercore.spec import Disk

PROBE = Probe(Path("/opt/cloud-hypervisor"), "53.0", "kvm")


@pytest.fixture
def boot(monkeypatch: pytest.MonkeyPatch) -> BootSpec:
    monkeypatch.setenv("HYPERCORE_RUN_DIR", "/run/hc")
    return BootSpec(
        microvm_id="vm1",
        cores=2,
        memory_mib=256,
        kernel_path=Path("/assets/vmlinux"),
        initrd_path=Path("/assets/initrd"),
        cmdline="console=ttyS0 quiet",
        disks=(
            Disk(Path("/assets/agent.erofs"), "hc0", read_only=True, fs_type="erofs"),
            Disk(Path("/vm/upper.ext4"), "hc1", read_only=False),
        ),
        guest_mac="02:00:00:00:00:01",
        tap_name="hc4",
        cid=7,
        control_port=10788,
        paths=MicroVMPaths("vm1"),
        jail=True,
    )


def test_the_command(boot: BootSpec) -> None:
    (command,) = CloudHypervisorProvider().render(boot, PROBE)
    assert command.argv == (
        "/opt/cloud-hypervisor",
        *("--api-socket", f"fd={FIRST_FD}"),
        *("--event-monitor", f"fd={FIRST_FD + 1}"),
        *("--seccomp", "true"),
        "--no-shutdown",
    )
    assert command.fds == ("api", "events")
    assert command.binds == (
        Bind(Path("/run/hc/vm/vm1/vmm"), read_only=False),
        Bind(Path("/assets/vmlinux")),
        Bind(Path("/assets/initrd")),
        Bind(Path("/assets/agent.erofs")),
        Bind(Path("/vm/upper.ext4"), read_only=False),
        Bind(Path("/opt/cloud-hypervisor")),
    )
    assert command.own_files == (Path("/vm/upper.ext4"),)
    assert [device.name for device in command.devices] == ["kvm", "tun"]


def test_the_vm(boot: BootSpec) -> None:
    assert render_vm(boot, use_landlock=True) == {
        "payload": {
            "kernel": "/assets/vmlinux",
            "cmdline": "console=ttyS0 quiet",
            "initramfs": "/assets/initrd",
        },
        "cpus": {"boot_vcpus": 2, "max_vcpus": 2},
        "memory": {"size": 256 << 20},
        "disks": [
            {
                "id": "disk0",
                "path": "/assets/agent.erofs",
                "readonly": True,
                "serial": "hc0",
                "image_type": "Raw",
                "queue_size": 256,
            },
            {
                "id": "disk1",
                "path": "/vm/upper.ext4",
                "readonly": False,
                "serial": "hc1",
                "image_type": "Raw",
                "queue_size": 256,
            },
        ],
        "rng": {"src": "/dev/urandom"},
        "serial": {"mode": "Tty"},
        "console": {"mode": "Off"},
        "vsock": {"cid": 7, "socket": "/run/hc/vm/vm1/vmm/v.sock"},
        "landlock_enable": True,
        "net": [{"id": "eth0", "tap": "hc4", "mac": "02:00:00:00:00:01"}],
    }


def test_without_a_jail_nothing_filters(boot: BootSpec) -> None:
    (command,) = CloudHypervisorProvider().render(replace(boot, jail=False), PROBE)
    assert "--seccomp false" in " ".join(command.argv)


def test_what_is_not_asked_for_is_not_there(boot: BootSpec) -> None:
    least = replace(boot, initrd_path=None, guest_mac="", tap_name="")
    vm = render_vm(least, use_landlock=False)
    assert not {"net", "balloon", "landlock_enable"} & vm.keys()
    assert "initramfs" not in str(vm["payload"])
    (command,) = CloudHypervisorProvider().render(least, PROBE)
    assert [device.name for device in command.devices] == ["kvm"]


@pytest.mark.parametrize(
    ("event", "end"),
    [
        ({"source": "vm", "event": "shutdown"}, "turned off"),
        ({"source": "vm", "event": "rebooting"}, "reset"),
        ({"source": "vm", "event": "booted"}, ""),
        ({"source": "vmm", "event": "shutdown"}, ""),
        ({}, ""),
    ],
)
def test_events(event: dict[str, object], end: str) -> None:
    assert CloudHypervisorProvider().guest_end(event) == end


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("cloud-hypervisor v53.0.0\nMigration Protocol Versions: 0\n", "53.0.0"),
        ("cloud-hypervisor v53.0-12-gabc\n", "53.0"),
        ("cloud-hypervisor 53\n", ""),
        ("ch-remote v53.0\n", ""),
    ],
)
def test_versions(text: str, version: str) -> None:
    assert parse_version(text) == version
