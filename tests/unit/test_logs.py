"""Reading a microVM's logs over their segments."""

import os
import threading
from pathlib import Path

import pytest

from hypercore import logs
from hypercore.attach import ExitStatus
from hypercore.paths import MicroVMPaths


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of six lines in three segments, the oldest in `.2`."""
    for suffix, lines in ((".2", "l0\nl1\n"), (".1", "l2\nl3\n"), ("", "l4\nl5\n")):
        (tmp_path / f"stdout.log{suffix}").write_text(lines)
    (tmp_path / "stdout.log.old").write_text("not a segment\n")
    return tmp_path / "stdout.log"


def read(path: Path, skip_bytes: int = 0) -> str:
    return b"".join(logs.chunks(path, skip_bytes)).decode()


def test_segments_are_read_the_oldest_first(log: Path) -> None:
    assert read(log) == "l0\nl1\nl2\nl3\nl4\nl5\n"
    assert read(log, 7) == "2\nl3\nl4\nl5\n"


@pytest.mark.parametrize("lines", range(8))
def test_tail(log: Path, lines: int) -> None:
    wanted = read(log).splitlines()[-lines:] if lines else []
    assert read(log, logs.tail_offset(log, lines)).splitlines() == wanted


def test_tail_of_lines_longer_than_a_chunk_and_without_an_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"a" * 100_000 + b"\n" + b"b" * 200_000 + b"\nunfinished")
    assert read(path, logs.tail_offset(path, 1)) == "unfinished"
    assert len(read(path, logs.tail_offset(path, 2))) == 200_011
    assert logs.tail_offset(path, 3) == 0


def test_a_log_that_is_not_there(tmp_path: Path) -> None:
    assert read(tmp_path / "none") == ""
    assert logs.tail_offset(tmp_path / "none", 5) == 0


def test_a_log_that_rotates_is_read_without_a_gap(tmp_path: Path) -> None:
    """Each segment is one line with its number; whatever is read, nothing is left out between."""
    path = tmp_path / "log"
    path.write_text("0\n")
    stop = threading.Event()

    def rotate() -> None:
        number = 0
        while not stop.is_set():
            for n in range(3, 0, -1):
                older, newer = path.with_name(f"log.{n}"), path.with_name(f"log.{n - 1}")
                source = path if n == 1 else newer
                if source.exists():
                    source.rename(older)
            number += 1
            path.write_text(f"{number}\n")

    thread = threading.Thread(target=rotate)
    thread.start()
    try:
        for _ in range(200):
            numbers = [int(word) for word in read(path).split()]
            assert numbers == list(range(numbers[0], numbers[-1] + 1)) if numbers else True
    finally:
        stop.set()
        thread.join()
    assert b"".join(logs.tail(path, 2)).decode() == read(path, logs.tail_offset(path, 2))


def test_copy_ends_quietly_when_the_reader_is_gone(log: Path) -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    try:
        logs.copy(log, write_fd)
    finally:
        os.close(write_fd)


def test_records_of_the_shim_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERCORE_DATA_DIR", str(tmp_path))
    where = MicroVMPaths("x")
    assert logs.exit_record(where) is None
    assert logs.timings(where) == {}
    where.data.mkdir(parents=True)
    where.exit_record.write_text('{"exit_status": 7, "missing_bytes": 2, "reason": "r"}')
    where.timings.write_text('{"boot": 12.5}')
    assert logs.exit_record(where) == ExitStatus(7, 2, "r")
    assert logs.timings(where) == {"shim": {"boot": 12.5}}
    where.exit_record.write_text("{")
    assert logs.exit_record(where) is None
