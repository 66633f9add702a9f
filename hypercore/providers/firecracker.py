"""Provider firecracker: a VMM that is configured and driven over its API socket.

Confined by the jail that every VMM gets, so paths are the same with it and without, and files
that VMs share enter by read-only binds. Firecracker takes no fds: it opens disks by path and its
TAP by name, in a network namespace of its own.

Facts behind choices (Firecracker's docs/ and src/vmm/src/devices/virtio): a guest that resets
ends it with status 0; disks show their file's device and inode as serial number; the serial
console is stdout, so its own log needs another place; vsock has no half-close.
"""

import contextlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from hypercore import vmm_api
from hypercore.config import HostConfig
from hypercore.errors import VmmError, from_os_error
from hypercore.providers import kvm_probe
from hypercore.providers.base import (
    Bind,
    BootSpec,
    Feature,
    Probe,
    Provider,
    VmmCommand,
    VmSnapshot,
    require_binary,
    require_kvm,
    require_version,
)
from hypercore.spec import Disk, DiskLimits

MIN_VERSION = (1, 7)
"""From 1.8 on the guest learns of its devices by ACPI, as stock kernels want it; 1.7 is for
kernels with VIRTIO_MMIO_CMDLINE_DEVICES."""
TUN = Path("/dev/net/tun")
OVERHEAD_MIB = 64
"""Firecracker itself, beyond the guest's memory; 5 MiB is what it says it needs."""
SERIAL_BYTES = 20
"""VIRTIO_BLK_ID_BYTES of linux/virtio_blk.h"""
HTTP_BYTES = 64 * 1024
FIFO_BYTES = 64 * 1024
"""What a pipe holds by default; the metrics are 8 KiB."""
INSTALL_HINT = (
    "run `hypercore setup --provider firecracker`, put the firecracker of a release of its project"
    " into PATH, or its path into the host's config.toml: [binaries] firecracker"
)


class FirecrackerProvider(Provider):
    name = "firecracker"
    features = (
        Feature.PAUSE
        | Feature.SNAPSHOT
        | Feature.DISK_LIMITS
        | Feature.BALLOON
        | Feature.METRICS
        | Feature.POWER_BUTTON
    )
    tap_by_name = True
    poweroff = "reboot"

    def probe(self, config: HostConfig) -> Probe:
        binary = require_binary(config, "firecracker", hint=INSTALL_HINT)
        version = self.version(binary)
        require_kvm(self.name)
        return Probe(binary=binary, version=version, accelerator="kvm")

    def version(self, binary: Path) -> str:
        return require_version(
            binary, "Firecracker", parse_version, MIN_VERSION, hint=INSTALL_HINT
        )

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
        if boot.snapshot is not None:
            files = [boot.snapshot.state, boot.snapshot.memory]
        binds = [
            Bind(boot.paths.vmm_dir, read_only=False),
            Bind(boot.paths.snapshot_dir, read_only=False),
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
            sockets_later=(boot.paths.vsock,) if boot.agent else (),
            log_fifo=boot.paths.vmm_fifo,
            fifos=(boot.paths.metrics_fifo,),
            console_on_stdout=True,
            own_files=tuple(disk.path for disk in boot.disks if not disk.read_only),
            memory_mib=boot.memory_mib + OVERHEAD_MIB,
        )
        return (command,)

    async def configure(self, boot: BootSpec, deadline: float) -> None:
        for target, body in render_requests(boot):
            await _request(boot, "PUT", target, body, deadline)

    async def launch(self, boot: BootSpec, deadline: float) -> None:
        await _request(boot, "PUT", "/actions", {"action_type": "InstanceStart"}, deadline)

    def tells_crash(self, words: str) -> bool:
        # With an API it ends with status 0 for a vCPU that KVM cannot run on, too.
        return "Received KVM_EXIT_" in words or "Failure during vcpu run" in words

    def disk_serial(self, disk: Disk) -> str:
        status = os.stat(disk.path)
        return f"{status.st_dev}{status.st_rdev}{status.st_ino}"[:SERIAL_BYTES]

    async def press_power_button(self, boot: BootSpec, deadline: float) -> None:
        await _request(boot, "PUT", "/actions", {"action_type": "SendCtrlAltDel"}, deadline)

    async def pause(self, boot: BootSpec, deadline: float) -> None:
        await self._set_state(boot, "Paused", deadline)

    async def resume(self, boot: BootSpec, deadline: float) -> None:
        await self._set_state(boot, "Resumed", deadline)

    async def _set_state(self, boot: BootSpec, state: str, deadline: float) -> None:
        await _request(boot, "PATCH", "/vm", {"state": state}, deadline)

    async def take_snapshot(self, boot: BootSpec, files: VmSnapshot, deadline: float) -> None:
        body = {
            "snapshot_type": "Full",
            "snapshot_path": str(files.state),
            "mem_file_path": str(files.memory),
        }
        await _request(boot, "PUT", "/snapshot/create", body, deadline)

    async def restore(self, boot: BootSpec, deadline: float) -> None:
        assert boot.snapshot is not None
        await _request(boot, "PUT", "/metrics", _metrics(boot), deadline)
        body: dict[str, object] = {
            "snapshot_path": str(boot.snapshot.state),
            "mem_backend": {"backend_type": "File", "backend_path": str(boot.snapshot.memory)},
            "resume_vm": False,
        }
        if boot.tap_name:
            # From 1.12 on; the TAP has the number of a slot, which may be another now.
            body["network_overrides"] = [{"iface_id": "eth0", "host_dev_name": boot.tap_name}]
        await _request(boot, "PUT", "/snapshot/load", body, deadline)

    async def set_disk_limits(self, boot: BootSpec, limits: DiskLimits, deadline: float) -> None:
        for index in range(len(boot.disks)):
            body = {"drive_id": f"disk{index}", "rate_limiter": _rate_limiter(limits)}
            await _request(boot, "PATCH", f"/drives/disk{index}", body, deadline)

    async def set_balloon(self, boot: BootSpec, memory_mib: int, deadline: float) -> None:
        await _request(boot, "PATCH", "/balloon", {"amount_mib": memory_mib}, deadline)

    async def metrics(self, boot: BootSpec, deadline: float) -> dict[str, object]:
        # Firecracker holds the FIFO open, and counts what it could not write to a full one.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fifo_fd = os.open(boot.paths.metrics_fifo, flags)
        except OSError as exc:
            raise from_os_error(exc, f"open the metrics of {boot.microvm_id}") from exc
        try:
            _read_all(fifo_fd)  # those of its own minutely flush
            await _request(boot, "PUT", "/actions", {"action_type": "FlushMetrics"}, deadline)
            text = _read_all(fifo_fd)
        finally:
            os.close(fifo_fd)
        try:
            document = json.loads(text.decode().splitlines()[-1])
        except (ValueError, IndexError) as exc:
            raise VmmError(f"the VMM's metrics are no JSON: {text[:80]!r}") from exc
        return document if isinstance(document, dict) else {}


async def _request(
    boot: BootSpec, method: str, target: str, body: Mapping[str, object], deadline: float
) -> None:
    await vmm_api.request(boot.paths.api_socket, method, target, body, deadline=deadline)


def _read_all(fifo_fd: int) -> bytes:
    """What a FIFO holds now; never more than it can hold."""
    held = b""
    with contextlib.suppress(BlockingIOError):
        while len(held) < FIFO_BYTES and (part := os.read(fifo_fd, FIFO_BYTES)):
            held += part
    return held


def _rate_limiter(limits: DiskLimits) -> dict[str, object]:
    """Token buckets that hold one second's worth; an empty one is no limit."""

    def bucket(size: int) -> dict[str, object]:
        return {"size": size, "refill_time": 1000 if size else 0}

    return {"bandwidth": bucket(limits.mib_per_s << 20), "ops": bucket(limits.ops_per_s)}


def _metrics(boot: BootSpec) -> dict[str, object]:
    return {"metrics_path": str(boot.paths.metrics_fifo)}


def render_requests(boot: BootSpec) -> list[tuple[str, dict[str, object]]]:
    """Target and body of each PUT that configures the VM, in order. Pure."""
    source: dict[str, object] = {
        "kernel_image_path": str(boot.kernel_path),
        "boot_args": boot.cmdline,
    }
    if boot.initrd_path is not None:
        source["initrd_path"] = str(boot.initrd_path)
    requests: list[tuple[str, dict[str, object]]] = [
        ("/metrics", _metrics(boot)),
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
        if boot.disk_limits != DiskLimits():
            drive["rate_limiter"] = _rate_limiter(boot.disk_limits)
        requests.append((f"/drives/disk{index}", drive))
    if boot.guest_mac:
        interface: dict[str, object] = {
            "iface_id": "eth0",
            "guest_mac": boot.guest_mac,
            "host_dev_name": boot.tap_name,
        }
        requests.append(("/network-interfaces/eth0", interface))
    if boot.agent:
        requests.append(("/vsock", {"guest_cid": boot.cid, "uds_path": str(boot.paths.vsock)}))
    requests.append(("/entropy", {}))
    if boot.balloon_mib:
        balloon: dict[str, object] = {"amount_mib": boot.balloon_mib, "deflate_on_oom": True}
        requests.append(("/balloon", balloon))
    return requests


def parse_version(text: str) -> str:
    """`1.12.1` out of what `firecracker --version` prints; empty when it says something else."""
    match = re.match(r"Firecracker v(\d+\.\d+(?:\.\d+)?)", text)
    return match[1] if match else ""
