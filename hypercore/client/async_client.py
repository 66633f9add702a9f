"""`AsyncClient`: the API for programs that use asyncio. `Client` (sync.py) is made of it.

One class over three transports (HTTP, gRPC, an engine in this process) with the same words,
results and errors. Errors are hypercore.errors: `retryable` ones may be tried again, an
OutcomeUnknown may have happened, all others have not.
"""

import json as stdlib_json
from collections.abc import AsyncIterator, Generator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Self

from hypercore import api_records
from hypercore.api import METHODS
from hypercore.api_records import SpawnResult
from hypercore.attach import ExitStatus
from hypercore.client import address as addresses
from hypercore.client.process import AsyncProcess, run
from hypercore.client.requests import Input, chunks_of, spawn_request
from hypercore.client.results import CheckStep, HostInfo, ImageInfo, Output, RunResult
from hypercore.client.transport import Transport
from hypercore.client.vm import AsyncVM
from hypercore.config import HostConfig
from hypercore.containerd.progress import Progress, ProgressCallback
from hypercore.inventory import Record
from hypercore.observed import Event, Usage
from hypercore.proto import hypercore_pb as pb

CALL_TIMEOUT_S = 60.0
SPAWN_TIMEOUT_S = 600.0


class AsyncClient:
    """A connection to hypercore; use as an async context manager, in one event loop.

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
        self.address = addresses.parse(
            address, token=token, ca=ca, certificate=certificate, key=key
        )
        self._transport = _transport(self.address, config)

    async def __aenter__(self) -> Self:
        await self._transport.open()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._transport.close()

    async def _call(
        self, name: str, request: Any, timeout_s: float | None = CALL_TIMEOUT_S
    ) -> Any:
        return await self._transport.unary(METHODS[name], request, timeout_s)

    async def _stream(
        self, name: str, request: Any, timeout_s: float | None = None
    ) -> AsyncIterator[Any]:
        async with self._transport.stream(METHODS[name], request, timeout_s) as answers:
            async for answer in answers:
                yield answer

    # microVMs

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
    ) -> "Spawning":
        """Run an image in a new microVM.

        `await` it for an AsyncVM. As an async context manager it is removed at the block's end.

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
        request = spawn_request(
            ref,
            args,
            name=name,
            description=description,
            provider=provider,
            cores=cores,
            memory=memory,
            interface=interface,
            network=network,
            ports=ports,
            command=command,
            env=env or {},
            workdir=workdir,
            user=user,
            tty=tty,
            stdin=stdin,
            remove=remove,
            hac=hac,
            idempotency_key=idempotency_key,
        )
        return Spawning(self, request, timeout_s)

    async def spawn_result(self, request: pb.SpawnRequest, timeout_s: float | None) -> SpawnResult:
        """`spawn`, of a request as it is sent."""
        return api_records.spawn_result(await self._call("Spawn", request, timeout_s))

    def vm(self, wanted: str) -> AsyncVM:
        """A microVM by id, unique beginning of it, or name; nothing is asked yet."""
        return AsyncVM(self, wanted)

    async def get(self, wanted: str) -> Record:
        """One microVM. Raises NotFound."""
        return api_records.record(await self._call("Get", pb.MicroVMRequest(id=wanted)))

    async def list(
        self,
        *,
        state: str = "",
        name: str = "",
        image: str = "",
        provider: str = "",
        running: bool = False,
    ) -> list[Record]:
        """All microVMs that pass the filters, the newest first."""
        found: list[Record] = []
        token = ""
        while True:
            request = pb.ListRequest(
                state=state,
                name=name,
                image=image,
                provider=provider,
                running=running,
                page_token=token,
            )
            page = await self._call("List", request)
            found += map(api_records.record, page.microvms)
            token = page.next_page_token
            if not token:
                return found

    async def inspect(self, wanted: str) -> dict[str, Any]:
        """All that is known of a microVM, as a JSON object."""
        answer = await self._call("Inspect", pb.MicroVMRequest(id=wanted))
        found: dict[str, Any] = stdlib_json.loads(answer.document)
        return found

    async def start(self, wanted: str, *, timeout_s: float | None = SPAWN_TIMEOUT_S) -> Record:
        """Start a microVM that has ended, with the disk it had."""
        return await self._changed("Start", pb.MicroVMRequest(id=wanted), timeout_s)

    async def stop(self, wanted: str, *, grace_s: float = 10.0, signal: str = "") -> Record:
        """Ask the command to end; kill it after `grace_s`. Idempotent."""
        request = pb.StopRequest(id=wanted, grace_s=grace_s, signal=signal)
        return await self._changed("Stop", request, grace_s + CALL_TIMEOUT_S)

    async def kill(self, wanted: str, *, signal: str = "KILL") -> Record:
        """Send a signal to the command. Raises StateError when it has ended."""
        return await self._changed("Kill", pb.KillRequest(id=wanted, signal=signal))

    async def pause(self, wanted: str) -> Record:
        """Stop the microVM's processors; idempotent."""
        return await self._changed("Pause", pb.MicroVMRequest(id=wanted))

    async def resume(self, wanted: str) -> Record:
        """Let a paused microVM go on; idempotent."""
        return await self._changed("Resume", pb.MicroVMRequest(id=wanted))

    async def delete(self, wanted: str, *, force: bool = False) -> Record:
        """Remove an ended microVM with its disk and logs; `force` kills a running one first."""
        return await self._changed("Delete", pb.DeleteRequest(id=wanted, force=force))

    async def _changed(
        self, name: str, request: Any, timeout_s: float | None = CALL_TIMEOUT_S
    ) -> Record:
        return api_records.record(await self._call(name, request, timeout_s))

    async def wait(self, wanted: str, *, timeout_s: float | None = None) -> ExitStatus:
        """Wait for the end of the command."""
        request = pb.MicroVMRequest(id=wanted)
        return api_records.exit_status(await self._call("Wait", request, timeout_s))

    # processes and streams

    @asynccontextmanager
    async def exec(
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
    ) -> AsyncIterator[AsyncProcess]:
        """Run one more process in a running microVM; leaving the block ends it."""
        start = pb.ExecStart(
            id=wanted,
            args=list(args),
            env=[f"{key}={value}" for key, value in (env or {}).items()],
            workdir=workdir,
            user=user,
            tty=tty,
            stdin=stdin,
            size=pb.Resize(rows=rows, columns=columns) if rows and columns else None,
        )
        method = METHODS["Exec"]
        async with self._transport.duplex(method, start) as duplex:
            yield await AsyncProcess.begun(duplex, pb.ExecInput)

    @asynccontextmanager
    async def attach(
        self, wanted: str, *, stdin: bool = False, replay: bool = True
    ) -> AsyncIterator[AsyncProcess]:
        """Join the command's streams; leaving the block detaches."""
        start = pb.AttachStart(id=wanted, stdin=stdin, no_replay=not replay)
        async with self._transport.duplex(METHODS["Attach"], start) as duplex:
            yield await AsyncProcess.begun(duplex, pb.AttachInput)

    async def run(
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
        args = ("/bin/sh", "-c", command) if isinstance(command, str) else tuple(command)
        data = input.encode() if isinstance(input, str) else input
        opened = self.exec(wanted, args, env=env, workdir=workdir, user=user, stdin=bool(data))
        result = await run(opened, args, data, timeout_s)
        return result.check() if check else result

    async def logs(
        self, wanted: str, *, follow: bool = False, tail: int | None = None, source: str = "task"
    ) -> AsyncIterator[Output]:
        """What a microVM has printed; `follow` goes on until the command's end."""
        request = pb.LogsRequest(id=wanted, follow=follow, tail=tail, source=source)
        async with aclosing(self._stream("Logs", request)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                yield Output(chunk.stream, chunk.data)

    @asynccontextmanager
    async def events(
        self, wanted: str = "", *, kinds: Sequence[str] = ()
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """What happens inside the block; none is missed once it has been entered."""
        request = pb.EventsRequest(id=wanted, kinds=list(kinds))
        async with self._transport.stream(METHODS["Events"], request, None) as answers:
            yield _as_events(answers)

    async def stats(self, wanted: str) -> Usage:
        """What a running microVM uses now."""
        async for answer in self._stream("Stats", pb.StatsRequest(id=wanted), CALL_TIMEOUT_S):
            return _usage(answer)
        raise RuntimeError("the service gave no figures")

    async def watch_stats(self, wanted: str, *, interval_s: float) -> AsyncIterator[Usage]:
        """What a running microVM uses, each `interval_s`."""
        request = pb.StatsRequest(id=wanted, interval_s=interval_s)
        async for answer in self._stream("Stats", request):
            yield _usage(answer)

    # files

    async def copy_to(
        self, wanted: str, path: str, archive: Input, *, timeout_s: float | None = None
    ) -> int:
        """Unpack a tar archive (bytes, a file, or pieces) into the directory `path` of a microVM.

        Returns:
            how many bytes of the archive were taken.
        """
        start = pb.CopyToStart(id=wanted, path=path)
        method = METHODS["CopyTo"]
        answer = await self._transport.upload(method, start, chunks_of(archive), timeout_s)
        taken: int = answer.bytes_read
        return taken

    async def copy_from(self, wanted: str, path: str) -> AsyncIterator[bytes]:
        """A file or directory of a microVM as the pieces of a tar archive."""
        async for chunk in self._stream("CopyFrom", pb.CopyFromRequest(id=wanted, path=path)):
            yield chunk.data

    # images

    async def pull_image(
        self,
        ref: str,
        *,
        username: str = "",
        password: str = "",
        plain_http: bool = False,
        progress: ProgressCallback | None = None,
    ) -> ImageInfo:
        """Fetch an image from its registry."""
        request = pb.PullImageRequest(
            ref=ref, username=username, password=password, plain_http=plain_http
        )
        async for step in self._stream("PullImage", request):
            if step.image is not None:
                return _image(step.image)
            if progress is not None:
                progress(Progress(step.step, step.name, step.done_bytes, step.total_bytes))
        raise RuntimeError("the service named no image")

    async def list_images(self) -> Sequence[ImageInfo]:
        answer = await self._call("ListImages", pb.ListImagesRequest())
        return tuple(_image(image) for image in answer.images)

    async def remove_image(self, ref: str) -> ImageInfo:
        """Forget an image's name. Raises NotFound."""
        return _image(await self._call("RemoveImage", pb.RemoveImageRequest(ref=ref)))

    async def import_image(
        self, archive: Input, *, name: str = "", timeout_s: float | None = None
    ) -> Sequence[str]:
        """Read images from an archive (bytes, a file, or pieces); returns their names."""
        method, start = METHODS["ImportImage"], pb.ImportImageStart(name=name)
        answer = await self._transport.upload(method, start, chunks_of(archive), timeout_s)
        return tuple(answer.refs)

    # the host

    async def info(self) -> HostInfo:
        answer = await self._call("Info", pb.InfoRequest())
        return HostInfo(
            version=answer.version,
            containerd_version=answer.containerd_version,
            namespace=answer.namespace,
            microvms=answer.microvms,
            running=answer.running,
            providers=tuple(answer.providers),
            started_at=answer.started_at,
        )

    async def check(self) -> Sequence[CheckStep]:
        """Whether the host has what spawning needs."""
        answer = await self._call("Check", pb.CheckRequest())
        return tuple(CheckStep(step.name, step.ready, step.found) for step in answer.steps)


class Spawning:
    """A spawn that begins when it is awaited, or entered."""

    def __init__(
        self, client: AsyncClient, request: pb.SpawnRequest, timeout_s: float | None
    ) -> None:
        self._client = client
        self._request = request
        self._timeout_s = timeout_s
        self._vm: AsyncVM | None = None

    def __await__(self) -> Generator[Any, None, AsyncVM]:
        return self.spawned().__await__()

    async def spawned(self) -> AsyncVM:
        """As `await`."""
        result = await self._client.spawn_result(self._request, self._timeout_s)
        return AsyncVM(self._client, result.record.microvm_id, result)

    async def __aenter__(self) -> AsyncVM:
        self._vm = await self.spawned()
        return self._vm

    async def __aexit__(self, *exc_info: object) -> None:
        if self._vm is not None:
            await self._vm.discard()


def _transport(address: addresses.Address, config: HostConfig | None) -> Transport:
    if address.protocol == "local":
        from hypercore.client.in_process import InProcess

        return InProcess(config)
    if address.protocol == "grpc":
        from hypercore.client.grpc_transport import Grpc

        return Grpc(address)
    from hypercore.client.http_transport import Http

    return Http(address)


async def _as_events(answers: AsyncIterator[Any]) -> AsyncIterator[Event]:
    async for event in answers:
        yield Event(event.kind, event.id, event.at, event.exit_code)


def _usage(answer: pb.StatsResponse) -> Usage:
    return Usage(
        at=answer.at,
        cpu_us=answer.cpu_us,
        memory_bytes=answer.memory_bytes,
        memory_limit_bytes=answer.memory_limit_bytes,
        processes=answer.processes,
        oom_kills=answer.oom_kills,
    )


def _image(image: pb.Image) -> ImageInfo:
    return ImageInfo(image.ref, image.digest, image.created_at)
