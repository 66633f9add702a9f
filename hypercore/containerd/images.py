"""containerd's images: pulled, loaded, named, listed, removed.

Where the bytes come from is registry.py's and archive.py's business; what a snapshot of an image
is, unpack.py's.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hypercore.containerd import content
from hypercore.containerd.client import Client
from hypercore.containerd.manifest import digest_of
from hypercore.containerd.progress import ProgressCallback
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

if TYPE_CHECKING:
    from hypercore.containerd.registry_auth import Credentials

__all__ = [
    "Reference",
    "Unpacked",
    "add_manifest",
    "delete",
    "ensure_unpacked",
    "get",
    "list_all",
    "load",
    "parse",
    "pull",
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


async def add_manifest(
    client: Client, data: bytes, media_type: str, *, references: Mapping[str, str]
) -> Descriptor:
    """Write a manifest or index; returns what names it. `client` must be under a lease.

    Args:
        references: labels that keep alive what it refers to (content.image_labels).
    """
    target = Descriptor(media_type=media_type, digest=digest_of(data), size=len(data))
    await content.write_bytes(client, data, target.digest, labels=references)
    return target


async def pull(
    client: Client,
    ref: str,
    *,
    progress: ProgressCallback | None = None,
    auth: "Credentials | None" = None,
    plain_http: bool | None = None,
) -> Image:
    """Fetch an image from its registry, name it and unpack it; all of it is in pull.py."""
    from hypercore.containerd.pull import pull

    return await pull(client, ref, progress=progress, auth=auth, plain_http=plain_http)


async def load(
    client: Client, file: Path, *, name: str = "", progress: ProgressCallback | None = None
) -> list[str]:
    """Read images from an archive file, name and unpack them; all of it is in archive.py."""
    from hypercore.containerd.archive import load

    return await load(client, file, name=name, progress=progress)
