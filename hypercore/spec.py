"""What the user asked for, frozen. Parsed by hac.py, or carried in OCI annotations to the shim.

No file access and no defaults that depend on the host: those are config.py's.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hypercore import network_spec, unikernel_spec
from hypercore.network_spec import NetworkSpec as NetworkSpec
from hypercore.unikernel_spec import UnikernelSpec

ANNOTATION_PREFIX = "io.hypercore."
MAX_DIGITS = 18
"""Of a number in an annotation: int() refuses far longer ones by an error of its own."""
STDIO_URI = "hypercore://"
"""Stdio URI that asks the shim server to own a stream: log file plus attach clients."""


@dataclass(frozen=True, slots=True)
class DiskLimits:
    """Bounds on each disk of a microVM; 0: none."""

    mib_per_s: int = 0
    ops_per_s: int = 0


@dataclass(frozen=True, slots=True)
class HardwareSpec:
    """The machine."""

    cores: int = 1
    memory_mib: int = 128
    kernel_path: Path | None = None
    """None: the guest assets' kernel"""
    drive_path: Path | None = None
    """the agent's root disk; None: the guest assets'"""
    initrd_path: Path | None = None
    disk_limits: DiskLimits = field(default_factory=DiskLimits)
    balloon_mib: int = 0
    """memory held back until the guest runs out of it; part of memory_mib"""


@dataclass(frozen=True, slots=True)
class WorkloadSpec:
    """The command; empty fields mean what the image says."""

    command: tuple[str, ...] = ()
    """replaces the image's entrypoint"""
    args: tuple[str, ...] = ()
    """replaces the image's cmd"""
    env: tuple[str, ...] = ()
    """NAME=value"""
    workdir: str = ""
    user: str = ""
    tty: bool = False


@dataclass(frozen=True, slots=True)
class SpawnSpec:
    """One `hypercore spawn`."""

    ref: str
    """image reference; a short name is completed as docker does"""
    provider: str = ""
    """empty: the first provider whose probe passes"""
    name: str = ""
    description: str = ""
    hardware: HardwareSpec = field(default_factory=HardwareSpec)
    network: NetworkSpec = field(default_factory=NetworkSpec)
    workload: WorkloadSpec = field(default_factory=WorkloadSpec)
    cmdline: str = ""
    """appended to the guest kernel's command line"""
    hostname: str = ""
    """empty: the beginning of the id"""
    unikernel: UnikernelSpec | None = None
    """the guest is no container: `ref` and `workload` say nothing"""


@dataclass(frozen=True, slots=True)
class Disk:
    """A block device of a microVM, in the order it is attached."""

    path: Path
    serial: str
    read_only: bool
    fs_type: str = "ext4"
    parts: tuple[tuple[int, int], ...] = ()
    """offset and size of each filesystem in it, in bytes, the topmost first; empty: it is one"""


@dataclass(frozen=True, slots=True)
class RootDisks:
    """A container's root: read-only disks under one writable disk, or that one alone.

    `read_only` is ordered as overlayfs's lowerdir: the topmost first.
    """

    read_only: tuple[Disk, ...] = ()
    writable: Disk | None = None
    binds: Disk | None = None
    """copies of what config.json binds into the container; no part of the root"""

    def __iter__(self) -> Iterator[Disk]:
        yield from self.read_only
        yield from (disk for disk in (self.writable, self.binds) if disk is not None)


@dataclass(frozen=True, slots=True)
class MicroVMSpec:
    """What MicroVM needs to build one VM."""

    microvm_id: str
    provider: str
    hardware: HardwareSpec
    network: NetworkSpec
    cmdline: str = ""
    jail: bool = True
    hostname: str = ""
    cgroup_path: str = ""
    """where in the host's cgroups the VMM is to be; empty: in one of our own"""
    unikernel: UnikernelSpec | None = None


def to_annotations(spec: MicroVMSpec) -> dict[str, str]:
    """The OCI annotations that carry `spec` to the shim; from_annotations is the inverse."""
    hardware = spec.hardware
    values = {
        "provider": spec.provider,
        "cores": str(hardware.cores),
        "memory": str(hardware.memory_mib),
        "kernel": str(hardware.kernel_path or ""),
        "drive": str(hardware.drive_path or ""),
        "initrd": str(hardware.initrd_path or ""),
        "disk-mib-per-s": str(hardware.disk_limits.mib_per_s or ""),
        "disk-ops-per-s": str(hardware.disk_limits.ops_per_s or ""),
        "balloon": str(hardware.balloon_mib or ""),
        "cmdline": spec.cmdline,
        "jail": "" if spec.jail else "false",
        "hostname": spec.hostname,
        **unikernel_spec.to_values(spec.unikernel),
    }
    of_network = network_spec.to_values(spec.network)
    values |= {f"network.{key}": value for key, value in of_network.items()}
    return {ANNOTATION_PREFIX + key: value for key, value in values.items() if value}


def from_annotations(microvm_id: str, annotations: dict[str, str]) -> MicroVMSpec:
    """The spec of the microVM for a container with these OCI annotations.

    Raises:
        InvalidArgument: an unknown `io.hypercore.` key or a value of the wrong type.
    """
    from hypercore.errors import InvalidArgument

    known = {
        "provider", "cores", "memory", "kernel", "drive", "initrd", "cmdline", "jail",
        "disk-mib-per-s", "disk-ops-per-s", "balloon", "hostname", "owner", "rm",
        *(f"network.{key}" for key in network_spec.KEYS),
        *unikernel_spec.KEYS,
    }  # fmt: skip
    given = {
        key.removeprefix(ANNOTATION_PREFIX): value
        for key, value in annotations.items()
        if key.startswith(ANNOTATION_PREFIX)
    }
    for key in given:
        if key not in known:
            raise InvalidArgument(
                f"unknown annotation {ANNOTATION_PREFIX}{key}",
                hint="known ones: " + ", ".join(ANNOTATION_PREFIX + k for k in sorted(known)),
            )

    def number(key: str, default: int) -> int:
        text = given.get(key, "")
        if not text:
            return default
        if not text.isdecimal() or len(text) > MAX_DIGITS:
            shown = text[: MAX_DIGITS + 1]
            raise InvalidArgument(f"annotation {ANNOTATION_PREFIX}{key} = {shown!r}: not a number")
        return int(text)

    def network() -> NetworkSpec:
        values = {
            key.removeprefix("network."): value
            for key, value in given.items()
            if key.startswith("network.")
        }
        try:
            return network_spec.from_values(values)
        except ValueError as exc:
            raise InvalidArgument(f"annotation {ANNOTATION_PREFIX}{exc}") from exc

    def path(key: str) -> Path | None:
        return Path(given[key]) if given.get(key) else None

    try:
        unikernel = unikernel_spec.from_values(given)
    except ValueError as exc:
        raise InvalidArgument(f"annotation {ANNOTATION_PREFIX}{exc}") from exc

    return MicroVMSpec(
        microvm_id=microvm_id,
        provider=given.get("provider", ""),
        hardware=HardwareSpec(
            cores=number("cores", 1),
            memory_mib=number("memory", 128),
            kernel_path=path("kernel"),
            drive_path=path("drive"),
            initrd_path=path("initrd"),
            disk_limits=DiskLimits(number("disk-mib-per-s", 0), number("disk-ops-per-s", 0)),
            balloon_mib=number("balloon", 0),
        ),
        network=network(),
        cmdline=given.get("cmdline", ""),
        jail=given.get("jail", "") != "false",
        hostname=given.get("hostname", ""),
        unikernel=unikernel,
    )
