"""Provider qemu: `-M microvm`, by KVM where the probe proves it, else by TCG.

Everything is on the command line; QMP only stops, pauses and resumes. Disks, TAP, console and the
QMP socket are fds, so a confined QEMU opens no path but firmware, kernel and initrd. vsock is the
kernel's vhost-vsock, else the program vhost-device-vsock, which needs the guest's memory shared;
with it a pause is a signal.

Facts behind choices: docs/system/i386/microvm.rst of QEMU; under TCG `pit=off` or `pic=off` hang
the guest's timer calibration; a guest that resets ends QEMU because of -no-reboot.
"""

import fcntl
import os
import platform
import re
import signal
from pathlib import Path

from hypercore import processes, qmp, tsc
from hypercore.config import HostConfig
from hypercore.errors import Unavailable
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
    require_version,
)
from hypercore.spec import Disk

MIN_VERSION = (7, 0)
VHOST_VSOCK = Path("/dev/vhost-vsock")
VHOST_GET_FEATURES = 0x8008AF00
TCG_BUFFER_MIB = 128
"""Translated code; QEMU's own default is up to 1 GiB per VM."""
OVERHEAD_MIB = 192
"""QEMU itself, beyond the guest's memory and TCG's buffer."""
HELPER_MEMORY_MIB = 64
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
TCG_CPU = "max,-erms,-fsrm"
"""All that TCG emulates, but no fast strings: those it emulates byte by byte, and a kernel that
sees them clears and copies its memory so. Without them it moves eight bytes at a time.
"""
NEEDLESS_INITCALLS = ("ftrace_check_for_weak_functions", "trace_eval_init")
"""Of the guest's kernel: they look up each traceable function by its name, and spell out names in
the formats of trace events. A fifth of a boot's instructions, for tools that trace the kernel.
"""
INSTALL_HINT = "run `hypercore setup`, or install the package qemu-system-x86"


class QemuProvider(Provider):
    name = "qemu"
    features = (
        Feature.PAUSE | Feature.EMULATION | Feature.BZIMAGE | Feature.QUIT | Feature.POWER_BUTTON
    )
    poweroff = "reboot"

    def probe(self, config: HostConfig) -> Probe:
        if platform.machine() != "x86_64":
            raise Unavailable(
                f"provider qemu runs x86_64 guests, this host is {platform.machine()}"
            )
        binary = require_binary(config, "qemu", "qemu-system-x86_64", hint=INSTALL_HINT)
        version = self.version(binary)
        helper = None
        if not kernel_vsock_works():
            helper = require_binary(
                config,
                "vhost-device-vsock",
                hint="run `hypercore setup`, or load the kernel module vhost_vsock",
            )
        problem = kvm_probe.probe()
        return Probe(
            binary=binary,
            version=version,
            accelerator="tcg" if problem else "kvm",
            kvm_problem=problem,
            kernel_vsock=helper is None,
            vsock_helper=helper,
            tsc_khz=tsc.khz() if problem else 0,
        )

    def version(self, binary: Path) -> str:
        return require_version(binary, "QEMU", parse_version, MIN_VERSION, hint=INSTALL_HINT)

    def boot_parameters(self, probe: Probe) -> tuple[tuple[str, str | None], ...]:
        parameters: list[tuple[str, str | None]] = [
            ("console", "ttyS0"),
            ("quiet", None),
            ("loglevel", "1"),
            ("reboot", "t"),
            ("panic", "-1"),
            ("random.trust_cpu", "on"),
            # Self-tests of every cipher are an eighth of the boot under TCG.
            ("cryptomgr.notests", "1"),
            ("initcall_blacklist", ",".join(NEEDLESS_INITCALLS)),
        ]
        if probe.accelerator == "tcg":
            # QEMU routes the timer as its tables say. The check takes ten ticks, and a host that
            # loses ticks makes it fail, which is a panic.
            parameters.append(("no_timer_check", None))
        if probe.tsc_khz:
            parameters.append(("tsc_early_khz", str(probe.tsc_khz)))
            # All vCPUs read the host's counter. The guest would compare it with ticks, of which a
            # loaded host loses some, or distrust more than one CPU, and then count lossy ticks.
            parameters.append(("tsc", "reliable"))
        return tuple(parameters)

    def render(self, boot: BootSpec, probe: Probe) -> tuple[VmmCommand, ...]:
        qemu = _render_qemu(boot, probe)
        if probe.vsock_helper is None:
            return (qemu,)
        return (_render_vsock_helper(boot, probe.vsock_helper), qemu)

    async def ask_to_stop(self, boot: BootSpec, deadline: float) -> None:
        if _has_helper(boot):
            _signal_qemu(boot, signal.SIGCONT)  # it may be paused
        await qmp.execute(boot.paths.api_socket, "quit", deadline)

    async def press_power_button(self, boot: BootSpec, deadline: float) -> None:
        await qmp.execute(boot.paths.api_socket, "system_powerdown", deadline)

    async def pause(self, boot: BootSpec, deadline: float) -> None:
        """Under vhost-device-vsock the whole process is stopped.

        QMP's `stop` takes the device's queues from the helper, and its only worker ends for good
        when the host sends a byte before they are back: while the guest is paused, or just after.
        """
        if _has_helper(boot):
            _signal_qemu(boot, signal.SIGSTOP)
        else:
            await qmp.execute(boot.paths.api_socket, "stop", deadline)

    async def resume(self, boot: BootSpec, deadline: float) -> None:
        if _has_helper(boot):
            _signal_qemu(boot, signal.SIGCONT)
        else:
            await qmp.execute(boot.paths.api_socket, "cont", deadline)


def _has_helper(boot: BootSpec) -> bool:
    return boot.paths.vhost_vsock.is_socket()


def _signal_qemu(boot: BootSpec, number: int) -> None:
    if not processes.send_signal(boot.paths.processes, "vmm", number):
        raise Unavailable(f"the QEMU of microVM {boot.microvm_id} is gone")


def _render_qemu(boot: BootSpec, probe: Probe) -> VmmCommand:
    fds: list[str] = []

    def fd(name: str) -> int:
        fds.append(name)
        return FIRST_FD + len(fds) - 1

    kvm = probe.accelerator == "kvm"
    memory_options = ",memory-backend=mem" if probe.vsock_helper else ""
    argv = [
        str(probe.binary),
        *("-name", f"{boot.microvm_id},debug-threads=on"),
        *("-M", f"microvm,acpi=on,pit=on,pic=on{memory_options}"),
        *("-accel", "kvm" if kvm else f"tcg,tb-size={TCG_BUFFER_MIB}"),
        *("-cpu", "host" if kvm else TCG_CPU),
        *("-smp", str(boot.cores)),
        *("-m", f"{boot.memory_mib}M"),
        *("-global", "virtio-mmio.force-legacy=off"),
        *("-nodefaults", "-no-user-config", "-no-reboot"),
        *("-display", "none"),
        *("-msg", "timestamp=on"),
    ]
    if boot.jail:
        argv += ["-sandbox", SANDBOX]
    if probe.vsock_helper:  # another process reads and writes the guest's queues
        argv += ["-object", f"memory-backend-memfd,id=mem,size={boot.memory_mib}M,share=on"]
    argv += ["-kernel", str(boot.kernel_path)]
    if boot.initrd_path is not None:
        argv += ["-initrd", str(boot.initrd_path)]
    argv += ["-append", boot.cmdline]

    argv += ["-chardev", f"socket,id=api,fd={fd('api')},server=on,wait=off"]
    argv += ["-mon", "chardev=api,mode=control"]
    if boot.agent:
        # A file chardev opens its path; an fd set lends it our pipe, which cannot be truncated.
        argv += ["-add-fd", f"fd={fd('console')},set=0,opaque=console"]
        argv += ["-chardev", "file,id=console,path=/dev/fdset/0,append=on"]
    else:
        argv += ["-chardev", "stdio,id=console,signal=off"]
    argv += ["-serial", "chardev:console"]
    for index, disk in enumerate(boot.disks):
        argv += _disk_arguments(disk, index, fd(f"disk{index}"))
    if boot.guest_mac:
        argv += ["-netdev", f"tap,id=net0,fd={fd('tap')}"]
        argv += ["-device", f"virtio-net-device,netdev=net0,mac={boot.guest_mac}"]
    if probe.vsock_helper:
        argv += ["-chardev", f"socket,id=vsock,path={_quoted(boot.paths.vhost_vsock)}"]
        argv += ["-device", "vhost-user-vsock-device,chardev=vsock"]
    elif boot.agent:
        argv += [
            "-device",
            f"vhost-vsock-device,guest-cid={boot.cid},vhostfd={fd('vhost-vsock')}",
        ]

    binds = [Bind(boot.kernel_path), *_firmware_of(probe.binary)]
    if boot.initrd_path is not None:
        binds.append(Bind(boot.initrd_path))
    if probe.vsock_helper:
        binds.append(Bind(boot.paths.vmm_dir))
    return VmmCommand(
        role="vmm",
        argv=tuple(argv),
        fds=tuple(fds),
        binds=tuple(binds),
        devices=(kvm_probe.DEVICE,) if kvm else (),
        console_on_stdout=not boot.agent,
        memory_mib=boot.memory_mib + OVERHEAD_MIB + (0 if kvm else TCG_BUFFER_MIB),
    )


def _disk_arguments(disk: Disk, index: int, fd: int) -> list[str]:
    """Set 0 of fds is the console's, so disk n is in set n + 1."""
    fd_set = index + 1
    read_only = "on" if disk.read_only else "off"
    backend = (
        f"node-name=disk{index},driver=raw,read-only={read_only},discard=unmap,"
        f"file.driver=file,file.filename=/dev/fdset/{fd_set}"
    )
    return [
        *("-add-fd", f"fd={fd},set={fd_set},opaque={disk.serial}"),
        *("-blockdev", backend),
        # By default a full host stops the VM without a word, for somebody to let it go on.
        *(
            "-device",
            f"virtio-blk-device,drive=disk{index},serial={disk.serial},werror=report",
        ),
    ]


def _render_vsock_helper(boot: BootSpec, helper: Path) -> VmmCommand:
    sockets = (boot.paths.vhost_vsock, boot.paths.vsock)
    return VmmCommand(
        role="vhost-device-vsock",
        argv=(
            str(helper),
            *("--guest-cid", str(boot.cid)),
            *("--socket", str(boot.paths.vhost_vsock)),
            *("--uds-path", str(boot.paths.vsock)),
        ),
        binds=(Bind(boot.paths.vmm_dir, read_only=False), *_firmware_of(helper)),
        sockets=sockets,
        memory_mib=HELPER_MEMORY_MIB,
    )


def _firmware_of(program: Path) -> tuple[Bind, ...]:
    """The program's own prefix, with its libraries and firmware, unless the system's."""
    if program.is_relative_to("/usr"):
        return ()
    return (Bind(program.parent.parent if program.parent.name == "bin" else program),)


def _quoted(path: Path) -> str:
    """QEMU's option lists split at commas; two stand for one."""
    return str(path).replace(",", ",,")


def parse_version(text: str) -> str:
    """`7.2.22` out of what `qemu-system-x86_64 --version` prints, or nothing."""
    match = re.match(r"QEMU emulator version (\d+\.\d+(?:\.\d+)?)", text)
    return match[1] if match else ""


def kernel_vsock_works() -> bool:
    """Whether /dev/vhost-vsock is more than a name."""
    try:
        fd = os.open(VHOST_VSOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.ioctl(fd, VHOST_GET_FEATURES, bytes(8))
    except OSError:
        return False
    finally:
        os.close(fd)
    return True
