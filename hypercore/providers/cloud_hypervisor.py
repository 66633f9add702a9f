"""Provider cloud-hypervisor: a VMM that is configured and driven over its API socket, on KVM.

The API socket is ours and handed over; disks are opened by path, the TAP by its name, in a network
namespace of the VMM's own; vsock is a unix socket that it makes when the VM is booted. So the
guest starts in `configure`, and the VMM's directory is locked right after it.

Facts behind choices (Cloud Hypervisor's vmm/src/lib.rs and cpu.rs, 53):
- It ends with status 0 whether its guest turned off or its vCPU crashed, and reports the same
  events either way. With --no-shutdown it stays when a guest has turned off, and only says so.
- A guest's reset makes it boot the guest again. It says so first, and it cannot do it in a locked
  directory, where it can neither remove its vsock socket nor make it again.
- Its serial console is stdout; it takes input only from a terminal.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from hypercore import landlock, vmm_api
from hypercore.config import HostConfig
from hypercore.errors import HypercoreError
from hypercore.providers import kvm_probe
from hypercore.providers.base import (
    FIRST_FD,
    Bind,
    BootSpec,
    Feature,
    Probe,
    Provider,
    VmmCommand,
    require_binary,
    require_kvm,
    require_version,
)
from hypercore.spec import Disk

MIN_VERSION = (52, 0)
"""The first with --no-shutdown."""
LANDLOCK_ABI = 3
"""What it insists on when it is told to use Landlock."""
TUN = Path("/dev/net/tun")
ENTROPY = Path("/dev/urandom")
OVERHEAD_MIB = 96
"""Cloud Hypervisor itself, beyond the guest's memory."""
API = "/api/v1/"
RESET = "reset"
QUEUE_SIZE = 256
INSTALL_HINT = (
    "put the cloud-hypervisor of a release of its project into PATH, or its path into the host's"
    " config.toml: [binaries] cloud-hypervisor"
)


class CloudHypervisorProvider(Provider):
    name = "cloud-hypervisor"
    features = (
        Feature.PAUSE
        | Feature.BZIMAGE
        | Feature.QUIT
        | Feature.BALLOON
        | Feature.METRICS
        | Feature.POWER_BUTTON
    )
    tap_by_name = True
    poweroff = "poweroff"

    def probe(self, config: HostConfig) -> Probe:
        binary = require_binary(config, "cloud-hypervisor", hint=INSTALL_HINT)
        version = self.version(binary)
        require_kvm(self.name)
        return Probe(binary=binary, version=version, accelerator="kvm")

    def version(self, binary: Path) -> str:
        return require_version(
            binary, "Cloud Hypervisor", parse_version, MIN_VERSION, hint=INSTALL_HINT
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
        )

    def render(self, boot: BootSpec, probe: Probe) -> tuple[VmmCommand, ...]:
        argv = (
            str(probe.binary),
            *("--api-socket", f"fd={FIRST_FD}"),
            *("--event-monitor", f"fd={FIRST_FD + 1}"),
            *("--seccomp", "true" if boot.jail else "false"),
            "--no-shutdown",
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
            fds=("api", "events"),
            binds=tuple(binds),
            devices=tuple(devices),
            sockets_later=(boot.paths.vsock,),
            console_on_stdout=True,
            own_files=tuple(disk.path for disk in boot.disks if not disk.read_only),
            memory_mib=boot.memory_mib + OVERHEAD_MIB,
        )
        return (command,)

    async def configure(self, boot: BootSpec, deadline: float) -> None:
        confine = boot.jail and landlock.abi() >= LANDLOCK_ABI
        await _put(boot, "vm.create", render_vm(boot, use_landlock=confine), deadline)
        await _put(boot, "vm.boot", None, deadline)

    def guest_end(self, event: Mapping[str, object]) -> str:
        match event.get("source"), event.get("event"):
            case "vm", "shutdown":
                return "turned off"
            case "vm", "rebooting":
                return RESET
        return ""

    async def confirm_end(self, boot: BootSpec, end: str, deadline: float) -> bool:
        if end == RESET:
            return True
        # Those who take requests also see to the VM's end, and after a crash to their own.
        try:
            await vmm_api.request(
                boot.paths.api_socket, "GET", API + "vmm.ping", deadline=deadline
            )
        except HypercoreError:
            return False
        return True

    async def ask_to_stop(self, boot: BootSpec, deadline: float) -> None:
        await _put(boot, "vm.shutdown", None, deadline)

    async def set_balloon(self, boot: BootSpec, memory_mib: int, deadline: float) -> None:
        await _put(boot, "vm.resize", {"desired_balloon": memory_mib << 20}, deadline)

    async def metrics(self, boot: BootSpec, deadline: float) -> dict[str, object]:
        answer = await vmm_api.request(
            boot.paths.api_socket, "GET", API + "vm.counters", deadline=deadline
        )
        return answer if isinstance(answer, dict) else {}

    async def press_power_button(self, boot: BootSpec, deadline: float) -> None:
        await _put(boot, "vm.power-button", None, deadline)

    async def pause(self, boot: BootSpec, deadline: float) -> None:
        await _put(boot, "vm.pause", None, deadline)

    async def resume(self, boot: BootSpec, deadline: float) -> None:
        await _put(boot, "vm.resume", None, deadline)


async def _put(
    boot: BootSpec, verb: str, body: Mapping[str, object] | None, deadline: float
) -> object:
    return await vmm_api.request(boot.paths.api_socket, "PUT", API + verb, body, deadline=deadline)


def render_vm(boot: BootSpec, *, use_landlock: bool) -> dict[str, object]:
    """The VM as vm.create takes it. Pure.

    Args:
        use_landlock: have all threads that face the guest give up every path but those named.
    """
    payload: dict[str, object] = {"kernel": str(boot.kernel_path), "cmdline": boot.cmdline}
    if boot.initrd_path is not None:
        payload["initramfs"] = str(boot.initrd_path)
    vm: dict[str, object] = {
        "payload": payload,
        "cpus": {"boot_vcpus": boot.cores, "max_vcpus": boot.cores},
        "memory": {"size": boot.memory_mib << 20},
        "disks": [_render_disk(disk, index) for index, disk in enumerate(boot.disks)],
        "rng": {"src": str(ENTROPY)},
        "serial": {"mode": "Tty"},
        "console": {"mode": "Off"},
        # Also of a guest without an agent: what keeps it from being booted again.
        "vsock": {"cid": boot.cid, "socket": str(boot.paths.vsock)},
    }
    if boot.balloon_mib:
        vm["balloon"] = {"size": boot.balloon_mib << 20, "deflate_on_oom": True}
    if use_landlock:
        vm["landlock_enable"] = True
    if boot.guest_mac:
        vm["net"] = [{"id": "eth0", "tap": boot.tap_name, "mac": boot.guest_mac}]
    return vm


def _render_disk(disk: Disk, index: int) -> dict[str, object]:
    return {
        "id": f"disk{index}",
        "path": str(disk.path),
        "readonly": disk.read_only,
        "serial": disk.serial,
        "image_type": "Raw",  # never guessed from what a guest wrote
        "queue_size": QUEUE_SIZE,
    }


def parse_version(text: str) -> str:
    """`53.0` out of what `cloud-hypervisor --version` prints; empty when it is something else."""
    match = re.match(r"cloud-hypervisor v(\d+\.\d+(?:\.\d+)?)", text)
    return match[1] if match else ""
