"""The engine: orders the steps of spawn, start, stop and rm across rooms, and undoes them.

The only door to anything containerd knows. What happens inside one microVM is microvm.py's, in
the shim server; attach and exec are engine_exec.py, removing is engine_cleanup.py.
"""

import asyncio
import logging
import shlex
import signal as signals
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from hypercore import (
    block,
    boot_files,
    engine_cleanup,
    engine_control,
    engine_copy,
    engine_events,
    engine_exec,
    engine_orphans,
    engine_unikernel,
    firewalls,
    inventory,
    logs,
    oci,
    paths,
    phases,
    ports,
)
from hypercore.attach import ExitStatus
from hypercore.config import HostConfig
from hypercore.config import load as load_config
from hypercore.containerd import containers, images, leases, snapshots, tasks
from hypercore.containerd.client import Client, waits
from hypercore.containerd.progress import ProgressCallback
from hypercore.errors import (
    AlreadyExists,
    HypercoreError,
    InvalidArgument,
    NotFound,
    StateError,
)
from hypercore.hostnet import default_interface
from hypercore.inventory import ALIVE, Record
from hypercore.observed import Event, Usage
from hypercore.privilege import require_root
from hypercore.proto.containerd_version_pb import Version, VersionResponse
from hypercore.proto.types_pb import Empty, Mount
from hypercore.spec import STDIO_URI, MicroVMSpec, SpawnSpec, to_annotations
from hypercore.task_errors import from_start

log = logging.getLogger(__name__)

STOP_GRACE_S = 10.0
SHIM_TIMEOUT_S = 30.0
"""What creating a task may take besides the boot itself."""

Notice = Callable[[str], None]
"""Gets one line for the user: a choice made for them, a step of long work."""


@dataclass(frozen=True, slots=True)
class Spawned:
    """A running microVM."""

    microvm_id: str
    provider: str
    spec: SpawnSpec
    """with every default filled in"""
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    """the engine's phases; `timings` adds the shim server's"""
    waited_ms: float = 0.0
    """what of them was spent waiting for containerd, and through it for the shim server"""


class Engine:
    """Everything hypercore can do, in this process. Use as an async context manager.

    Args:
        config: None: the host's configuration file and environment.
        notice: receives lines for the user.

    Raises (all methods):
        PermissionDenied: not root.
        Unavailable: containerd does not run.
    """

    def __init__(self, config: HostConfig | None = None, *, notice: Notice | None = None) -> None:
        require_root()
        self.config = config or load_config()
        self.notice = notice or (lambda line: None)
        self.client = Client(self.config.containerd_socket, self.config.namespace)

    async def __aenter__(self) -> Self:
        await self.client.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.client.__aexit__(*exc_info)

    async def containerd_version(self) -> str:
        request, reply = Empty(), VersionResponse
        return (await self.client.unary(Version, "Version", request, reply)).version

    # spawn

    async def resolve(self, spec: SpawnSpec) -> SpawnSpec:
        """`spec` with provider, interface and image reference chosen; each choice is a notice."""
        if spec.unikernel is not None:
            return replace(spec, provider=await self._choose_provider(spec.provider))
        await asyncio.to_thread(boot_files.choose, spec.hardware)
        provider = await self._choose_provider(spec.provider)
        network = spec.network
        if network.mode == "nat" and not network.interface:
            interface = default_interface()
            if interface:
                network = replace(network, interface=interface)
            elif network.ports:
                raise InvalidArgument(
                    "ports cannot be published: this host has no default route",
                    hint="name the NIC: interface in hac.toml, or --interface",
                )
            else:
                network = replace(network, mode="none")
                self.notice("network: none, for this host has no default route")
        return replace(spec, ref=images.resolve_ref(spec.ref), provider=provider, network=network)

    async def _choose_provider(self, name: str) -> str:
        from hypercore import providers

        provider, probe = await asyncio.to_thread(providers.choose, self.config, name)
        if not name:
            self.notice(f"provider: {provider.name} ({probe.accelerator})")
        return provider.name

    async def spawn(
        self,
        spec: SpawnSpec,
        *,
        unique_name: bool = False,
        stdin: bool = True,
        remove: bool = False,
        jail: bool = True,
        resolved: Callable[[str, SpawnSpec], None] | None = None,
        progress: ProgressCallback | None = None,
    ) -> Spawned:
        """Run an image in a new microVM; returns once its command runs.

        On failure or cancellation nothing of it is left.

        Args:
            spec: `resolve` is applied to it.
            unique_name: refuse a name that another microVM has.
            stdin: the command has a stdin that clients may attach to; else /dev/null.
            remove: the microVM is removed once it has ended.
            jail: confine the VMM; False is for debugging.
            resolved: told the id and the spec with all choices made, before anything is made.
            progress: told what is being pulled.

        Raises:
            InvalidArgument, NotFound: the spec or its image.
            TaskError: the command cannot be run.
            VmmError: the guest did not come up.
        """
        clock = Clock()
        with waits() as waited_s:
            await self.containerd_version()
            spec = await self.resolve(spec)
            if unique_name and spec.name:
                await self._require_free_name(spec.name)
            await asyncio.to_thread(ports.check_free, spec.network.ports)
            if spec.network.mode == "nat" and (
                closed := await asyncio.to_thread(firewalls.closed)
            ):
                self.notice(
                    f"network: guests do not get out, {closed[0]} drops: {closed[0].remedy}"
                )
            await asyncio.to_thread(block.require_space, paths.data_dir())
            clock.lap("resolve")
            microvm_id = str(uuid.uuid4())
            if resolved is not None:
                resolved(microvm_id, spec)
            where = paths.MicroVMPaths(paths.microvm_id(self.client.namespace, microvm_id))
            async with engine_cleanup.spawn_lock(where), AsyncExitStack() as undo:
                undo.push_async_callback(engine_cleanup.discard_state, where)
                if spec.unikernel is not None:
                    mounts: Sequence[Mount] = ()
                    await engine_unikernel.create_container(
                        self.client,
                        microvm_id,
                        spec,
                        stdin=stdin,
                        remove=remove,
                        jail=jail,
                        undo=undo,
                    )
                else:
                    mounts = await self._create_rooted(
                        microvm_id,
                        spec,
                        undo,
                        clock,
                        progress,
                        stdin=stdin,
                        remove=remove,
                        jail=jail,
                    )
                clock.lap("container")
                undo.push_async_callback(engine_cleanup.end_task_quietly, self.client, microvm_id)
                await self._create_task(microvm_id, mounts, spec.workload.tty, stdin)
                clock.lap("task create")
                await self._start_task(microvm_id)
                clock.lap("task start")
                undo.pop_all()
        return Spawned(microvm_id, spec.provider, spec, clock.laps_ms, 1000 * sum(waited_s))

    async def _create_rooted(
        self,
        microvm_id: str,
        spec: SpawnSpec,
        undo: AsyncExitStack,
        clock: "Clock",
        progress: ProgressCallback | None,
        **options: bool,
    ) -> Sequence[Mount]:
        """The container of an image, and the mounts of its snapshot."""
        async with leases.lease(self.client, f"spawn {microvm_id}") as leased:
            image = await self._image(leased, spec.ref, progress)
            clock.lap("image")
            undo.push_async_callback(self._undo, snapshots.remove, microvm_id)
            mounts = await snapshots.view(
                leased,
                microvm_id,
                image.chain_id,
                labels={inventory.LABEL_OWNER: inventory.OWNER},
            )
            clock.lap("snapshot")
            undo.push_async_callback(self._undo, containers.delete, microvm_id)
            user = await engine_exec.resolve_user(oci.user_of(image.config, spec.workload), mounts)
            await self._create_container(
                leased,
                microvm_id,
                spec,
                image.config,
                user=user,
                **options,
            )
        return mounts

    async def _undo(self, step: Callable[[Client, str], Awaitable[None]], microvm_id: str) -> None:
        try:
            await step(self.client, microvm_id)
        except HypercoreError as exc:
            log.warning("undo of spawn %s, %s: %s", microvm_id, step.__module__, exc)

    async def _require_free_name(self, name: str) -> None:
        for record in await inventory.list_all(self.client):
            if record.name == name:
                raise AlreadyExists(
                    f"the name {name!r} is taken by microVM {record.microvm_id}",
                    hint=f"choose another, or `hypercore rm -f {record.microvm_id[:12]}`",
                )

    async def _image(
        self, leased: Client, ref: str, progress: ProgressCallback | None
    ) -> images.Unpacked:
        """The unpacked image; it is pulled if containerd has none of that name."""
        if await images.get(leased, ref) is None:
            self.notice(f"image {ref} is not here: pulling it")
            await images.pull(leased, ref, progress=progress)
        return await images.ensure_unpacked(leased, ref, progress=progress)

    async def _create_container(
        self,
        leased: Client,
        microvm_id: str,
        spec: SpawnSpec,
        image_config: Mapping[str, Any],
        *,
        user: oci.Document,
        stdin: bool,
        remove: bool,
        jail: bool,
    ) -> None:
        hostname = spec.hostname or microvm_id[:12]
        annotations = to_annotations(
            MicroVMSpec(
                microvm_id=microvm_id,
                provider=spec.provider,
                hardware=spec.hardware,
                network=spec.network,
                cmdline=spec.cmdline,
                jail=jail,
                hostname=hostname,
            )
        )
        annotations[inventory.LABEL_OWNER] = inventory.OWNER
        if remove:
            annotations[inventory.LABEL_REMOVE] = "true"
        config = oci.runtime_config(
            microvm_id,
            image_config,
            spec.workload,
            user=user,
            hostname=hostname,
            annotations=annotations,
        )
        image = image_config.get("config") or {}
        labels = inventory.labels_for(
            name=spec.name,
            description=spec.description,
            provider=spec.provider,
            command=shlex.join(config["process"]["args"]),
            tty=spec.workload.tty,
            stdin=stdin,
            remove=remove,
            ports=",".join(map(str, spec.network.ports)),
            stop_signal=str(image.get("StopSignal") or ""),
        )
        await containers.create(
            leased,
            microvm_id,
            image=spec.ref,
            spec=config,
            snapshotter=snapshots.BLOCKFILE,
            snapshot_key=microvm_id,
            labels=labels,
        )

    async def _create_task(
        self, microvm_id: str, mounts: Sequence[Mount], tty: bool, stdin: bool
    ) -> None:
        try:
            await tasks.create(
                self.client,
                microvm_id,
                mounts,
                stdin=STDIO_URI if stdin or tty else "",
                stdout=STDIO_URI,
                stderr="" if tty else STDIO_URI,
                terminal=tty,
                timeout_s=self.config.boot_timeout_s + SHIM_TIMEOUT_S,
            )
        except HypercoreError as exc:
            raise from_start(exc) from exc

    async def _start_task(self, microvm_id: str) -> None:
        try:
            await tasks.start(self.client, microvm_id)
        except HypercoreError as exc:
            raise from_start(exc) from exc

    # what there is

    async def list(self) -> list[Record]:
        """All microVMs, the newest first. Those to be removed once ended are removed first."""
        records = await inventory.list_all(self.client)
        removed = [record for record in records if await self.remove_ended(record)]
        return [record for record in records if record not in removed]

    async def find(self, wanted: str) -> Record:
        """By id, id prefix or name; see inventory.find."""
        return await inventory.find(self.client, wanted)

    async def find_paths(self, wanted: str) -> paths.MicroVMPaths:
        """Where a microVM's files are, also of one whose records are gone.

        Raises:
            NotFound: no trace of it.
        """
        try:
            task_id = (await self.find(wanted)).microvm_id
            return paths.MicroVMPaths(paths.microvm_id(self.client.namespace, task_id))
        except NotFound:
            microvm_id = engine_orphans.orphan_id(wanted)
            if not microvm_id:
                raise
            return paths.MicroVMPaths(microvm_id)

    async def remove_image(self, ref: str) -> str:
        """Forget an image's name; returns it in full.

        Raises:
            NotFound: there is none of that name.
        """
        name = images.resolve_ref(ref)
        if await images.get(self.client, name) is None:
            raise NotFound(f"no image {name}", hint="`hypercore images` lists all")
        await images.delete(self.client, name, sync=True)
        return name

    async def inspect(self, wanted: str) -> dict[str, Any]:
        """All that is known of a microVM, as a JSON object."""
        record = await self.find(wanted)
        container = await containers.get(self.client, record.microvm_id)
        where = paths.MicroVMPaths(record.microvm_id)
        return {
            "id": record.microvm_id,
            "name": record.name,
            "description": record.description,
            "image": record.image,
            "provider": record.provider,
            "state": str(record.state),
            "status": record.status,
            "pid": record.pid,
            "exit_code": record.exit_code,
            "created_at": record.created_at,
            "exited_at": record.exited_at,
            "labels": dict(container.labels),
            "snapshot": {"snapshotter": container.snapshotter, "key": container.snapshot_key},
            "data_dir": str(where.data),
            "run_dir": str(where.run),
            "config": containers.spec_of(container),
        }

    # life cycle

    async def start(self, wanted: str) -> Record:
        """Start a microVM that has ended, with the disk it had. Idempotent for a running one."""
        record = await self.find(wanted)
        self._require_owned(record)
        task_id = record.microvm_id
        where = paths.MicroVMPaths(paths.microvm_id(self.client.namespace, task_id))
        async with engine_cleanup.spawn_lock(where):
            record = await self.find(task_id)
            if record.state in ALIVE:
                return record
            await asyncio.to_thread(block.require_space, where.data)
            # An ended one, or what containerd has not yet forgotten of one whose shim died.
            await engine_cleanup.end_task(self.client, task_id)
            mounts = await engine_unikernel.mounts_of(self.client, task_id)
            async with AsyncExitStack() as undo:
                undo.push_async_callback(engine_cleanup.discard_run_state, where)
                undo.push_async_callback(engine_cleanup.end_task_quietly, self.client, task_id)
                await self._create_task(task_id, mounts, record.tty, record.stdin)
                await self._start_task(task_id)
                undo.pop_all()
        return record

    async def kill(self, wanted: str, signal: int = signals.SIGKILL) -> Record:
        """Send a signal to the microVM's init process.

        Raises:
            StateError: it does not run.
        """
        record = await self.find(wanted)
        if record.state not in ALIVE:
            raise StateError(
                f"microVM {record.microvm_id} does not run: {record.status}",
                hint=f"`hypercore start {record.microvm_id[:12]}` starts it",
            )
        try:
            await tasks.kill(self.client, record.microvm_id, signal)
        except NotFound as exc:
            raise StateError(f"microVM {record.microvm_id} has just ended") from exc
        return record

    async def pause(self, wanted: str) -> Record:
        """Stop the microVM's processors; idempotent. Returns the record as it was before."""
        record = await self.find(wanted)
        await engine_control.pause(self.client, record)
        return record

    async def resume(self, wanted: str) -> Record:
        """Let a paused microVM go on; idempotent. Returns the record as it was before."""
        record = await self.find(wanted)
        await engine_control.resume(self.client, record)
        return record

    async def usage(self, wanted: str) -> Usage:
        """What a running microVM's container uses now."""
        return await engine_control.usage(self.client, await self.find(wanted))

    def events(self) -> AsyncGenerator[Event | None, None]:
        """What happens from now on; see engine_events.subscribe."""
        return engine_events.subscribe(self.client)

    async def signal(self, record: Record, signum: int) -> None:
        """Pass a signal to the init process; nothing happens if it has ended."""
        with suppress(NotFound, StateError):
            await tasks.kill(self.client, record.microvm_id, signum)

    async def stop(self, wanted: str, grace_s: float = STOP_GRACE_S, *, signal: int = 0) -> Record:
        """Ask the init process to end; kill it after `grace_s`. Idempotent.

        Args:
            signal: what asks it; 0: the image's stop signal, or SIGTERM.

        Returns:
            the record as it was before.
        """
        record = await self.find(wanted)
        if record.state in ALIVE:
            await engine_cleanup.stop_task(self.client, record, grace_s, signal)
        return record

    async def wait(self, wanted: str) -> ExitStatus:
        """Wait until the microVM's init process has ended."""
        return await engine_exec.wait(self.client, await self.find(wanted))

    async def remove(self, wanted: str, *, force: bool = False) -> Record:
        """Remove an ended microVM with its disk and logs; `force` kills a running one first.

        Raises:
            StateError: it runs and `force` is not given.
        """
        record = await self.find(wanted)
        self._require_owned(record)
        if record.state in ALIVE and not force:
            raise StateError(
                f"microVM {record.microvm_id} is {record.state}",
                hint=f"stop it first, or `hypercore rm -f {record.microvm_id[:12]}`",
            )
        await self._delete(record)
        return record

    async def remove_ended(self, record: Record) -> bool:
        """Remove a microVM that was to be removed once ended, if it has; whether it has.

        One that is only being set up has no task yet either, and stays.
        """
        if not record.owned or not await engine_orphans.has_ended(self.client, record):
            return False
        await self._delete(record)
        return True

    async def _delete(self, record: Record) -> None:
        await engine_cleanup.delete_microvm(self.client, record.microvm_id)

    def _require_owned(self, record: Record) -> None:
        if not record.owned:
            raise StateError(
                f"container {record.microvm_id} was made by another client of containerd",
                hint="use that client, for example `ctr` or `nerdctl`",
            )

    async def cleanup(
        self, wanted: Sequence[str] = (), *, everything: bool = False
    ) -> Sequence[str]:
        """Reclaim what is left behind; see engine_orphans. Idempotent.

        Args:
            wanted: microVMs to remove whatever their state; none: all that is dead or orphaned.
            everything: all of ours, also what runs.

        Returns:
            what was reclaimed, one line each.
        """
        if not wanted:
            return await engine_orphans.cleanup(self.client, everything=everything)
        reclaimed = []
        for text in wanted:
            if microvm_id := await self._id_for_cleanup(text):
                reclaimed += await engine_cleanup.delete_microvm(self.client, microvm_id)
        return reclaimed

    async def _id_for_cleanup(self, text: str) -> str:
        """An id for which there may be nothing in containerd any more; "" when nothing is left."""
        try:
            return (await self.find(text)).microvm_id
        except NotFound:
            return engine_orphans.orphan_id(text)

    # stdio

    def log_files(self, record: Record, source: str) -> Sequence[tuple[Path, int]]:
        """Log files and the fd (1 or 2) each belongs on.

        Args:
            source: task, console or vmm.
        """
        where = paths.MicroVMPaths(paths.microvm_id(self.client.namespace, record.microvm_id))
        return {
            "task": ((where.stdout_log, 1), (where.stderr_log, 2)),
            "console": ((where.console_log, 1),),
            "vmm": ((where.vmm_log, 1),),
        }[source]

    def timings(self, spawned: Spawned) -> dict[str, dict[str, float]]:
        """Milliseconds by phase: "engine", "shim", and what of both is "ours" (phases.py)."""
        where = paths.MicroVMPaths(paths.microvm_id(self.client.namespace, spawned.microvm_id))
        shim = logs.timings(where)
        ours = phases.ours(spawned.timings_ms, spawned.waited_ms, shim.get("shim", {}))
        return {"engine": dict(spawned.timings_ms)} | shim | {"ours": ours}

    def attach(
        self,
        record: Record,
        stdin_fd: int | None = None,
        stdout_fd: int | None = None,
        stderr_fd: int | None = None,
        *,
        replay: bool = True,
    ) -> AbstractAsyncContextManager[engine_exec.Stdio]:
        """Attach pipe ends to the task; see attach.connect."""
        return engine_exec.attach(
            self.client,
            record,
            stdin_fd=stdin_fd,
            stdout_fd=stdout_fd,
            stderr_fd=stderr_fd,
            replay=replay,
        )

    def exec(
        self,
        record: Record,
        args: Sequence[str],
        *,
        env: Sequence[str] = (),
        workdir: str = "",
        user: str = "",
        stdin: bool = False,
        tty: bool = False,
    ) -> AbstractAsyncContextManager[engine_exec.Exec]:
        """Prepare a process in a running microVM; leaving the context ends and forgets it."""
        return engine_exec.exec_in(
            self.client, record, args, env=env, workdir=workdir, user=user, stdin=stdin, tty=tty
        )

    async def copy_to(
        self,
        record: Record,
        source: str,
        path: str,
        *,
        preserve_ownership: bool = False,
        follow: bool = False,
    ) -> None:
        """Copy a file or directory of the host into a running microVM; see engine_copy."""
        namespace, keep = self.client.namespace, preserve_ownership
        await engine_copy.copy_to(
            namespace, record, source, path, preserve_ownership=keep, follow=follow
        )

    async def copy_from(
        self,
        record: Record,
        path: str,
        target: str,
        *,
        options: engine_copy.Options | None = None,
        follow: bool = False,
    ) -> Sequence[str]:
        """Copy a file or directory of a running microVM to the host; what was left out."""
        namespace, how = self.client.namespace, options or engine_copy.Options()
        return await engine_copy.copy_from(
            namespace, record, path, target, options=how, follow=follow
        )


class Clock:
    """Wall time of consecutive phases."""

    def __init__(self) -> None:
        self.laps_ms: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, phase: str) -> None:
        now = time.monotonic()
        self.laps_ms[phase] = round((now - self._last) * 1000, 3)
        self._last = now
