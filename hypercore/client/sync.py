"""Generated from its asynchronous twins by scripts/syncgen.py; do not edit.

The library for programs without asyncio: the same words, results and errors.
"""

import builtins
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from hypercore.api_records import SpawnResult
from hypercore.attach import ExitStatus
from hypercore.client.async_client import (
    SPAWN_TIMEOUT_S,
    AsyncClient,
)
from hypercore.client.portal import Portal
from hypercore.client.process import AsyncProcess
from hypercore.client.requests import Input
from hypercore.client.results import (
    CheckStep,
    FileInfo,
    HostInfo,
    ImageInfo,
    Output,
    RunResult,
)
from hypercore.client.vm import AsyncFiles, AsyncVM
from hypercore.config import HostConfig
from hypercore.containerd.progress import ProgressCallback
from hypercore.inventory import Record
from hypercore.observed import Event, Usage


class Process:
    """A running process. `outputs` must be read, or it waits; `wait` reads and drops the rest."""

    def __init__(self, portal: Portal, twin: AsyncProcess) -> None:
        self._portal = portal
        self._async = twin

    @property
    def tty(self) -> bool:
        """Whether it has a terminal: its stderr is in its stdout then."""
        return self._async.tty

    def outputs(self) -> Iterator[Output]:
        """What it prints, until it has ended."""
        return self._portal.iterate(self._async.outputs())

    def wait(self) -> ExitStatus:
        """How it ended."""
        return self._portal.call(self._async.wait())

    def write(self, data: bytes) -> None:
        """Pass `data` to its stdin."""
        return self._portal.call(self._async.write(data))

    def close_stdin(self) -> None:
        """EOF for the process, after all that was written."""
        return self._portal.call(self._async.close_stdin())

    def resize(self, rows: int, columns: int) -> None:
        return self._portal.call(self._async.resize(rows, columns))

    def kill(self, signal: str = "KILL") -> None:
        return self._portal.call(self._async.kill(signal))


class Files:
    """A microVM's files. Paths are absolute; whole files, in memory."""

    def __init__(self, portal: Portal, twin: AsyncFiles) -> None:
        self._portal = portal
        self._async = twin

    def read(self, path: str) -> bytes:
        """A file's bytes; a link's are its target's.

        Raises:
            NotFound: there is none.
            InvalidArgument: it is a directory.
        """
        return self._portal.call(self._async.read(path))

    def read_text(self, path: str) -> str:
        return self._portal.call(self._async.read_text(path))

    def write(self, path: str, data: bytes | str, *, mode: int = 420) -> None:
        """Make or replace a file; its directory must be there."""
        return self._portal.call(self._async.write(path, data, mode=mode))

    def list(self, path: str) -> builtins.list[FileInfo]:
        """What is in a directory, by name. Raises InvalidArgument when it is none."""
        return self._portal.call(self._async.list(path))


class VM:
    """A microVM. As a context manager it is removed at the end of the block."""

    def __init__(self, portal: Portal, twin: AsyncVM) -> None:
        self._portal = portal
        self._async = twin

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.discard()

    @property
    def id(self) -> str:
        """Its id; what was asked for, if the client did not spawn it."""
        return self._async.id

    @property
    def spawned(self) -> SpawnResult | None:
        """How it was spawned, if this client did."""
        return self._async.spawned

    @property
    def files(self) -> Files:
        return Files(self._portal, self._async.files)

    @property
    def timings_ms(self) -> Mapping[str, Mapping[str, float]]:
        """How long the spawn's phases took, by room (engine, shim)."""
        return self._async.timings_ms

    def record(self) -> Record:
        """What it is now."""
        return self._portal.call(self._async.record())

    def run(
        self,
        command: str | Sequence[str],
        *,
        input: bytes | str = b"",
        env: Mapping[str, str] | None = None,
        workdir: str = "",
        user: str = "",
        check: bool = False,
        timeout_s: float | None = None,
    ) -> RunResult:
        """Run a command to its end; see AsyncClient.run."""
        return self._portal.call(
            self._async.run(
                command,
                input=input,
                env=env,
                workdir=workdir,
                user=user,
                check=check,
                timeout_s=timeout_s,
            )
        )

    @contextmanager
    def exec(
        self,
        args: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        workdir: str = "",
        user: str = "",
        tty: bool = False,
        stdin: bool = False,
        rows: int = 0,
        columns: int = 0,
    ) -> Iterator[Process]:
        """Run a process whose streams are in the block's hands."""
        with self._portal.entered(
            self._async.exec(
                args,
                env=env,
                workdir=workdir,
                user=user,
                tty=tty,
                stdin=stdin,
                rows=rows,
                columns=columns,
            )
        ) as twin:
            yield Process(self._portal, twin)

    @contextmanager
    def attach(self, *, stdin: bool = False, replay: bool = True) -> Iterator[Process]:
        """Join the command's streams."""
        with self._portal.entered(self._async.attach(stdin=stdin, replay=replay)) as twin:
            yield Process(self._portal, twin)

    def logs(
        self, *, follow: bool = False, tail: int | None = None, source: str = "task"
    ) -> Iterator[Output]:
        """What it has printed."""
        return self._portal.iterate(self._async.logs(follow=follow, tail=tail, source=source))

    def stats(self) -> Usage:
        return self._portal.call(self._async.stats())

    def inspect(self) -> dict[str, Any]:
        return self._portal.call(self._async.inspect())

    def wait(self, *, timeout_s: float | None = None) -> ExitStatus:
        """Wait for the end of its command."""
        return self._portal.call(self._async.wait(timeout_s=timeout_s))

    def start(self) -> Record:
        return self._portal.call(self._async.start())

    def stop(self, *, grace_s: float = 10.0, signal: str = "") -> Record:
        return self._portal.call(self._async.stop(grace_s=grace_s, signal=signal))

    def kill(self, *, signal: str = "KILL") -> Record:
        return self._portal.call(self._async.kill(signal=signal))

    def pause(self) -> Record:
        return self._portal.call(self._async.pause())

    def resume(self) -> Record:
        return self._portal.call(self._async.resume())

    def delete(self, *, force: bool = False) -> Record:
        """Remove it with its disk and logs; `force` kills it first."""
        return self._portal.call(self._async.delete(force=force))

    def discard(self) -> None:
        """Remove it, whatever its state; nothing happens if it is gone."""
        return self._portal.call(self._async.discard())


class Client:
    """A connection to hypercore; use as a context manager.

    Args:
        address: where the service is (hypercore.client.address); None: HYPERCORE_ADDRESS, or the
            unix socket of this host. "local:" needs no service.
        token: for TCP; None: HYPERCORE_TOKEN.
        ca: file with the CA of the server's certificate; None: those the host trusts.
        certificate, key: files of ours, for servers that ask for one.
        config: of the engine, with "local:" alone.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        token: str | None = None,
        ca: Path | None = None,
        certificate: Path | None = None,
        key: Path | None = None,
        config: HostConfig | None = None,
    ) -> None:
        self._portal = Portal()
        self._async = AsyncClient(
            address, token=token, ca=ca, certificate=certificate, key=key, config=config
        )

    def __enter__(self) -> Self:
        self._portal.open()
        try:
            self._portal.call(self._async.__aenter__())
        except BaseException:
            self._portal.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self._portal.call(self._async.__aexit__(*exc_info))
        finally:
            self._portal.close()

    def spawn(
        self,
        ref: str = "",
        *args: str,
        name: str = "",
        description: str = "",
        provider: str = "",
        cores: int | None = None,
        memory: int | None = None,
        interface: str = "",
        network: str = "",
        ports: Sequence[str] = (),
        command: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        workdir: str = "",
        user: str = "",
        tty: bool = False,
        stdin: bool = True,
        remove: bool = False,
        hac: str = "",
        idempotency_key: str = "",
        timeout_s: float | None = SPAWN_TIMEOUT_S,
    ) -> VM:
        """Run an image in a new microVM.

        The VM is removed at the block's end.

        Args:
            ref: the image; may be in `hac`.
            args: replace the image's command, `command` its entrypoint.
            memory: MiB.
            network: nat, bridge or none.
            remove: remove the microVM once it has ended.
            hac: the text of a hac.toml; the other arguments are laid over it.
            idempotency_key: calls with the same key and arguments make one microVM.

        Raises:
            InvalidArgument: with `field`.
            TaskError: the command cannot be run.
            OutcomeUnknown: the connection broke, and there was no idempotency key.
        """
        spawning = self._async.spawn(
            ref,
            *args,
            name=name,
            description=description,
            provider=provider,
            cores=cores,
            memory=memory,
            interface=interface,
            network=network,
            ports=ports,
            command=command,
            env=env,
            workdir=workdir,
            user=user,
            tty=tty,
            stdin=stdin,
            remove=remove,
            hac=hac,
            idempotency_key=idempotency_key,
            timeout_s=timeout_s,
        )
        return VM(self._portal, self._portal.call(spawning.spawned()))

    def vm(self, wanted: str) -> VM:
        """A microVM by id, unique beginning of it, or name; nothing is asked yet."""
        return VM(self._portal, self._async.vm(wanted))

    def get(self, wanted: str) -> Record:
        """One microVM. Raises NotFound."""
        return self._portal.call(self._async.get(wanted))

    def list(
        self,
        *,
        state: str = "",
        name: str = "",
        image: str = "",
        provider: str = "",
        running: bool = False,
    ) -> builtins.list[Record]:
        """All microVMs that pass the filters, the newest first."""
        return self._portal.call(
            self._async.list(
                state=state, name=name, image=image, provider=provider, running=running
            )
        )

    def inspect(self, wanted: str) -> dict[str, Any]:
        """All that is known of a microVM, as a JSON object."""
        return self._portal.call(self._async.inspect(wanted))

    def start(self, wanted: str, *, timeout_s: float | None = SPAWN_TIMEOUT_S) -> Record:
        """Start a microVM that has ended, with the disk it had."""
        return self._portal.call(self._async.start(wanted, timeout_s=timeout_s))

    def stop(self, wanted: str, *, grace_s: float = 10.0, signal: str = "") -> Record:
        """Ask the command to end; kill it after `grace_s`. Idempotent."""
        return self._portal.call(self._async.stop(wanted, grace_s=grace_s, signal=signal))

    def kill(self, wanted: str, *, signal: str = "KILL") -> Record:
        """Send a signal to the command. Raises StateError when it has ended."""
        return self._portal.call(self._async.kill(wanted, signal=signal))

    def pause(self, wanted: str) -> Record:
        """Stop the microVM's processors; idempotent."""
        return self._portal.call(self._async.pause(wanted))

    def resume(self, wanted: str) -> Record:
        """Let a paused microVM go on; idempotent."""
        return self._portal.call(self._async.resume(wanted))

    def delete(self, wanted: str, *, force: bool = False) -> Record:
        """Remove an ended microVM with its disk and logs; `force` kills a running one first."""
        return self._portal.call(self._async.delete(wanted, force=force))

    def wait(self, wanted: str, *, timeout_s: float | None = None) -> ExitStatus:
        """Wait for the end of the command."""
        return self._portal.call(self._async.wait(wanted, timeout_s=timeout_s))

    @contextmanager
    def exec(
        self,
        wanted: str,
        args: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        workdir: str = "",
        user: str = "",
        tty: bool = False,
        stdin: bool = False,
        rows: int = 0,
        columns: int = 0,
    ) -> Iterator[Process]:
        """Run one more process in a running microVM; leaving the block ends it."""
        with self._portal.entered(
            self._async.exec(
                wanted,
                args,
                env=env,
                workdir=workdir,
                user=user,
                tty=tty,
                stdin=stdin,
                rows=rows,
                columns=columns,
            )
        ) as twin:
            yield Process(self._portal, twin)

    @contextmanager
    def attach(
        self, wanted: str, *, stdin: bool = False, replay: bool = True
    ) -> Iterator[Process]:
        """Join the command's streams; leaving the block detaches."""
        with self._portal.entered(self._async.attach(wanted, stdin=stdin, replay=replay)) as twin:
            yield Process(self._portal, twin)

    def run(
        self,
        wanted: str,
        command: str | Sequence[str],
        *,
        input: bytes | str = b"",
        env: Mapping[str, str] | None = None,
        workdir: str = "",
        user: str = "",
        check: bool = False,
        timeout_s: float | None = None,
    ) -> RunResult:
        """Run a command to its end and collect what it prints.

        Args:
            command: a text goes to `/bin/sh -c`, a sequence is run as it is.
            input: its stdin.
            check: raise TaskError when it fails.

        Raises:
            DeadlineExceeded: it has not ended in time; it is killed.
        """
        return self._portal.call(
            self._async.run(
                wanted,
                command,
                input=input,
                env=env,
                workdir=workdir,
                user=user,
                check=check,
                timeout_s=timeout_s,
            )
        )

    def logs(
        self, wanted: str, *, follow: bool = False, tail: int | None = None, source: str = "task"
    ) -> Iterator[Output]:
        """What a microVM has printed; `follow` goes on until the command's end."""
        return self._portal.iterate(
            self._async.logs(wanted, follow=follow, tail=tail, source=source)
        )

    @contextmanager
    def events(self, wanted: str = "", *, kinds: Sequence[str] = ()) -> Iterator[Iterator[Event]]:
        """What happens inside the block; none is missed once it has been entered."""
        with self._portal.entered(self._async.events(wanted, kinds=kinds)) as twin:
            yield self._portal.iterate(twin)

    def stats(self, wanted: str) -> Usage:
        """What a running microVM uses now."""
        return self._portal.call(self._async.stats(wanted))

    def watch_stats(self, wanted: str, *, interval_s: float) -> Iterator[Usage]:
        """What a running microVM uses, each `interval_s`."""
        return self._portal.iterate(self._async.watch_stats(wanted, interval_s=interval_s))

    def copy_to(
        self, wanted: str, path: str, archive: Input, *, timeout_s: float | None = None
    ) -> int:
        """Unpack a tar archive (bytes, a file, or pieces) into the directory `path` of a microVM.

        Returns:
            how many bytes of the archive were taken.
        """
        return self._portal.call(self._async.copy_to(wanted, path, archive, timeout_s=timeout_s))

    def copy_from(self, wanted: str, path: str) -> Iterator[bytes]:
        """A file or directory of a microVM as the pieces of a tar archive."""
        return self._portal.iterate(self._async.copy_from(wanted, path))

    def pull_image(
        self,
        ref: str,
        *,
        username: str = "",
        password: str = "",
        plain_http: bool = False,
        progress: ProgressCallback | None = None,
    ) -> ImageInfo:
        """Fetch an image from its registry."""
        return self._portal.call(
            self._async.pull_image(
                ref, username=username, password=password, plain_http=plain_http, progress=progress
            )
        )

    def list_images(self) -> Sequence[ImageInfo]:
        return self._portal.call(self._async.list_images())

    def remove_image(self, ref: str) -> ImageInfo:
        """Forget an image's name. Raises NotFound."""
        return self._portal.call(self._async.remove_image(ref))

    def import_image(
        self, archive: Input, *, name: str = "", timeout_s: float | None = None
    ) -> Sequence[str]:
        """Read images from an archive (bytes, a file, or pieces); returns their names."""
        return self._portal.call(self._async.import_image(archive, name=name, timeout_s=timeout_s))

    def info(self) -> HostInfo:
        return self._portal.call(self._async.info())

    def check(self) -> Sequence[CheckStep]:
        """Whether the host has what spawning needs."""
        return self._portal.call(self._async.check())
