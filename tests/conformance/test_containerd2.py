"""containerd 2.x and its own ctr against our shim: shim API 3, other bootstrap, other restart.

2.1 is Debian's, 2.4 is built from the module beside this file, which names it by checksum; it
writes its bootstrap parameters to the shim's stdin as a message, 2.1 does not.
"""

import contextlib
import hashlib
import random
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hypercore import aptroot
from tests.conformance import golang
from tests.functional import images, instance, leaks
from tests.functional.conftest import SHELL_REF
from tests.functional.instance import BOOT_DEADLINE_S
from tests.functional.test_ctr import RUNTIME, Ctr, on_terminal

MODULE = Path(__file__).parent / "containerd2"
RUNS, AT_ONCE = 20, 8
MANY_BOOT_S = 4 * BOOT_DEADLINE_S
VERSIONS = ("2.1", "2.4")

pytestmark = pytest.mark.timeout(golang.BUILD_DEADLINE_S + 4 * BOOT_DEADLINE_S)


def programs(version: str, scratch: Path) -> Path:
    """The directory with this version's containerd and ctr."""
    if version == "2.4":
        command = "github.com/containerd/containerd/v2/cmd/"
        golang.build(MODULE, scratch, [f"{command}containerd", f"{command}ctr"])
        return scratch
    into = instance.shared_data_dir() / "tools" / "containerd2" / "forky"
    aptroot.fetch(["containerd"], suite="forky", into=into, progress=print)
    return into / "usr/bin"


@pytest.fixture(scope="module", params=VERSIONS)
def ctr(
    request: pytest.FixtureRequest, root: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ctr]:
    """An instance whose containerd is of that version, with an image."""
    where = programs(request.param, tmp_path_factory.mktemp("containerd"))
    version = subprocess.run([where / "containerd", "--version"], capture_output=True, text=True)
    assert f" {request.param}." in version.stdout or f" v{request.param}." in version.stdout
    archive = tmp_path_factory.mktemp("image") / "shell.tar"
    images.write_oci_archive(images.busybox_image(), SHELL_REF, archive)
    # Many guests at once share what processors there are.
    slow = {"HYPERCORE_BOOT_TIMEOUT_S": str(MANY_BOOT_S)}
    with instance.instance(instance.shared_data_dir(), **slow) as made:
        config = made.data_dir / "config.toml"
        config.write_text(f'[binaries]\ncontainerd = "{where}/containerd"\n')
        made.run("containerd", "start")
        own = Ctr(made, where / "ctr")
        done = own("image", "import", "--snapshotter", "blockfile", str(archive))
        assert done.returncode == 0, done
        yield own


@pytest.fixture(scope="module")
def box(ctr: Ctr) -> Iterator[str]:
    with ctr.detached("box", "sleep", "100000") as name:
        yield name


@pytest.fixture(autouse=True)
def _nothing_left(ctr: Ctr, box: str) -> Iterator[None]:
    before = leaks.take(ctr.made)
    yield
    assert not leaks.compare(ctr.made, before)


def test_run(ctr: Ctr) -> None:
    done = ctr.run("r1", "sh", "-c", "head -c 8388608 /dev/zero; echo err >&2; exit 7")
    assert (done.returncode, len(done.stdout)) == (7, 8 << 20)
    assert done.stderr.endswith(b"err\n")  # after ctr's own warnings


def test_run_on_a_terminal(ctr: Ctr) -> None:
    argv = ctr.argv("run", "--rm", "-t", *RUNTIME, SHELL_REF, "r2", "sh")
    code, output = on_terminal(argv, b"stty size; exit 9\n", until=b"# ")
    assert (code, "40 100" in output) == (9, True)


def test_exec(ctr: Ctr, box: str) -> None:
    blob = random.Random(2).randbytes(1 << 20)
    done = ctr("task", "exec", "--exec-id", "e1", box, "sh", "-c", "cat; exit 3", stdin=blob)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(blob).digest()
    assert done.returncode == 3
    done = ctr("task", "exec", "--exec-id", "e2", box, "nosuch")
    assert b"nosuch" in done.stderr
    argv = ctr.argv("task", "exec", "-t", "--exec-id", "e3", box, "sh")
    code, output = on_terminal(argv, b"stty size; exit 4\n", until=b"# ")
    assert (code, "40 100" in output) == (4, True)


def test_pause_and_metrics(ctr: Ctr, box: str) -> None:
    assert ctr("task", "pause", box).returncode == 0
    assert ctr.status(box) == "PAUSED"
    assert ctr("task", "resume", box).returncode == 0
    assert ctr.status(box) == "RUNNING"
    assert len(ctr("task", "ps", box).stdout.splitlines()) >= 2
    metrics = ctr("task", "metrics", box).stdout.decode()
    usage = re.search(r"memory\.usage\s+(\d+)", metrics)
    assert usage, metrics
    assert int(usage[1]) > 0


def test_restart_of_containerd(ctr: Ctr, box: str) -> None:
    ctr.made.run("containerd", "stop")
    ctr.made.run("containerd", "start")
    assert ctr.status(box) == "RUNNING"
    done = ctr("task", "exec", "--exec-id", "e4", box, "sh", "-c", "echo still; exit 2")
    assert (done.returncode, done.stdout) == (2, b"still\n")


def test_attach_and_kill(ctr: Ctr) -> None:
    loop = "trap 'echo bye; exit 5' TERM; while :; do echo tick; sleep 1; done"
    with ctr.detached("a1", "sh", "-c", loop), contextlib.ExitStack() as stack:
        attached = subprocess.Popen(ctr.argv("task", "attach", "a1"), stdout=subprocess.PIPE)
        stack.callback(attached.wait, 20)
        stack.callback(attached.kill)
        assert attached.stdout is not None
        stack.enter_context(attached.stdout)
        assert attached.stdout.readline() == b"tick\n"
        assert ctr("task", "kill", "-s", "TERM", "a1").returncode == 0
        assert attached.stdout.read().endswith(b"bye\n")
        assert attached.wait(20) == 5


def test_log_uri(ctr: Ctr, tmp_path: Path) -> None:
    program = tmp_path / "logger"
    program.write_text('#!/bin/sh\nexec 5>&-\ncat <&3 >"$2.out"\necho "$CONTAINER_ID" >"$2.id"\n')
    program.chmod(0o755)
    wanted = {f"file://{tmp_path}/log": "log", f"binary://{program}?to={tmp_path}/x": "x.out"}
    for number, (uri, file) in enumerate(wanted.items()):
        with ctr.detached(f"l{number}", "sh", "-c", "echo one", flags=("--log-uri", uri)):
            ctr.wait_for(f"l{number}", "STOPPED")
        deadline = time.monotonic() + 10
        while not (tmp_path / file).exists() or (tmp_path / file).read_bytes() != b"one\n":
            assert time.monotonic() < deadline, file
            time.sleep(0.05)


@pytest.mark.timeout(golang.BUILD_DEADLINE_S + RUNS * BOOT_DEADLINE_S)
def test_many_runs_in_a_row(ctr: Ctr) -> None:
    for number in range(RUNS):
        done = ctr.run(f"m{number}", "sh", "-c", f"echo {number}; exit {number}")
        assert (done.returncode, done.stdout) == (number, f"{number}\n".encode()), done


@pytest.mark.timeout(golang.BUILD_DEADLINE_S + AT_ONCE * BOOT_DEADLINE_S)
def test_many_runs_at_once(ctr: Ctr) -> None:
    def run(number: int) -> subprocess.CompletedProcess[bytes]:
        args = ("run", "--rm", *RUNTIME, SHELL_REF, f"p{number}")
        return ctr(*args, "sh", "-c", f"echo {number}; exit {number}", timeout=MANY_BOOT_S)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for number, done in enumerate(pool.map(run, range(AT_ONCE))):
            assert (done.returncode, done.stdout) == (number, f"{number}\n".encode()), done
