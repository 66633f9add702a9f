"""Images into a real containerd: from a real registry, from archives, and what goes wrong."""

import asyncio
import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvloop

from hypercore import aptroot, demo_image, paths
from hypercore.config import HostConfig
from hypercore.containerd import content, images, leases, manifest, snapshots
from hypercore.containerd.client import Client
from hypercore.containerd.progress import Progress
from hypercore.containerd.registry_auth import Credentials
from hypercore.errors import (
    HypercoreError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from hypercore.proto.containerd_content_pb import (
    Content,
    ListContentRequest,
    ListContentResponse,
    ListStatusesRequest,
    ListStatusesResponse,
)
from tests.functional import images as made_images
from tests.functional import instance
from tests.functional import registry as registries
from tests.functional.registry import Registry
from tests.integration import own_containerd

pytestmark = pytest.mark.usefixtures("root")

Work = Callable[[Client], Awaitable[None]]


@pytest.fixture(scope="module")
def containerd(root: None) -> Iterator[HostConfig]:
    with own_containerd.running() as config:
        yield config


@pytest.fixture(scope="module")
def registry_program() -> Path:
    if path := shutil.which("docker-registry"):
        return Path(path)
    into = paths.tools_dir() / "docker-registry"
    aptroot.fetch(["docker-registry"], suite="bookworm", into=into, progress=print)
    return into / "usr" / "bin" / "docker-registry"


@pytest.fixture(scope="module")
def registry(
    registry_program: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Registry]:
    with registries.serve(registry_program, tmp_path_factory.mktemp("registry")) as served:
        yield served


@dataclass(frozen=True)
class Objects:
    """Names of all that containerd holds, but for our base snapshot."""

    images: frozenset[str]
    content: frozenset[str]
    snapshots: frozenset[str]
    leases: frozenset[str]
    ingests: frozenset[str]


async def objects(client: Client) -> Objects:
    blobs = client.stream(Content, "List", ListContentRequest(), ListContentResponse)
    statuses = await client.unary(
        Content, "ListStatuses", ListStatusesRequest(), ListStatusesResponse
    )
    names = {info.name for info in await snapshots.list_all(client)}
    return Objects(
        frozenset(image.name for image in await images.list_all(client)),
        frozenset([info.digest async for reply in blobs for info in reply.info]),
        frozenset(names - {"hypercore-base-1"}),
        frozenset(lease.id for lease in await leases.list_all(client)),
        frozenset(status.ref for status in statuses.statuses),
    )


@pytest.fixture(params=["asyncio", "uvloop"])
def run(containerd: HostConfig, request: pytest.FixtureRequest) -> Callable[[Work], None]:
    """Runs a test's coroutine; afterwards containerd holds nothing more than before."""

    def run(work: Work) -> None:
        async def main() -> None:
            async with Client() as client:
                before = await objects(client)
                await work(client)
                for name in (await objects(client)).images - before.images:
                    await images.delete(client, name, sync=True)
                assert await objects(client) == before

        factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())

    return run


def layer(**files: bytes) -> bytes:
    """A tar; names with __ for a slash."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name.replace("__", "/"))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def push(built: demo_image.BuiltImage, host: str, name: str, authorization: str = "") -> None:
    blobs = {**built.blobs, built.digest: built.manifest}
    repository, _, tag = name.partition(":")
    pushed = made_images.Image(built.digest, blobs)
    made_images.push(pushed, host, repository, tag, authorization)


def put_manifest(host: str, name: str, data: bytes, media_type: str) -> None:
    import http.client

    repository, _, tag = name.partition(":")
    connection = http.client.HTTPConnection(host, timeout=30)
    try:
        url = f"/v2/{repository}/manifests/{tag}"
        connection.request("PUT", url, data, {"Content-Type": media_type})
        answer = connection.getresponse()
        assert answer.status == 201, answer.read()
    finally:
        connection.close()


async def files_of(client: Client, name: str) -> dict[str, str]:
    """What a VM of the image would see, read by debugfs: nothing is mounted."""
    unpacked = await images.ensure_unpacked(client, name)
    async with leases.lease(client, "look") as leased:
        mounts = await snapshots.view(leased, "look", unpacked.chain_id)
        try:
            assert [mount.options for mount in mounts] == [["loop", "ro"]]
            return await asyncio.to_thread(read_disk, Path(mounts[0].source))
        finally:
            await snapshots.remove(leased, "look")


def read_disk(disk: Path) -> dict[str, str]:
    checked = subprocess.run(["e2fsck", "-fn", disk], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    listed = debugfs(disk, "ls -p /")
    names = [line.split("/")[5] for line in listed.splitlines() if line.startswith("/")]
    return {name: debugfs(disk, f"cat {name}") for name in names if name not in (".", "..")}


def debugfs(disk: Path, command: str) -> str:
    done = subprocess.run(
        ["debugfs", "-R", command, disk], capture_output=True, text=True, check=True
    )
    return done.stdout


TWO_LAYERS = demo_image.assemble(
    [layer(a=b"one", b=b"two", gone=b"x"), layer(b=b"three", **{".wh.gone": b""})],
    {"Cmd": ["/a"]},
)


def test_pull_unpacks_what_the_layers_say(run: Callable[[Work], None], registry: Registry) -> None:
    push(TWO_LAYERS, registry.host, "test/two:1")
    ref = f"{registry.host}/test/two:1"

    async def work(client: Client) -> None:
        told: list[Progress] = []
        image = await images.pull(client, ref, progress=told.append)
        assert image.name == ref
        assert image.target is not None
        assert image.target.digest == TWO_LAYERS.digest
        assert await files_of(client, ref) == {"a": "one", "b": "three"}
        for digest in TWO_LAYERS.blobs:
            last = [step for step in told if step.name == digest and step.step != "unpack"][-1]
            assert last.step == "download"
            assert last.done_bytes == last.total_bytes == len(TWO_LAYERS.blobs[digest])
        assert [step.done_bytes for step in told if step.step == "unpack"] == [0, 1, 2]

        told.clear()
        await images.pull(client, ref, progress=told.append)
        assert {step.step for step in told} == {"resolve", "download", "exists"}
        assert all(step.done_bytes == 0 for step in told if step.step == "download")

    run(work)


def test_pull_by_digest(run: Callable[[Work], None], registry: Registry) -> None:
    push(TWO_LAYERS, registry.host, "test/two:1")
    ref = f"{registry.host}/test/two@{TWO_LAYERS.digest}"

    async def work(client: Client) -> None:
        await images.pull(client, ref)
        assert (await images.ensure_unpacked(client, ref)).config["config"] == {"Cmd": ["/a"]}

    run(work)


def test_pull_takes_this_machine_out_of_an_index(
    run: Callable[[Work], None], registry: Registry
) -> None:
    push(TWO_LAYERS, registry.host, "test/multi:inner")

    def entry(architecture: str, digest: str, size: int) -> dict[str, object]:
        return {
            "mediaType": manifest.OCI_MANIFEST,
            "digest": digest,
            "size": size,
            "platform": {"os": "linux", "architecture": architecture},
        }

    # Registries refuse an index whose manifests they lack: one more image for another machine.
    other = demo_image.assemble([layer(other=b"")], {})
    push(other, registry.host, "test/multi:other")
    entries = [
        entry("s390x", other.digest, len(other.manifest)),
        entry(manifest.architecture(), TWO_LAYERS.digest, len(TWO_LAYERS.manifest)),
    ]
    index = {"schemaVersion": 2, "mediaType": manifest.OCI_INDEX, "manifests": entries}
    put_manifest(registry.host, "test/multi:1", json.dumps(index).encode(), manifest.OCI_INDEX)
    index["manifests"] = entries[:1]
    put_manifest(registry.host, "test/multi:2", json.dumps(index).encode(), manifest.OCI_INDEX)

    async def work(client: Client) -> None:
        ref = f"{registry.host}/test/multi:1"
        await images.pull(client, ref)
        assert await files_of(client, ref) == {"a": "one", "b": "three"}
        assert await content.info(client, other.digest) is None
        with pytest.raises(NotFound, match="has no image for linux") as caught:
            await images.pull(client, f"{registry.host}/test/multi:2")
        assert "linux/s390x" in caught.value.hint

    run(work)


def test_pull_of_what_does_not_exist(run: Callable[[Work], None], registry: Registry) -> None:
    async def work(client: Client) -> None:
        with pytest.raises(NotFound, match="nosuch"):
            await images.pull(client, f"{registry.host}/test/nosuch:1")

    run(work)


def test_pull_from_a_registry_that_is_down(run: Callable[[Work], None]) -> None:
    async def work(client: Client) -> None:
        with pytest.raises(Unavailable, match="does not answer"):
            await images.pull(client, "127.0.0.1:1/test/two:1")

    run(work)


def test_pull_with_a_login(
    run: Callable[[Work], None],
    registry_program: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # bcrypt of "secret", cost 4
    line = "me:$2b$04$uE/zFqljXjLRZtyKBbjPzecsdHZE4dcthd.VoIbXCBL9dBFZ4JS9G"
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with registries.serve(
        registry_program, tmp_path / "registry", htpasswd=line, password="secret"
    ) as served:
        push(TWO_LAYERS, served.host, "test/two:1", served.authorization)
        ref = f"{served.host}/test/two:1"

        async def work(client: Client) -> None:
            with pytest.raises(PermissionDenied, match="wants a login") as caught:
                await images.pull(client, ref)
            assert f"docker login {served.host}" in caught.value.hint
            with pytest.raises(PermissionDenied, match="refuses"):
                await images.pull(client, ref, auth=Credentials("me", "wrong"))
            packed = served.authorization.removeprefix("Basic ")
            document = {"auths": {served.host: {"auth": packed}}}
            (tmp_path / "config.json").write_text(json.dumps(document))
            await images.pull(client, ref)

        run(work)


@pytest.mark.parametrize("moment", ["resolve", "download", "unpack"])
def test_cancelled_pull_leaves_nothing(
    run: Callable[[Work], None], registry: Registry, moment: str
) -> None:
    big = demo_image.assemble([layer(big=os.urandom(24 << 20)), layer(c=b"c")], {})
    push(big, registry.host, "test/big:1")

    async def work(client: Client) -> None:
        reached = asyncio.Event()

        def tell(progress: Progress) -> None:
            begun = progress.done_bytes > 4 << 20 or progress.step != "download"
            if progress.step == moment and begun:
                reached.set()

        pull = asyncio.create_task(
            images.pull(client, f"{registry.host}/test/big:1", progress=tell)
        )
        await reached.wait()
        pull.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pull
        # An image that has its name is an image; without it, nothing may be left.
        if moment != "unpack":
            assert await images.get(client, f"{registry.host}/test/big:1") is None

    run(work)


def test_lease_of_a_killed_process_is_abandoned(run: Callable[[Work], None]) -> None:
    holder = """
import asyncio
from hypercore.containerd import leases
from hypercore.containerd.client import Client
async def main():
    async with Client() as client, leases.lease(client, "test"):
        print("held", flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""

    async def work(client: Client) -> None:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", holder, stdout=asyncio.subprocess.PIPE, cwd=instance.ROOT
        )
        assert child.stdout is not None
        assert await child.stdout.readline() == b"held\n"
        async with leases.lease(client, "test"):
            held = await leases.list_all(client)
            assert [leases.is_abandoned(lease) for lease in held] == [False, False]
        child.kill()
        await child.wait()
        (left,) = await leases.list_all(client)
        assert leases.is_abandoned(left)
        await leases.delete(client, left.id)

    run(work)


@pytest.mark.parametrize("kind", ["oci", "docker"])
@pytest.mark.parametrize("packed", [False, True])
def test_load(run: Callable[[Work], None], tmp_path: Path, kind: str, packed: bool) -> None:
    blobs = {**TWO_LAYERS.blobs, TWO_LAYERS.digest: TWO_LAYERS.manifest}
    archive = tmp_path / "image.tar"
    write = getattr(made_images, f"write_{kind}_archive")
    write(made_images.Image(TWO_LAYERS.digest, blobs), "docker.io/test/two:1", archive)
    if packed:
        archive.write_bytes(gzip.compress(archive.read_bytes()))

    async def work(client: Client) -> None:
        assert await images.load(client, archive) == ["docker.io/test/two:1"]
        assert await files_of(client, "docker.io/test/two:1") == {"a": "one", "b": "three"}
        assert await images.load(client, archive, name="other") == [
            "docker.io/library/other:latest"
        ]

    run(work)


def without(archive: Path, name: str) -> None:
    with tarfile.open(archive) as source:
        kept = [(entry, source.extractfile(entry)) for entry in source if name not in entry.name]
        data = [(entry, file.read() if file else b"") for entry, file in kept]
    with tarfile.open(archive, "w") as target:
        for entry, bytes_ in data:
            target.addfile(entry, io.BytesIO(bytes_))


def spoil(archive: Path, digest: str) -> None:
    data = archive.read_bytes()
    start = data.index(TWO_LAYERS.blobs[digest])
    archive.write_bytes(data[: start + 20] + b"\xff" + data[start + 21 :])


LAYER = manifest.parse_manifest(json.loads(TWO_LAYERS.manifest), "").layers[0].digest


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda archive: archive.write_bytes(b"no tar at all"), "no tar archive"),
        (lambda archive: archive.write_bytes(archive.read_bytes()[:5000]), "tar|lacks"),
        (lambda archive: without(archive, "index.json"), "no image archive"),
        (lambda archive: without(archive, LAYER[7:]), f"lacks .*{LAYER[7:]}"),
        (lambda archive: spoil(archive, LAYER), LAYER),
    ],
)
def test_broken_archive(
    run: Callable[[Work], None],
    tmp_path: Path,
    damage: Callable[[Path], None],
    words: str,
) -> None:
    blobs = {**TWO_LAYERS.blobs, TWO_LAYERS.digest: TWO_LAYERS.manifest}
    archive = tmp_path / "image.tar"
    made_images.write_oci_archive(
        made_images.Image(TWO_LAYERS.digest, blobs), "docker.io/test/two:1", archive
    )
    damage(archive)

    async def work(client: Client) -> None:
        with pytest.raises(InvalidArgument, match=words):
            await images.load(client, archive)

    run(work)


def test_load_of_no_file(run: Callable[[Work], None], tmp_path: Path) -> None:
    async def work(client: Client) -> None:
        with pytest.raises(NotFound, match="absent"):
            await images.load(client, tmp_path / "absent")

    run(work)


def test_layer_that_is_not_what_the_config_says(run: Callable[[Work], None]) -> None:
    good = demo_image.assemble([layer(a=b"a")], {})
    config = json.loads(good.blobs[list(good.blobs)[-1]])
    config["rootfs"]["diff_ids"] = [manifest.digest_of(b"something else")]
    data = json.dumps(config).encode()
    document = json.loads(good.manifest)
    document["config"] |= {"digest": manifest.digest_of(data), "size": len(data)}
    blobs = {**good.blobs, manifest.digest_of(data): data}
    del blobs[list(good.blobs)[-1]]
    lying = demo_image.BuiltImage(json.dumps(document).encode(), blobs)

    async def work(client: Client) -> None:
        async with leases.lease(client, "test") as leased:
            await demo_image.store(leased, lying, "docker.io/test/lying:1")
            with pytest.raises(InvalidArgument, match="unpacks to"):
                await images.ensure_unpacked(leased, "docker.io/test/lying:1")

    run(work)


def test_image_larger_than_guessed_is_unpacked_at_the_second_try(
    run: Callable[[Work], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hypercore.containerd import blockfile, unpack

    monkeypatch.setattr(blockfile, "SCRATCH_MIB", 1)
    monkeypatch.setattr(unpack, "_SPARE_BYTES", 1 << 20)

    async def guess(client: Client, blob: object) -> int:
        return 1 << 20

    monkeypatch.setattr(unpack, "_unpacked_bytes", guess)
    built = demo_image.assemble([layer(big=os.urandom(9 << 20))], {})

    async def work(client: Client) -> None:
        async with leases.lease(client, "test") as leased:
            await demo_image.store(leased, built, "docker.io/test/big:1")
            unpacked = await images.ensure_unpacked(leased, "docker.io/test/big:1")
            mounts = await snapshots.view(leased, "look", unpacked.chain_id)
            assert os.stat(mounts[0].source).st_size == 16 << 20
            await snapshots.remove(leased, "look")

    run(work)


def test_many_unpack_the_same_image_at_once(run: Callable[[Work], None]) -> None:
    async def work(client: Client) -> None:
        async with leases.lease(client, "test") as leased:
            await demo_image.store(leased, TWO_LAYERS, "docker.io/test/two:1")
            done = await asyncio.gather(
                *(images.ensure_unpacked(leased, "docker.io/test/two:1") for _ in range(6))
            )
        assert len({unpacked.chain_id for unpacked in done}) == 1

    run(work)


def test_images_of_the_same_layers_share_a_snapshot(run: Callable[[Work], None]) -> None:
    twin = demo_image.assemble([layer(a=b"same")], {"Cmd": ["/b"]})
    first = demo_image.assemble([layer(a=b"same")], {"Cmd": ["/a"]})

    async def work(client: Client) -> None:
        chains = []
        for name, built in (("one", first), ("two", twin)):
            async with leases.lease(client, "test") as leased:
                await demo_image.store(leased, built, f"docker.io/test/{name}:1")
                unpacked = await images.ensure_unpacked(leased, f"docker.io/test/{name}:1")
            chains.append(unpacked.chain_id)
        assert chains[0] == chains[1]
        # The one that did not unpack it keeps it all the same.
        await images.delete(client, "docker.io/test/one:1", sync=True)
        assert await snapshots.stat(client, chains[1]) is not None

    run(work)


def test_image_with_a_blob_missing(run: Callable[[Work], None]) -> None:
    async def work(client: Client) -> None:
        async with leases.lease(client, "test") as leased:
            target = await images.add_manifest(
                leased, TWO_LAYERS.manifest, manifest.OCI_MANIFEST, references={}
            )
            await images.set_target(leased, "docker.io/test/two:1", target)
            with pytest.raises(NotFound, match="missing here") as caught:
                await images.ensure_unpacked(leased, "docker.io/test/two:1")
        assert caught.value.hint == "hypercore pull docker.io/test/two:1"

    run(work)


def test_failed_lease_takes_its_objects_along(run: Callable[[Work], None]) -> None:
    async def fail_under_lease(client: Client) -> None:
        async with leases.lease(client, "test") as leased:
            await content.write_bytes(leased, b"data", manifest.digest_of(b"data"))
            raise HypercoreError("on purpose")

    async def work(client: Client) -> None:
        with pytest.raises(HypercoreError, match="on purpose"):
            await fail_under_lease(client)

    run(work)


@pytest.mark.parametrize(
    ("make", "size_mib", "low_guess"),
    [
        (os.urandom, 48, False),  # the download is too large
        (bytes, 80, False),  # what it unpacks to is
        (bytes, 80, True),  # and we do not know before
    ],
    ids=["download", "unpack", "surprise"],
)
def test_full_disk(
    make: Callable[[int], bytes], size_mib: int, low_guess: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hypercore.containerd import unpack

    monkeypatch.setattr(unpack, "_SPARE_BYTES", 4 << 20)
    if low_guess:

        async def guess(client: Client, blob: object) -> int:
            return 1 << 20

        monkeypatch.setattr(unpack, "_unpacked_bytes", guess)
    built = demo_image.assemble([layer(big=make(size_mib << 20))], {})

    async def spawn_it(client: Client) -> None:
        async with leases.lease(client, "test") as leased:
            await demo_image.store(leased, built, "docker.io/test/big:1")
            await images.ensure_unpacked(leased, "docker.io/test/big:1")

    async def main() -> None:
        async with Client() as client:
            before = await objects(client)
            with pytest.raises(ResourceExhausted):
                await spawn_it(client)
            await images.delete(client, "docker.io/test/big:1", sync=True)
            assert await objects(client) == before

    with own_containerd.running(disk_mib=48):
        asyncio.run(main())
