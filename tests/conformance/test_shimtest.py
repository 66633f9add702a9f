"""containerd's own conformance suite, shimtest, drives our shim: no containerd, no images.

The Go module beside this file names its version and those of all it needs, by checksum. The suite
starts a shim for each test, each in a namespace of its own, so each has its own shim server.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.functional import instance, leaks
from tests.functional.instance import ROOT, Instance

MODULE = Path(__file__).parent
SHIM = ROOT / "bin" / "containerd-shim-hypercore-v1"
GO_HINT = "install Go 1.21 or later (https://go.dev/dl); it gets the version in go.mod by itself"
BUILD_DEADLINE_S = 900
"""The modules are downloaded and compiled the first time."""
SUITE_DEADLINE_S = 600
SUITES = {"Run": 5, "Exec": 11, "OOM": 1, "Layers": 1, "UDS": 1, "Transfer": 3}
"""With the number of their tests: one that is missing has not passed."""


@dataclass(frozen=True, slots=True)
class Referee:
    suite: Path
    """the test binary"""
    testbin: Path
    """what the suite's containers run"""


@pytest.fixture(scope="session")
def referee(tmp_path_factory: pytest.TempPathFactory) -> Referee:
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if go is None:
        pytest.fail(f"go is not in PATH: {GO_HINT}")
    into = tmp_path_factory.mktemp("shimtest")
    built = Referee(into / "suite", into / "testbin")
    _build(go, "test", "-c", "-o", built.suite, ".")
    _build(go, "build", "-o", built.testbin, "github.com/containerd/shimtest/cmd/testbin")
    return built


def _build(go: str, *args: str | Path) -> None:
    """Static: the containers have no libc, and go.sum stays as it is."""
    command = ["env", "CGO_ENABLED=0", "GOFLAGS=-mod=readonly -buildvcs=false", go, *args]
    done = subprocess.run(
        command, cwd=MODULE, capture_output=True, text=True, timeout=BUILD_DEADLINE_S
    )
    if done.returncode:
        pytest.fail(f"go {args[0]}: {done.stderr}\n{GO_HINT}")


@pytest.fixture(scope="module")
def own_instance(root: None) -> Iterator[tuple[Instance, leaks.Inventory]]:
    """Without containerd, and what it has on the host before any test.

    Its shim servers end by themselves once their test is over.
    """
    if not SHIM.exists():
        pytest.fail(f"{SHIM} is missing: run make build")
    with instance.instance(instance.shared_data_dir(), HYPERCORE_SHIM_IDLE_S="1") as made:
        # The suites name no provider, and a Firecracker that runs would come before QEMU.
        (made.data_dir / "config.toml").write_text('[binaries]\nfirecracker = "/bin/false"\n')
        (made.data_dir / "tmp").mkdir()
        yield made, leaks.take(made)


@pytest.mark.timeout(BUILD_DEADLINE_S + SUITE_DEADLINE_S)
@pytest.mark.parametrize("name", SUITES)
def test_suite(
    name: str, referee: Referee, own_instance: tuple[Instance, leaks.Inventory]
) -> None:
    made, before = own_instance
    done = subprocess.run(
        [
            referee.suite,
            "-test.v",
            f"-test.run=^Test{name}$",
            f"-test.timeout={SUITE_DEADLINE_S}s",
        ],
        env={
            **made.env,
            "HYPERCORE_SHIM": str(SHIM),
            "SHIMTEST_TESTBIN": str(referee.testbin),
            "TMPDIR": str(made.data_dir / "tmp"),
        },
        cwd=made.data_dir,
        capture_output=True,
        text=True,
        timeout=SUITE_DEADLINE_S + 30,
    )
    print(done.stdout, done.stderr)
    results = re.findall(rf"^    --- (\w+): Test{name}/(\w+) \(", done.stdout, re.MULTILINE)
    failed = [f"{test}: {result}" for result, test in results if result != "PASS"]
    assert not failed
    assert done.returncode == 0
    assert len(results) == SUITES[name]
    assert not leaks.compare(made, before)
