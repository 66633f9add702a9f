"""Pulling and importing images for callers far away."""

import asyncio
import os
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from pathlib import Path

from hypercore import paths
from hypercore.containerd import images
from hypercore.containerd.progress import Progress
from hypercore.containerd.registry_auth import Credentials
from hypercore.engine import Engine
from hypercore.errors import HypercoreError, InvalidArgument, from_os_error
from hypercore.inventory import seconds
from hypercore.proto import hypercore_pb as pb
from hypercore.proto.containerd_images_pb import Image

MAX_ARCHIVE_BYTES = 64 << 30


def message(image: Image) -> pb.Image:
    return pb.Image(
        ref=image.name,
        digest=image.target.digest if image.target else "",
        created_at=seconds(image.created_at),
    )


async def pull(
    engine: Engine, request: pb.PullImageRequest
) -> AsyncGenerator[pb.PullProgress, None]:
    """Fetch an image; leaving ends the fetch. A slow reader gets only each step's last state."""
    news: dict[tuple[str, str], Progress] = {}
    wake = asyncio.Event()

    def tell(progress: Progress) -> None:
        news[progress.step, progress.name] = progress
        wake.set()

    if bool(request.username) != bool(request.password):
        raise InvalidArgument("username and password go together", field="username")
    auth = Credentials(request.username, request.password) if request.username else None
    plain_http = True if request.plain_http else None
    job = asyncio.create_task(
        images.pull(engine.client, request.ref, progress=tell, auth=auth, plain_http=plain_http)
    )
    job.add_done_callback(lambda _job: wake.set())
    try:
        while True:
            await wake.wait()
            wake.clear()
            finished = job.done()
            shown, news = news, {}
            for step in shown.values():
                yield pb.PullProgress(
                    step=step.step,
                    name=step.name,
                    done_bytes=step.done_bytes,
                    total_bytes=step.total_bytes,
                )
            if finished:
                image = await job
                yield pb.PullProgress(step="done", name=image.name, image=message(image))
                return
    finally:
        job.cancel()
        with suppress(asyncio.CancelledError, HypercoreError):
            await job


async def load(
    engine: Engine, start: pb.ImportImageStart, inputs: AsyncIterator[pb.ImportImageInput]
) -> pb.ImportImageResponse:
    """Store the images of an archive that comes in pieces."""
    directory = paths.uploads_dir()
    try:
        fd, name = await asyncio.to_thread(_make, directory)
    except OSError as exc:
        raise from_os_error(exc, f"make a file in {directory}") from exc
    archive = Path(name)
    try:
        try:
            size = await _receive(fd, inputs)
        finally:
            os.close(fd)
        if not size:
            raise InvalidArgument("the archive is empty")
        refs = await images.load(engine.client, archive, name=start.name)
    except InvalidArgument as exc:
        # The file's name is ours and says nothing to a caller.
        text = exc.message.replace(str(archive), "the archive")
        raise InvalidArgument(text, hint=exc.hint, field=exc.field) from exc
    finally:
        await asyncio.to_thread(archive.unlink, missing_ok=True)
    return pb.ImportImageResponse(refs=refs)


def _make(directory: Path) -> tuple[int, str]:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return tempfile.mkstemp(prefix="image-", suffix=".tar", dir=directory)


async def _receive(fd: int, inputs: AsyncIterator[pb.ImportImageInput]) -> int:
    size = 0
    async for piece in inputs:
        if piece.data is None:
            raise InvalidArgument("start may only be the first message", field="start")
        size += len(piece.data)
        if size > MAX_ARCHIVE_BYTES:
            raise InvalidArgument(f"the archive is larger than {MAX_ARCHIVE_BYTES} bytes")
        try:
            await asyncio.to_thread(_write_all, fd, piece.data)
        except OSError as exc:
            raise from_os_error(exc, "store the archive") from exc
    return size


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
