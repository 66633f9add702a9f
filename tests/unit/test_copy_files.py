"""What a container's archive may and may not do to the host, and docker cp's rules for names."""

import io
import os
import stat
import threading
from pathlib import Path

import pytest

from hypercore.cli.copy import split
from hypercore.copy_files import Options, pack, unpack
from hypercore.engine_copy import Plan, plan
from hypercore.errors import HypercoreError, InvalidArgument, NotFound
from hypercore.wire import tar

OUT = "the name of something outside"


def entry(name: bytes, kind: bytes = tar.REGULAR, data: bytes = b"", **more: object) -> bytes:
    made = tar.Entry(name, kind, more.pop("mode", 0o644), size=len(data), **more)
    return made.encode() + data + tar.padding(len(data))


def extract(into: Path, *entries: bytes, top: str = "t", name: str = "t", **options: bool):
    read = io.BytesIO(b"".join(entries) + tar.END + bytes(5000)).read
    return unpack(read, str(into), top, name, Options(**options))


@pytest.fixture
def into(tmp_path: Path) -> Path:
    (tmp_path / "into").mkdir()
    (tmp_path / "secret").write_text("kept")
    return tmp_path / "into"


def test_a_tree_under_another_name(into: Path) -> None:
    left_out = extract(
        into,
        entry(b"t/", tar.DIRECTORY, mode=0o751, mtime_ns=5 * 10**9),
        entry(b"t/sub/file", data=b"x" * 1000, mode=0o4755, mtime_ns=123456789),
        entry(b"t/link", tar.SYMLINK, link=b"/etc/passwd"),
        entry(b"t/hard", tar.HARD_LINK, link=b"t/sub/file"),
        entry(b"t/null", tar.CHARACTER, major=1, minor=3),
        entry(b"t/fifo", tar.FIFO),
        name="renamed",
    )
    made = into / "renamed"
    assert sorted(os.listdir(made)) == ["hard", "link", "sub"]
    assert (made / "sub" / "file").read_bytes() == b"x" * 1000
    status = os.stat(made / "sub" / "file")
    assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o755, 123456789)
    assert status.st_ino == os.stat(made / "hard").st_ino
    assert os.readlink(made / "link") == "/etc/passwd"
    assert (stat.S_IMODE(os.stat(made).st_mode), os.stat(made).st_mtime) == (0o751, 5)
    assert list(left_out) == ["t/null", "t/fifo"]


def test_what_is_in_a_directory(into: Path) -> None:
    extract(into, entry(b"./", tar.DIRECTORY), entry(b"./f", data=b"1"), top=".", name="")
    assert (into / "f").read_bytes() == b"1"


@pytest.mark.parametrize(
    "entries",
    [
        [entry(b"/t/f", data=b"!")],
        [entry(b"t/../../secret", data=b"!")],
        [entry(b"../secret", data=b"!")],
        [entry(b"other/f", data=b"!")],
        [entry(b"t", tar.SYMLINK, link=b".."), entry(b"t/secret", data=b"!")],
        [entry(b"t/a", tar.SYMLINK, link=b"/"), entry(b"t/a/x", tar.DIRECTORY)],
        [
            entry(b"t/a", tar.SYMLINK, link=b"../.."),
            entry(b"t/a/secret", tar.HARD_LINK, link=b"t/a"),
        ],
        [entry(b"t/h", tar.HARD_LINK, link=b"../secret")],
        [entry(b"t/h", tar.HARD_LINK, link=b"t/../../secret")],
        [entry(b"t/f", data=b"!"), entry(b"t/f/g", data=b"!")],
    ],
)
def test_nothing_leaves_the_directory(entries: list[bytes], into: Path) -> None:
    with pytest.raises(InvalidArgument):
        extract(into, *entries)
    assert (into / ".." / "secret").read_text() == "kept"
    assert sorted(os.listdir(into / "..")) == ["into", "secret"]


def test_links_that_were_there_are_not_followed(into: Path) -> None:
    (into / "t").symlink_to(into / "..")
    with pytest.raises(InvalidArgument, match="no directory"):
        extract(into, entry(b"t/secret", data=b"!"))
    (into / "t").unlink()
    (into / "t").symlink_to("../secret")
    extract(into, entry(b"t", data=b"new"))
    assert (into / "t").read_text() == "new"
    assert (into / ".." / "secret").read_text() == "kept"


def test_a_file_that_has_other_names_is_made_anew(into: Path) -> None:
    os.link(into / ".." / "secret", into / "t")
    extract(into, entry(b"t", data=b"new"))
    assert (into / ".." / "secret").read_text() == "kept"


def test_a_directory_stays(into: Path) -> None:
    (into / "t").mkdir()
    with pytest.raises(HypercoreError, match="t: Is a directory"):
        extract(into, entry(b"t", data=b"new"))


def test_special_files_when_asked(into: Path) -> None:
    assert not extract(into, entry(b"t", tar.FIFO), special_files=True)
    assert stat.S_ISFIFO(os.stat(into / "t").st_mode)


def test_an_archive_cut_short(into: Path) -> None:
    half = entry(b"t", data=b"x" * 4096)[:2000]
    with pytest.raises(InvalidArgument, match="cut short"):
        unpack(io.BytesIO(half).read, str(into), "t", "t", Options())
    with pytest.raises(NotFound):
        unpack(io.BytesIO(b"").read, str(into / "nothing"), "t", "t", Options())


def test_what_is_packed_is_unpacked(into: Path) -> None:
    source = into / ".." / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "file").write_bytes(os.urandom(200_000))
    (source / "link").symlink_to("sub")
    read_fd, write_fd = os.pipe()

    def write() -> None:
        pack(str(source), "t", write_fd)
        os.close(write_fd)

    thread = threading.Thread(target=write)
    thread.start()
    unpack(lambda size: os.read(read_fd, size), str(into), "t", "t", Options())
    thread.join()
    os.close(read_fd)
    made = into / "t"
    assert (made / "sub" / "file").read_bytes() == (source / "sub" / "file").read_bytes()
    assert os.readlink(made / "link") == "sub"


@pytest.mark.parametrize(
    ("source", "is_dir", "target", "target_is", "expected"),
    [
        ("/a/f", False, "/b", "dir", Plan("/b", "f")),
        ("/a/f", False, "/b/g", "", Plan("/b", "g")),
        ("/a/f", False, "/b/g", "file", Plan("/b", "g")),
        ("/a/d", True, "/b", "dir", Plan("/b", "d")),
        ("/a/d/", True, "/b/", "dir", Plan("/b/", "d")),
        ("/a/d/.", True, "/b", "dir", Plan("/b", "")),
        ("/", True, "/b", "dir", Plan("/b", "")),
        ("/a/d", True, "/b/new", "", Plan("/b", "new")),
        ("/a/d/.", True, "/b/new/", "", Plan("/b", "new")),
        ("f", False, "g", "", Plan(".", "g")),
        ("f", False, "/g", "", Plan("/", "g")),
        ("/a/f", False, "/b/new/", "", None),
        ("/a/d", True, "/b/g", "file", None),
    ],
)
def test_where_a_copy_goes(
    source: str, is_dir: bool, target: str, target_is: str, expected: Plan | None
) -> None:
    if expected is None:
        with pytest.raises(InvalidArgument):
            plan(source, is_dir, target, target_is)
    else:
        assert plan(source, is_dir, target, target_is) == expected


def test_arguments() -> None:
    assert split("abc:/etc/x:y") == ("abc", "/etc/x:y")
    assert split("abc:") == ("abc", "/")
    assert split("./a:b") == ("", "./a:b")
    assert split("/a:b") == ("", "/a:b")
    assert split("-") == ("", "-")
