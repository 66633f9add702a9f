"""The containerd program: where it is, its version, whether it can do what we need.

Getting it onto the host is host_setup.py's, running it daemon.py's.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

from hypercore import paths
from hypercore.config import HostConfig
from hypercore.errors import Unavailable

MINIMUM = (1, 7)
"""First version with the blockfile snapshotter."""

ANSWER_TIMEOUT_S = 30


def find(config: HostConfig) -> Path:
    """The containerd to run: configured, else ours, else the host's if it can do what we need.

    Raises:
        Unavailable: there is none.
    """
    if configured := config.binaries.get("containerd"):
        return configured
    ours = sorted(paths.tools_dir().glob("containerd/*/usr/bin/containerd"))
    if ours:
        return ours[-1]
    found = shutil.which("containerd", path=f"{os.environ.get('PATH', '')}:/usr/local/bin")
    if found and has_blockfile(Path(found)):
        return Path(found)
    raise Unavailable("no containerd with blockfile is installed", hint="run `hypercore setup`")


def version(binary: Path) -> tuple[int, int, int]:
    """Version that the program at `binary` reports.

    Raises:
        Unavailable: it does not run or says something else.
    """
    words = _output(binary, "--version")
    found = re.search(r"\bv?(\d+)\.(\d+)\.(\d+)", words)
    if found is None:
        raise Unavailable(f"{binary} --version says {words.strip()!r}: not a containerd")
    return int(found[1]), int(found[2]), int(found[3])


def has_blockfile(binary: Path) -> bool:
    """Whether this containerd is new enough and was built with the blockfile snapshotter."""
    try:
        if version(binary)[:2] < MINIMUM:
            return False
        return "io.containerd.snapshotter.v1.blockfile" in _output(binary, "config", "default")
    except Unavailable:
        return False


def _output(binary: Path, *args: str) -> str:
    try:
        done = subprocess.run(
            [binary, *args],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=ANSWER_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise Unavailable(f"{binary} does not run: {exc}", hint="run `hypercore setup`") from exc
    if done.returncode != 0:
        raise Unavailable(f"{binary} {' '.join(args)} failed: {done.stderr.strip()}")
    return done.stdout
