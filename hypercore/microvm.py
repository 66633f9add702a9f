"""One microVM: slot → network → disks → VMM → the agent's call, and all of it back again.

The only place that orders these steps; the rooms below know nothing of each other. No containerd
and no containers: those use the agent's client that is handed out. Bound to the running event
loop.

Undo: everything a microVM holds on the host is found by its id, so the one undo of the host's
side is reclaim.reclaim(), pushed before the first step; what is only in this process (fds,
watchers, the connection) is pushed as it is acquired.
"""

import asyncio
import contextlib
import functools
import json
import os
import socket
import stat
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from hypercore import (
    boot_files,
    cgroup,
    cmdline,
    heartbeat,
    network,
    paths,
    providers,
    slots,
    vm_features,
    vm_snapshot,
    vmm,
    vsock,
)
from hypercore.agent_client import AgentClient
from hypercore.config import HostConfig
from hypercore.errors import (
    AlreadyExists,
    HypercoreError,
    InvalidArgument,
    StateError,
    Unavailable,
    from_os_error,
)
from hypercore.lease import Leaseholder
from hypercore.proto import agent_pb
from hypercore.providers.base import BootSpec, Feature, Probe, Provider, VmmCommand
from hypercore.reclaim import claim, reclaim
from hypercore.spec import Disk, DiskLimits, MicroVMSpec, RootDisks
from hypercore.vmm_group import VMM, VmmExit, VmmGroup

STREAM_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 3.0
"""For a VMM to obey: pause, resume, or flush its disks and end."""
SNAPSHOT_TIMEOUT_S = 120.0
"""For a VMM to write a guest's memory."""
DIAL_PAUSE_S = 0.02
LEASE_TIMEOUT_S = 20.0
LAST_WORD_S = 1.0
"""Between an agent's death and that of its VM."""
MAX_THREADS = 256
"""Of the VMM and its helpers; QEMU may run 64 for disks."""
FIRST_CID = 3
KERNEL_CONTROL_PORT = 0x10000
"""First of the host ports for AF_VSOCK, where all microVMs share the host's one port space."""


class State(StrEnum):
    NEW = "new"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    DELETED = "deleted"


_MOVES = {
    State.NEW: {State.STARTING, State.DELETED},
    State.STARTING: {State.RUNNING, State.STOPPED},
    State.RUNNING: {State.PAUSED, State.STOPPED},
    State.PAUSED: {State.RUNNING, State.STOPPED},
    State.STOPPED: {State.DELETED},
    State.DELETED: set[State](),
}


@dataclass(frozen=True, slots=True)
class Chosen:
    """What the start decided and the rest of the life needs."""

    provider: Provider
    probe: Probe
    boot: BootSpec


class MicroVM:
    """A microVM, from `start` to `delete`.

    Attributes:
        state: STOPPED once the VMM has ended, whatever the reason.
        exited: done once every process of the VMM has ended. Wait by `wait`: awaiting a future
            directly and being cancelled cancels it.
        hello: what the agent said of itself.
        attachment: the network, without its fd.
        timings: milliseconds by phase of the start.
        lost: somebody else had taken it back before `delete`; the id may be in use again.
    """

    def __init__(self, spec: MicroVMSpec, root_disks: RootDisks, config: HostConfig) -> None:
        self.spec = spec
        self.root_disks = root_disks
        self.config = config
        self.files = paths.MicroVMPaths(spec.microvm_id)
        self.state = State.NEW
        self.timings: dict[str, float] = {}
        self.hello = agent_pb.HelloResponse()
        self.attachment = network.Attachment()
        self._group = VmmGroup(self.files)
        self.exited = self._group.exited
        self._agent: AgentClient | None = None
        self._chosen: Chosen | None = None
        self._uid = -1
        self._claim = ""
        self._cut_off = False
        self.lost = False
        self._owned = contextlib.AsyncExitStack()
        self._deleting: asyncio.Task[None] | None = None

    async def start(
        self, deadline_s: float | None = None, *, snapshot_dir: Path | None = None
    ) -> None:
        """Boot the microVM; returns once its agent has answered the first call.

        On failure, cancellation included, nothing is left but the logs in the data directory.

        Args:
            deadline_s: from the VMM's start to the agent's answer; None: the configuration's.
            snapshot_dir: VM snapshot of this microVM to go on from instead, with the private
                disks it had.

        Raises:
            VmmError: the VMM or the guest failed; `detail` has the last lines of both logs.
            DeadlineExceeded: the agent did not call in time.
            AlreadyExists: a microVM of this id is there.
            HypercoreError: as the rooms say.
        """
        self._advance(State.STARTING)
        begun = time.monotonic()
        try:
            await self._start(deadline_s or self.config.boot_timeout_s, snapshot_dir)
            if self._group.first_exit is not None:
                raise self._group.error()
            self._advance(State.RUNNING)
        except BaseException:
            await self.delete()
            raise
        self.timings["total"] = (time.monotonic() - begun) * 1000
        self.exited.add_done_callback(lambda _: self._on_exit())

    @property
    def agent(self) -> AgentClient:
        """The agent's client, from the start to the VMM's end."""
        if self._agent is None:
            raise StateError(f"microVM {self.spec.microvm_id} is {self.state}: it has no agent")
        return self._agent

    @property
    def pid(self) -> int:
        """Host pid of the VMM; 0 before its start."""
        return self._group.vmm_pid

    async def wait(self) -> VmmExit:
        """Wait for the end of the VMM; safe to cancel."""
        return await asyncio.shield(self.exited)

    def disk_serial(self, disk: Disk) -> str:
        """The serial number by which the guest finds one of its root disks."""
        if self._chosen is None:
            raise StateError(f"microVM {self.spec.microvm_id} is {self.state}: it has no disks")
        return self._chosen.provider.disk_serial(disk)

    async def open_stream(self, token: bytes, offset: int = 0) -> int:
        """Open the stdio stream `token`; returns its connected non-blocking fd, the caller's.

        Raises:
            Unavailable: the agent refused it, or the guest is gone.
            DeadlineExceeded: the guest did not answer in time.
        """
        self._require(State.RUNNING)
        connection = await self._group.unless_exited(
            self._dial_stream(token, offset),
            asyncio.get_running_loop().time() + STREAM_TIMEOUT_S,
            f"no stdio stream within {STREAM_TIMEOUT_S:g} s",
        )
        return connection.detach()

    async def pause(self) -> None:
        """Stop the guest's CPUs. Raises InvalidArgument if the provider cannot."""
        chosen = self._require_feature(State.RUNNING, Feature.PAUSE, "pause a microVM")
        deadline = asyncio.get_running_loop().time() + STOP_TIMEOUT_S
        await chosen.provider.pause(chosen.boot, deadline)
        if self.state == State.RUNNING:  # it may have ended meanwhile
            self._advance(State.PAUSED)

    async def resume(self) -> None:
        """Let a paused guest run on, with the host's time."""
        chosen = self._require_feature(State.PAUSED, Feature.PAUSE, "pause a microVM")
        now = asyncio.get_running_loop().time()
        await chosen.provider.resume(chosen.boot, now + STOP_TIMEOUT_S)
        if self.state == State.PAUSED:
            self._advance(State.RUNNING)
        if self._cut_off:
            self._cut_off = False
            await self._reach_agent(chosen, now + STREAM_TIMEOUT_S)
        else:
            await self.agent.set_clock()

    async def take_snapshot(self, directory: Path) -> None:
        """Write the paused guest and its private disks into the new `directory`; it stays paused.

        Connections to the guest end with it, stdio streams among them: a VMM that saves its state
        cannot save those. `resume` reaches the agent anew.

        Raises:
            InvalidArgument: the provider cannot.
            AlreadyExists: the directory is there.
            HypercoreError: the VMM refused, or the disk is full; nothing is left then.
        """
        chosen = self._require_feature(State.PAUSED, Feature.SNAPSHOT, "take a VM snapshot")
        self._cut_off = True
        deadline = asyncio.get_running_loop().time() + SNAPSHOT_TIMEOUT_S
        await vm_snapshot.take(
            chosen.provider, chosen.boot, self._uid, self._origin(chosen), directory, deadline
        )

    async def set_disk_limits(self, limits: DiskLimits) -> None:
        """Replace the bounds on each disk. Raises InvalidArgument if the provider cannot."""
        chosen = self._require_feature(State.RUNNING, Feature.DISK_LIMITS, "bound what disks take")
        deadline = asyncio.get_running_loop().time() + STOP_TIMEOUT_S
        await chosen.provider.set_disk_limits(chosen.boot, limits, deadline)

    async def set_balloon(self, memory_mib: int) -> None:
        """Take this much memory from the guest, in all; it gives as it can.

        Only of a microVM that was started with a balloon. Raises InvalidArgument if the provider
        cannot.
        """
        chosen = self._require_feature(State.RUNNING, Feature.BALLOON, "hold memory back")
        deadline = asyncio.get_running_loop().time() + STOP_TIMEOUT_S
        await chosen.provider.set_balloon(chosen.boot, memory_mib, deadline)

    async def vmm_metrics(self) -> dict[str, object]:
        """What the VMM counts, in its own names. Raises InvalidArgument if it does not."""
        chosen = self._require_feature(State.RUNNING, Feature.METRICS, "tell what it counts")
        deadline = asyncio.get_running_loop().time() + STOP_TIMEOUT_S
        return await chosen.provider.metrics(chosen.boot, deadline)

    async def stop(self, grace_s: float) -> VmmExit:
        """Turn the guest off; end the VMM if that takes longer than `grace_s`.

        Idempotent. What did not go as asked is in the VMM's log.
        """
        loop = asyncio.get_running_loop()
        if self.state == State.RUNNING:
            await self._ask_guest(loop.time() + grace_s)
        if self.state in (State.RUNNING, State.PAUSED):
            await self._ask_vmm(loop.time() + STOP_TIMEOUT_S)
        await self.kill()
        return await self.wait()

    async def kill(self) -> None:
        """End the VMM now. Idempotent.

        Raises:
            VmmError: a process survives SIGKILL.
        """
        await self._group.kill()

    async def delete(self) -> None:
        """Kill the VMM and give everything back to the host; the data directory stays.

        Idempotent, needs no guest, and runs to its end even when the caller is cancelled.

        Raises:
            HypercoreError: names what could not be given back; call again.
        """
        if self._deleting is None or self._deleting.done():
            self._deleting = asyncio.ensure_future(self._delete())
        await asyncio.shield(self._deleting)

    async def _delete(self) -> None:
        owned, self._owned = self._owned, contextlib.AsyncExitStack()
        try:
            await owned.aclose()
        except BaseException:
            # What is in this process is closed; what lies on the host can be taken back again.
            self._owned.push_async_callback(self._reclaim)
            raise
        finally:
            if self.state in (State.STARTING, State.RUNNING, State.PAUSED):
                self._advance(State.STOPPED)
            if not self.exited.done():
                self.exited.set_exception(
                    StateError(f"microVM {self.spec.microvm_id} was deleted before its VMM ran")
                )
                self.exited.exception()  # nobody need look
        if self.state != State.DELETED:
            self._advance(State.DELETED)

    async def _reclaim(self) -> None:
        self.lost = not await asyncio.to_thread(reclaim, self.spec.microvm_id, self._claim)

    # -- steps of the start --

    async def _start(self, timeout_s: float, snapshot_dir: Path | None) -> None:
        loop = asyncio.get_running_loop()
        with self._timed("probe"):
            provider, probe = await asyncio.to_thread(
                providers.choose, self.config, self.spec.provider
            )
            files = await asyncio.to_thread(boot_files.choose, self.spec.hardware)
        self._make_directories()
        self._owned.push_async_callback(self._reclaim)
        with self._timed("network"):
            slot = slots.acquire(self.spec.microvm_id)
            if self.spec.jail:
                self._uid = self.config.uid_base + slot
            self.attachment = network.attach(
                self.spec.microvm_id,
                slot,
                self.spec.network,
                self.config,
                tap_owner=max(self._uid, 0) if provider.tap_by_name else -1,
            )
            for fd in self.attachment.port_fds:
                self._owned.callback(os.close, fd)
            leaseholder = self._leaseholder()
        with contextlib.ExitStack() as lent:  # fds that only the VMM keeps
            fds: dict[str, int] = {}
            if self.attachment.tap_fd >= 0:
                lent.callback(os.close, self.attachment.tap_fd)
                fds["tap"] = self.attachment.tap_fd
            if self.attachment.netns_fd >= 0:
                lent.callback(os.close, self.attachment.netns_fd)
            disks = (files.drive, *self.root_disks)
            chosen = Chosen(provider, probe, self._boot_spec(provider, probe, files, disks, slot))
            with self._timed("disks"):
                if snapshot_dir is not None:
                    chosen = await self._put_back(chosen, snapshot_dir)
                open_disks(disks, fds, lent)
            self._chosen, boot = chosen, chosen.boot
            listener = self._listen(chosen)
            self._owned.push_async_callback(self._group.close)
            fds["console"] = self._group.open_console()
            commands = provider.render(boot, probe)
            self._check_disks(commands[-1], disks)
            self._lend_sockets(chosen, commands, fds, lent)
            self._save_argv(commands)
            deadline = loop.time() + timeout_s
            await self._spawn(commands, fds, self._make_cgroup(commands, lent))
        with self._timed("configure"):
            configure = provider.restore if boot.snapshot else provider.configure
            await self._ask_until(deadline, configure(boot, deadline))
            self._group.configured()
        with self._timed("boot"):
            if boot.snapshot is not None:
                listener.close()
                await self._ask_until(deadline, provider.resume(boot, deadline))
                await self._reach_agent(chosen, deadline)
                return
            await self._ask_until(deadline, provider.launch(boot, deadline))
            connection = await self._group.unless_exited(
                self._accept_agent(chosen, listener),
                deadline,
                f"its agent did not call within {timeout_s:g} s",
            )
            # Calls that nobody takes fill the backlog, and vhost-device-vsock waits in connect
            # for room there: a container could cut its guest off.
            listener.close()
        if leaseholder is not None:
            with self._timed("lease"):
                until = min(deadline, loop.time() + LEASE_TIMEOUT_S)
                self.attachment = await leaseholder.acquire(self.attachment, until)
        with self._timed("hello"):
            await self._say_hello(provider, connection)

    def _leaseholder(self) -> Leaseholder | None:
        """Who asks a DHCP server for the guest's address, if that is to be asked for."""
        if self.attachment.dhcp is None:
            return None
        made = Leaseholder(self.spec.microvm_id, self.attachment, self.spec.hostname)
        self._owned.push_async_callback(made.close)
        return made

    def _make_directories(self) -> None:
        """The making of vmm_dir decides which of two microVMs of one id may go on."""
        vm_features.check_sockets(self.files)
        try:
            for directory in (self.files.data, self.files.run):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.files.snapshot_dir.mkdir(mode=0o711, exist_ok=True)  # the VMM passes through
            self.files.vmm_dir.mkdir(mode=0o700)
            self._claim = claim(self.files)
        except FileExistsError as exc:
            raise AlreadyExists(
                f"microVM {self.spec.microvm_id} is there already: {exc.filename}",
                hint=f"remove it first: hypercore cleanup {self.spec.microvm_id}",
            ) from exc
        except OSError as exc:
            raise from_os_error(exc, f"make the directories of {self.spec.microvm_id}") from exc

    def _boot_spec(
        self,
        provider: Provider,
        probe: Probe,
        files: boot_files.BootFiles,
        disks: tuple[Disk, ...],
        slot: int,
    ) -> BootSpec:
        vm_features.check(provider, self.spec.hardware, files.kernel_path)
        if self.spec.jail:
            vmm.check_readable(files.kernel_path, "kernel")
            if files.initrd_path is not None:
                vmm.check_readable(files.initrd_path, "initrd")
        control_port = vsock.CONTROL_PORT
        parameters = [*provider.boot_parameters(probe), *files.parameters()]
        if probe.kernel_vsock:
            control_port = KERNEL_CONTROL_PORT + slot
            parameters.append(("hypercore.control_port", str(control_port)))
        return BootSpec(
            microvm_id=self.spec.microvm_id,
            cores=self.spec.hardware.cores,
            memory_mib=self.spec.hardware.memory_mib,
            kernel_path=files.kernel_path,
            initrd_path=files.initrd_path,
            cmdline=cmdline.render(parameters, self.spec.cmdline),
            disks=disks,
            guest_mac=self.attachment.mac,
            tap_name=self.attachment.tap_name,
            cid=FIRST_CID + slot,
            control_port=control_port,
            paths=self.files,
            jail=self.spec.jail,
            disk_limits=self.spec.hardware.disk_limits,
            balloon_mib=self.spec.hardware.balloon_mib,
        )

    def _check_disks(self, command: VmmCommand, disks: tuple[Disk, ...]) -> None:
        """A VMM that opens disks by name must be let read those it shares with others."""
        if self.spec.jail and "disk0" not in command.fds:
            for disk in disks:
                if disk.path not in command.own_files:
                    vmm.check_readable(disk.path, "disk")

    def _listen(self, chosen: Chosen) -> socket.socket:
        """Before the VM starts: the agent's call is its readiness."""
        port = chosen.boot.control_port
        try:
            if chosen.probe.kernel_vsock:
                listener = vsock.listen_kernel(port)
            else:
                listener = vsock.listen_hybrid(self.files.vsock_listener(port), self._uid)
        except OSError as exc:
            raise from_os_error(exc, f"listen for the agent of {self.spec.microvm_id}") from exc
        self._owned.callback(listener.close)
        return listener

    def _lend_sockets(
        self,
        chosen: Chosen,
        commands: tuple[VmmCommand, ...],
        fds: dict[str, int],
        lent: contextlib.ExitStack,
    ) -> None:
        """The VMM's control socket, bound by us so that it needs no directory to write to; and
        the pipe for its events."""
        names = commands[-1].fds
        try:
            if "events" in names:
                fds["events"] = self._group.open_events(
                    chosen.provider.guest_end,
                    functools.partial(chosen.provider.confirm_end, chosen.boot),
                )
            if "api" in names:
                listener = vsock.listen_hybrid(self.files.api_socket, -1)
                lent.callback(listener.close)
                fds["api"] = listener.fileno()
            if "vhost-vsock" in names:
                fds["vhost-vsock"] = os.open("/dev/vhost-vsock", os.O_RDWR | os.O_CLOEXEC)
                lent.callback(os.close, fds["vhost-vsock"])
        except OSError as exc:
            raise from_os_error(exc, f"open the sockets of {self.spec.microvm_id}") from exc

    def _make_cgroup(
        self, commands: tuple[VmmCommand, ...], lent: contextlib.ExitStack
    ) -> list[int]:
        memory_mib = sum(command.memory_mib for command in commands)
        try:
            entries = cgroup.create(
                self.spec.microvm_id,
                memory_bytes=memory_mib << 20,
                pids=MAX_THREADS,
                path=self.spec.cgroup_path,
            )
        except OSError as exc:
            self._group.note(f"no cgroup for this microVM: {exc}")
            return []
        for fd in entries:
            lent.callback(os.close, fd)
        return entries

    def _save_argv(self, commands: tuple[VmmCommand, ...]) -> None:
        """For `hypercore debug`, also after the VMM's death."""
        document = {command.role: list(command.argv) for command in commands}
        try:
            self.files.vmm_argv.write_text(json.dumps(document, indent=1) + "\n")
        except OSError as exc:
            raise from_os_error(exc, f"write {self.files.vmm_argv}") from exc

    async def _spawn(
        self, commands: tuple[VmmCommand, ...], fds: dict[str, int], cgroup_fds: list[int]
    ) -> None:
        confinement = None
        if self.spec.jail:
            self.files.jail_root.mkdir(mode=0o700)
            confinement = vmm.Confinement(
                uid=self._uid,
                gid=self._uid,
                jail_root=self.files.jail_root,
                device_dir=self.files.data,
            )
        for command in commands:
            with self._timed(command.role):
                await self._group.spawn(
                    command,
                    fds=fds,
                    confinement=confinement,
                    cgroup_fds=cgroup_fds,
                    netns_fd=self.attachment.netns_fd if command.role == VMM else -1,
                )
        self._group.all_started()

    async def _ask_until(self, deadline: float, request: Coroutine[Any, Any, None]) -> None:
        """Await a request to the VMM's API; a VMM that ends over it says more by that."""
        try:
            await self._group.unless_exited(
                request, deadline, "its VMM did not take its configuration in time"
            )
        except Unavailable as exc:
            await asyncio.wait({self.exited}, timeout=LAST_WORD_S)
            if not self.exited.done():
                raise
            raise self._group.error() from exc

    async def _accept_agent(self, chosen: Chosen, listener: socket.socket) -> socket.socket:
        while True:
            connection = await vsock.accept(listener)
            if chosen.probe.kernel_vsock:
                known = connection.getpeername()[0] == chosen.boot.cid
            else:
                known = vsock.peer_uid(connection) == max(self._uid, 0)
            if known:
                return connection
            connection.close()

    async def _reach_agent(self, chosen: Chosen, deadline: float) -> None:
        """Meet the agent of a guest whose connections ended with a VM snapshot.

        The guest learns of that by an interrupt, and then ends those made meanwhile as well.
        """

        async def reach() -> None:
            while True:
                try:
                    connection = await vsock.dial_hybrid(
                        self.files.vsock, vsock.SUCCESSOR_PORT, max(self._uid, 0)
                    )
                    await self._greet(chosen.provider, connection)
                except Unavailable:
                    await asyncio.sleep(DIAL_PAUSE_S)
                else:
                    return

        if self._agent is not None:
            self._agent.close()
        await self._group.unless_exited(reach(), deadline, "its agent was not reached in time")

    async def _put_back(self, chosen: Chosen, snapshot_dir: Path) -> Chosen:
        """The choice that goes on from a VM snapshot, whose disks are as they were."""
        vm_features.require(chosen.provider, Feature.SNAPSHOT, "go on from a VM snapshot")
        vm_snapshot.check(snapshot_dir, self._origin(chosen))
        await asyncio.to_thread(vm_snapshot.put_back_disks, snapshot_dir, chosen.boot.disks)
        boot = replace(chosen.boot, snapshot=vm_snapshot.files_in(snapshot_dir))
        return replace(chosen, boot=boot)

    def _origin(self, chosen: Chosen) -> vm_snapshot.Origin:
        addresses = [a for interface in self.attachment.interfaces for a in interface.addresses]
        return vm_snapshot.origin(chosen.provider, chosen.probe, chosen.boot, addresses)

    async def _say_hello(self, provider: Provider, connection: socket.socket) -> None:
        try:
            await self._greet(provider, connection)
        except HypercoreError as exc:
            # An agent that dies takes the guest with it: the VMM's end tells more.
            await asyncio.wait({self.exited}, timeout=LAST_WORD_S)
            if not self.exited.done():
                raise
            raise self._group.error() from exc

    async def _greet(self, provider: Provider, connection: socket.socket) -> None:
        self._agent = await AgentClient.over(connection)
        self._owned.callback(self._agent.close)
        request = agent_pb.HelloRequest(
            hostname=self.spec.hostname,
            interfaces=list(self.attachment.interfaces),
            dns_servers=list(self.attachment.dns_servers),
            dns_search=list(self.attachment.dns_search),
            poweroff=provider.poweroff,
        )
        self.hello = await self._agent.hello(request)
        watching = asyncio.ensure_future(
            heartbeat.watch(self._agent, lambda: self.state == State.RUNNING, self._group.note)
        )
        self._owned.callback(watching.cancel)

    # -- later --

    async def _dial_stream(self, token: bytes, offset: int) -> socket.socket:
        assert self._chosen is not None
        if self._chosen.probe.kernel_vsock:
            connection = await vsock.dial_kernel(self._chosen.boot.cid, vsock.STREAM_PORT)
        else:
            connection = await vsock.dial_hybrid(
                self.files.vsock, vsock.STREAM_PORT, max(self._uid, 0)
            )
        try:
            await vsock.open_stream(connection, token, offset)
        except BaseException:
            connection.close()
            raise
        return connection

    async def _ask_guest(self, deadline: float) -> None:
        try:
            await self.agent.power_off()
        except HypercoreError as exc:
            if not self.exited.done():
                self._group.note(f"the agent did not take the request to turn off: {exc}")
            return
        left = deadline - asyncio.get_running_loop().time()
        await asyncio.wait({self.exited}, timeout=max(0.0, left))
        if not self.exited.done():
            self._group.note("the guest did not turn off in time")

    async def _ask_vmm(self, deadline: float) -> None:
        assert self._chosen is not None
        if not self._chosen.provider.features & Feature.QUIT:
            return
        try:
            await self._chosen.provider.ask_to_stop(self._chosen.boot, deadline)
        except HypercoreError as exc:
            if not self.exited.done():
                self._group.note(f"the VMM did not take the request to end: {exc}")
            return
        left = deadline - asyncio.get_running_loop().time()
        await asyncio.wait({self.exited}, timeout=max(0.0, left))

    def _on_exit(self) -> None:
        if self._agent is not None:
            self._agent.close()  # every call under way ends
        if self.state in (State.RUNNING, State.PAUSED):
            self._advance(State.STOPPED)

    def _require_feature(self, state: State, feature: Feature, what: str) -> Chosen:
        self._require(state)
        assert self._chosen is not None
        vm_features.require(self._chosen.provider, feature, what)
        return self._chosen

    def _require(self, state: State) -> None:
        if self.state != state:
            raise StateError(f"microVM {self.spec.microvm_id} is {self.state}, not {state}")

    def _advance(self, state: State) -> None:
        if state not in _MOVES[self.state]:
            raise StateError(
                f"microVM {self.spec.microvm_id} is {self.state}, it cannot become {state}"
            )
        self.state = state

    @contextlib.contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self.timings[phase] = (time.monotonic() - begun) * 1000


def open_disks(disks: tuple[Disk, ...], fds: dict[str, int], lent: contextlib.ExitStack) -> None:
    for index, disk in enumerate(disks):
        try:
            access = os.O_RDONLY if disk.read_only else os.O_RDWR
            fd = os.open(disk.path, access | os.O_CLOEXEC)
            lent.callback(os.close, fd)
            mode = os.fstat(fd).st_mode
        except OSError as exc:
            raise from_os_error(exc, f"open the disk {disk.path}") from exc
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise InvalidArgument(f"the disk {disk.path} is neither a file nor a block device")
        fds[f"disk{index}"] = fd
