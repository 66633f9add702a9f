"""_blockio with the kernel's loop devices and filesystems that can share blocks."""

import contextlib
import ctypes
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hypercore import _blockio, block

MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def _own_data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERCORE_DATA_DIR", str(tmp_path / "data"))


def backing_files() -> set[str]:
    return {
        path.read_text().strip() for path in Path("/sys/block").glob("loop*/loop/backing_file")
    }


@contextlib.contextmanager
def mounted(device: str, target: Path, kind: str) -> Iterator[Path]:
    libc = ctypes.CDLL(None, use_errno=True)
    target.mkdir(exist_ok=True)
    if libc.mount(device.encode(), bytes(target), kind.encode(), 0, None):
        raise OSError(ctypes.get_errno(), f"mount {device}")
    try:
        yield target
    finally:
        assert libc.umount2(bytes(target), 0) == 0


def test_upper_disk_can_be_mounted_and_written(tmp_path: Path) -> None:
    path = tmp_path / "upper.ext4"
    block.create_upper(path, 512)
    fd = os.open(path, os.O_RDWR)
    loop_fd, minor = _blockio.loop_attach(fd, False)
    os.close(fd)
    assert str(path) in backing_files()
    with mounted(f"/dev/loop{minor}", tmp_path / "mnt", "ext4") as root:
        (root / "file").write_bytes(b"x" * MIB)
        assert os.statvfs(root).f_blocks * 4096 > 480 * MIB
    _blockio.loop_detach(loop_fd)
    assert str(path) not in backing_files()
    done = subprocess.run(["/usr/sbin/e2fsck", "-fn", path], capture_output=True, check=False)
    assert done.returncode == 0, done.stdout


def test_loop_shows_a_part_read_only(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a" * MIB + b"b" * MIB + b"c" * MIB)
    with open(path, "rb") as file:
        loop_fd, minor = _blockio.loop_attach(file.fileno(), True, MIB, MIB)
    assert os.pread(loop_fd, MIB, 0) == b"b" * MIB
    assert Path(f"/sys/block/loop{minor}/ro").read_text().strip() == "1"
    assert _blockio.probe_image(loop_fd)[0] == ""
    _blockio.loop_detach(loop_fd)
    assert str(path) not in backing_files()


def test_loop_goes_with_its_last_fd(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(MIB))
    with open(path, "rb") as file:
        loop_fd, _ = _blockio.loop_attach(file.fileno(), True)
    os.close(loop_fd)
    assert str(path) not in backing_files()


def test_loop_over_what_is_no_file() -> None:
    reader, writer = os.pipe()
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="loop device"):
        _blockio.loop_attach(reader, True)
    assert os.listdir("/proc/self/fd") == before
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("kind", ["btrfs", "xfs"])
def test_clone_shares_blocks(tmp_path: Path, kind: str) -> None:
    maker = shutil.which(f"mkfs.{kind}", path="/usr/sbin:/sbin:/usr/bin")
    if maker is None or kind not in Path("/proc/filesystems").read_text():
        pytest.skip(f"mkfs.{kind} or the kernel's {kind} is missing")
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 400 * MIB)
    subprocess.run([maker, "-q", image], check=True)
    with open(image, "r+b") as file:
        loop_fd, minor = _blockio.loop_attach(file.fileno(), False)
    assert _blockio.probe_image(loop_fd)[0] == kind
    try:
        with mounted(f"/dev/loop{minor}", tmp_path / "mnt", kind) as root:
            (root / "a").write_bytes(os.urandom(20 * MIB))
            os.sync()
            free = os.statvfs(root).f_bavail
            with open(root / "a", "rb") as src, open(root / "b", "xb") as dst:
                _blockio.clone(src.fileno(), dst.fileno())
            assert (root / "a").read_bytes() == (root / "b").read_bytes()
            os.sync()
            assert free - os.statvfs(root).f_bavail < 5 * MIB / 4096
    finally:
        _blockio.loop_detach(loop_fd)


def test_copy_to_a_full_disk_says_so(tmp_path: Path) -> None:
    src = tmp_path / "src"
    src.write_bytes(os.urandom(8 * MIB))
    libc = ctypes.CDLL(None, use_errno=True)
    target = tmp_path / "small"
    target.mkdir()
    assert libc.mount(b"tmpfs", bytes(target), b"tmpfs", 0, b"size=2m") == 0
    try:
        with open(src, "rb") as source, open(target / "dst", "xb") as dst:
            with pytest.raises(OSError, match="copy image") as caught:
                _blockio.copy_sparse(source.fileno(), dst.fileno())
            assert caught.value.errno == errno.ENOSPC
    finally:
        libc.umount2(bytes(target), 0)
