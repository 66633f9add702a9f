"""OCI and docker image documents: which manifest of an index is ours, what an image is made of.

Pure: bytes in, descriptors out. Formats: https://github.com/opencontainers/image-spec.
"""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hypercore.errors import InvalidArgument, NotFound
from hypercore.proto.containerd_types_pb import Descriptor

Document = dict[str, Any]

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"

INDEXES = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
DOCUMENT_LIMIT_BYTES = 8 << 20
"""Largest index, manifest or config taken; registries refuse manifests above 4 MiB."""

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image for one platform."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    """the lowest first"""


def architecture() -> str:
    """This machine's architecture as images name it."""
    return _ARCHITECTURES.get(platform.machine(), platform.machine())


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def parse_document(data: bytes, what: str) -> Document:
    """`data` as a JSON object; InvalidArgument naming `what` if it is none."""
    try:
        document = json.loads(data)
    except ValueError as exc:
        raise InvalidArgument(f"{what} is not JSON: {exc}") from exc
    if not isinstance(document, dict):
        raise InvalidArgument(f"{what} is not a JSON object")
    return document


def media_type_of(document: Mapping[str, Any], declared: str) -> str:
    """Media type of an index or manifest: its own word, else the declared one, else by shape."""
    for candidate in (document.get("mediaType"), declared.partition(";")[0].strip()):
        if isinstance(candidate, str) and candidate in INDEXES | MANIFESTS:
            return candidate
    if document.get("schemaVersion") == 1:
        raise InvalidArgument(
            "the image has a manifest of schema 1, which is no longer supported",
            hint="push it again with a present-day tool",
        )
    return OCI_INDEX if "manifests" in document else OCI_MANIFEST


def descriptor(value: Any, what: str) -> Descriptor:
    """A descriptor out of a document, checked as far as we use it."""
    if not isinstance(value, dict):
        raise InvalidArgument(f"{what} is no descriptor")
    media_type, digest, size = (value.get(key) for key in ("mediaType", "digest", "size"))
    if not isinstance(digest, str) or not digest.startswith("sha256:") or len(digest) != 71:
        raise InvalidArgument(f"{what} has the digest {digest!r}; only sha256 is supported")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise InvalidArgument(f"{what} has the size {size!r}")
    if not isinstance(media_type, str):
        raise InvalidArgument(f"{what} has no media type")
    return Descriptor(media_type=media_type, digest=digest, size=size)


def children(index: Mapping[str, Any]) -> list[Descriptor]:
    """The manifests of an index, in its order."""
    entries = index.get("manifests")
    if not isinstance(entries, list):
        raise InvalidArgument("the image index has no list of manifests")
    return [descriptor(entry, "a manifest of the image index") for entry in entries]


def choose(index: Mapping[str, Any], what: str) -> int:
    """Position of this machine's manifest in an index.

    Raises:
        NotFound: the image is not made for this machine; the message lists what it is made for.
    """
    offered = []
    for number, entry in enumerate(index.get("manifests") or ()):
        wanted = entry.get("platform") if isinstance(entry, dict) else None
        if not isinstance(wanted, dict):
            if len(index["manifests"]) == 1:
                return 0
            continue
        name = "/".join(str(wanted.get(key)) for key in ("os", "architecture"))
        if name == f"linux/{architecture()}":
            return number
        if name != "unknown/unknown":  # attestations
            offered.append(name)
    raise NotFound(
        f"{what} has no image for linux/{architecture()}",
        hint="it is made for: " + (", ".join(dict.fromkeys(offered)) or "nothing"),
    )


def parse_manifest(document: Mapping[str, Any], what: str) -> Manifest:
    layers = document.get("layers")
    if not isinstance(layers, list):
        raise InvalidArgument(f"{what}: its manifest has no list of layers")
    return Manifest(
        config=descriptor(document.get("config"), f"{what}: the config"),
        layers=tuple(descriptor(layer, f"{what}: a layer") for layer in layers),
    )


def diff_ids(config: Mapping[str, Any], what: str) -> list[str]:
    """Digests of the unpacked layers, the lowest first."""
    rootfs = config.get("rootfs")
    ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(ids, list) or not all(isinstance(item, str) for item in ids):
        raise InvalidArgument(f"{what}: its config lists no layers; is it a container image?")
    return ids


def chain_id(ids: Sequence[str]) -> str:
    """Name of the snapshot that holds these layers (image-spec/config.md, "Layer ChainID")."""
    chain = ids[0]
    for diff_id in ids[1:]:
        chain = digest_of(f"{chain} {diff_id}".encode())
    return chain
