"""containerd's own conformance suite, shimtest, drives our shim: no containerd, no images.

The Go module beside this file names its version and those of all it needs, by checksum. The suite
starts a shim for each test, each in a namespace of its own, so each has its own shim server. Its
look for leaked processes knows one process per shim and by its binary: ours are found by the
directories they carry, with all else that a microVM takes from the host.
"""

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conformance import golang
from tests.functional import instance, leaks
from tests.functional.instance import ROOT, Instance

MODULE = Path(__file__).parent
SHIM = ROOT / "bin" / "containerd-shim-hypercore-v1"
SUITE_DEADLINE_S = 900
SUITES = {"Run": 5, "Exec": 11, "OOM": 1, "Layers": 1, "UDS": 1, "Transfer": 3}
"""With the number of their tests: one that is missing has not passed."""

pytestmark = pytest.mark.timeout(golang.BUILD_DEADLINE_S + SUITE_DEADLINE_S)


@dataclass(frozen=True, slots=True)
class Referee:
    suite: Path
    """the test binary"""
    testbin: Path
    """what the suite's containers run"""


@pytest.fixture(scope="module")
def referee(tmp_path_factory: pytest.TempPathFactory) -> Referee:
    into = tmp_path_factory.mktemp("shimtest")
    built = Referee(into / "suite", into / "testbin")
    golang.build(MODULE, built.suite, ["."], test=True)
    golang.build(MODULE, built.testbin, ["github.com/containerd/shimtest/cmd/testbin"])
    return built


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


@pytest.mark.parametrize("name", SUITES)
def test_suite(
    name: str, referee: Referee, own_instance: tuple[Instance, leaks.Inventory]
) -> None:
    """One after the other: the suite has deadlines that a busy host would miss for us."""
    made, before = own_instance
    arguments = ["-test.v", f"-test.run=^Test{name}$", f"-test.timeout={SUITE_DEADLINE_S}s"]
    done = subprocess.run(
        [referee.suite, *arguments],
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
    assert not re.search(r"^\s*--- SKIP", done.stdout, re.MULTILINE)
    assert not leaks.compare(made, before)
