"""Guest assets without a build: formats read and written, checks of a user's own files."""

import gzip
import json
import lzma
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from hypercore import guest
from hypercore.errors import HypercoreError, InvalidArgument, NotFound
from hypercore.guest import builder, drive, initrd, kernel, modules

ELF = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHI", 2, 62, 1) + bytes(40)


def bz_image(payload: bytes) -> bytes:
    """A bzImage with one set-up sector and this payload at offset 32 of its protected part."""
    image = bytearray(2 * 512 + 32)
    image[0x1F1] = 1
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, 32, len(payload))
    return bytes(image) + payload


def lz4_legacy(block: bytes, size: int) -> bytes:
    return b"\x02\x21\x4c\x18" + struct.pack("<I", len(block)) + block + struct.pack("<I", size)


def literal_block(data: bytes) -> bytes:
    """An LZ4 block of literals alone."""
    out = bytearray([min(len(data), 15) << 4])
    rest = len(data) - 15
    while rest >= 0:
        out.append(min(rest, 255))
        rest -= 255
    return bytes(out) + data


@pytest.mark.parametrize(
    "payload",
    [
        gzip.compress(ELF) + struct.pack("<I", len(ELF)),
        lzma.compress(ELF, check=lzma.CHECK_CRC32) + struct.pack("<I", len(ELF)),
        lz4_legacy(literal_block(ELF), len(ELF)),
    ],
    ids=["gzip", "xz", "lz4"],
)
def test_vmlinux_comes_out_of_a_bzimage(payload: bytes) -> None:
    assert kernel.extract_vmlinux(bz_image(payload)) == ELF


def test_lz4_copies_that_overlap_repeat() -> None:
    # 4 literals, then 20 bytes from 2 back, then 10 from 24 back; literals end the block.
    block = bytes([0x4F]) + b"\x7fELF" + b"\x02\x00\x01" + bytes([0x06]) + b"\x18\x00\x10!"
    expected = b"\x7fELF" + b"LF" * 10
    expected += expected[:10] + b"!"
    assert kernel.extract_vmlinux(bz_image(lz4_legacy(block, len(expected)))) == expected


def test_a_damaged_kernel_is_refused() -> None:
    with pytest.raises(HypercoreError, match="damaged"):
        kernel.extract_vmlinux(bz_image(lz4_legacy(b"\x10A\x09\x00\x00", 9)))
    with pytest.raises(HypercoreError, match="no bzImage"):
        kernel.extract_vmlinux(bytes(2048))
    with pytest.raises(HypercoreError, match="unknown compression"):
        kernel.extract_vmlinux(bz_image(b"?" * 64))
    with pytest.raises(HypercoreError, match="no ELF"):
        kernel.extract_vmlinux(bz_image(gzip.compress(b"text")))


def test_check_kernel_names_key_value_and_remedy(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    for content in (ELF, bz_image(b"")):
        path.write_bytes(content)
        guest.check_kernel(path)
    shared_library = bytearray(ELF)
    shared_library[16] = 3
    for content, words in (
        (b"#!/bin/sh\n", "no kernel"),
        (b"", "no kernel"),
        (bytes(shared_library), "no 64-bit kernel"),
    ):
        path.write_bytes(content)
        with pytest.raises(InvalidArgument, match=words) as error:
            guest.check_kernel(path)
        assert "hardware.kernel" in error.value.message
        assert str(path) in error.value.message
        assert "guest build" in error.value.hint
    with pytest.raises(InvalidArgument, match="No such file"):
        guest.check_kernel(tmp_path / "absent")


def kernel_with_build_id(build_id: bytes) -> bytes:
    """An ELF kernel with a note of another owner before its build id."""
    notes = struct.pack("<III", 4, 6, 6) + b"Xen\0" + b"linux\0\0\0"
    notes += struct.pack("<III", 4, len(build_id), 3) + b"GNU\0" + build_id
    head = bytearray(ELF[:64])
    struct.pack_into("<Q", head, 0x20, 64)
    struct.pack_into("<HH", head, 0x36, 56, 2)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, 0, 0, 0)
    note = struct.pack("<IIQQQQQQ", 4, 4, 64 + 112, 0, 0, len(notes), 0, 4)
    return bytes(head) + load + note + notes


def test_a_copy_of_our_kernel_gets_our_initrd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYPERCORE_DATA_DIR", str(tmp_path))
    copy, other, plain = tmp_path / "copy", tmp_path / "other", tmp_path / "plain"
    copy.write_bytes(kernel_with_build_id(b"a" * 20))
    other.write_bytes(kernel_with_build_id(b"b" * 20))
    plain.write_bytes(ELF)
    assert guest.initrd_for(copy) is None  # there are no assets
    version = tmp_path / "guest" / "1"
    version.mkdir(parents=True)
    (tmp_path / "guest" / "current").symlink_to("1")
    names = ("vmlinux", "initrd", "agent.erofs")
    manifest = {"version": "1", "files": {name: {} for name in names}}
    (version / "manifest.json").write_text(json.dumps(manifest))
    for name in names:
        (version / name).touch()
    shutil.copy(copy, version / "vmlinux")
    assert guest.initrd_for(copy) == version / "initrd"
    assert guest.initrd_for(other) is None
    assert guest.initrd_for(plain) is None
    assert guest.initrd_for(tmp_path / "absent") is None


def image_with(superblock: bytes) -> bytes:
    return bytes(1024) + superblock + bytes(4096)


def test_check_drive_knows_our_drives(tmp_path: Path) -> None:
    path = tmp_path / "drive"
    ours = drive.UUID_MARK + b"12345678"
    erofs = b"\xe2\xe1\xf5\xe0" + bytes(44)
    ext4 = bytearray(128)
    ext4[56:58] = b"\x53\xef"
    for content in (
        image_with(erofs + ours),
        image_with(bytes(ext4[:104]) + ours + bytes(8)),
    ):
        path.write_bytes(content)
        guest.check_drive(path)
    for content, words in (
        (image_with(erofs + bytes(16)), "our agent is not in it"),
        (image_with(bytes(ext4)), "our agent is not in it"),
        (b"text", "neither an EROFS nor an ext4"),
    ):
        path.write_bytes(content)
        with pytest.raises(InvalidArgument, match=words) as error:
            guest.check_drive(path, "hardware.drive")
        assert "guest build" in error.value.hint
    with pytest.raises(InvalidArgument, match="Is a directory"):
        guest.check_drive(tmp_path)


def test_initrd_is_a_cpio_archive(tmp_path: Path) -> None:
    archive = initrd.render(b"program", [("b.ko", b"second"), ("a.ko", b"x")])
    assert archive == initrd.render(b"program", [("b.ko", b"second"), ("a.ko", b"x")])
    entries = dict(parse_newc(archive))
    assert list(entries) == [
        "dev", "dev/console", "init", "modules", "modules/b.ko", "modules/a.ko", "modules/list",
    ]  # fmt: skip
    assert entries["init"] == (0o100755, b"program")
    assert entries["modules/list"] == (0o100644, b"b.ko\na.ko\n")
    assert entries["dev/console"] == (0o020600, b"")


def parse_newc(archive: bytes) -> list[tuple[str, tuple[int, bytes]]]:
    found = []
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        numbers = [int(archive[at + 6 + i * 8 : at + 14 + i * 8], 16) for i in range(13)]
        mode, size, name_size = numbers[1], numbers[6], numbers[11]
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        at += 110 + name_size
        at += -at % 4
        if name == "TRAILER!!!":
            return found
        found.append((name, (mode, archive[at : at + size])))
        at += size
        at += -at % 4


def module_file(directory: Path, name: str, needs: str) -> None:
    """An object file with a .modinfo section, as a kernel module has."""
    info = f"license=GPL\0depends={needs}\0".encode()
    names = b"\0.modinfo\0.shstrtab\0"
    sections = [
        bytes(64),
        struct.pack("<IIQQQQIIQQ", 1, 1, 0, 0, 64, len(info), 0, 0, 1, 0),
        struct.pack("<IIQQQQIIQQ", 10, 3, 0, 0, 64 + len(info), len(names), 0, 0, 1, 0),
    ]
    head = b"\x7fELF\x02\x01" + bytes(10)
    head += struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, 64 + len(info) + len(names), 0, 64, 0, 0,
                        64, 3, 2)  # fmt: skip
    (directory / f"{name}.ko").write_bytes(head + info + names + b"".join(sections))


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    base = tmp_path / "lib" / "modules" / "6.1.0" / "kernel" / "drivers"
    base.mkdir(parents=True)
    module_file(base, "virtio_net", "net_failover,virtio")
    module_file(base, "net_failover", "failover")
    module_file(base, "failover", "")
    module_file(base, "virtio", "virtio-ring,builtin_one")
    module_file(base, "virtio_ring", "")
    tree = modules.ModuleTree(tmp_path)
    assert tree.release == "6.1.0"
    names = [path.stem for path in tree.ordered(["virtio-net", "failover"])]
    assert names == ["failover", "net_failover", "virtio_ring", "virtio", "virtio_net"]
    with pytest.raises(NotFound, match=r"6\.1\.0 has no module nosuch"):
        tree.ordered(["nosuch"])


def test_links_of_packages_are_followed_inside_their_root(tmp_path: Path) -> None:
    """The host has a loader of another version at the same absolute path."""
    (tmp_path / "lib" / "x").mkdir(parents=True)
    (tmp_path / "lib64").mkdir()
    (tmp_path / "lib" / "x" / "ld.so").write_text("theirs")
    (tmp_path / "lib64" / "absolute").symlink_to("/lib/x/ld.so")
    (tmp_path / "lib64" / "relative").symlink_to("../lib/x/ld.so")
    (tmp_path / "lib64" / "twice").symlink_to("absolute")
    (tmp_path / "lib64" / "above").symlink_to("../../../../lib/x/ld.so")
    for name in ("absolute", "relative", "twice", "above"):
        assert drive.inside(tmp_path, f"lib64/{name}").read_text() == "theirs"
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(HypercoreError, match="link out of the packages"):
        drive.inside(tmp_path, "circle")


def test_libraries_of_a_program() -> None:
    program = Path(shutil.which("ls") or "/bin/ls").resolve()
    interpreter, needed = drive.dynamic_needs(program.read_bytes())
    listing = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    assert "libc.so.6" in needed
    assert all(name in listing for name in needed)
    assert interpreter in listing


def test_assets_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERCORE_DATA_DIR", str(tmp_path))
    with pytest.raises(NotFound, match="no guest assets") as error:
        guest.current()
    assert "guest build" in error.value.hint
    version = tmp_path / "guest" / "1-abc"
    version.mkdir(parents=True)
    (tmp_path / "guest" / "current").symlink_to("1-abc")
    manifest = {"version": "1-abc", "files": {"vmlinux": {}, "agent.erofs": {}}}
    (version / "manifest.json").write_text(json.dumps(manifest))
    (version / "vmlinux").touch()
    with pytest.raises(NotFound, match=r"agent\.erofs is missing"):
        guest.current()
    (version / "agent.erofs").touch()
    assets = guest.current()
    assert assets.version == "1-abc"
    assert assets.kernel_path == version / "vmlinux"
    assert assets.initrd_path is None


def test_old_versions_go_but_the_last_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERCORE_DATA_DIR", str(tmp_path))
    directory = tmp_path / "guest"
    for age, version in enumerate(("e", "d", "c", "b", "a")):
        manifest = directory / version / "manifest.json"
        manifest.parent.mkdir(parents=True)
        manifest.touch()
        os.utime(manifest, (1000 - age, 1000 - age))
    (directory / "current").symlink_to("b")
    (directory / ".build-x").mkdir()
    builder._remove_old("b")
    left = {path.name for path in directory.iterdir()}
    assert left == {"b", "d", "e", "current", ".build-x"}
