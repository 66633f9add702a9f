"""What an instance has on the host at one moment, seen from outside; comparing two finds leaks.

Asks the kernel, containerd's own ctr and the file system, never hypercore. An entry is a line of
text; things of other instances are left out, so that tests may share a host.
"""

import json
import os
import shutil
import subprocess
import time
from collections import Counter
from pathlib import Path

from pyroute2 import IPRoute

from tests.functional.instance import Instance

SETTLE_S = 10
"""The TAP reaper, the shim's last clean-up and containerd's garbage collector get this long."""

Inventory = frozenset[str]


def take(made: Instance) -> Inventory:
    lines = [
        *_processes(made),
        *_taps(made),
        *_mounts(made),
        *_loops(made),
        *_nft(made),
        *_files(made),
        *_containerd(made),
    ]
    # Two equal lines are two things.
    counted = Counter(lines)
    return frozenset(f"{line} x{n}" if n > 1 else line for line, n in counted.items())


def compare(made: Instance, before: Inventory) -> list[str]:
    """What differs from `before`, once things have settled or SETTLE_S has passed."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        now = take(made)
        if now == before or time.monotonic() > deadline:
            return [f"+ {line}" for line in sorted(now - before)] + [
                f"- {line}" for line in sorted(before - now)
            ]
        time.sleep(0.2)


def _processes(made: Instance) -> list[str]:
    """Processes that carry this instance's directories in arguments or environment.

    For the instance's daemons (containerd, the shim server) also their descriptors by kind: what
    they fail to close shows up here.
    """
    found = []
    marks = (os.fsencode(made.run_dir), os.fsencode(made.data_dir))
    for proc in Path("/proc").glob("[0-9]*"):
        if int(proc.name) in (os.getpid(), os.getppid()):
            continue
        try:
            argv = (proc / "cmdline").read_bytes()
            environ = (proc / "environ").read_bytes()
            if not any(mark in argv or mark in environ for mark in marks):
                continue
            command = argv.replace(b"\0", b" ").decode(errors="replace").strip()
            state = (proc / "stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # ended meanwhile, or, in a container, the host's own
        if state == "Z":
            command = f"zombie {(proc / 'comm').read_text().strip()}"
        found.append(f"process {command[:300]}")
        if "hypercore.shim" in command:
            found += _descriptors(proc)
    return found


def _descriptors(proc: Path) -> list[str]:
    kinds: Counter[str] = Counter()
    try:
        for name in os.listdir(proc / "fd"):
            target = os.readlink(proc / "fd" / name)
            kinds[target.split(":")[0] if ":" in target else target] += 1
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [f"shim server's fds: {kind} = {count}" for kind, count in kinds.items()]


def _taps(made: Instance) -> list[str]:
    with IPRoute() as route:
        return [
            f"interface {link.get('ifname')} alias {alias}"
            for link in route.get_links()
            if (alias := link.get("ifalias")) and str(made.run_dir) in alias
        ]


def _mounts(made: Instance) -> list[str]:
    return [
        "mount " + line.split()[4]
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if str(made.run_dir) in line or str(made.data_dir) in line
    ]


def _loops(made: Instance) -> list[str]:
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            backing = path.read_text().strip()
        except FileNotFoundError:
            continue
        if str(made.data_dir) in backing or str(made.run_dir) in backing:
            found.append(f"{path.parts[3]} {backing}")
    return found


def _nft(made: Instance) -> list[str]:
    """Elements of our table's sets and maps that carry this instance's run directory."""
    nft = shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin")
    if nft is None:
        return []
    listing = subprocess.run(
        [nft, "-j", "list", "ruleset"], capture_output=True, text=True, timeout=30, check=True
    )
    found = []
    for item in json.loads(listing.stdout)["nftables"]:
        for kind in ("set", "map"):
            for element in item.get(kind, {}).get("elem", []):
                text = json.dumps(element)
                if str(made.run_dir) in text:
                    found.append(f"nft {item[kind]['name']} {text}")
    return found


def _files(made: Instance) -> list[str]:
    found = []
    for directory in (made.data_dir / "vm", made.run_dir / "vm"):
        if directory.is_dir():
            found += [f"file {path}" for path in directory.iterdir()]
    for link in Path("/run/hypercore/slots").glob("*"):
        if link.is_symlink() and os.readlink(link).endswith(f"@{made.run_dir}"):
            found.append(f"slot {link.name} {os.readlink(link)}")
    return found


def _containerd(made: Instance) -> list[str]:
    socket = made.run_dir / "containerd.sock"
    ctr = next((made.data_dir / "tools").rglob("bin/ctr"), None)
    if ctr is None or not socket.exists():
        return []

    def names(*args: str) -> list[str]:
        done = subprocess.run(
            [ctr, "-a", socket, "-n", "hypercore", *args],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        return [line.split()[0] for line in done.stdout.splitlines() if line.strip()]

    found = [f"container {name}" for name in names("containers", "ls", "-q")]
    found += [f"task {name}" for name in names("tasks", "ls", "-q")]
    found += [f"lease {name}" for name in names("leases", "ls", "-q")]
    snapshots = names("snapshots", "--snapshotter", "blockfile", "ls")[1:]
    return found + [f"snapshot {name}" for name in snapshots]
