"""slots: smallest free number, no race, several instances on one host."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hypercore import paths, slots
from hypercore.errors import HypercoreError, NotFound, ResourceExhausted


@pytest.fixture(autouse=True)
def directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERCORE_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("HYPERCORE_SLOTS_DIR", str(tmp_path / "slots"))


def test_smallest_free_slot_is_taken() -> None:
    assert [slots.acquire(name) for name in ("a", "b", "c")] == [0, 1, 2]
    slots.release("b")
    assert slots.owners() == {0: "a", 2: "c"}
    assert slots.acquire("d") == 1
    assert slots.acquire("e") == 3


def test_release_is_idempotent_and_gives_back_all() -> None:
    slots.release("never-was")
    slots.acquire("a")
    slots.acquire("a")
    slots.release("a")
    slots.release("a")
    assert slots.owners() == {}


def test_threads_and_processes_never_share_a_slot() -> None:
    code = "from hypercore import slots\nfor n in range(25): print(slots.acquire(f'p-{n}'))"
    children = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    with ThreadPoolExecutor(4) as threads:
        taken = list(threads.map(slots.acquire, [f"t-{n}" for n in range(100)]))
    for child in children:
        taken += [int(line) for line in child.communicate()[0].split()]
        assert child.returncode == 0
    assert sorted(taken) == list(range(175))


def test_instances_share_the_numbers_but_not_the_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert slots.acquire("a") == 0
    with monkeypatch.context() as other:
        other.setenv("HYPERCORE_RUN_DIR", str(tmp_path / "other"))
        assert slots.acquire("a") == 1
        assert slots.owners() == {1: "a"}
        slots.release("a")
    assert slots.owners() == {0: "a"}


def test_tags_tell_instances_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    own = slots.tag("a")
    assert slots.untag(own) == "a"
    monkeypatch.setenv("HYPERCORE_RUN_DIR", "/run/hypercore")
    assert slots.tag("a") == "a"
    assert slots.untag("a") == "a"
    assert slots.untag(own) == ""


def test_no_slot_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "LIMIT", 2)
    slots.acquire("a")
    slots.acquire("b")
    with pytest.raises(ResourceExhausted, match="microVM c"):
        slots.acquire("c")


def test_a_file_that_is_no_slot_is_named() -> None:
    slots.acquire("a")
    (paths.slots_dir() / "7").write_text("")
    with pytest.raises(HypercoreError, match="slots/7"):
        slots.owners()


def test_directory_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERCORE_SLOTS_DIR", "/proc/nothing/slots")
    with pytest.raises(NotFound, match="/proc/nothing"):
        slots.acquire("a")


def test_directory_is_private() -> None:
    slots.acquire("a")
    assert os.stat(paths.slots_dir()).st_mode & 0o777 == 0o700
