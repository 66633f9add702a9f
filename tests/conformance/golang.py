"""Go programs for the tests: the compiler, wherever it comes from, and pinned modules built.

The host's Go, if there is one, gets the version a go.mod asks for by itself. Without one it is
Debian's, unpacked beside our other tools; nothing is installed.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from hypercore import aptroot
from tests.functional import instance

SUITE, VERSION = "forky", "1.26"
BUILD_DEADLINE_S = 1800
"""The modules are downloaded and compiled the first time."""


def compiler() -> Path:
    if found := shutil.which("go") or shutil.which("go", path="/usr/local/go/bin"):
        return Path(found)
    into = instance.shared_data_dir() / "tools" / "golang" / SUITE
    packages = [f"golang-{VERSION}-go", f"golang-{VERSION}-src"]
    aptroot.fetch(packages, suite=SUITE, into=into, progress=print)
    return into / "usr/lib" / f"go-{VERSION}" / "bin/go"


def build(module: Path, into: Path, packages: Sequence[str], *, test: bool = False) -> None:
    """Compile `packages` of the module into the file or directory `into`.

    Static, because containers and other distributions have another libc; go.sum stays as it is.
    """
    verb = ["test", "-c"] if test else ["build", "-trimpath", "-ldflags=-s -w"]
    done = subprocess.run(
        [compiler(), *verb, "-o", into, *packages],
        cwd=module,
        env={
            **os.environ,
            "CGO_ENABLED": "0",
            "GOFLAGS": "-mod=readonly -buildvcs=false",
        },
        capture_output=True,
        text=True,
        timeout=BUILD_DEADLINE_S,
    )
    if done.returncode:
        pytest.fail(f"go {verb[0]} in {module}: {done.stderr}")
