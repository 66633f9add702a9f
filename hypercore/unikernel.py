"""A microVM whose guest is all the user's: a kernel, its command line and disks, and no agent.

The same rooms as for any microVM, in the same order, without what needs an agent: the guest's end
is known from the VMM's, it is asked to end by its power button, and its serial console is what
the caller gives as stdin and stdout. A family of unikernels (Unikraft, Nanos, Hermit, MirageOS)
differs in what its command line says and in what its last words mean; `command_line` is where the
first would go.

Not for what a task makes of it: shim/unikernel_task.py. docs/unikernels.md tells users.
"""

import asyncio
import contextlib
import os
import tty
from dataclasses import replace
from pathlib import Path

from hypercore import cmdline, network, providers, slots, vm_features, vmm
from hypercore.bounded_log import last_lines
from hypercore.config import HostConfig
from hypercore.errors import HypercoreError, InvalidArgument, VmmError, from_os_error
from hypercore.microvm import (
    FIRST_CID,
    STOP_TIMEOUT_S,
    Chosen,
    MicroVM,
    State,
    open_disks,
)
from hypercore.providers.base import BootSpec, Feature, Probe, Provider
from hypercore.spec import Disk, MicroVMSpec, RootDisks
from hypercore.unikernel_spec import UnikernelSpec, check_kernel
from hypercore.vmm_group import CRASHED, VmmExit


class UnikernelVM(MicroVM):
    """From `start`, which makes the VM, over `run`, which lets the guest go, to `delete`.

    Args:
        console_fd: where the guest's console goes; the caller's, and not needed after `start`.
        stdin_fd: a terminal that the console takes input from, likewise.
    """

    def __init__(
        self, spec: MicroVMSpec, config: HostConfig, *, console_fd: int, stdin_fd: int = -1
    ) -> None:
        super().__init__(spec, RootDisks(), config)
        self._console_fd = console_fd
        self._stdin_fd = stdin_fd

    async def run(self) -> None:
        """Let the guest go.

        It may have ended by the time this returns.

        Raises:
            VmmError: the VMM refused it, or ended otherwise than by its guest.
        """
        self._require(State.RUNNING)
        chosen = self._chosen
        assert chosen is not None
        provider, boot = chosen.provider, chosen.boot
        deadline = asyncio.get_running_loop().time() + self.config.boot_timeout_s
        configure = provider.restore if boot.snapshot else provider.configure
        launch = provider.resume if boot.snapshot else provider.launch
        try:
            with self._timed("configure"):
                await self._ask_until(deadline, configure(boot, deadline))
                self._group.configured()
            with self._timed("launch"):
                await self._ask_until(deadline, launch(boot, deadline))
        except VmmError:
            # A guest may be done before its VMM has answered.
            if not (self.exited.done() and self.exited.result().clean):
                raise

    async def wait(self) -> VmmExit:
        """As MicroVM.wait; `clean` is told from a crash also where the status is the same."""
        ended = await super().wait()
        if ended.clean and self._chosen is not None:
            words = await asyncio.to_thread(last_lines, self.files.vmm_log)
            if self._chosen.provider.tells_crash(words):
                return replace(ended, guest=CRASHED)
        return ended

    async def press_power_button(self) -> None:
        """Ask the guest to end. Raises InvalidArgument if the VMM has no such button."""
        chosen = self._require_feature(State.RUNNING, Feature.POWER_BUTTON, "ask a guest to end")
        deadline = asyncio.get_running_loop().time() + STOP_TIMEOUT_S
        await chosen.provider.press_power_button(chosen.boot, deadline)

    async def stop(self, grace_s: float) -> VmmExit:
        """Press the power button; end the VMM if the guest takes longer than `grace_s`."""
        if self.state == State.RUNNING and grace_s > 0:
            try:
                await self.press_power_button()
            except HypercoreError as exc:
                self._group.note(f"the guest was not asked to end: {exc}")
            else:
                await asyncio.wait({self.exited}, timeout=grace_s)
        await self.kill()
        return await self.wait()

    async def resume(self) -> None:
        """Let a paused guest run on."""
        chosen = self._require_feature(State.PAUSED, Feature.PAUSE, "pause a microVM")
        deadline = asyncio.get_running_loop().time() + STOP_TIMEOUT_S
        await chosen.provider.resume(chosen.boot, deadline)
        if self.state == State.PAUSED:
            self._advance(State.RUNNING)

    async def _start(self, timeout_s: float, snapshot_dir: Path | None) -> None:
        assert self.spec.unikernel is not None
        if self.spec.network.mode != "none":
            raise InvalidArgument(
                f"network mode {self.spec.network.mode!r}: a unikernel has no network yet",
                hint="leave out [network] and [hardware] interface",
            )
        with self._timed("probe"):
            provider, probe = await asyncio.to_thread(
                providers.choose, self.config, self.spec.provider
            )
        self._make_directories()
        self._owned.push_async_callback(self._reclaim)
        slot = slots.acquire(self.spec.microvm_id)
        if self.spec.jail:
            self._uid = self.config.uid_base + slot
        self.attachment = network.Attachment()
        with contextlib.ExitStack() as lent:
            fds = {"console": self._console_fd}
            if self._stdin_fd >= 0:
                fds["stdin"] = self._stdin_fd
            disks = _numbered(self.spec.unikernel)
            chosen = Chosen(provider, probe, self._render_boot(provider, disks, slot))
            with self._timed("disks"):
                if snapshot_dir is not None:
                    chosen = await self._put_back(chosen, snapshot_dir)
                open_disks(disks, fds, lent)
            self._owned.callback(_give_back, _owners(disks))  # once the VMM is gone
            self._chosen, boot = chosen, chosen.boot
            self._owned.push_async_callback(self._group.close)
            commands = provider.render(boot, _without_agent(probe))
            self._check_disks(commands[-1], disks)
            self._lend_sockets(chosen, commands, fds, lent)
            self._save_argv(commands)
            await self._spawn(commands, fds, self._make_cgroup(commands, lent))

    def _render_boot(self, provider: Provider, disks: tuple[Disk, ...], slot: int) -> BootSpec:
        hardware = self.spec.hardware
        if hardware.kernel_path is None:
            raise InvalidArgument(
                "a unikernel needs its kernel", hint='[hardware] kernel = "path/to/kernel"'
            )
        check_kernel(hardware.kernel_path)
        vm_features.check(provider, hardware, hardware.kernel_path)
        if self.spec.jail:
            vmm.check_readable(hardware.kernel_path, "kernel")
            if hardware.initrd_path is not None:
                vmm.check_readable(hardware.initrd_path, "initrd")
        return BootSpec(
            microvm_id=self.spec.microvm_id,
            cores=hardware.cores,
            memory_mib=hardware.memory_mib,
            kernel_path=hardware.kernel_path.resolve(),
            initrd_path=hardware.initrd_path.resolve() if hardware.initrd_path else None,
            cmdline=command_line(self.spec),
            disks=disks,
            guest_mac="",
            tap_name="",
            cid=FIRST_CID + slot,
            control_port=0,
            paths=self.files,
            jail=self.spec.jail,
            disk_limits=hardware.disk_limits,
            balloon_mib=hardware.balloon_mib,
            agent=False,
        )


def command_line(spec: MicroVMSpec) -> str:
    """What the user wrote, and nothing of ours: only the kernel knows what it takes."""
    return cmdline.render((), spec.cmdline)


def open_terminal() -> tuple[int, int]:
    """A terminal for a console's input: our end, non-blocking, and the VMM's.

    Cloud Hypervisor takes input from nothing else. It changes no byte and echoes none.

    Raises:
        HypercoreError: the host has none left.
    """
    try:
        ours, theirs = os.openpty()
        tty.setraw(theirs)
        os.set_blocking(ours, False)
    except OSError as exc:
        raise from_os_error(exc, "open a terminal for the console") from exc
    return ours, theirs


def _numbered(spec: UnikernelSpec) -> tuple[Disk, ...]:
    return tuple(
        Disk(disk.path.resolve(), f"hc{number}", disk.read_only)
        for number, disk in enumerate(spec.disks)
    )


def _owners(disks: tuple[Disk, ...]) -> tuple[tuple[Path, int, int], ...]:
    """Path, uid and gid of what a VMM that opens disks by name is given for its life."""
    found = [(disk.path, disk.path.stat()) for disk in disks if not disk.read_only]
    return tuple((path, status.st_uid, status.st_gid) for path, status in found)


def _give_back(owners: tuple[tuple[Path, int, int], ...]) -> None:
    for path, uid, gid in owners:
        with contextlib.suppress(FileNotFoundError):
            os.chown(path, uid, gid, follow_symlinks=False)


def _without_agent(probe: Probe) -> Probe:
    """Nobody calls: no program need serve a vsock."""
    return replace(probe, vsock_helper=None, kernel_vsock=False)
