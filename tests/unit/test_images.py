"""Image references and documents, the demo image, containerd's configuration: all pure."""

import json
import tarfile
import tomllib
from io import BytesIO
from pathlib import Path

import pytest

from hypercore import demo_image, paths
from hypercore.containerd import daemon, manifest
from hypercore.containerd.reference import is_loopback, parse, resolve_ref
from hypercore.errors import InvalidArgument, NotFound, Unavailable

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3.20", "docker.io/library/alpine:3.20"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ("index.docker.io/library/alpine", "docker.io/library/alpine:latest"),
        ("team/app", "docker.io/team/app:latest"),
        ("ghcr.io/team/app:1.0", "ghcr.io/team/app:1.0"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app", "localhost:5000/app:latest"),
        ("127.0.0.1:5000/a/b__c/d-e.f:T_1", "127.0.0.1:5000/a/b__c/d-e.f:T_1"),
        ("[::1]:5000/app", "[::1]:5000/app:latest"),
        (f"alpine@{DIGEST}", f"docker.io/library/alpine@{DIGEST}"),
        (f"alpine:3@{DIGEST}", f"docker.io/library/alpine:3@{DIGEST}"),
    ],
)
def test_reference_is_completed_as_docker_does(given: str, canonical: str) -> None:
    assert resolve_ref(given) == canonical
    assert resolve_ref(canonical) == canonical


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ("", "no name"),
        ("Alpine", "lower case: alpine"),
        ("alpine:", "''"),
        ("alpine:ta g", "'ta g'"),
        ("a//b", "'a//b'"),
        ("alpine@sha256:abc", "sha256:abc"),
        ("alpine@", "no digest"),
        ("../etc/passwd", "'..'"),
        ("example.org:port/app", "example.org:port"),
        ("a" * 300, "longer than 255"),
        ("alpine\n", "repository"),
    ],
)
def test_bad_reference_is_named(given: str, part: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(given)
    assert repr(given) in caught.value.message
    assert part in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    ("host", "answer"),
    [
        ("localhost:5000", True),
        ("127.8.9.1", True),
        ("[::1]:80", True),
        ("localhost.example", False),
        ("192.168.1.1:5000", False),
        ("registry.example", False),
    ],
)
def test_loopback(host: str, answer: bool) -> None:
    assert is_loopback(host) is answer


def entry(os: str, architecture: str) -> dict[str, object]:
    return {
        "mediaType": manifest.OCI_MANIFEST,
        "digest": DIGEST,
        "size": 7,
        "platform": {"os": os, "architecture": architecture},
    }


def test_index_offers_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    index = {"manifests": [entry("linux", "amd64"), entry("linux", "arm64")]}
    assert manifest.choose(index, "image x") == 1


def test_index_without_this_machine_says_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    entries = [entry("linux", "s390x"), entry("unknown", "unknown"), entry("windows", "amd64")]
    with pytest.raises(NotFound, match="linux/amd64") as caught:
        manifest.choose({"manifests": entries}, "image x")
    assert caught.value.hint == "it is made for: linux/s390x, windows/amd64"


def test_chain_id() -> None:
    one, two = manifest.digest_of(b"1"), manifest.digest_of(b"2")
    assert manifest.chain_id([one]) == one
    assert manifest.chain_id([one, two]) == manifest.digest_of(f"{one} {two}".encode())


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"config": {}, "layers": []},
        {
            "config": entry("a", "b"),
            "layers": [{"digest": "sha512:12", "mediaType": "", "size": 1}],
        },
        {"config": entry("a", "b"), "layers": [entry("a", "b") | {"size": -1}]},
        {"config": entry("a", "b"), "layers": [entry("a", "b") | {"size": True}]},
    ],
)
def test_broken_manifest(document: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        manifest.parse_manifest(document, "image x")


def test_schema_1_is_refused_with_a_way_out() -> None:
    with pytest.raises(InvalidArgument, match="schema 1"):
        manifest.media_type_of({"schemaVersion": 1}, "application/json")


@pytest.fixture
def busybox(tmp_path: Path) -> Path:
    """Stands in for busybox, of which the image only asks the list of applets."""
    program = tmp_path / "busybox"
    program.write_text("#!/bin/sh\necho busybox; echo ls; echo sh\n")
    program.chmod(0o755)
    return program


def test_demo_image_is_the_same_each_time(busybox: Path) -> None:
    built = demo_image.build(busybox)
    assert built == demo_image.build(busybox)
    parsed = manifest.parse_manifest(json.loads(built.manifest), "demo")
    config = json.loads(built.blobs[parsed.config.digest])
    assert config["config"]["Cmd"] == ["/bin/hello"]
    assert len(manifest.diff_ids(config, "demo")) == len(parsed.layers) == 1
    with tarfile.open(fileobj=BytesIO(built.blobs[parsed.layers[0].digest])) as layer:
        assert layer.getmember("bin/ls").linkname == "busybox"
        assert layer.getmember("bin/hello").mode == 0o755


def test_demo_image_needs_a_busybox_that_runs(tmp_path: Path) -> None:
    broken = tmp_path / "busybox"
    broken.write_bytes(b"\x7fELF")
    broken.chmod(0o755)
    with pytest.raises(Unavailable, match="does not run"):
        demo_image.build(broken)


def test_containerd_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    odd = tmp_path / 'a "b" \\ c'
    monkeypatch.setenv("HYPERCORE_DATA_DIR", str(odd))
    monkeypatch.setenv("HYPERCORE_RUN_DIR", str(tmp_path))
    monkeypatch.delenv("HYPERCORE_CONTAINERD_SOCKET", raising=False)
    config = tomllib.loads(daemon.render_config())
    assert config["root"] == str(paths.containerd_root())
    assert config["grpc"]["address"] == str(paths.containerd_socket())
    blockfile = config["plugins"]["io.containerd.snapshotter.v1.blockfile"]
    assert blockfile["root_path"] == str(odd / "blockfile")
    assert blockfile["mount_options"] == ["loop"]
