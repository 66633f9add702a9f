"""tar headers against Python's own tarfile, which knows the formats of others."""

import io
import random
import tarfile

import pytest

from hypercore.wire import tar

LONG = "d" * 90 + "/" + "é" * 60 + "/file"


def written(*entries: tuple[tar.Entry, bytes]) -> bytes:
    parts = [e.encode() + data + tar.padding(len(data)) for e, data in entries]
    return b"".join(parts) + tar.END


def reader(data: bytes, piece: int = 100) -> tar.Reader:
    stream = io.BytesIO(data)
    return tar.Reader(lambda size: stream.read(min(size, piece)))


def contents(reading: tar.Reader) -> bytes:
    return b"".join(iter(lambda: reading.data(7), b""))


def read_all(reading: tar.Reader) -> None:
    while reading.next() is not None:
        contents(reading)


def test_others_read_what_we_write() -> None:
    entries = [
        (tar.Entry(b"dir/", tar.DIRECTORY, 0o1755, mtime_ns=1_700_000_000_000_000_000), b""),
        (tar.Entry(LONG.encode(), tar.REGULAR, 0o640, 1, 2, 5, 1_500_000_000), b"12345"),
        (tar.Entry(b"link", tar.SYMLINK, 0o777, link=b"t" * 150), b""),
        (tar.Entry(b"hard", tar.HARD_LINK, link=LONG.encode()), b""),
        (tar.Entry(b"dev", tar.CHARACTER, 0o600, major=1, minor=3), b""),
        (tar.Entry(b"big-owner", tar.REGULAR, 0, 1 << 31, 1 << 30), b""),
        (tar.Entry(b"x", tar.REGULAR, xattrs={b"user.a": b"\0v\n"}, mtime_ns=-1), b""),
    ]
    with tarfile.open(fileobj=io.BytesIO(written(*entries))) as archive:
        members = archive.getmembers()
        assert archive.extractfile(members[1]).read() == b"12345"
    assert [m.name for m in members] == ["dir", LONG, "link", "hard", "dev", "big-owner", "x"]
    assert (members[0].mode, members[0].mtime) == (0o1755, 1_700_000_000)
    assert (members[1].uid, members[1].gid, members[1].mtime) == (1, 2, 1.5)
    assert members[2].linkname == "t" * 150
    assert members[3].islnk()
    assert (members[4].devmajor, members[4].devminor) == (1, 3)
    assert (members[5].uid, members[5].gid) == (1 << 31, 1 << 30)
    assert members[6].pax_headers["SCHILY.xattr.user.a"] == "\0v\n"
    assert float(members[6].pax_headers["mtime"]) == pytest.approx(-1e-9)


@pytest.mark.parametrize(
    "form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=str
)
def test_we_read_what_others_write(form: int) -> None:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=form) as archive:
        for name, size in (("dir", None), (LONG if form else "a" * 90 + "/" + "b" * 80, 1000)):
            info = tarfile.TarInfo(name)
            info.mtime, info.uid, info.gid, info.mode = 1234567890, 1000, 100, 0o751
            info.type = tarfile.DIRTYPE if size is None else tarfile.REGTYPE
            info.size = size or 0
            archive.addfile(info, io.BytesIO(bytes(range(250)) * 4))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "t" * (150 if form else 90)
        archive.addfile(link)
    reading = reader(raw.getvalue())
    first, second = reading.next(), None
    assert first is not None
    assert (first.kind, first.name.rstrip(b"/")) == (tar.DIRECTORY, b"dir")
    second = reading.next()
    assert second is not None
    assert second.name.decode() == (LONG if form else "a" * 90 + "/" + "b" * 80)
    assert (second.uid, second.gid, second.mode, second.size) == (1000, 100, 0o751, 1000)
    assert second.mtime_ns == 1234567890 * 10**9
    assert contents(reading) == bytes(range(250)) * 4
    third = reading.next()
    assert third is not None
    assert (third.kind, third.link) == (tar.SYMLINK, b"t" * (150 if form else 90))
    assert reading.next() is None


def test_data_nobody_reads_is_skipped() -> None:
    data = written(
        (tar.Entry(b"a", tar.REGULAR, size=600), bytes(600)),
        (tar.Entry(b"b", tar.REGULAR, size=3), b"xyz"),
    )
    reading = reader(data)
    assert reading.next().name == b"a"
    reading.data(10)
    assert reading.next().name == b"b"
    assert contents(reading) == b"xyz"


def test_an_end_without_end_blocks_is_an_end() -> None:
    data = tar.Entry(b"a", tar.REGULAR).encode()
    reading = reader(data)
    assert reading.next().name == b"a"
    assert reading.next() is None


def pax(body: bytes) -> bytes:
    head = bytearray(tar.Entry(b"p", b"x", size=len(body)).encode())
    return bytes(head) + body + tar.padding(len(body)) + tar.Entry(b"a", tar.REGULAR).encode()


@pytest.mark.parametrize(
    "data",
    [
        tar.Entry(b"a", tar.REGULAR, size=600).encode() + bytes(100),
        tar.Entry(b"a", tar.REGULAR).encode()[:300],
        b"no archive at all".ljust(512, b"!"),
        tar.Entry(b"a", b"S").encode(),
        tar.Entry(b"p", b"x", size=2 << 20).encode() + bytes(2 << 20),
        pax(b"9999 path=x\n"),
        pax(b"12 path=xyz"),
        pax(b"x path=y\n"),
        pax(b"10 uid=-1\n"),
        pax(b"14 size=\xff\xfe1\n"),
        pax(b"12 mtime=x\n"),
        pax(b"23 GNU.sparse.major=1\n"),
    ],
)
def test_bad_archives_are_refused(data: bytes) -> None:
    with pytest.raises(tar.TarError):
        read_all(reader(data))


def test_noise_never_does_more_than_refuse() -> None:
    chance = random.Random(5)
    base = pax(b"11 path=yz\n") + written((tar.Entry(b"b", tar.REGULAR, size=3), b"xyz"))
    for _ in range(3000):
        noisy = bytearray(base)
        for _ in range(chance.randrange(1, 6)):
            place = chance.randrange(len(noisy))
            noisy[place] = chance.choice([0, 0x20, 0x30, 0x38, 0x80, 0xFF, chance.randrange(256)])
            block = place - place % 512
            total = sum(noisy[block : block + 512]) - sum(noisy[block + 148 : block + 156]) + 256
            if chance.random() < 0.8:
                noisy[block + 148 : block + 156] = b"%06o\0 " % total
        reading = reader(bytes(noisy), 4096)
        try:
            read_all(reading)
        except tar.TarError:
            continue
