"""EROFS images as we write them, read by the kernel."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hypercore import _blockio, erofs
from hypercore.errors import InvalidArgument

pytestmark = pytest.mark.usefixtures("root")
MIB = 1 << 20


@contextmanager
def mounted(image: Path) -> Iterator[Path]:
    where = image.with_suffix(".mounted")
    where.mkdir()
    subprocess.run(["mount", "-t", "erofs", "-o", "ro,loop", image, where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)


def described(path: Path, above: Path) -> tuple[object, ...]:
    status = path.lstat()
    content: object = None
    if path.is_symlink():
        content = os.readlink(path)
    elif path.is_file():
        content = path.read_bytes()
    return (
        str(path.relative_to(above)),
        oct(status.st_mode),
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        status.st_rdev,
        status.st_nlink,
        0 if path.is_dir() else status.st_size,
        content,
        sorted((name, os.getxattr(path, name, follow_symlinks=False)) for name in xattrs(path)),
    )


def xattrs(path: Path) -> list[str]:
    return os.listxattr(path, follow_symlinks=False)


def tree(path: Path) -> list[tuple[object, ...]]:
    return sorted(described(p, path) for p in (path, *path.rglob("*")))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    top = tmp_path / "source"
    (top / "empty").mkdir(parents=True, mode=0o700)
    many = top / "many"
    many.mkdir()
    for number in range(300):
        (many / f"{number}-{'n' * (number % 240)}").write_text(str(number))
    (top / "data").write_bytes(os.urandom(MIB + 7))
    os.link(top / "data", many / "linked")
    (top / "empty file").touch()
    (top / "link").symlink_to("many/linked")
    os.mkfifo(top / "fifo", 0o640)
    os.mknod(top / "device", 0o600 | 0o020000, os.makedev(10, 777))
    with (top / "sparse").open("wb") as file:
        file.truncate(5 * MIB)
        file.seek(3 * MIB)
        file.write(b"island")
    os.chown(top / "many", 1000, 70000)
    os.chmod(top / "data", 0o4711)
    os.utime(top / "data", ns=(0, 1_000_000_000_123_456_789))
    os.setxattr(top / "many", "user.long", b"v" * 1000)
    os.setxattr(top / "many", "user.short", b"")
    os.setxattr(top / "data", "trusted.opaque", b"y")
    os.setxattr(top / "link", "trusted.own", b"of the link", follow_symlinks=False)
    return top


def test_the_kernel_finds_all_that_was_there(source: Path, tmp_path: Path):
    image = tmp_path / "x.erofs"
    erofs.write_layers(image, [source], max_bytes=64 * MIB)
    with mounted(image) as seen:
        assert tree(seen) == tree(source)
    assert image.stat().st_blocks * 512 < 4 * MIB  # holes stay holes


def test_several_sources_get_names_and_links_are_followed_only_at_the_top(
    source: Path, tmp_path: Path
):
    alias = tmp_path / "alias"
    alias.symlink_to(source / "data")
    image = tmp_path / "x.erofs"
    erofs.write(image, [("0", source), ("1", alias)], max_bytes=64 * MIB)
    with mounted(image) as seen:
        assert {path.name for path in seen.iterdir()} == {"0", "1"}
        assert (seen / "1").read_bytes() == (source / "data").read_bytes()
        assert (seen / "0" / "link").is_symlink()


def test_its_size_is_what_its_superblock_says(source: Path, tmp_path: Path):
    image = tmp_path / "x.erofs"
    erofs.write_layers(image, [source], max_bytes=64 * MIB)
    fd = os.open(image, os.O_RDONLY)
    try:
        kind, block_size, size_bytes, _ = _blockio.probe_image(fd)
    finally:
        os.close(fd)
    assert (kind, block_size, size_bytes) == ("erofs", 4096, image.stat().st_size)


@pytest.mark.parametrize("bad", ["missing", "device", "fifo", "too large"])
def test_what_cannot_be_had_is_refused_and_leaves_no_file(bad: str, source: Path, tmp_path: Path):
    image = tmp_path / "x.erofs"
    name = "data" if bad == "too large" else bad
    with pytest.raises(InvalidArgument, match=name):
        erofs.write(image, [("0", source / name)], max_bytes=MIB)
    assert not image.exists()


@pytest.mark.parametrize("name", ["data", "many"])
def test_a_link_put_in_the_way_while_copying_is_not_followed(
    name: str, source: Path, tmp_path: Path
):
    """Who may write to what is bound must not get at what only root may read."""
    secret, other, image = (tmp_path / each for each in ("secret", "other", "x.erofs"))
    root = erofs._Tree(64 * MIB).source(source, None)
    (source / name).rename(other)
    if other.is_dir():
        secret.mkdir()
        for path in other.iterdir():
            (secret / path.name).write_text("of root alone")
        (source / name).symlink_to(secret)
    else:
        (source / name).write_text("another file")
    with pytest.raises(InvalidArgument, match="was replaced while it was copied"):
        erofs._write_tree(image, root)
    assert not image.exists()


@pytest.fixture
def layers(tmp_path: Path) -> list[Path]:
    """Three layers that hide from, merge with and replace each other in every way there is."""
    top, middle, bottom = (tmp_path / name for name in ("top", "middle", "bottom"))
    for layer in (top, middle, bottom):
        (layer / "merged" / "deep").mkdir(parents=True)
        (layer / "merged" / "deep" / layer.name).write_text(layer.name)
        (layer / "same").write_text(f"of {layer.name}")
    for name in ("removed", "removed dir", "opaque", "file over dir", "dir over file", "ended"):
        where = bottom / name
        if name == "dir over file":
            where.write_text("below")
        else:
            where.mkdir()
            (where / "below").write_text("below")
    os.mknod(middle / "removed", 0o020000, 0)
    os.mknod(top / "removed dir", 0o020000, 0)
    (middle / "opaque").mkdir()
    os.setxattr(middle / "opaque", "trusted.overlay.opaque", b"y")
    (top / "opaque").mkdir()
    (top / "opaque" / "above").write_text("above")
    (top / "file over dir").write_text("above")
    (top / "dir over file").mkdir()
    (top / "ended").mkdir()
    (middle / "ended").write_text("a file between directories")
    os.link(bottom / "same", bottom / "linked")
    os.setxattr(top / "merged", "trusted.overlay.origin", b"x")
    os.setxattr(top / "merged", "user.kept", b"x")
    return [top, middle, bottom]


def test_layers_show_what_overlayfs_shows(layers: list[Path], tmp_path: Path):
    image, where = tmp_path / "x.erofs", tmp_path / "overlay"
    where.mkdir()
    erofs.write_layers(image, layers, max_bytes=MIB)
    options = "lowerdir=" + ":".join(map(str, layers))
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, where], check=True)

    def seen(top: Path) -> list[tuple[object, ...]]:
        """Without counts of links, which overlayfs gives otherwise."""
        return [(*found[:6], *found[7:]) for found in tree(top)]

    try:
        with mounted(image) as ours:
            assert seen(ours) == seen(where)
            assert not (ours / "removed").exists()
    finally:
        subprocess.run(["umount", where], check=True)


def test_a_mount_in_a_layer_is_refused(source: Path, tmp_path: Path):
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", source / "empty"], check=True)
    try:
        with pytest.raises(InvalidArgument, match=r"empty is a mount in"):
            erofs.write_layers(tmp_path / "x.erofs", [source], max_bytes=64 * MIB)
    finally:
        subprocess.run(["umount", source / "empty"], check=True)


@pytest.mark.parametrize("name", ["redirect", "metacopy"])
def test_data_in_other_layers_is_refused(name: str, layers: list[Path], tmp_path: Path):
    os.setxattr(layers[0] / "merged", f"trusted.overlay.{name}", b"/x")
    with pytest.raises(InvalidArgument, match=f"merged has its data.*{name}"):
        erofs.write_layers(tmp_path / "x.erofs", layers, max_bytes=MIB)
