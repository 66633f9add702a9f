"""Our own containerd: started, found again, stopped, whatever died in between."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hypercore import paths
from hypercore.config import HostConfig
from hypercore.containerd import daemon, namespaces, snapshots
from hypercore.containerd.client import Client
from hypercore.errors import DeadlineExceeded, InvalidArgument, StateError, Unavailable
from tests.integration import own_containerd

pytestmark = pytest.mark.usefixtures("root")


@pytest.fixture
def config() -> Iterator[HostConfig]:
    with own_containerd.directories() as made:
        yield made


def start(config: HostConfig, **options: float) -> daemon.Status:
    return asyncio.run(daemon.start(config, **options))


def stop() -> bool:
    return asyncio.run(daemon.stop())


def test_start_and_stop(config: HostConfig) -> None:
    assert not daemon.status().serving
    state = start(config)
    assert state.serving
    assert state == daemon.status()
    assert start(config).pid == state.pid
    assert stop()
    assert daemon.status().pid == 0
    assert not Path(f"/proc/{state.pid}").exists()
    assert not stop()


def test_started_once_by_many(config: HostConfig) -> None:
    async def all_at_once() -> set[int]:
        return {state.pid for state in await asyncio.gather(*map(daemon.start, [config] * 4))}

    assert len(asyncio.run(all_at_once())) == 1


def test_found_without_its_record(config: HostConfig) -> None:
    pid = start(config).pid
    paths.containerd_record().unlink()
    assert daemon.status().pid == pid
    assert start(config).pid == pid


LOOK_ALIKE = """
import sys, time
fields = open("/proc/self/stat").read().rpartition(")")[2].split()
begin, end = int(fields[45]), int(fields[46])
with open("/proc/self/mem", "r+b", buffering=0) as memory:
    memory.seek(begin)
    memory.write(f"containerd\\0--config\\0{sys.argv[1]}\\0".encode().ljust(end - begin, b"\\0"))
print("ready", flush=True)
time.sleep(1000)
"""


def test_the_process_of_another_user_is_not_taken_for_it(config: HostConfig) -> None:
    paths.containerd_config().touch()
    argv = [sys.executable, "-c", LOOK_ALIKE, str(paths.containerd_config())]
    with subprocess.Popen(argv, user=65534, stdout=subprocess.PIPE) as impostor:
        try:
            assert impostor.stdout is not None
            assert impostor.stdout.readline() == b"ready\n"
            said = Path(f"/proc/{impostor.pid}/cmdline").read_bytes().split(b"\0")
            assert said[1:3] == [b"--config", os.fsencode(paths.containerd_config())]
            assert daemon.status().pid == 0
        finally:
            impostor.kill()


def test_record_of_another_process_is_not_believed(config: HostConfig) -> None:
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        paths.containerd_record().write_text(f"{bystander.pid} 1\n")
        assert daemon.status().pid == 0
        assert not stop()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_started_again_after_it_was_killed(config: HostConfig) -> None:
    pid = start(config).pid
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    again = start(config)
    assert again.serving
    assert again.pid != pid
    os.waitpid(pid, 0)


def test_program_that_ends_at_once(config: HostConfig) -> None:
    bad = paths.data_dir() / "bad"
    bad.write_text("#!/bin/sh\necho doom: no such disk\nexit 3\n")
    bad.chmod(0o755)
    with pytest.raises(Unavailable, match="doom: no such disk"):
        start(HostConfig(binaries={"containerd": bad}))
    assert daemon.status().pid == 0


def test_program_that_never_serves_is_ended(config: HostConfig) -> None:
    bad = paths.data_dir() / "bad"
    bad.write_text("#!/bin/sh\necho waiting for godot\nexec sleep 600\n")
    bad.chmod(0o755)
    with pytest.raises(DeadlineExceeded, match="waiting for godot"):
        start(HostConfig(binaries={"containerd": bad}), deadline_s=0.5)
    assert daemon.status().pid == 0


def test_socket_of_another_is_left_alone(config: HostConfig) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(paths.containerd_socket()))
        listener.listen()
        with pytest.raises(StateError, match=str(os.getpid())):
            start(config)
    assert paths.containerd_socket().exists()


def test_containerd_of_the_configuration_is_not_ours_to_start(config: HostConfig) -> None:
    with pytest.raises(StateError, match="not ours"):
        start(HostConfig(containerd_socket=Path("/run/other.sock")))


def test_logs_are_rotated(config: HostConfig) -> None:
    for _ in range(daemon.LOGS_KEPT + 2):
        start(config)
        stop()
    log = paths.containerd_log()
    names = [log.name, *(f"{log.name}.{number}" for number in range(1, daemon.LOGS_KEPT + 1))]
    assert sorted(path.name for path in log.parent.glob("containerd.log*")) == names


def test_scratch_file_is_sparse_and_stays(config: HostConfig) -> None:
    start(config)
    scratch = paths.blockfile_dir() / "scratch"
    made = scratch.stat()
    assert made.st_size == 512 << 20
    assert made.st_blocks * 512 < 1 << 20
    stop()
    start(config)
    assert scratch.stat().st_ino == made.st_ino


def test_snapshots_outlive_a_restart(config: HostConfig) -> None:
    async def names() -> list[str]:
        async with Client() as client:
            assert await namespaces.list_names(client) == ["hypercore"]
            return [info.name for info in await snapshots.list_all(client)]

    start(config)
    before = asyncio.run(names())
    assert before == ["hypercore-base-1"]
    stop()
    start(config)
    assert asyncio.run(names()) == before


def test_no_containerd_names_the_way_out(config: HostConfig) -> None:
    async def call() -> None:
        async with Client() as client:
            await snapshots.list_all(client)

    with pytest.raises(Unavailable, match="is not running at") as caught:
        asyncio.run(call())
    assert "hypercore containerd start" in caught.value.hint


def test_socket_path_that_is_too_long() -> None:
    with pytest.raises(InvalidArgument, match="107"):
        Client(Path("/run") / ("x" * 120))
