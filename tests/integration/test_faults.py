"""Every system call of the Cython rooms made to fail: the right exception, nothing left open."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import injector
from tests.faults.scenarios import SCENARIOS

pytestmark = [pytest.mark.usefixtures("root"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return injector.build(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("name", SCENARIOS)
def test_faults_are_told_and_leave_nothing(library: Path, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", name],
        env=os.environ | {"LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
