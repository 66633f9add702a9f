"""Rootfs mounts → the disks of a microVM."""

import os
from pathlib import Path

import pytest

from hypercore import erofs
from hypercore.errors import InvalidArgument
from hypercore.paths import MicroVMPaths
from hypercore.proto.types_pb import Mount
from hypercore.shim import binds, rootfs, rootfs_dirs, rootfs_layers
from hypercore.spec import Disk

MKDIR = ["X-containerd.mkdir.path={{ mount 0 }}/upper:0755"]
UPPER = ["workdir={{ mount 0 }}/work", "upperdir={{ mount 0 }}/upper"]


def image(kind: str, source: str, *options: str) -> Mount:
    return Mount(type=kind, source=source, options=list(options))


def overlay(*options: str) -> Mount:
    return image("format/mkdir/overlay", "overlay", *options)


RW = image("ext4", "/rw", "rw", "loop")
A, B, C = (image("erofs", f"/{name}", "ro", "loop") for name in "abc")


@pytest.mark.parametrize(
    ("mounts", "lower", "upper"),
    [
        ([A], [A], None),
        ([RW, A, B, overlay(*MKDIR, *UPPER, "lowerdir={{ mount 1 }}:{{ mount 2 }}")], [A, B], RW),
        ([RW, A, B, C, overlay(*UPPER, "lowerdir={{ overlay 1 3 }}")], [A, B, C], RW),
        ([RW, A, B, C, overlay(*UPPER, "lowerdir={{ overlay 3 1 }}")], [C, B, A], RW),
        ([A, B, overlay("ro", "lowerdir={{ overlay 0 1 }}")], [A, B], None),
        ([A, image("format/bind", "{{ mount 0 }}", "ro", "rbind")], [A], None),
    ],
)
def test_layers_of_a_recipe(mounts, lower, upper):
    found = rootfs_layers.parse(mounts)
    assert list(found.lower) == lower
    assert found.upper == upper


@pytest.mark.parametrize("mounts", [[], [RW], [image("overlay", "overlay", "lowerdir=/x")]])
def test_mounts_without_a_recipe_are_others_business(mounts):
    assert rootfs_layers.parse(mounts) is None


@pytest.mark.parametrize(
    ("recipe", "complaint"),
    [
        (overlay(*UPPER), "without lowerdir"),
        (overlay("lowerdir={{ mount 1 }}", UPPER[1]), "half an upper"),
        (overlay("lowerdir={{ overlay 1 9 }}", *UPPER), "there are 2 images"),
        (overlay("lowerdir=/srv/x", *UPPER), "'/srv/x' names no image"),
        (overlay("lowerdir={{ mount 1 }}", "upperdir=/srv/upper"), "must be an image"),
        (overlay("lowerdir={{ mount 1 }}", "upperdir={{ mount 0 }}/other"), "must be an image"),
        (overlay("lowerdir={{ mount 1 }}", "uidmap=0:1:2"), "uidmap=0:1:2"),
        (overlay("lowerdir={{ mount 0 }}"), "/rw is ext4, not erofs"),
        (
            overlay("lowerdir={{ mount 1 }}", *(o.replace("0", "1") for o in UPPER)),
            "is erofs, not",
        ),
        (image("format/mkdir/xfs", "x"), "type format/mkdir/xfs"),
    ],
)
def test_what_a_guest_cannot_do_is_refused_by_name(recipe, complaint):
    with pytest.raises(InvalidArgument, match=complaint):
        rootfs_layers.parse([RW, A, recipe])


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MicroVMPaths:
    monkeypatch.setenv("HYPERCORE_DATA_DIR", str(tmp_path / "data"))
    where = MicroVMPaths("m")
    where.data.mkdir(parents=True)
    return where


def layer(tmp_path: Path, name: str) -> Mount:
    (tmp_path / "file").write_text(name)
    path = tmp_path / f"{name}.erofs"
    erofs.write(path, [("file", tmp_path / "file")], max_bytes=1 << 20)
    return image("erofs", str(path), "ro", "loop")


def test_layers_become_disks_under_the_given_or_a_private_upper(made, tmp_path):
    layers = [layer(tmp_path, name) for name in "ab"]
    view = [*layers, overlay("lowerdir={{ overlay 0 1 }}")]

    def disks(mounts, read_only=False):
        return rootfs.root_disks(mounts, read_only=read_only, paths=made, upper_size_mib=16)

    lower = tuple(
        Disk(Path(mount.source), f"hcroot{number}", read_only=True, fs_type="erofs")
        for number, mount in enumerate(layers)
    )
    assert disks(view, read_only=True).read_only == lower
    assert disks(view, read_only=True).writable is None
    private = disks(view)
    assert private.read_only == lower
    assert private.writable == Disk(made.upper, "hcupper", read_only=False)
    given = image("ext4", str(made.upper), "rw", "loop")
    found = disks([given, *layers, overlay(*UPPER, "lowerdir={{ overlay 1 2 }}")])
    assert found == private
    with pytest.raises(InvalidArgument, match=r"a\.erofs holds erofs, not ext4"):
        disks([image("ext4", layers[0].source, "ro")])
    with pytest.raises(InvalidArgument, match=r"X-containerd\.dmverity=/x"):
        disks([image("erofs", layers[0].source, "ro", "X-containerd.dmverity=/x")])


def test_many_layers_are_packed_into_one_disk(made, tmp_path):
    layers = [layer(tmp_path, f"layer{number}") for number in range(9)]
    recipe = overlay("lowerdir={{ overlay 0 8 }}")
    for _ in range(2):  # a later start of the same container makes it anew
        found = rootfs.root_disks([*layers, recipe], read_only=True, paths=made, upper_size_mib=16)
    (disk,) = found.read_only
    assert (disk.path, disk.serial, disk.fs_type) == (made.layers, "hcroot", "erofs")
    packed = made.layers.read_bytes()
    assert [packed[start : start + size] for start, size in disk.parts] == [
        Path(mount.source).read_bytes() for mount in layers
    ]
    assert all(start % 4096 == 0 for start, _ in disk.parts)
    many = [A] * 256 + [overlay("lowerdir={{ overlay 0 255 }}")]
    with pytest.raises(InvalidArgument, match="256 erofs layers: a microVM takes 255"):
        rootfs.root_disks(many, read_only=True, paths=made, upper_size_mib=16)


@pytest.mark.parametrize(
    ("mount", "directories"),
    [
        (image("bind", "/a/b", "rbind", "ro"), ["/a/b"]),
        (image("", "/a/b", "rbind", "rw"), ["/a/b"]),
        (
            image("overlay", "overlay", "workdir=/w", "upperdir=/u", "lowerdir=/a:/b"),
            ["/u", "/a", "/b"],
        ),
        (image("overlay", "overlay", "index=off", "lowerdir=/a\\:x:/b"), ["/a:x", "/b"]),
        (image("ext4", "/a", "loop", "ro"), None),
    ],
)
def test_directories_of_the_host(mount, directories):
    found = rootfs_dirs.parse([mount])
    assert found == (None if directories is None else tuple(map(Path, directories)))
    assert rootfs_dirs.parse([mount, mount]) is None


@pytest.mark.parametrize(
    ("mount", "complaint"),
    [
        (image("overlay", "overlay", "lowerdir=/a", "userxattr"), "userxattr"),
        (image("overlay", "overlay", "lowerdir=/a", "metacopy=on"), "metacopy=on"),
        (image("overlay", "overlay", "lowerdir=a"), "'a' is no absolute path"),
        (image("overlay", "overlay", "workdir=/w"), "without lowerdir"),
        (image("bind", "rel", "rbind"), "'rel' is no absolute path"),
        (image("bind", "/a", "rbind", "X-mount.idmap=x"), "X-mount.idmap=x"),
    ],
)
def test_directories_a_copy_would_not_be_are_refused(mount, complaint):
    with pytest.raises(InvalidArgument, match=complaint):
        rootfs_dirs.parse([mount])


def test_directories_become_one_image_under_a_private_disk(made, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    options = f"lowerdir={tmp_path}/a:{tmp_path}/b"
    for _ in range(2):  # a later start of the same container makes it anew
        found = rootfs.root_disks(
            [image("overlay", "overlay", options)], read_only=False, paths=made, upper_size_mib=16
        )
    assert found.read_only == (Disk(made.layers, "hcroot", read_only=True, fs_type="erofs"),)
    assert found.writable == Disk(made.upper, "hcupper", read_only=False)
    with pytest.raises(InvalidArgument, match=r"rootfs /nosuch: /nosuch does not exist"):
        rootfs.root_disks(
            [image("bind", "/nosuch", "rbind")], read_only=False, paths=made, upper_size_mib=16
        )


def test_binds_are_copied_into_one_read_only_disk(made, tmp_path):
    source = tmp_path / "file"
    source.write_text("x")
    given = (binds.HostBind("0", source, "/a"), binds.HostBind("1", tmp_path, "/b"))
    for _ in range(2):  # a later start of the same container makes it anew
        disk = binds.disk(given[:1], made.binds)
    assert disk == Disk(made.binds, "hcbinds", read_only=True, fs_type="erofs")
    os.mkfifo(tmp_path / "fifo")
    refused = (binds.HostBind("0", tmp_path / "fifo", "/pipe"),)
    with pytest.raises(InvalidArgument, match="fifo is neither a file nor a directory"):
        binds.disk(refused, made.binds)
    assert not made.binds.exists()
