"""What the API's methods do: a request checked, the engine called, its answer as a message.

One function a method, the same for gRPC, HTTP and the library in process. Authentication has
happened; errors are hypercore.errors.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import hypercore
from hypercore import api_records, providers
from hypercore.api import checked_id
from hypercore.config import HostConfig
from hypercore.containerd import images
from hypercore.engine import STOP_GRACE_S, Engine
from hypercore.errors import HypercoreError, InvalidArgument, NotFound, Unavailable
from hypercore.inventory import ALIVE, Record, seconds
from hypercore.observed import EVENT_KINDS
from hypercore.proto import hypercore_pb as pb
from hypercore.serve import copies, image_jobs, streams
from hypercore.serve.callers import Caller
from hypercore.serve.figures import Figures
from hypercore.serve.requests import checked_signal
from hypercore.serve.spawning import Spawner
from hypercore.serve.watch import Watch

MAX_PAGE = 1000
MIN_INTERVAL_S = 0.2
FOLLOW_TIMEOUT_S = 15.0
MAX_GRACE_S = 3600.0
SOURCES = ("task", "console", "vmm")
T = TypeVar("T")


class Service:
    """The methods, in snake case. `run` keeps what they share until it is cancelled."""

    def __init__(
        self, engine: Engine, config: HostConfig, *, figures: Figures | None = None
    ) -> None:
        self.engine = engine
        self.figures = figures or Figures()
        self.watch = Watch(engine, ended=self._on_end)
        self.spawner = Spawner(engine, self.watch, self.figures)
        self._config = config
        self._started_at = time.time()
        self._sessions: Counter[str] = Counter()
        self._session_left = asyncio.Event()
        self._ended: asyncio.Queue[Record] = asyncio.Queue()
        self._containerd_version = ""

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.watch.run())
            group.create_task(self._remove_ended(group))

    # what there is

    async def get(self, request: pb.MicroVMRequest, caller: Caller) -> pb.MicroVM:
        return (await self.watch.find(checked_id(request.id))).message

    async def list(self, request: pb.ListRequest, caller: Caller) -> pb.ListResponse:
        found = await self.watch.entries()
        if request.state or request.name or request.image or request.provider or request.running:
            image = images.resolve_ref(request.image) if request.image else ""
            found = [entry for entry in found if _passes(entry.record, request, image)]
        size = request.page_size or MAX_PAGE
        if size > MAX_PAGE:
            raise InvalidArgument(f"page_size {size}: {MAX_PAGE} at the most", field="page_size")
        if request.page_token:
            found = _after(found, request.page_token)
        page = found[:size]
        token = ""
        if len(found) > size:
            last = page[-1].record
            token = f"{last.created_at!r}/{last.microvm_id}"
        return pb.ListResponse(microvms=[entry.message for entry in page], next_page_token=token)

    async def inspect(self, request: pb.MicroVMRequest, caller: Caller) -> pb.InspectResponse:
        document = await self.engine.inspect(checked_id(request.id))
        return pb.InspectResponse(document=json.dumps(document, default=str))

    async def info(self, request: pb.InfoRequest, caller: Caller) -> pb.InfoResponse:
        if not self._containerd_version:
            self._containerd_version = await self.engine.containerd_version()
        records = [entry.record for entry in await self.watch.entries()]
        return pb.InfoResponse(
            version=hypercore.__version__,
            containerd_version=self._containerd_version,
            namespace=self.engine.client.namespace,
            microvms=len(records),
            running=sum(record.state in ALIVE for record in records),
            providers=list(providers.NAMES),
            started_at=self._started_at,
        )

    async def check(self, request: pb.CheckRequest, caller: Caller) -> pb.CheckResponse:
        from hypercore import host_setup

        found = await host_setup.check(self._config)
        steps = [pb.CheckStep(name=n, ready=f.ready, found=f.text) for n, f in found]
        return pb.CheckResponse(ready=all(step.ready for step in steps), steps=steps)

    # life cycle

    async def spawn(self, request: pb.SpawnRequest, caller: Caller) -> pb.SpawnResponse:
        return await self.spawner.spawn(request, caller)

    async def start(self, request: pb.MicroVMRequest, caller: Caller) -> pb.MicroVM:
        return await self._changed(request.id, self.engine.start)

    async def stop(self, request: pb.StopRequest, caller: Caller) -> pb.MicroVM:
        grace_s = STOP_GRACE_S if request.grace_s is None else request.grace_s
        if not 0 <= grace_s <= MAX_GRACE_S:
            raise InvalidArgument(
                f"grace_s {grace_s:g}: must be 0 to {MAX_GRACE_S:g}", field="grace_s"
            )
        signal = checked_signal(request.signal, 0)
        return await self._changed(
            request.id, lambda wanted: self.engine.stop(wanted, grace_s, signal=signal)
        )

    async def kill(self, request: pb.KillRequest, caller: Caller) -> pb.MicroVM:
        signal = checked_signal(request.signal, 9)
        return await self._changed(request.id, lambda wanted: self.engine.kill(wanted, signal))

    async def pause(self, request: pb.MicroVMRequest, caller: Caller) -> pb.MicroVM:
        return await self._changed(request.id, self.engine.pause)

    async def resume(self, request: pb.MicroVMRequest, caller: Caller) -> pb.MicroVM:
        return await self._changed(request.id, self.engine.resume)

    async def delete(self, request: pb.DeleteRequest, caller: Caller) -> pb.MicroVM:
        record = await self.engine.remove(checked_id(request.id), force=request.force)
        await self.watch.gone(record.microvm_id)
        self.figures.reclaimed["microvm"] += 1
        return api_records.microvm(record)

    async def wait(self, request: pb.MicroVMRequest, caller: Caller) -> pb.ExitStatus:
        record = (await self.watch.find(checked_id(request.id))).record
        return api_records.exit_message(await self.engine.wait(record.microvm_id))

    async def _changed(
        self, wanted: str, change: Callable[[str], Awaitable[Record]]
    ) -> pb.MicroVM:
        record = await change(checked_id(wanted))
        try:
            return (await self.watch.refreshed(record.microvm_id)).message
        except NotFound:  # it was to be removed once ended, and is
            return api_records.microvm(record)

    # streams: what is awaited checks and opens, what it returns yields

    async def exec(
        self, inputs: AsyncIterator[pb.ExecInput], caller: Caller
    ) -> AsyncGenerator[pb.ProcessOutput, None]:
        start = (await streams.first(inputs)).start
        if start is None:
            raise streams.no_start("ExecInput")
        record = (await self.watch.find(checked_id(start.id))).record
        streams.check_exec(start)
        outputs = streams.exec_(self.engine, record, start, inputs, self.figures.stream_bytes)
        return self._joined(record.microvm_id, outputs)

    async def attach(
        self, inputs: AsyncIterator[pb.AttachInput], caller: Caller
    ) -> AsyncGenerator[pb.ProcessOutput, None]:
        start = (await streams.first(inputs)).start
        if start is None:
            raise streams.no_start("AttachInput")
        record = (await self.watch.find(checked_id(start.id))).record
        outputs = streams.attach(self.engine, record, start, inputs, self.figures.stream_bytes)
        return self._joined(record.microvm_id, outputs)

    async def logs(
        self, request: pb.LogsRequest, caller: Caller
    ) -> AsyncGenerator[pb.LogChunk, None]:
        source = request.source or "task"
        if source not in SOURCES:
            raise InvalidArgument(
                f"source {source[:40]!r}: must be one of {', '.join(SOURCES)}", field="source"
            )
        if request.follow and source != "task":
            raise InvalidArgument("follow is for source task", field="follow")
        record = (await self.watch.find(checked_id(request.id))).record
        files = self.engine.log_files(record, source)
        skip = await streams.tail(files, request.tail)
        chunks = (
            streams.follow(self.engine, record, skip)
            if request.follow
            else streams.read_logs(files, skip)
        )
        return self._joined(record.microvm_id, chunks)

    async def events(
        self, request: pb.EventsRequest, caller: Caller
    ) -> AsyncGenerator[pb.Event, None]:
        for kind in request.kinds:
            if kind not in EVENT_KINDS:
                raise InvalidArgument(
                    f"kinds: {kind[:40]!r} is none of {', '.join(EVENT_KINDS)}",
                    field="kinds",
                )
        wanted = checked_id(request.id) if request.id else ""
        try:
            async with asyncio.timeout(FOLLOW_TIMEOUT_S):
                await self.watch.wait_synced()
        except TimeoutError as exc:
            raise Unavailable(
                "containerd's events are not followed", hint="is containerd running?"
            ) from exc
        watcher = await self.watch.watcher(wanted, request.kinds)
        return streams.events(watcher)

    async def stats(
        self, request: pb.StatsRequest, caller: Caller
    ) -> AsyncGenerator[pb.StatsResponse, None]:
        interval_s = request.interval_s
        if interval_s and not MIN_INTERVAL_S <= interval_s <= MAX_GRACE_S:
            raise InvalidArgument(
                f"interval_s {interval_s:g}: must be 0, or {MIN_INTERVAL_S} to {MAX_GRACE_S:g}",
                field="interval_s",
            )
        microvm_id = (await self.watch.find(checked_id(request.id))).record.microvm_id
        first = await self.engine.usage(microvm_id)
        return streams.stats(self.engine, microvm_id, first, interval_s)

    # images

    async def list_images(
        self, request: pb.ListImagesRequest, caller: Caller
    ) -> pb.ListImagesResponse:
        found = await images.list_all(self.engine.client)
        return pb.ListImagesResponse(
            images=[image_jobs.message(image) for image in sorted(found, key=lambda i: i.name)]
        )

    async def remove_image(self, request: pb.RemoveImageRequest, caller: Caller) -> pb.Image:
        name = images.resolve_ref(_required(request.ref, "ref"))
        image = await images.get(self.engine.client, name)
        await self.engine.remove_image(name)
        return pb.Image(
            ref=name,
            digest=image.target.digest if image and image.target else "",
            created_at=seconds(image.created_at) if image else 0.0,
        )

    async def pull_image(
        self, request: pb.PullImageRequest, caller: Caller
    ) -> AsyncGenerator[pb.PullProgress, None]:
        images.parse(_required(request.ref, "ref"))
        return image_jobs.pull(self.engine, request)

    async def import_image(
        self, inputs: AsyncIterator[pb.ImportImageInput], caller: Caller
    ) -> pb.ImportImageResponse:
        first = await streams.first(inputs)
        if first.start is None:
            raise streams.no_start("ImportImageInput")
        return await image_jobs.load(self.engine, first.start, inputs)

    # files

    async def copy_to(
        self, inputs: AsyncIterator[pb.CopyToInput], caller: Caller
    ) -> pb.CopyToResponse:
        start = (await streams.first(inputs)).start
        if start is None:
            raise streams.no_start("CopyToInput")
        path = copies.checked_path(start.path)
        record = (await self.watch.find(checked_id(start.id))).record
        return await copies.copy_to(self.engine.client.namespace, record, path, inputs)

    async def copy_from(
        self, request: pb.CopyFromRequest, caller: Caller
    ) -> AsyncGenerator[pb.DataChunk, None]:
        path = copies.checked_path(request.path)
        record = (await self.watch.find(checked_id(request.id))).record
        chunks = copies.copy_from(self.engine.client.namespace, record, path)
        # What cannot be copied is told before anything is sent.
        return await streams.begun(chunks)

    # removal of what was to be removed once ended

    async def _joined(
        self, microvm_id: str, outputs: AsyncGenerator[T, None]
    ) -> AsyncGenerator[T, None]:
        """Pass `outputs` on, and keep the microVM from being removed meanwhile."""
        self._sessions[microvm_id] += 1
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    yield output
        finally:
            self._sessions[microvm_id] -= 1
            if not self._sessions[microvm_id]:
                del self._sessions[microvm_id]
            self._session_left.set()

    def _on_end(self, record: Record) -> None:
        if record.remove and record.owned:
            self._ended.put_nowait(record)

    async def _remove_ended(self, group: asyncio.TaskGroup) -> None:
        while True:
            group.create_task(self._remove_one(await self._ended.get()))

    async def _remove_one(self, record: Record) -> None:
        """Remove it once all who read its output here have it."""
        while self._sessions[record.microvm_id]:
            self._session_left.clear()
            await self._session_left.wait()
        try:
            if await self.engine.remove_ended(record):
                self.figures.reclaimed["microvm"] += 1
        except NotFound:
            return
        except HypercoreError as exc:
            streams.log.warning("cannot remove %s, which has ended: %s", record.microvm_id, exc)


def _required(text: str, field: str) -> str:
    if not text:
        raise InvalidArgument(f"{field} is missing", field=field)
    return text


def _passes(record: Record, wanted: pb.ListRequest, image: str) -> bool:
    return (
        (not wanted.state or record.state == wanted.state)
        and (not wanted.name or record.name == wanted.name)
        and (not image or record.image == image)
        and (not wanted.provider or record.provider == wanted.provider)
        and (not wanted.running or record.state in ALIVE)
    )


def _after(found: Sequence[Any], token: str) -> Sequence[Any]:
    """The entries older than the one a page ended with, whether that is still there or not."""
    created, slash, microvm_id = token.partition("/")
    try:
        last = (float(created), checked_id(microvm_id))
    except (ValueError, InvalidArgument):
        slash = ""
    if not slash:
        raise InvalidArgument("page_token is none that List gave", field="page_token")
    for number, entry in enumerate(found):
        if entry.record.microvm_id == last[1]:
            return found[number + 1 :]
    return [entry for entry in found if entry.record.created_at < last[0]]


def methods(service: Service) -> Mapping[str, Callable[..., Any]]:
    """The service's functions by the method's name."""
    from hypercore.api import METHODS

    return {name: getattr(service, _snake(name)) for name in METHODS}


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).removeprefix("_")
