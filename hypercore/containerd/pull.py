"""An image from a registry into containerd's store, by us: registry → content → image → snapshot.

containerd's own transfer service cannot speak plain HTTP before 2.0 and tells no progress.
"""

import asyncio
from collections.abc import Coroutine, Iterable

from hypercore.containerd import content, images, leases
from hypercore.containerd.client import Client
from hypercore.containerd.manifest import (
    INDEXES,
    Manifest,
    children,
    choose,
    media_type_of,
    parse_document,
    parse_manifest,
)
from hypercore.containerd.progress import Progress, ProgressCallback, ignore
from hypercore.containerd.reference import parse
from hypercore.containerd.registry import Registry
from hypercore.containerd.registry_auth import Credentials
from hypercore.proto.containerd_images_pb import Image
from hypercore.proto.containerd_types_pb import Descriptor

DOWNLOADS_AT_ONCE = 3


async def pull(
    client: Client,
    ref: str,
    *,
    progress: ProgressCallback | None = None,
    auth: Credentials | None = None,
    plain_http: bool | None = None,
) -> Image:
    """Fetch an image for this machine, name it and unpack it.

    What is here already is not fetched again. When it fails or is cancelled, nothing is left of
    what was fetched.

    Args:
        ref: any form; the image is stored under its canonical name.
        auth: None: docker's stored login, if there is one.
        plain_http: None: only for registries on this machine.

    Raises:
        NotFound: the image does not exist, or not for this machine.
        PermissionDenied: the registry refuses us.
        Unavailable: the registry does not answer.
        InvalidArgument: bad reference, or the image is broken.
        ResourceExhausted: the disk is full.
    """
    reference = parse(ref)
    name = str(reference)
    tell = progress or ignore
    registry = Registry(reference, credentials=auth, plain_http=plain_http)
    tell(Progress("resolve", name))
    data, declared = await registry.manifest(reference.digest or reference.tag)
    what = f"image {name}"
    document = parse_document(data, f"{what}: its manifest")
    media_type = media_type_of(document, declared)
    index: tuple[bytes, str, dict[str, str]] | None = None
    if media_type in INDEXES:
        number = choose(document, what)
        chosen = children(document)[number]
        index = data, media_type, content.index_labels(number, chosen)
        data, declared = await registry.manifest(chosen.digest)
        document = parse_document(data, f"{what}: its manifest")
        media_type = media_type_of(document, declared or chosen.media_type)
    manifest = parse_manifest(document, what)
    async with leases.ensure(client, f"pull {name}") as leased:
        await _fetch_blobs(leased, registry, manifest, tell)
        references = content.image_labels(manifest.config, manifest.layers)
        target = await images.add_manifest(leased, data, media_type, references=references)
        if index is not None:
            target = await images.add_manifest(leased, index[0], index[1], references=index[2])
        await images.set_target(leased, name, target)
        await images.ensure_unpacked(leased, name, progress=tell)
    return Image(name=name, target=target)


async def _fetch_blobs(
    client: Client, registry: Registry, manifest: Manifest, tell: ProgressCallback
) -> None:
    blobs = {blob.digest: blob for blob in (manifest.config, *manifest.layers)}
    for blob in blobs.values():
        tell(Progress("download", blob.digest, 0, blob.size))
    places = asyncio.Semaphore(DOWNLOADS_AT_ONCE)

    async def fetch(blob: Descriptor) -> None:
        def received(count: int) -> None:
            tell(Progress("download", blob.digest, count, blob.size))

        async with places:
            if await content.info(client, blob.digest) is not None:
                tell(Progress("exists", blob.digest, blob.size, blob.size))
                return
            chunks = registry.blob(blob.digest, blob.size, received)
            await content.write(client, blob.digest, blob.size, chunks)

    await _all_of(fetch(blob) for blob in blobs.values())


async def _all_of(steps: Iterable[Coroutine[None, None, None]]) -> None:
    """Run all at once; the first failure cancels the others and is raised alone."""
    try:
        async with asyncio.TaskGroup() as group:
            for step in steps:
                group.create_task(step)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
