"""containerd's images: named, listed, removed, made from documents and blobs.

Where the bytes come from is registry.py's and archive.py's business; what a snapshot of an image
is, unpack.py's.
"""

from collections.abc import Mapping
from contextlib import suppress

from hypercore.containerd import content
from hypercore.containerd.client import Client
from hypercore.containerd.manifest import digest_of
from hypercore.containerd.reference import Reference, parse, resolve_ref
from hypercore.containerd.unpack import Unpacked, ensure_unpacked
from hypercore.containerd.unpack import get_image as get
from hypercore.errors import AlreadyExists, NotFound
from hypercore.proto.containerd_images_pb import (
    CreateImageRequest,
    CreateImageResponse,
    DeleteImageRequest,
    Image,
    Images,
    ListImagesRequest,
    ListImagesResponse,
    UpdateImageRequest,
    UpdateImageResponse,
)
from hypercore.proto.containerd_types_pb import Descriptor, FieldMask
from hypercore.proto.types_pb import Empty

__all__ = [
    "Reference",
    "Unpacked",
    "add_image",
    "delete",
    "ensure_unpacked",
    "get",
    "list_all",
    "parse",
    "resolve_ref",
    "set_target",
]


async def list_all(client: Client, *filters: str) -> list[Image]:
    """Images that pass any of the filters (containerd's syntax); none given: all."""
    request = ListImagesRequest(filters=list(filters))
    return (await client.unary(Images, "List", request, ListImagesResponse)).images


async def set_target(client: Client, ref: str, target: Descriptor) -> None:
    """Have the canonical name `ref` mean `target`, whatever it meant before."""
    image = Image(name=ref, target=target)
    try:
        await client.unary(Images, "Create", CreateImageRequest(image=image), CreateImageResponse)
    except AlreadyExists:
        request = UpdateImageRequest(image=image, update_mask=FieldMask(paths=["target"]))
        await client.unary(Images, "Update", request, UpdateImageResponse)


async def delete(client: Client, ref: str, *, sync: bool = False) -> None:
    """Forget the name; idempotent. What nothing else refers to is collected, `sync`: at once."""
    with suppress(NotFound):
        await client.unary(Images, "Delete", DeleteImageRequest(name=ref, sync=sync), Empty)


async def add_image(
    client: Client,
    ref: str,
    manifest: bytes,
    media_type: str,
    *,
    references: Mapping[str, str],
) -> Descriptor:
    """Write a manifest or index whose blobs are there, and name it.

    Args:
        references: labels that keep its blobs (content.reference_labels).
    """
    target = Descriptor(media_type=media_type, digest=digest_of(manifest), size=len(manifest))
    await content.write_bytes(client, manifest, target.digest, labels=references)
    await set_target(client, ref, target)
    return target
