"""A host with real KVM, wherever QEMU runs: the lab.

QEMU emulates an AMD processor with nested SVM; Debian's kernel in it (L1) offers a /dev/kvm that
runs stock kernels (L2), which a machine without KVM, or with a software one, does not. Slow, about
a tenth of native, and true to a real host in what hypercore touches: KVM, vhost-vsock, cgroup v2.

`python -m tests.lab.l1 [-t SECONDS] COMMAND…` runs a command there, in a copy of this clone with
what `make setup` prepared; its output and exit status come back. On a machine whose own KVM runs
stock kernels it runs the command right there (--always: in the lab all the same). Needs root, and
the packages mmdebstrap and qemu-system-x86. L1's root is made once and kept in the tests' cache;
no run changes it.

HYPERCORE_CLOUD_HYPERVISOR, where it is set, names the program of that VMM; it is there in L1 too.
"""

import argparse
import fcntl
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hypercore.providers import kvm_probe
from tests.lab.get_firecracker import cache_dir, firecracker

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SUITE = "bookworm"
"""Its Python is the one whose extension modules a bookworm host builds."""
PACKAGES = (
    "busybox-static",
    "e2fsprogs",
    "iproute2",
    "iputils-ping",
    "kmod",
    "linux-image-cloud-amd64",
    "procps",
    "python3",
    "qemu-system-x86",
)
BOOT_MODULES = ("virtio_pci", "virtio_blk")
IMAGE_MIB = 2048
JOB_MIB = 2048
MEMORY_MIB = 3072
BOOT_TIMEOUT_S = 90
"""Added to the job's own; L1 is up after 5 to 20 seconds."""
CLONE_PARTS = ("agent", "bin", "examples", "hypercore", "proto", "pyproject.toml", "tests")
UNUSED = ("Cython", "grpc_tools", "mypy*", "pip*", "ruff*", "setuptools*", "*.c")
"""Of the virtual environment and the sources: what only builds and checks."""
FAILED = 125
PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "qemu-system-x86_64": "qemu-system-x86",
}
"""What the lab runs here, and the package that has it."""
CLOUD_HYPERVISOR = "HYPERCORE_CLOUD_HYPERVISOR"

INIT = """#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
for module in {modules}; do /bin/busybox insmod /modules/$module; done
until [ -b /dev/vda ] && [ -b /dev/vdb ]; do /bin/busybox sleep 0.02; done
/bin/busybox mount -t ext4 -o rw,noatime /dev/vda /root
/bin/busybox cp /l1init /root/l1init
/bin/busybox mount --move /dev /root/dev
/bin/busybox mount --move /proc /root/proc
exec /bin/busybox switch_root /root /l1init
"""


@dataclass(frozen=True, slots=True)
class Lab:
    """Files of the lab's host."""

    image: Path
    kernel: Path
    initrd: Path


def build() -> Lab:
    """The lab's host, made the first time.

    Raises:
        subprocess.CalledProcessError: a program failed; it said why on stderr.
    """
    directory = cache_dir() / "l1"
    directory.mkdir(parents=True, exist_ok=True)
    root, image = directory / "root", directory / "l1.img"
    lab = Lab(image, directory / "vmlinuz", directory / "initrd")
    recipe = json.dumps([SUITE, PACKAGES, BOOT_MODULES, IMAGE_MIB, INIT])
    record = directory / "recipe"
    with open(directory / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (record.exists() and record.read_text() == recipe):
            record.unlink(missing_ok=True)
            _say(f"building a Debian {SUITE} in {directory} (two minutes)")
            _debootstrap(root)
            (kernel,) = (root / "boot").glob("vmlinuz-*")
            shutil.copyfile(kernel, lab.kernel)
            _make_image(root, image, IMAGE_MIB)
            shutil.rmtree(root / "boot")
            record.write_text(recipe)
        _write_initrd(root, lab.initrd)  # holds l1init, which changes with this clone
    return lab


def _debootstrap(root: Path) -> None:
    if root.exists():
        shutil.rmtree(root)
    argv = [
        *("mmdebstrap", "--quiet", "--variant=minbase", "--dpkgopt=force-unsafe-io"),
        *(f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "locale", "man")),
        *(f"--include={','.join(PACKAGES)}", SUITE, str(root)),
    ]
    subprocess.run(argv, check=True, env={**os.environ, "INITRD": "No"})
    (root / "etc/hostname").write_text("lab\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost lab\n")


def _make_image(tree: Path, image: Path, size_mib: int) -> None:
    temporary = image.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    with open(temporary, "wb") as file:
        file.truncate(size_mib << 20)
    argv = [
        *("mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0"),
        *("-E", "lazy_itable_init=1,root_owner=0:0", "-d", str(tree), str(temporary)),
    ]
    subprocess.run(argv, check=True)
    temporary.rename(image)


# -- initrd --


def _write_initrd(root: Path, path: Path) -> None:
    modules = _modules(root)
    init = INIT.format(modules=" ".join(module.name for module in modules))
    entries: list[tuple[str, int, bytes]] = [
        (name, 0o40755, b"") for name in ("bin", "dev", "modules", "proc", "root")
    ]
    entries += [(f"modules/{module.name}", 0o100644, module.read_bytes()) for module in modules]
    entries.append(("bin/busybox", 0o100755, (root / "bin/busybox").read_bytes()))
    entries.append(("l1init", 0o100755, (HERE / "l1init").read_bytes()))
    entries.append(("init", 0o100755, init.encode()))
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        for number, (name, mode, data) in enumerate(entries, 1):
            file.write(_newc(name, mode, data, number))
        file.write(_newc("TRAILER!!!", 0, b"", 0))
    os.rename(file.name, path)


def _newc(name: str, mode: int, data: bytes, inode: int) -> bytes:
    """One file of a cpio archive as the kernel unpacks it (buffer-format.rst)."""
    encoded = name.encode() + b"\0"
    # inode, mode, uid, gid, links, mtime, size, device and its rdev in halves, name size, check
    numbers = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
    head = b"070701" + b"".join(b"%08X" % number for number in numbers) + encoded
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def _modules(root: Path) -> list[Path]:
    """The files of BOOT_MODULES and what they need, in the order to load them."""
    (tree,) = (root / "lib/modules").iterdir()
    needs = {}
    for line in (tree / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        needs[Path(path).stem] = [path, *others.split()]
    ordered: list[str] = []
    for wanted in BOOT_MODULES:
        # modules.dep names what a module needs nearest first
        ordered += [path for path in reversed(needs[wanted]) if path not in ordered]
    return [tree / path for path in ordered]


# -- job --


@contextmanager
def job_image(command: Sequence[str], mark: str) -> Iterator[Path]:
    """A disk with the clone, hypercore's prepared data and the command."""
    with tempfile.TemporaryDirectory(prefix="hct-lab-", dir="/var/tmp") as scratch:
        tree = Path(scratch) / "tree"
        clone = tree / "clone"
        skip = shutil.ignore_patterns("__pycache__", ".pytest_cache", *UNUSED)
        for part in CLONE_PARTS:
            if (ROOT / part).is_dir():
                shutil.copytree(ROOT / part, clone / part, symlinks=True, ignore=skip)
            elif (ROOT / part).exists():
                shutil.copy2(ROOT / part, clone / part)
        shutil.copytree(ROOT / ".venv", clone / ".venv", symlinks=True, ignore=skip)
        variables = {"CLONE": str(ROOT), "EXIT_MARK": mark, **_copy_data(tree / "data", skip)}
        (tree / "job.env").write_text(
            "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
        )
        (tree / "job.sh").write_text(f"exec {shlex.join(command)}\n")
        image = Path(scratch) / "job.img"
        _make_image(tree, image, JOB_MIB)
        shutil.rmtree(tree)
        yield image


def _copy_data(into: Path, skip: object) -> dict[str, str]:
    """What `make setup` fetched and built: tools and the guest assets in use.

    Returns the variables that tell the job of VMMs that are not the tests' own.
    """
    data = Path(os.environ.get("HYPERCORE_DATA_DIR") or "/var/lib/hypercore")
    current = data / "guest" / "current"
    if not current.exists():
        raise RuntimeError(f"no guest assets in {data}: run make setup")
    (into / "guest").mkdir(parents=True)
    (into / "cache").mkdir()
    version = os.readlink(current)
    shutil.copytree(data / "guest" / version, into / "guest" / version)
    (into / "guest" / "current").symlink_to(version)
    shutil.copytree(data / "tools", into / "tools", symlinks=True, ignore=skip)  # type: ignore[arg-type]
    (into / "tools/bin").mkdir(exist_ok=True)
    shutil.copy2(firecracker(), into / "tools/bin/firecracker")
    if not (program := os.environ.get(CLOUD_HYPERVISOR)):
        return {}
    shutil.copy2(program, into / "tools/bin/cloud-hypervisor")
    return {CLOUD_HYPERVISOR: "/var/lib/hypercore/tools/bin/cloud-hypervisor"}


# -- run --


def run(command: Sequence[str], timeout_s: float, console: Path) -> int:
    """Run `command` in the lab; its output is ours. Returns its status, FAILED if L1 failed.

    Args:
        console: file for the messages of L1's kernel.
    """
    lab = build()
    mark = f"lab-exit-{secrets.token_hex(8)}"
    begun = time.monotonic()
    with job_image(command, mark) as job:
        _say(f"disk made in {time.monotonic() - begun:.0f} s; starting L1")
        argv = [
            *("setpriv", "--pdeathsig", "KILL"),
            *("qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max,+svm"),
            *("-smp", "2", "-m", str(MEMORY_MIB), "-nodefaults", "-no-user-config"),
            *("-display", "none", "-no-reboot", "-kernel", str(lab.kernel)),
            *("-initrd", str(lab.initrd)),
            *("-append", "console=ttyS0 panic=-1 quiet mitigations=off"),
            *("-serial", f"file:{console}", "-serial", "stdio"),
            *_disk(lab.image),
            *_disk(job),
        ]
        with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as qemu:
            watchdog = threading.Timer(timeout_s + BOOT_TIMEOUT_S, qemu.kill)
            watchdog.start()
            try:
                status = _relay(qemu, mark)
            finally:
                watchdog.cancel()
                qemu.kill()
    _say(f"ended with {status} after {time.monotonic() - begun:.0f} s")
    return status


def _disk(image: Path) -> tuple[str, str]:
    return "-drive", f"file={image},if=virtio,format=raw,snapshot=on,cache=unsafe"


def _relay(qemu: subprocess.Popen[bytes], mark: str) -> int:
    """Pass output on until the job's status comes."""
    assert qemu.stdout is not None
    for line in qemu.stdout:
        before, found, status = line.decode(errors="replace").partition(mark)
        sys.stdout.write(before if found else line.decode(errors="replace"))
        sys.stdout.flush()
        if found:
            return int(status)
    return FAILED


def _say(text: str) -> None:
    print(f"lab: {text}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-t", "--timeout", type=float, default=900, metavar="SECONDS")
    parser.add_argument("--console", type=Path, default=Path("/var/tmp/hct-lab-console.log"))
    parser.add_argument("--always", action="store_true", help="even where KVM runs guests")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if not options.always and not kvm_probe.probe():
        _say("KVM runs guests here: no need of a lab")
        os.execvp(options.command[0], options.command)
    for program, package in PROGRAMS.items():
        if not shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"):
            parser.error(f"the lab needs {program}: apt-get install {package}")
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    status = run(options.command, options.timeout, options.console)
    if status == FAILED:
        text = options.console.read_text(errors="replace")
        _say("L1 failed or ran out of time; its console ends with:\n" + text[-3000:])
    return status


if __name__ == "__main__":
    sys.exit(main())
