"""Images for the tests, made of a static busybox: as archives, or pushed to a registry.

Deterministic, so that a digest is the same in every run. The busybox is the one that
`hypercore setup` fetched for the demo image; nothing else of hypercore is used.
"""

import gzip
import hashlib
import http.client
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

DATA_DIR = Path(os.environ.get("HYPERCORE_DATA_DIR") or "/var/lib/hypercore")
BUSYBOX = DATA_DIR / "tools" / "busybox" / "bin" / "busybox"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"

FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/os-release": 'NAME="Hypercore Test"\nID=hctest\nVERSION_ID=1\n',
}
DIRECTORIES = {"tmp": 0o1777, "root": 0o700, "proc": 0o755, "sys": 0o755, "dev": 0o755}


@dataclass(frozen=True, slots=True)
class Image:
    """Blobs by digest, and the digest of the manifest."""

    manifest_digest: str
    blobs: Mapping[str, bytes]
    config: Mapping[str, object] = field(default_factory=dict)

    @property
    def manifest(self) -> dict[str, object]:
        return json.loads(self.blobs[self.manifest_digest])


def busybox_image(
    *,
    entrypoint: tuple[str, ...] = (),
    cmd: tuple[str, ...] = ("/bin/sh",),
    env: tuple[str, ...] = ("PATH=/bin",),
    workdir: str = "/",
    files: Mapping[str, str] | None = None,
) -> Image:
    """One layer of busybox with all its applets, a second one with `files`."""
    layers = [_busybox_layer()]
    if files:
        layers.append(_layer({path: text.encode() for path, text in files.items()}))
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Env": list(env),
            "Entrypoint": list(entrypoint),
            "Cmd": list(cmd),
            "WorkingDir": workdir,
        },
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer) for layer in layers]},
    }
    blobs: dict[str, bytes] = {}

    def add(data: bytes, media_type: str) -> dict[str, object]:
        blobs[_digest(data)] = data
        return {"mediaType": media_type, "digest": _digest(data), "size": len(data)}

    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": add(_json(config), CONFIG_TYPE),
        "layers": [add(gzip.compress(layer, 1, mtime=0), LAYER_TYPE) for layer in layers],
    }
    descriptor = add(_json(manifest), MANIFEST_TYPE)
    return Image(str(descriptor["digest"]), blobs, config)


def write_oci_archive(image: Image, name: str, path: Path) -> None:
    """An OCI image layout as a tar file, as `docker buildx` or `skopeo` make it."""
    index = {
        "schemaVersion": 2,
        "manifests": [
            {
                "mediaType": MANIFEST_TYPE,
                "digest": image.manifest_digest,
                "size": len(image.blobs[image.manifest_digest]),
                "annotations": {"io.containerd.image.name": name},
            }
        ],
    }
    entries = {f"blobs/sha256/{digest[7:]}": data for digest, data in image.blobs.items()}
    entries |= {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": _json(index)}
    path.write_bytes(_layer(entries))


def write_docker_archive(image: Image, name: str, path: Path) -> None:
    """What `docker save` writes: uncompressed layers and manifest.json."""
    config_digest = str(image.manifest["config"]["digest"])
    layers = [gzip.decompress(image.blobs[d["digest"]]) for d in image.manifest["layers"]]
    entries = {f"{_digest(layer)[7:]}/layer.tar": layer for layer in layers}
    item = {"Config": f"{config_digest[7:]}.json", "RepoTags": [name], "Layers": list(entries)}
    entries |= {item["Config"]: image.blobs[config_digest], "manifest.json": _json([item])}
    path.write_bytes(_layer(entries))


def push(image: Image, host: str, repository: str, tag: str, authorization: str = "") -> None:
    """Upload to a plain-http registry at `host` (host:port)."""
    headers = {"Authorization": authorization} if authorization else {}
    connection = http.client.HTTPConnection(host, timeout=30)

    def request(method: str, url: str, body: bytes = b"", **more: str) -> str:
        connection.request(
            method, url, body, headers | {k.replace("_", "-"): v for k, v in more.items()}
        )
        answer = connection.getresponse()
        text = answer.read()
        if answer.status not in (200, 201, 202):
            raise RuntimeError(f"{method} {url}: {answer.status} {text!r}")
        return answer.headers.get("Location", "")

    try:
        for digest, data in image.blobs.items():
            if digest == image.manifest_digest:
                continue
            location = request("POST", f"/v2/{repository}/blobs/uploads/")
            url = location.removeprefix(f"http://{host}")
            request("PUT", f"{url}&digest={digest}", data)
        manifest = image.blobs[image.manifest_digest]
        request("PUT", f"/v2/{repository}/manifests/{tag}", manifest, Content_Type=MANIFEST_TYPE)
    finally:
        connection.close()


def _busybox_layer() -> bytes:
    applets = subprocess.run(
        [BUSYBOX, "--list"], check=True, capture_output=True, text=True, timeout=30
    )
    entries: dict[str, bytes | str] = {"bin/busybox": BUSYBOX.read_bytes()}
    entries |= {path: text.encode() for path, text in FILES.items()}
    entries |= {f"bin/{name}": "busybox" for name in applets.stdout.split() if name != "busybox"}
    return _layer(entries, DIRECTORIES)


def _layer(
    entries: Mapping[str, bytes | str], directories: Mapping[str, int] | None = None
) -> bytes:
    """A tar file; a str is the target of a symbolic link."""
    modes = {str(parent): 0o755 for path in entries for parent in Path(path).parents}
    modes |= directories or {}
    modes.pop(".", None)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, mode in sorted(modes.items()):
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, mode
            tar.addfile(info)
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            info.mode = 0o755 if name.startswith("bin/") else 0o644
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
