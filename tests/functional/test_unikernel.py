"""Unikernels from the command line: the VM is the task, its console the stdio, its end the exit.

The guest is tests/tinyguest.py's in QEMU, which boots in milliseconds also where it emulates.
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tinyguest
from tests.functional import instance, leaks
from tests.functional.instance import Instance, Result
from tests.functional.test_spawn import lives, processes_of, wait_for_state

TEXT = "hello from the guest\n"
HAC = """\
[spacecore]
name = "tiny"
[hardware]
memory = 64
kernel = "{kernel}"
[vm]
kind = "unikernel"
provider = "qemu"
cmdline = "a=1 b=2"
"""


@pytest.fixture(scope="module")
def bare(root: None) -> Iterator[Instance]:
    """An instance with containerd and a shim server, and nothing that a container would need."""
    with instance.instance(instance.shared_data_dir()) as made:
        made.run("containerd", "start")
        (made.data_dir / "unikernel").mkdir(mode=0o711)
        made.boot("spawn", "--rm", "--hac", hac(made.data_dir / "unikernel", "triple"))
        yield made


@pytest.fixture
def hypercore(bare: Instance) -> Iterator[Instance]:
    before = leaks.take(bare)
    yield bare
    left = leaks.compare(bare, before)
    assert not left, "the host is not as before:\n" + "\n".join(left)


@pytest.fixture
def directory(hypercore: Instance) -> Path:
    """Where a VMM that is not root finds a kernel."""
    return hypercore.data_dir / "unikernel"


def hac(directory: Path, *endings: str, more: str = "", **changes: str) -> Path:
    """A workload file for a guest that does `endings`."""
    kernel = tinyguest.write(directory / "-".join(["kernel", *endings]), TEXT, *endings)
    text = HAC.format(kernel=kernel.name)
    for old, new in changes.items():
        text = text.replace(old, new)
    path = directory / "hac.toml"
    path.write_text(text + more)
    return path


@pytest.fixture
def echo(hypercore: Instance, directory: Path) -> Iterator[str]:
    """The id of a guest that says its text, and what it is told until that has a q."""
    microvm_id = hypercore.spawn("--hac", hac(directory, "echo", "triple"))
    yield microvm_id
    hypercore.run("rm", "--force", microvm_id)


def attach(made: Instance, microvm_id: str, text: bytes) -> bytes:
    """What comes out until the task ends, having typed `text` once the guest spoke."""
    with made.popen("attach", microvm_id) as attached:
        assert attached.stdin is not None
        assert attached.stdout is not None
        said = attached.stdout.read(len(TEXT))
        attached.stdin.write(text)
        attached.stdin.flush()
        try:
            rest, _ = attached.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            attached.kill()
            raise
        assert attached.returncode == 0
        return said + rest


def test_it_runs_to_its_end_in_the_foreground(hypercore: Instance, directory: Path) -> None:
    result = hypercore.boot("spawn", "--rm", "--hac", hac(directory, "triple"))
    assert result.out == TEXT
    assert "tiny" not in hypercore.run("list", "--all").out


def test_it_is_listed_attached_to_logged_and_started_again(hypercore: Instance, echo: str) -> None:
    listing = hypercore.run("list").out
    assert echo[:12] in listing
    assert "a=1 b=2" in hypercore.run("inspect", echo).out
    assert attach(hypercore, echo, b"abc\rdefq") == TEXT.encode() + b"abc\rdef"
    assert wait_for_state(hypercore, echo, "exited")["exit_code"] == 0
    assert hypercore.run("logs", echo).out == TEXT + "abc\rdef"
    hypercore.boot("start", echo)
    assert wait_for_state(hypercore, echo, "running")
    assert attach(hypercore, echo, b"q").startswith(TEXT.encode())


def test_it_has_no_processes_and_takes_few_signals(hypercore: Instance, echo: str) -> None:
    refused = hypercore.run("exec", echo, "ls", check=False)
    assert refused.code != 0
    assert "is a unikernel: no process can be added" in refused.err
    refused = hypercore.run("kill", "-s", "USR1", echo, check=False)
    assert "signal 10 means nothing" in refused.err


def test_stop_kills_a_guest_that_does_not_listen(hypercore: Instance, echo: str) -> None:
    pid = processes_of(hypercore, echo)["vmm"]
    hypercore.run("stop", "-t", "1", echo)
    assert wait_for_state(hypercore, echo, "exited")["exit_code"] == 137
    assert not lives(pid)


def test_a_vmm_that_is_killed(hypercore: Instance, echo: str) -> None:
    os.kill(processes_of(hypercore, echo)["vmm"], signal.SIGKILL)
    assert wait_for_state(hypercore, echo, "exited")["exit_code"] == 137


def test_cleanup_takes_it_back(hypercore: Instance, directory: Path) -> None:
    microvm_id = hypercore.spawn("--hac", hac(directory))
    pid = processes_of(hypercore, microvm_id)["vmm"]
    hypercore.run("cleanup", microvm_id)
    assert not lives(pid)
    assert microvm_id not in hypercore.run("list", "--all", "--format", "json").out


def refused(made: Instance, path: Path, *args: str) -> Result:
    result = made.run("spawn", *args, "--hac", path, check=False)
    assert result.code not in (0, 1), result
    return result


def test_bad_input(hypercore: Instance, directory: Path) -> None:
    (directory / "text").write_text("no kernel")
    for changes, more, args, named in (
        ({'"kernel"': '"text"'}, "", (), "neither an ELF vmlinux nor a bzImage"),
        ({'"kernel"': '"nowhere"'}, "", (), "no such file"),
        ({'kernel = "kernel"': ""}, "", (), "needs its kernel"),
        ({"memory": 'ref = "alpine"\nmemory'}, "", (), "ref = "),
        ({}, '[workload]\nargs = ["x"]\n', (), "[workload] args"),
        ({}, '[network]\nmode = "nat"\n', (), "[network] mode"),
        ({}, 'disks = ["nowhere"]\n', (), "neither a file nor a block device"),
        ({"unikernel": "unicorn"}, "", (), "must be one of container, unikernel"),
        ({}, "", ("-t",), "are for containers"),
    ):
        path = hac(directory, more=more, **changes)
        result = refused(hypercore, path, *args)
        assert named in result.err, result
