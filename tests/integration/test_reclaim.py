"""Who may take a microVM back when its id is used again, and when two do it at once."""

import fcntl
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hypercore import processes, slots
from hypercore.paths import MicroVMPaths
from hypercore.reclaim import claim, reclaim

SLEEP = shutil.which("sleep") or "/bin/sleep"
DEADLINE_S = 20


@pytest.fixture
def files(root: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[MicroVMPaths]:
    run = Path(tempfile.mkdtemp(prefix="hct-", dir="/run"))
    monkeypatch.setenv("HYPERCORE_RUN_DIR", str(run))
    monkeypatch.setenv("HYPERCORE_SLOTS_DIR", str(run / "slots"))
    yield MicroVMPaths("vm-test")
    shutil.rmtree(run)


def start(files: MicroVMPaths) -> tuple[str, subprocess.Popen[bytes]]:
    """What a start leaves on the host, with a process that outlives its server."""
    files.vmm_dir.mkdir(parents=True)
    mark = claim(files)
    slots.acquire("vm-test")
    environment = processes.environment("vm-test")
    process = subprocess.Popen([SLEEP, "1000"], env=environment, start_new_session=True)
    processes.record_intent(files.processes, "vmm")
    processes.record(files.processes, "vmm", process.pid)
    return mark, process


def test_an_old_server_leaves_the_next_start_of_the_id_alone(files: MicroVMPaths) -> None:
    old, dead = start(files)
    assert reclaim("vm-test")  # as the shim's `delete` does
    dead.wait(DEADLINE_S)
    new, alive = start(files)
    try:
        assert not reclaim("vm-test", old)
        assert alive.poll() is None
        assert files.claim.read_text() == new
        assert list(slots.owners().values()) == ["vm-test"]
    finally:
        assert reclaim("vm-test", new)
        alive.wait(DEADLINE_S)
    assert not files.run.exists()
    assert not reclaim("vm-test", new)


def test_who_waits_for_another_to_reclaim_does_not_take_what_came_after(
    files: MicroVMPaths,
) -> None:
    old, dead = start(files)
    results: list[bool] = []
    waiter = threading.Thread(target=lambda: results.append(reclaim("vm-test", old)))
    held = os.open(files.run, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiter.start()
        dead.kill()
        dead.wait(DEADLINE_S)
        shutil.rmtree(files.run)
        slots.release("vm-test")
        new, alive = start(files)
    finally:
        os.close(held)
        waiter.join(DEADLINE_S)
    try:
        assert results == [False]
        assert alive.poll() is None
    finally:
        assert reclaim("vm-test", new)
        alive.wait(DEADLINE_S)
