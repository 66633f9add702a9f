"""The pinned packages that guest assets are made of, in private directories under the cache.

Not the build itself: agent/build.py, kernel.py, initrd.py and drive.py do that. The packages stay
until somebody removes the cache, so that a second build is offline and gives the same bytes.
"""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hypercore import aptroot, paths
from hypercore.errors import HypercoreError, NotFound, PermissionDenied, Unavailable

SUITE = "bookworm"
"""Debian 12: crun 1.8, Linux 6.1, CPython 3.11, gcc 12, erofs-utils 1.5."""

PACKAGES = (
    "binutils",
    "crun",
    "erofs-utils",
    "gcc-12",
    "libc6-dev",
    "libpython3.11-dev",
    "musl-tools",
    "python3.11-minimal",
    "runc",
)
KERNEL_PACKAGES = {"x86_64": "linux-image-cloud-amd64"}

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Toolchain:
    """Unpacked packages: `root` has programs and libraries, `kernel` the kernel's package."""

    root: Path
    kernel: Path

    def versions(self) -> dict[str, str]:
        return {**aptroot.versions(self.root), **aptroot.versions(self.kernel)}

    def run(self, argv: Sequence[str], *, cwd: Path) -> str:
        """Run a program of `root`, chrooted there; `cwd` is a directory below it."""

        def enter() -> None:
            os.chroot(self.root)
            os.chdir("/" / cwd.relative_to(self.root))

        done = subprocess.run(
            argv,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            preexec_fn=enter,
        )
        if done.returncode != 0:
            raise HypercoreError(
                f"{argv[0]} failed while building the guest: {done.stderr.strip()[-300:]}",
                detail=done.stdout + done.stderr,
            )
        return done.stdout


@contextmanager
def acquire(progress: Progress) -> Iterator[Toolchain]:
    """The toolchain, fetched if it is not there, for one build at a time."""
    machine = os.uname().machine
    metapackage = KERNEL_PACKAGES.get(machine)
    if metapackage is None:
        raise Unavailable(
            f"no guest kernel is known for {machine}",
            hint=f"guest assets are built on {', '.join(KERNEL_PACKAGES)}",
        )
    with _locked() as cache:
        yield Toolchain(_fetch_root(cache, progress), _fetch_kernel(cache, metapackage, progress))


@contextmanager
def acquire_compiler(progress: Progress) -> Iterator[Toolchain]:
    """As `acquire`, without a kernel: for the agent alone, also where no guest kernel is known."""
    with _locked() as cache:
        root = _fetch_root(cache, progress)
        yield Toolchain(root, kernel=root)


@contextmanager
def _locked() -> Iterator[Path]:
    """The cache, for one build at a time: all work in one directory of its root."""
    if os.geteuid() != 0:
        raise PermissionDenied(
            "building guest assets needs root (it runs the compiler in a chroot)",
            hint="run it with sudo",
        )
    cache = _cache()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield cache


def _fetch_root(cache: Path, progress: Progress) -> Path:
    root = cache / "root"
    have = aptroot.wanted(root)
    if have and have != sorted(PACKAGES):
        # An earlier version of hypercore wanted others.
        shutil.rmtree(root)
    aptroot.fetch(PACKAGES, suite=SUITE, into=root, progress=progress, dependencies=True)
    return root


def _fetch_kernel(cache: Path, metapackage: str, progress: Progress) -> Path:
    kernel = cache / "kernel"
    if not aptroot.versions(kernel):
        found = aptroot.depends(metapackage, suite=SUITE, progress=progress)
        names = [name for name in found if name.startswith("linux-image-")]
        if not names:
            raise NotFound(f"package {metapackage} of Debian {SUITE} names no kernel")
        aptroot.fetch(names, suite=SUITE, into=kernel, progress=progress)
    return kernel


def _cache() -> Path:
    return paths.data_dir() / "cache" / "guest" / SUITE
