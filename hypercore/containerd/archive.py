"""Images out of archive files: OCI layouts in a tar, and what `docker save` writes.

Formats: https://github.com/opencontainers/image-spec/blob/main/image-layout.md;
https://github.com/moby/moby/blob/master/image/spec/v1.2.md. The archive is not trusted: every
blob's digest is checked by containerd, nothing is written but its store.
"""

import asyncio
import json
import posixpath
import tarfile
from collections.abc import AsyncGenerator, Mapping
from contextlib import ExitStack, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from hypercore.containerd import content, images, leases
from hypercore.containerd.client import Client
from hypercore.containerd.manifest import (
    DOCUMENT_LIMIT_BYTES,
    INDEXES,
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    children,
    choose,
    descriptor,
    diff_ids,
    digest_of,
    media_type_of,
    parse_document,
    parse_manifest,
)
from hypercore.containerd.progress import Progress, ProgressCallback, ignore
from hypercore.containerd.reference import resolve_ref
from hypercore.errors import InvalidArgument, from_os_error
from hypercore.proto.containerd_types_pb import Descriptor

_NAME_ANNOTATIONS = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
_COMPRESSIONS = {b"\x1f\x8b": "+gzip", b"\x28\xb5\x2f\xfd": "+zstd"}


async def load(
    client: Client, file: Path, *, name: str = "", progress: ProgressCallback | None = None
) -> list[str]:
    """Store, name and unpack the images in an archive; returns their canonical names.

    When it fails or is cancelled, nothing is left of what was stored.

    Args:
        name: instead of the names in the archive, which must then hold one image.

    Raises:
        NotFound: no such file, or no image for this machine in it.
        InvalidArgument: it is no image archive, or its images have no names.
        ResourceExhausted: the disk is full.
    """
    given = resolve_ref(name) if name else ""
    archive = await asyncio.to_thread(_Archive, file)
    try:
        async with leases.ensure(client, f"load {file}") as leased:
            loader = _Loader(leased, archive, progress or ignore)
            if archive.has("index.json"):
                found = await loader.oci_layout()
            elif archive.has("manifest.json"):
                found = await loader.docker_archive()
            else:
                raise InvalidArgument(
                    f"{file} is no image archive: it has neither index.json nor manifest.json",
                    hint="make one with `docker save` or `skopeo copy … oci-archive:FILE`",
                )
            named = _names(file, found, given)
            for ref, target in named.items():
                await images.set_target(leased, ref, target)
                await images.ensure_unpacked(leased, ref, progress=progress)
    finally:
        archive.close()
    return list(named)


def _names(
    file: Path, found: list[tuple[Descriptor, list[str]]], given: str
) -> dict[str, Descriptor]:
    if given:
        if len(found) != 1:
            raise InvalidArgument(f"{file} holds {len(found)} images: one name is not enough")
        return {given: found[0][0]}
    named = {ref: target for target, refs in found for ref in refs}
    if not named:
        raise InvalidArgument(f"{file} holds no named image", hint="give a name with --name")
    return named


class _Archive:
    """A tar file whose members are read by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with ExitStack() as undo:
                self._tar = undo.enter_context(tarfile.open(path))
                self._members = {posixpath.normpath(entry.name): entry for entry in self._tar}
                undo.pop_all()
        except tarfile.TarError as exc:
            raise InvalidArgument(f"{path} is no tar archive: {exc}") from exc
        except EOFError as exc:
            raise InvalidArgument(f"{path} is cut short") from exc
        except OSError as exc:
            raise from_os_error(exc, f"read {path}") from exc

    def close(self) -> None:
        self._tar.close()

    def has(self, name: str) -> bool:
        return posixpath.normpath(name) in self._members

    def open(self, name: str) -> tuple[BufferedReader, int]:
        """The member's file and its size."""
        entry = self._members.get(posixpath.normpath(name))
        file = None
        with suppress(KeyError):  # a link to what is not in the archive
            file = self._tar.extractfile(entry) if entry else None
        if not isinstance(file, BufferedReader):
            raise InvalidArgument(f"{self.path} lacks the file {name}")
        size = file.seek(0, 2)
        file.seek(0)
        return file, size

    def document(self, name: str) -> bytes:
        file, size = self.open(name)
        if size > DOCUMENT_LIMIT_BYTES:
            raise InvalidArgument(f"{self.path}: {name} is larger than {DOCUMENT_LIMIT_BYTES}")
        return file.read()


class _Loader:
    """Moves one archive's blobs into the store."""

    def __init__(self, client: Client, archive: _Archive, progress: ProgressCallback) -> None:
        self._client = client
        self._archive = archive
        self._progress = progress

    async def oci_layout(self) -> list[tuple[Descriptor, list[str]]]:
        index = await self._json("index.json")
        found = []
        for entry in index.get("manifests") or ():
            target = descriptor(entry, f"{self._archive.path}: an entry of index.json")
            if target.media_type in INDEXES or self._archive.has(_blob_path(target.digest)):
                found.append((await self._oci_image(target), _annotated_names(entry)))
        return found

    async def _oci_image(self, target: Descriptor) -> Descriptor:
        what = str(self._archive.path)
        data = await self._blob_document(target.digest)
        document = parse_document(data, f"{what}: {target.digest}")
        media_type = media_type_of(document, target.media_type)
        if media_type in INDEXES:
            number = choose(document, what)
            child = await self._oci_image(children(document)[number])
            references = content.index_labels(number, child)
            return await images.add_manifest(self._client, data, media_type, references=references)
        manifest = parse_manifest(document, what)
        for blob in (manifest.config, *manifest.layers):
            await self._store(blob, _blob_path(blob.digest))
        return await images.add_manifest(
            self._client,
            data,
            media_type,
            references=content.image_labels(manifest.config, manifest.layers),
        )

    async def docker_archive(self) -> list[tuple[Descriptor, list[str]]]:
        path = self._archive.path
        try:
            entries = json.loads(await self._document("manifest.json"))
        except ValueError as exc:
            raise InvalidArgument(f"{path}: manifest.json is not JSON: {exc}") from exc
        if not isinstance(entries, list) or not all(isinstance(item, dict) for item in entries):
            raise InvalidArgument(f"{path}: manifest.json is no list of images")
        found = []
        for entry in entries:
            layers = entry.get("Layers") or []
            config = await self._document(str(entry.get("Config")))
            target = await self._docker_image(config, [str(layer) for layer in layers])
            found.append((target, [resolve_ref(tag) for tag in entry.get("RepoTags") or ()]))
        return found

    async def _docker_image(self, config: bytes, paths: list[str]) -> Descriptor:
        what = str(self._archive.path)
        ids = diff_ids(parse_document(config, f"{what}: an image's config"), what)
        if len(ids) != len(paths):
            raise InvalidArgument(f"{what}: an image has {len(paths)} layers, {len(ids)} digests")
        layers = []
        for path, diff_id in zip(paths, ids, strict=True):
            layer = await asyncio.to_thread(self._describe, path, diff_id)
            await self._store(layer, path)
            layers.append(layer)
        config_target = Descriptor(
            media_type=OCI_CONFIG, digest=digest_of(config), size=len(config)
        )
        await content.write_bytes(self._client, config, config_target.digest)
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": _plain(config_target),
            "layers": [_plain(layer) for layer in layers],
        }
        data = json.dumps(manifest, separators=(",", ":")).encode()
        return await images.add_manifest(
            self._client,
            data,
            OCI_MANIFEST,
            references=content.image_labels(config_target, layers),
        )

    def _describe(self, path: str, diff_id: str) -> Descriptor:
        """A layer's descriptor; docker's archives say neither its digest nor its compression."""
        import hashlib

        file, size = self._archive.open(path)
        head = file.read(4)
        suffix = next((s for magic, s in _COMPRESSIONS.items() if head.startswith(magic)), "")
        digest = diff_id
        if suffix:
            file.seek(0)
            digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        return Descriptor(media_type=f"{OCI_LAYER}{suffix}", digest=digest, size=size)

    async def _store(self, blob: Descriptor, path: str) -> None:
        if await content.info(self._client, blob.digest) is not None:
            self._progress(Progress("exists", blob.digest, blob.size, blob.size))
            return
        await content.write(self._client, blob.digest, blob.size, self._chunks(blob, path))

    async def _chunks(self, blob: Descriptor, path: str) -> AsyncGenerator[bytes, None]:
        file, _size = self._archive.open(path)
        done = 0
        while True:
            try:
                chunk = await asyncio.to_thread(file.read, content.CHUNK_BYTES)
            except (tarfile.TarError, EOFError, OSError) as exc:
                raise InvalidArgument(f"{self._archive.path}: {path}: {exc}") from exc
            if not chunk:
                return
            done += len(chunk)
            self._progress(Progress("load", blob.digest, done, blob.size))
            yield chunk

    async def _blob_document(self, digest: str) -> bytes:
        data = await self._document(_blob_path(digest))
        if digest_of(data) != digest:
            raise InvalidArgument(f"{self._archive.path}: blob {digest} is {digest_of(data)}")
        return data

    async def _document(self, path: str) -> bytes:
        return await asyncio.to_thread(self._archive.document, path)

    async def _json(self, path: str) -> dict[str, Any]:
        return parse_document(await self._document(path), f"{self._archive.path}: {path}")


def _annotated_names(entry: Mapping[str, Any]) -> list[str]:
    annotations = entry.get("annotations")
    if not isinstance(annotations, dict):
        return []
    for key in _NAME_ANNOTATIONS:
        text = str(annotations.get(key, ""))
        # ref.name is often a bare tag, which names nothing.
        if text and (key == _NAME_ANNOTATIONS[0] or any(c in text for c in "/:")):
            return [resolve_ref(text)]
    return []


def _blob_path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _plain(target: Descriptor) -> dict[str, Any]:
    return {"mediaType": target.media_type, "digest": target.digest, "size": target.size}
