"""Provider firecracker: a VMM that is configured and driven over its API socket.

Confined by the jail that every VMM gets, so paths are the same with it and without, and files
that VMs share enter by read-only binds. Firecracker takes no fds: it opens disks by path and its
TAP by name, in a network namespace of its own.

Facts behind choices (Firecracker's docs/ and src/vmm/src/devices/virtio): a guest that resets
ends it with status 0; disks show their file's device and inode as serial number; the serial
console is stdout, so its own log needs another place; vsock has no half-close.
"""

import os
import platform
import re
from pathlib import Path

from hypercore import vmm_api
from hypercore.config import HostConfig
from hypercore.errors import Unavailable
from hypercore.providers import kvm_probe
from hypercore.providers.base import (
    Bind,
    BootSpec,
    Feature,
    Probe,
    Provider,
    VmmCommand,
    require_binary,
    require_version,
)
from hypercore.spec import Disk

MIN_VERSION = (1, 8)
"""The first that tells the guest of its devices by ACPI, as stock kernels want it."""
TUN = Path("/dev/net/tun")
OVERHEAD_MIB = 64
"""Firecracker itself, beyond the guest's memory; 5 MiB is what it says it needs."""
SERIAL_BYTES = 20
"""VIRTIO_BLK_ID_BYTES of linux/virtio_blk.h"""
HTTP_BYTES = 64 * 1024
INSTALL_HINT = (
    "put the firecracker of a release of its project into PATH, or its path into the host's"
    " config.toml: [binaries] firecracker"
)


class FirecrackerProvider(Provider):
    name = "firecracker"
    features = Feature.PAUSE
    tap_by_name = True
    poweroff = "reboot"

    def probe(self, config: HostConfig) -> Probe:
        binary = require_binary(config, "firecracker", hint=INSTALL_HINT)
        version = require_version(
            binary, "Firecracker", parse_version, MIN_VERSION, hint=INSTALL_HINT
        )
        if platform.machine() != "x86_64":
            raise Unavailable(f"the probe of KVM knows x86_64 only, this is {platform.machine()}")
        if problem := kvm_probe.probe():
            raise Unavailable(
                f"provider firecracker needs KVM: {problem}",
                hint="provider qemu emulates where KVM does not work: --provider qemu",
            )
        return Probe(binary=binary, version=version, accelerator="kvm")

    def boot_parameters(self, probe: Probe) -> tuple[tuple[str, str | None], ...]:
        return (
            ("console", "ttyS0"),
            ("8250.nr_uarts", "1"),
            ("quiet", None),
            ("loglevel", "1"),
            ("reboot", "k"),
            ("panic", "-1"),
            ("random.trust_cpu", "on"),
            ("i8042.noaux", None),
            ("i8042.nomux", None),
        )

    def render(self, boot: BootSpec, probe: Probe) -> tuple[VmmCommand, ...]:
        argv = (
            str(probe.binary),
            *("--id", boot.microvm_id[:64]),
            *("--api-sock", str(boot.paths.api_socket)),
            *("--http-api-max-payload-size", str(HTTP_BYTES)),
            *("--log-path", str(boot.paths.vmm_fifo)),
            *("--level", "Error"),
        )
        files = [boot.kernel_path, *([boot.initrd_path] if boot.initrd_path else [])]
        binds = [
            Bind(boot.paths.vmm_dir, read_only=False),
            *(Bind(path) for path in files),
            *(Bind(disk.path, read_only=disk.read_only) for disk in boot.disks),
        ]
        if not probe.binary.is_relative_to("/usr"):
            binds.append(Bind(probe.binary))
        devices = [kvm_probe.DEVICE]
        if boot.guest_mac:
            devices.append(TUN)
        command = VmmCommand(
            role="vmm",
            argv=argv,
            binds=tuple(binds),
            devices=tuple(devices),
            sockets=(boot.paths.api_socket,),
            sockets_later=(boot.paths.vsock,),
            log_fifo=boot.paths.vmm_fifo,
            console_on_stdout=True,
            own_files=tuple(disk.path for disk in boot.disks if not disk.read_only),
            memory_mib=boot.memory_mib + OVERHEAD_MIB,
        )
        return (command,)

    async def configure(self, boot: BootSpec, deadline: float) -> None:
        for target, body in render_requests(boot):
            await vmm_api.request(boot.paths.api_socket, "PUT", target, body, deadline=deadline)

    async def launch(self, boot: BootSpec, deadline: float) -> None:
        await vmm_api.request(
            boot.paths.api_socket,
            "PUT",
            "/actions",
            {"action_type": "InstanceStart"},
            deadline=deadline,
        )

    def disk_serial(self, disk: Disk) -> str:
        status = os.stat(disk.path)
        return f"{status.st_dev}{status.st_rdev}{status.st_ino}"[:SERIAL_BYTES]

    async def pause(self, boot: BootSpec, deadline: float) -> None:
        await self._set_state(boot, "Paused", deadline)

    async def resume(self, boot: BootSpec, deadline: float) -> None:
        await self._set_state(boot, "Resumed", deadline)

    async def _set_state(self, boot: BootSpec, state: str, deadline: float) -> None:
        await vmm_api.request(
            boot.paths.api_socket, "PATCH", "/vm", {"state": state}, deadline=deadline
        )


def render_requests(boot: BootSpec) -> list[tuple[str, dict[str, object]]]:
    """Target and body of each PUT that configures the VM, in order. Pure."""
    source: dict[str, object] = {
        "kernel_image_path": str(boot.kernel_path),
        "boot_args": boot.cmdline,
    }
    if boot.initrd_path is not None:
        source["initrd_path"] = str(boot.initrd_path)
    requests: list[tuple[str, dict[str, object]]] = [
        ("/machine-config", {"vcpu_count": boot.cores, "mem_size_mib": boot.memory_mib}),
        ("/boot-source", source),
    ]
    for index, disk in enumerate(boot.disks):
        drive: dict[str, object] = {
            "drive_id": f"disk{index}",
            "path_on_host": str(disk.path),
            "is_root_device": False,
            "is_read_only": disk.read_only,
            # Written back: the guest's fsync reaches the host's disk.
            "cache_type": "Unsafe" if disk.read_only else "Writeback",
        }
        requests.append((f"/drives/disk{index}", drive))
    if boot.guest_mac:
        interface: dict[str, object] = {
            "iface_id": "eth0",
            "guest_mac": boot.guest_mac,
            "host_dev_name": boot.tap_name,
        }
        requests.append(("/network-interfaces/eth0", interface))
    requests.append(("/vsock", {"guest_cid": boot.cid, "uds_path": str(boot.paths.vsock)}))
    requests.append(("/entropy", {}))
    return requests


def parse_version(text: str) -> str:
    """`1.12.1` out of what `firecracker --version` prints; empty when it says something else."""
    match = re.match(r"Firecracker v(\d+\.\d+(?:\.\d+)?)", text)
    return match[1] if match else ""
