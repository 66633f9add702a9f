"""The shim binary as containerd executes it, whole processes, beside containerd's shim for runc.

Wall time is from before the start of the process to the end of its output and its exit; CPU is
user and system time of that process alone, so neither counts the server that a first `start`
leaves running. All take turns in each round. Needs root, no guest and no containerd.
"""

import argparse
import contextlib
import json
import os
import select
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import machine
from hypercore import _process, paths
from hypercore.proto.task_pb import DeleteResponse
from hypercore.shim import records

RESULTS = Path(".benchmarks/results.jsonl")
SHIM = Path(__file__).resolve().parents[1] / "bin/containerd-shim-hypercore-v1"
SERVER = "hypercore.shim.server"
END_S = 20
WARM, COLD = "start, server runs", "start, first of its server"
DELETE, INFO = "delete after Delete", "-info"
PEER, PEER_GROUP = "runc-v2 start", "runc-v2 start, joins a group"
PROMISES = (
    (WARM, "wall_ms", "", 1.0),
    (WARM, "wall_ms", PEER, 0.2),
    (WARM, "cpu_ms", PEER, 0.2),
    (COLD, "wall_ms", "", 6.0),
)
"""(ours, figure, peer or none, at most)"""

CONFIG: dict[str, object] = {
    "ociVersion": "1.0.2",
    "annotations": {"io.containerd.runc.v2.group": "benchmark"},
    "process": {"args": ["true"], "cwd": "/"},
    "root": {"path": "rootfs"},
}


@dataclass(frozen=True, slots=True)
class Place:
    """Directories of one run; removed after it."""

    root: Path

    def bundle(self, task_id: str, config: dict[str, object]) -> Path:
        bundle = self.root / "b" / task_id
        (bundle / "rootfs").mkdir(parents=True, exist_ok=True)
        (bundle / "config.json").write_text(json.dumps(config))
        if not (bundle / "log").exists():
            os.mkfifo(bundle / "log", 0o700)
        return bundle

    @property
    def env(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "GOMAXPROCS": "2",
            "MAX_SHIM_VERSION": "2",
            "TTRPC_ADDRESS": str(self.root / "c.sock.ttrpc"),
            "HYPERCORE_RUN_DIR": str(self.root / "r"),
            "HYPERCORE_DATA_DIR": str(self.root / "d"),
            "HYPERCORE_SLOTS_DIR": str(self.root / "s"),
            "HYPERCORE_CONFIG": str(self.root / "none.toml"),
        }


def execute(
    argv: Sequence[str | Path], cwd: Path, env: dict[str, str]
) -> tuple[bytes, float, float]:
    """Run as containerd does, both outputs in one pipe: (output, wall ms, CPU ms)."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    read_fd, write_fd = os.pipe()
    begun = time.perf_counter()
    pid, pidfd = _process.spawn(
        argv,
        env=env,
        fds=[(null, 0), (write_fd, 1), (write_fd, 2)],
        cwd=cwd,
        no_new_privs=False,
    )
    os.close(write_fd)
    output = b""
    while part := os.read(read_fd, 65536):
        output += part
    _, status, usage = os.wait4(pid, 0)
    wall = time.perf_counter() - begun
    for fd in (null, read_fd, pidfd):
        os.close(fd)
    if status:
        sys.exit(f"{' '.join(map(str, argv))}: {output.decode(errors='replace')}")
    return output, wall * 1e3, (usage.ru_utime + usage.ru_stime) * 1e3


def _argv(shim: Path, namespace: str, place: Place, task_id: str, action: str) -> list[str | Path]:
    address = str(place.root / "c.sock")
    return [
        shim, "-namespace", namespace, "-address", address,
        "-publish-binary", "/bin/true", "-id", task_id, action,
    ]  # fmt: skip


def _pids(place: Place, *words: str) -> list[int]:
    """Processes started for this place whose command line has all `words`."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if f"{place.root}/" in line and all(word in line for word in words):
                found.append(int(file.parent.name))
    return found


def _end(pids: Sequence[int]) -> None:
    """SIGKILL them and wait: no tasks are in them."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [], END_S)
            os.close(pidfd)


@contextlib.contextmanager
def _place() -> Iterator[Place]:
    place = Place(Path(tempfile.mkdtemp(prefix="hcb-", dir="/run")))
    try:
        yield place
    finally:
        _end(_pids(place))
        shutil.rmtree(place.root)


def _peer_shim() -> Path | None:
    """containerd's shim for runc: the host's, else the one beside the containerd of setup."""
    if found := shutil.which("containerd-shim-runc-v2"):
        return Path(found)
    built = sorted(paths.tools_dir().glob("containerd/*/usr/bin/containerd-shim-runc-v2"))
    return built[-1] if built else None


def _ours(place: Place, runs: int) -> dict[str, Callable[[int], tuple[float, float]]]:
    """A measurement of one round, by label."""
    keep = place.bundle("warm", CONFIG)
    execute(_argv(SHIM, "warm", place, "warm", "start"), keep, place.env)
    warm_server = _pids(place, SERVER)
    for pid in warm_server:
        _wait_for_rest(pid)
    noted = place.bundle("gone", CONFIG)
    records.write_deleted(noted, DeleteResponse(exit_status=3))

    def warm(n: int) -> tuple[float, float]:
        bundle = place.bundle(f"w{n}", CONFIG)
        return execute(_argv(SHIM, "warm", place, f"w{n}", "start"), bundle, place.env)[1:]

    def cold(n: int) -> tuple[float, float]:
        bundle = place.bundle(f"c{n}", CONFIG)
        figures = execute(_argv(SHIM, f"cold{n}", place, "c", "start"), bundle, place.env)[1:]
        _end([pid for pid in _pids(place, SERVER) if pid not in warm_server])
        return figures

    def delete(n: int) -> tuple[float, float]:
        return execute(_argv(SHIM, "warm", place, "gone", "delete"), noted, place.env)[1:]

    def info(n: int) -> tuple[float, float]:
        return execute([SHIM, "-info"], place.root, place.env)[1:]

    return {WARM: warm, COLD: cold, DELETE: delete, INFO: info}


def _wait_for_rest(pid: int) -> None:
    """Until a new server has read what was sent to it: its first CPU second is not ours."""
    deadline = time.monotonic() + END_S
    while Path(f"/proc/{pid}/wchan").exists() and time.monotonic() < deadline:
        before = _cpu_ticks(pid)
        time.sleep(0.25)
        if _cpu_ticks(pid) == before > 0:
            return


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return int(fields[11]) + int(fields[12])


def _peers(place: Place, shim: Path) -> dict[str, Callable[[int], tuple[float, float]]]:
    def start(bundle: Path, task_id: str) -> tuple[str, tuple[float, float]]:
        output, *figures = execute(_argv(shim, "peer", place, task_id, "start"), bundle, place.env)
        text = output.decode().strip()
        address = json.loads(text)["address"] if text.startswith("{") else text
        return address.removeprefix("unix://"), (figures[0], figures[1])

    def alone(n: int) -> tuple[float, float]:
        bundle = place.bundle(f"p{n}", {**CONFIG, "annotations": {}})
        address, figures = start(bundle, f"p{n}")
        _end(_pids(place, f"-id p{n} "))
        Path(address).unlink(missing_ok=True)
        return figures

    def joining(n: int) -> tuple[float, float]:
        first = place.bundle(f"g{n}", CONFIG)
        address, _ = start(first, f"g{n}")
        _, figures = start(place.bundle(f"h{n}", CONFIG), f"h{n}")
        _end(_pids(place, f"-id g{n} "))
        Path(address).unlink(missing_ok=True)
        return figures

    return {PEER: alone, PEER_GROUP: joining}


def _report(samples: dict[str, dict[str, list[float]]]) -> None:
    print("shim_start: milliseconds of wall and CPU time, median (least)")
    for label, figures in samples.items():
        wall, cpu = figures["wall_ms"], figures["cpu_ms"]
        print(
            f"  {label:32} {statistics.median(wall):8.2f} ({min(wall):.2f})"
            f"  CPU {statistics.median(cpu):8.2f} ({min(cpu):.2f})"
        )
    for ours, figure, peer, limit in PROMISES:
        if peer and peer not in samples:
            continue
        for name, of in (("median", statistics.median), ("least", min)):
            value = of(samples[ours][figure]) / (of(samples[peer][figure]) if peer else 1)
            print(
                f"    {name} {figure} of {ours!r}{' / ' + peer if peer else ''}: {value:.3f}"
                f"  promised ≤ {limit:g}  {'met' if value <= limit else 'missed'}"
            )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shim_start", description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="rounds")
    options = parser.parse_args(arguments)
    samples: dict[str, dict[str, list[float]]] = {}
    before = machine.load()
    with _place() as place:
        measurements = _ours(place, options.runs)
        if (shim := _peer_shim()) is not None:
            measurements |= _peers(place, shim)
        else:
            print("left out: containerd-shim-runc-v2 is not here", file=sys.stderr)
        for n in range(options.runs):
            for label, measure in measurements.items():
                wall, cpu = measure(n)
                of_label = samples.setdefault(label, {"wall_ms": [], "cpu_ms": []})
                of_label["wall_ms"].append(wall)
                of_label["cpu_ms"].append(cpu)
    _report(samples)
    RESULTS.parent.mkdir(exist_ok=True)
    record = {
        "benchmark": "shim_start",
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine.facts(),
        "load": [before, machine.load()],
        "samples": samples,
    }
    with RESULTS.open("a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
