"""The demo image: one static busybox and a greeting, made on this host, so that the first
`hypercore spawn` needs no registry. The same busybox gives the same image, byte for byte.
"""

import gzip
import io
import json
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypercore.containerd import content, images, leases
from hypercore.containerd.client import Client
from hypercore.containerd.manifest import (
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    architecture,
    digest_of,
    parse_manifest,
)
from hypercore.errors import Unavailable

NAME = "docker.io/hypercore/hello:latest"

_GREETING = """\
#!/bin/sh
echo "Hello from a microVM of hypercore."
echo "kernel: $(uname -sr) on $(uname -m), host name: $(hostname)"
"""
_DIRECTORIES = "bin dev etc proc root run sys tmp usr usr/bin var"
_FILES = {
    "bin/hello": (_GREETING, 0o755),
    "etc/group": ("root:x:0:\nnogroup:x:65534:\n", 0o644),
    "etc/hosts": ("127.0.0.1 localhost\n::1 localhost\n", 0o644),
    "etc/os-release": ('ID=hypercore-hello\nPRETTY_NAME="hypercore demo image"\n', 0o644),
    "etc/passwd": (
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
        0o644,
    ),
}


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """An image in memory."""

    manifest: bytes
    blobs: Mapping[str, bytes]
    """config and layers by digest"""

    @property
    def digest(self) -> str:
        return digest_of(self.manifest)


def build(busybox: Path) -> BuiltImage:
    """The image around the static busybox at `busybox`.

    Raises:
        Unavailable: the program does not run here.
    """
    config = {"Cmd": ["/bin/hello"], "Env": ["PATH=/bin:/usr/bin"], "WorkingDir": "/"}
    return assemble([_layer(busybox)], config)


def assemble(layers: Sequence[bytes], config: Mapping[str, Any]) -> BuiltImage:
    """An image of these layers, tar archives, the lowest first.

    Args:
        config: the image config's `config` object: Cmd, Env, User …
    """
    blobs = {}
    descriptors = []
    for layer in layers:
        packed = gzip.compress(layer, 6, mtime=0)
        blobs[digest_of(packed)] = packed
        descriptors.append(_descriptor(f"{OCI_LAYER}+gzip", packed))
    config_document = {
        "architecture": architecture(),
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
    }
    config_bytes = _json(config_document)
    blobs[digest_of(config_bytes)] = config_bytes
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": _descriptor(OCI_CONFIG, config_bytes),
        "layers": descriptors,
    }
    return BuiltImage(_json(manifest), blobs)


async def ensure(client: Client, busybox: Path) -> bool:
    """Import and unpack the demo image unless it is there; returns whether it was made."""
    built = build(busybox)
    have = await images.get(client, NAME)
    made = have is None or have.target is None or have.target.digest != built.digest
    async with leases.lease(client, f"import {NAME}") as leased:
        if made:
            await store(leased, built, NAME)
        await images.ensure_unpacked(leased, NAME)
    return made


async def store(client: Client, built: BuiltImage, name: str) -> None:
    """Write a built image into containerd's store; `client` must be under a lease."""
    for digest, data in built.blobs.items():
        await content.write_bytes(client, data, digest)
    manifest = parse_manifest(json.loads(built.manifest), name)
    references = content.image_labels(manifest.config, manifest.layers)
    target = await images.add_manifest(client, built.manifest, OCI_MANIFEST, references=references)
    await images.set_target(client, name, target)


def _layer(busybox: Path) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in _DIRECTORIES.split():
            entry = tarfile.TarInfo(name)
            entry.type = tarfile.DIRTYPE
            entry.mode = {"tmp": 0o1777, "root": 0o700}.get(name, 0o755)
            tar.addfile(entry)
        for name, (text, mode) in sorted(_FILES.items()):
            _add(tar, name, text.encode(), mode)
        _add(tar, "bin/busybox", busybox.read_bytes(), 0o755)
        for applet in _applets(busybox):
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type = tarfile.SYMTYPE
            entry.linkname = "busybox"
            tar.addfile(entry)
    return file.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    entry.mode = mode
    tar.addfile(entry, io.BytesIO(data))


def _applets(busybox: Path) -> list[str]:
    try:
        listed = subprocess.run(
            [busybox, "--list"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError) as exc:
        raise Unavailable(f"{busybox} does not run: {exc}") from exc
    return sorted(set(listed.split()) - {"busybox"})


def _descriptor(media_type: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
