"""What a provider is: our plug for one hypervisor. One file per hypervisor, no policy of its own.

A microVM goes through these phases, ordered by microvm.py:

    probe      does this VMM run guests on this host, and how
    render     pure: a BootSpec in; argv, fds and files of each process out
    start      the processes are spawned in order; `configure` talks to a VMM with an API, and
               `launch` sets the guest going once the VMM's directory is locked, unless it runs
    running    the agent dials in; `pause` and `resume` where the feature is there
    stop       `ask_to_stop`: a VMM with that feature is asked to end; microvm.py kills the rest

A VM that goes on from a VM snapshot takes `restore` for `configure`, and `resume` for `launch`.
What only one VMM can do is a `Feature`, not a method that others refuse.
"""

import os
import platform
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Flag, auto
from pathlib import Path
from typing import ClassVar

from hypercore import paths, probe_cache
from hypercore.config import HostConfig
from hypercore.errors import InvalidArgument, Unavailable
from hypercore.providers import kvm_probe
from hypercore.spec import Disk, DiskLimits

FIRST_FD = 3
"""The child sees the fds of its VmmCommand from this number on, in order."""
VERSION_TIMEOUT_S = 30.0
"""QEMU loads a hundred libraries; on a busy or emulated host that takes seconds the first time."""


class Feature(Flag):
    """What a VMM can do beyond running a guest to its end."""

    NONE = 0
    PAUSE = auto()
    EMULATION = auto()
    """runs guests where KVM does not"""
    BZIMAGE = auto()
    """boots a bzImage, not only a vmlinux"""
    QUIT = auto()
    """ends when asked, and writes first what it holds back of its disks"""
    POWER_BUTTON = auto()
    """asks a guest without our agent to end"""
    SNAPSHOT = auto()
    """writes a paused guest's state and memory to files, and another process goes on from there"""
    DISK_LIMITS = auto()
    """bounds what a guest does with its disks"""
    BALLOON = auto()
    """takes memory from a running guest and gives it back"""
    METRICS = auto()
    """counts what its devices did"""


@dataclass(frozen=True, slots=True)
class VmSnapshot:
    """Files of a VM snapshot."""

    state: Path
    """CPUs and devices, in the VMM's own format"""
    memory: Path
    """the guest's memory, byte for byte; the restored VM maps it, so it stays for its life"""


@dataclass(frozen=True, slots=True)
class Probe:
    """What a provider found out about its VMM on this host."""

    binary: Path
    version: str
    accelerator: str
    """kvm or tcg"""
    kvm_problem: str = ""
    """why it is not kvm"""
    kernel_vsock: bool = False
    """reach the guest by AF_VSOCK and its CID; else by the hybrid socket in its state dir"""
    vsock_helper: Path | None = None
    """program that serves the hybrid socket; None: the VMM itself does, or the kernel"""
    tsc_khz: int = 0
    """rate to tell a guest that cannot calibrate its clock; 0: it can"""


@dataclass(frozen=True, slots=True)
class BootSpec:
    """One VM with every choice made."""

    microvm_id: str
    cores: int
    memory_mib: int
    kernel_path: Path
    initrd_path: Path | None
    cmdline: str
    disks: tuple[Disk, ...]
    """in the order the guest sees them, the agent's drive first"""
    guest_mac: str
    """empty: no network device"""
    tap_name: str
    """of the TAP, for a VMM that opens it by name"""
    cid: int
    control_port: int
    """host port the agent dials"""
    paths: paths.MicroVMPaths
    jail: bool
    disk_limits: DiskLimits = field(default_factory=DiskLimits)
    balloon_mib: int = 0
    """memory held back until the guest runs out of it"""
    snapshot: VmSnapshot | None = None
    """to restore it from; None: it boots"""
    agent: bool = True
    """False: the guest is all the user's, it has no vsock, and its console is the VMM's stdin,
    which may be a terminal, and stdout"""


@dataclass(frozen=True, slots=True)
class Bind:
    """A file or directory that a confined process sees, at the path it has on the host."""

    path: Path
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class VmmCommand:
    """One process to spawn."""

    role: str
    """`vmm`, or the name of a helper; goes into the process record and into messages"""
    argv: tuple[str, ...]
    fds: tuple[str, ...] = ()
    """names of the fds it inherits, as numbers from FIRST_FD: api, console, events, tap, disk0…"""
    binds: tuple[Bind, ...] = ()
    """beyond the system's programs and libraries"""
    devices: tuple[Path, ...] = ()
    sockets: tuple[Path, ...] = ()
    """made by the process; once all are there the next process may start"""
    sockets_later: tuple[Path, ...] = ()
    """made by the process when it is configured; the directory is the VMM's until then"""
    log_fifo: Path | None = None
    """FIFO to make for a process that opens its log by name; leads into the log as stderr does"""
    fifos: tuple[Path, ...] = ()
    """FIFOs to make for the process, which it writes to"""
    console_on_stdout: bool = False
    """what it says on stdout is the guest's console, not its own log"""
    own_files: tuple[Path, ...] = ()
    """files of this microVM alone that the process opens for writing: they are given to its uid"""
    memory_mib: int = 0
    """most it may use, for its cgroup"""


class Provider(ABC):
    """See the module's docstring. Providers hold no state."""

    name: ClassVar[str]
    features: ClassVar[Feature]
    tap_by_name: ClassVar[bool] = False
    """opens its TAP by name, so it runs in a network namespace that has it; else it takes an fd"""
    poweroff: ClassVar[str]
    """what the agent does to end the VM: poweroff or reboot"""

    @abstractmethod
    def probe(self, config: HostConfig) -> Probe:
        """Prove that guests run here. Blocks up to a second the first time after a boot.

        Raises:
            Unavailable: they do not; the message says why, the hint what to do.
        """

    @abstractmethod
    def version(self, binary: Path) -> str:
        """The version of the VMM's program. Blocks while it runs `binary --version`.

        Raises:
            Unavailable: it does not run, is something else, or too old.
        """

    @abstractmethod
    def boot_parameters(self, probe: Probe) -> tuple[tuple[str, str | None], ...]:
        """Kernel parameters this VMM needs, in order."""

    @abstractmethod
    def render(self, boot: BootSpec, probe: Probe) -> tuple[VmmCommand, ...]:
        """The processes of one VM, helpers first, the VMM last. Pure."""

    async def configure(self, boot: BootSpec, deadline: float) -> None:
        """Tell a VMM with an API what to boot, by `deadline` of the loop's clock.

        VMMs that read it all from their command line need nothing here.
        """
        return None

    async def launch(self, boot: BootSpec, deadline: float) -> None:
        """Let the guest run, if the VMM does not do so by itself."""
        return None

    async def take_snapshot(self, boot: BootSpec, files: VmSnapshot, deadline: float) -> None:
        """Write the paused guest to `files`, which exist and are the VMM's to write.

        Only with Feature.SNAPSHOT, as restore.
        """
        return None

    async def restore(self, boot: BootSpec, deadline: float) -> None:
        """Load boot.snapshot; the guest is paused then."""
        return None

    async def set_disk_limits(self, boot: BootSpec, limits: DiskLimits, deadline: float) -> None:
        """Replace the bounds on each disk. Only with Feature.DISK_LIMITS."""
        return None

    async def set_balloon(self, boot: BootSpec, memory_mib: int, deadline: float) -> None:
        """Take this much memory from the guest, in all. Only with Feature.BALLOON.

        Returns when it was asked: the guest gives as it can.
        """
        return None

    async def metrics(self, boot: BootSpec, deadline: float) -> dict[str, object]:
        """What the VMM counts, by device, in its own names. Only with Feature.METRICS."""
        return {}

    def guest_end(self, event: Mapping[str, object]) -> str:
        """What an event of the VMM says of its guest's end: `turned off`, `reset`, or nothing.

        For a VMM that has the fd `events`; the end of one without tells by its status.
        """
        return ""

    async def confirm_end(self, boot: BootSpec, end: str, deadline: float) -> bool:
        """Whether its guest did end so, for a VMM that says the same of a crash."""
        return True

    def tells_crash(self, words: str) -> bool:
        """Whether the last lines of the VMM's log tell of a crash that its status 0 conceals."""
        return False

    def disk_serial(self, disk: Disk) -> str:
        """The serial number by which the guest finds `disk`."""
        return disk.serial

    async def ask_to_stop(self, boot: BootSpec, deadline: float) -> None:
        """Have the VMM flush its disks and end. Only with Feature.QUIT.

        Returns when it was asked, not when it ended.
        """
        return None

    async def press_power_button(self, boot: BootSpec, deadline: float) -> None:
        """Ask the guest to end. Only with Feature.POWER_BUTTON."""
        return None

    @abstractmethod
    async def pause(self, boot: BootSpec, deadline: float) -> None:
        """Stop all vCPUs. Only with Feature.PAUSE."""

    @abstractmethod
    async def resume(self, boot: BootSpec, deadline: float) -> None:
        """Inverse of pause."""


def find_binary(config: HostConfig, name: str, *programs: str) -> Path | None:
    """The program called `name` in the configuration: from there, from PATH, from our tools.

    Raises:
        InvalidArgument: the configured path is no executable file.
    """
    configured = config.binaries.get(name)
    if configured is not None:
        if not (configured.is_file() and os.access(configured, os.X_OK)):
            raise InvalidArgument(
                f"[binaries] {name} = {str(configured)!r} is not an executable file",
                hint=f"correct or remove the key in {paths.config_file()}",
            )
        return configured
    tools = paths.tools_dir()
    search = os.pathsep.join(
        [
            os.environ.get("PATH", os.defpath),
            "/usr/local/bin:/usr/bin",
            *(str(tools / sub) for sub in ("bin", "usr/bin", f"{name}/usr/bin", f"{name}/bin")),
        ]
    )
    for program in programs or (name,):
        if found := shutil.which(program, path=search):
            return Path(found).absolute()
    return None


def require_kvm(provider: str) -> None:
    """Raises Unavailable unless KVM really runs a guest here."""
    if platform.machine() != "x86_64":
        raise Unavailable(f"the probe of KVM knows x86_64 only, this is {platform.machine()}")
    if problem := kvm_probe.probe():
        raise Unavailable(
            f"provider {provider} needs KVM: {problem}",
            hint="provider qemu emulates where KVM does not work: --provider qemu",
        )


def require_binary(config: HostConfig, name: str, *programs: str, hint: str) -> Path:
    """As find_binary, but raises Unavailable with `hint` when there is none."""
    found = find_binary(config, name, *programs)
    if found is None:
        wanted = " or ".join(programs or (name,))
        raise Unavailable(
            f"{wanted} is not installed: not in PATH nor {paths.tools_dir()}", hint=hint
        )
    return found


def require_version(
    binary: Path,
    program: str,
    parse: Callable[[str], str],
    least: tuple[int, ...],
    *,
    hint: str,
) -> str:
    """The version that `binary --version` names; asked once per boot and binary.

    Args:
        program: what it is, for messages and the cache.
        parse: takes the version out of the output; gives nothing when there is none.

    Raises:
        Unavailable: it does not run, is something else, or is older than `least`.
    """
    cache = f"{program.lower()}-version"
    subject = probe_cache.file_identity(binary)
    cached = probe_cache.load(cache, subject)
    if cached is not None:
        return str(cached["version"])
    try:
        done = subprocess.run(
            [str(binary), "--version"],
            capture_output=True,
            text=True,
            timeout=VERSION_TIMEOUT_S,
            check=False,
            env={},
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise Unavailable(f"{binary} does not run: {exc}", hint=hint) from exc
    version = parse(done.stdout)
    if not version:
        raise Unavailable(
            f"{binary} --version ended with status {done.returncode} and names no version of"
            f" {program}",
            hint=hint,
            detail=(done.stderr or done.stdout).strip()[-300:],
        )
    if tuple(int(part) for part in version.split(".")[: len(least)]) < least:
        wanted = ".".join(map(str, least))
        raise Unavailable(
            f"{binary} is {program} {version}, hypercore needs {wanted} or newer", hint=hint
        )
    probe_cache.store(cache, subject, {"version": version})
    return version
