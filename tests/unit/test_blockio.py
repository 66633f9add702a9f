"""_blockio and block on plain files: templates, sparse copies, superblocks."""

import contextlib
import errno
import os
import subprocess
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from hypercore import _blockio, block
from hypercore.errors import AlreadyExists, InvalidArgument, NotFound, Unavailable

MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def _own_data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HYPERCORE_DATA_DIR", str(tmp_path / "data"))
    block._template.cache_clear()
    yield
    block._template.cache_clear()


@pytest.fixture
def two_files(tmp_path: Path) -> Iterator[tuple[int, int]]:
    fds = [os.open(tmp_path / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC) for name in "ab"]
    yield fds[0], fds[1]
    for fd in fds:
        os.close(fd)


def fsck(path: Path) -> None:
    done = subprocess.run(
        ["/usr/sbin/e2fsck", "-fn", path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("size_mib", [16, 63, 512, 10240])
def test_upper_disk_is_a_clean_sparse_ext4(tmp_path: Path, size_mib: int) -> None:
    path = tmp_path / "upper.ext4"
    block.create_upper(path, size_mib)
    assert block.check_root_disk(path) == "ext4"
    stat = path.stat()
    assert stat.st_size == size_mib * MIB
    assert stat.st_blocks * 512 <= 64 * 1024
    assert stat.st_mode & 0o777 == 0o600
    fsck(path)


def test_each_upper_disk_has_its_own_uuid(tmp_path: Path) -> None:
    seen = set()
    for number in range(3):
        path = tmp_path / str(number)
        block.create_upper(path, 16)
        with open(path, "rb") as file:
            kind, block_size, size, raw = _blockio.probe_image(file.fileno())
        assert (kind, block_size, size) == ("ext4", 4096, 16 * MIB)
        seen.add(raw)
        listed = subprocess.run(
            ["/usr/sbin/dumpe2fs", "-h", path], capture_output=True, text=True, check=True
        ).stdout
        assert str(uuid.UUID(bytes=raw)) in listed
        fsck(path)
    assert len(seen) == 3


def test_template_is_made_once_by_many_at_once(tmp_path: Path) -> None:
    failures = []

    def work(number: int) -> None:
        try:
            block.create_upper(tmp_path / f"upper{number}", 32)
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert sorted(p.name for p in (tmp_path / "data/templates").iterdir()) == [
        ".lock",
        "upper-32.ext4",
    ]


def test_upper_disk_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "upper"
    with pytest.raises(InvalidArgument, match="8 MiB"):
        block.create_upper(path, 8)
    path.write_text("precious")
    with pytest.raises(AlreadyExists, match=str(path)):
        block.create_upper(path, 16)
    assert path.read_text() == "precious"
    with pytest.raises(NotFound, match="nowhere"):
        block.create_upper(tmp_path / "nowhere/upper", 16)
    monkeypatch.setattr(
        "hypercore.block.subprocess.run", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError)
    )
    with pytest.raises(Unavailable, match="mke2fs is not installed"):
        block.create_upper(tmp_path / "other", 17)
    assert not (tmp_path / "other").exists()
    assert [p.name for p in (tmp_path / "data/templates").iterdir() if "17" in p.name] == []


def test_stamp_refuses_a_file_with_content(tmp_path: Path, two_files: tuple[int, int]) -> None:
    block.create_upper(tmp_path / "upper", 16)
    fd = os.open(tmp_path / "upper", os.O_RDONLY)
    template = _blockio.load_template(fd)
    os.close(fd)
    dst, _ = two_files
    os.write(dst, b"x")
    with pytest.raises(FileExistsError):
        template.write(dst, bytes(16))
    with pytest.raises(ValueError, match="16 bytes"):
        template.write(dst, bytes(15))
    with pytest.raises(TypeError):
        type(template)()


def test_stamp_on_a_full_disk_leaves_no_file(tmp_path: Path) -> None:
    import resource
    import signal

    block.create_upper(tmp_path / "first", 16)
    # RLIMIT_FSIZE makes ftruncate fail as a quota would
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, before[1]))
    try:
        with pytest.raises(Exception, match="cannot create upper disk"):
            block.create_upper(tmp_path / "second", 16)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("options", [(), ("-O", "^metadata_csum"), ("-b", "1024")])
def test_template_of_other_shapes(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Refused, or stamped right: never a filesystem that fsck faults."""
    path = tmp_path / "image"
    subprocess.run(["/usr/sbin/mke2fs", "-q", "-t", "ext4", *options, path, "32M"], check=True)
    fd = os.open(path, os.O_RDONLY)
    try:
        template = _blockio.load_template(fd)
    except OSError as exc:
        refused = exc.errno
    else:
        refused = 0
    finally:
        os.close(fd)
    if refused:
        assert refused == errno.EINVAL
        return
    copy = os.open(tmp_path / "copy", os.O_RDWR | os.O_CREAT)
    template.write(copy, os.urandom(16))
    os.close(copy)
    fsck(tmp_path / "copy")


def test_copy_keeps_holes_and_reports_progress(two_files: tuple[int, int]) -> None:
    src, dst = two_files
    os.ftruncate(src, 200 * MIB)
    pieces = {0: b"a" * 5000, 50 * MIB + 123: b"b" * (3 * MIB), 200 * MIB - 10: b"c" * 10}
    for offset, piece in pieces.items():
        os.pwrite(src, piece, offset)
    progress = os.eventfd(0, os.EFD_CLOEXEC)
    copied = _blockio.copy_sparse(src, dst, progress)
    assert os.eventfd_read(progress) == copied
    os.close(progress)
    assert 3 * MIB <= copied <= 4 * MIB
    assert os.fstat(dst).st_size == 200 * MIB
    assert os.fstat(dst).st_blocks * 512 <= 4 * MIB
    for offset, piece in pieces.items():
        assert os.pread(dst, len(piece), offset) == piece


def test_copy_between_filesystems(two_files: tuple[int, int]) -> None:
    src, _ = two_files
    os.ftruncate(src, 8 * MIB)
    content = os.urandom(2 * MIB)
    os.pwrite(src, content, 4 * MIB)
    memory = os.memfd_create("copy")
    try:
        assert _blockio.copy_sparse(src, memory) == 2 * MIB
        assert os.pread(memory, 2 * MIB, 4 * MIB) == content
        assert os.fstat(memory).st_size == 8 * MIB
    finally:
        os.close(memory)


def test_copy_is_cancelled(two_files: tuple[int, int]) -> None:
    src, dst = two_files
    os.pwrite(src, b"x", 0)
    cancel = os.eventfd(1, os.EFD_CLOEXEC)
    with pytest.raises(OSError, match="ancel") as caught:
        _blockio.copy_sparse(src, dst, cancel_fd=cancel)
    assert caught.value.errno == errno.ECANCELED
    os.close(cancel)


def test_copy_of_nothing(two_files: tuple[int, int]) -> None:
    assert _blockio.copy_sparse(*two_files) == 0


def make(path: Path, kind: str) -> None:
    if kind == "erofs":
        source = path.parent / "tree"
        source.mkdir()
        (source / "file").write_bytes(os.urandom(20000))
        subprocess.run(["mkfs.erofs", "--quiet", path, source], check=True)
    elif kind == "ext2":
        subprocess.run(["/usr/sbin/mke2fs", "-q", "-t", "ext2", path, "4M"], check=True)
    else:
        subprocess.run(["/usr/sbin/mke2fs", "-q", "-t", "ext4", path, "32M"], check=True)


@pytest.mark.parametrize("kind", ["ext4", "ext2", "erofs"])
def test_probe_and_check(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "image"
    make(path, kind)
    expected = "erofs" if kind == "erofs" else "ext4"
    assert block.check_root_disk(path) == expected
    with open(path, "rb") as file:
        probed, block_size, size, raw = _blockio.probe_image(file.fileno())
    assert probed == expected
    assert block_size in (1024, 4096)
    assert size <= path.stat().st_size
    assert raw != bytes(16)
    os.truncate(path, size - block_size)
    with pytest.raises(InvalidArgument, match="cut short"):
        block.check_root_disk(path)


def test_foreign_superblocks(two_files: tuple[int, int]) -> None:
    fd, _ = two_files
    identity = bytes(range(16))
    os.pwrite(fd, b"XFSB" + (4096).to_bytes(4) + (100).to_bytes(8) + bytes(16) + identity, 0)
    assert _blockio.probe_image(fd) == ("xfs", 4096, 409600, identity)
    os.pwrite(fd, b"QFI\xfb" + (3).to_bytes(4) + bytes(12) + (16).to_bytes(4), 0)
    os.pwrite(fd, (5 * MIB).to_bytes(8), 24)
    assert _blockio.probe_image(fd) == ("qcow2", 65536, 5 * MIB, bytes(16))
    os.pwrite(fd, bytes(4), 0)
    os.pwrite(fd, identity, 0x10020)
    os.pwrite(fd, b"_BHRfS_M", 0x10040)
    os.pwrite(fd, (7 * MIB).to_bytes(8, "little"), 0x10070)
    os.pwrite(fd, (4096).to_bytes(4, "little"), 0x10090)
    assert _blockio.probe_image(fd) == ("btrfs", 4096, 7 * MIB, identity)


def test_nothing_known_and_nothing_at_all(tmp_path: Path, two_files: tuple[int, int]) -> None:
    fd, _ = two_files
    assert _blockio.probe_image(fd) == ("", 0, 0, bytes(16))
    os.pwrite(fd, os.urandom(100_000), 0)
    assert _blockio.probe_image(fd)[0] == ""
    with pytest.raises(InvalidArgument, match="no filesystem"):
        block.check_root_disk(tmp_path / "a")
    with pytest.raises(NotFound):
        block.check_root_disk(tmp_path / "missing")


def test_damaged_superblock(tmp_path: Path) -> None:
    path = tmp_path / "image"
    make(path, "ext4")
    with open(path, "r+b") as file:
        file.seek(1024 + 4)
        file.write(b"\1")
        file.flush()
        with pytest.raises(OSError, match="ext4 superblock") as caught:
            _blockio.probe_image(file.fileno())
    assert caught.value.errno == errno.EUCLEAN
    with pytest.raises(InvalidArgument, match="ext4 superblock"):
        block.check_root_disk(path)


def test_random_superblocks_never_crash(two_files: tuple[int, int]) -> None:
    import random

    source = random.Random(3)
    fd, _ = two_files
    magics = {1024: b"\xe2\xe1\xf5\xe0", 1024 + 56: b"\x53\xef", 0: b"XFSB"}
    for _ in range(300):
        os.pwrite(fd, source.randbytes(0x10100), 0)
        offset = source.choice(list(magics))
        os.pwrite(fd, magics[offset], offset)
        with contextlib.suppress(OSError):
            _blockio.probe_image(fd)


def test_preallocate_and_discard(two_files: tuple[int, int]) -> None:
    fd, _ = two_files
    _blockio.preallocate(fd, MIB, True)
    assert os.fstat(fd).st_size == 0
    assert os.fstat(fd).st_blocks * 512 >= MIB
    _blockio.preallocate(fd, 2 * MIB, False)
    assert os.fstat(fd).st_size == 2 * MIB
    os.pwrite(fd, b"x" * MIB, 0)
    _blockio.discard(fd, 0, MIB)
    assert os.pread(fd, 10, 0) == bytes(10)
    assert os.fstat(fd).st_size == 2 * MIB


def test_clone_where_it_cannot(two_files: tuple[int, int]) -> None:
    memory = os.memfd_create("clone")
    try:
        with pytest.raises(OSError, match="clone") as caught:
            _blockio.clone(two_files[0], memory)
        assert caught.value.errno in (errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL)
    finally:
        os.close(memory)
