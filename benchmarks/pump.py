"""Moving a guest's output: the pump against what Go and Rust programs do, in one run, in turns.

Needs no guest, containerd or root: socket pairs stand for guests, FIFOs for containerd's. Figures
are CPU seconds the peer's process spends per GiB, and GiB/s; or microseconds for one byte out and
back. Peers whose toolchain is missing are left out with a message.
"""

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import machine

HERE = Path(__file__).parent
BUILT = Path(".benchmarks/peers").absolute()
RESULTS = Path(".benchmarks/results.jsonl")
BASE_FD = 10
START_TIMEOUT_S = 60

GO_SHIM = "Go, containerd/fifo 4 KiB (runc shim)"
GO_KATA = "Go, containerd/fifo 32 KiB"
GO_SPLICE = "Go, io.Copy (splice)"
GO_LOG = "Go, io.MultiWriter 32 KiB"
TOKIO = "tokio::io::copy"
PRODUCT = "pump"


@dataclass(frozen=True, slots=True)
class Scenario:
    """One row of the table: a load, who carries it, and what is promised."""

    name: str
    mode: str
    streams: int
    write_bytes: int
    peers: dict[str, str]
    """label → mode and buffer of the peer, as `fifo 4096`"""
    promises: tuple[tuple[str, str, float], ...]
    """(figure, peer, limit): pump / peer is at most the limit for cost, at least it for rate"""


_FLOW = {GO_SHIM: "fifo 4096", GO_KATA: "fifo 32768", GO_SPLICE: "splice 0", TOKIO: "fifo 0"}
_FLOW_CPU = (("cpu", GO_SHIM, 1 / 6), ("cpu", GO_KATA, 1 / 4), ("cpu", TOKIO, 1 / 4))
_LINES = {GO_SHIM: "fifo 4096", GO_KATA: "fifo 32768", TOKIO: "fifo 0"}
_ECHO = {GO_SHIM: "echo 4096", TOKIO: "echo 0"}

SCENARIOS = (
    Scenario(
        "1 stream, 64 KiB writes", "fifo", 1, 65536, _FLOW,
        (*_FLOW_CPU, ("cpu", GO_SPLICE, 0.8), ("rate", GO_SHIM, 3), ("rate", TOKIO, 2),
         ("rate", GO_SPLICE, 1.1)),
    ),
    Scenario("100 streams, 64 KiB writes", "fifo", 100, 65536, _FLOW,
             (*_FLOW_CPU, ("cpu", GO_SPLICE, 0.8))),
    Scenario("1000 streams, 64 KiB writes", "fifo", 1000, 65536, _FLOW,
             (*_FLOW_CPU, ("cpu", GO_SPLICE, 0.8), ("rate", GO_SHIM, 1.8))),
    Scenario("1 stream, 100 byte writes", "fifo", 1, 100, _LINES,
             tuple(("cpu", peer, 1.0) for peer in _LINES)),
    Scenario("log and one client, 64 KiB writes", "log", 1, 65536, {GO_LOG: "log 32768"},
             (("cpu", GO_LOG, 0.5),)),
    Scenario("echo of one byte", "echo", 1, 1, _ECHO,
             (("p50", GO_SHIM, 0.95), ("p50", TOKIO, 1.0))),
)  # fmt: skip


def build() -> dict[str, list[str]]:
    """Compile the load and the peers; label → argv prefix of those that are there."""
    BUILT.mkdir(parents=True, exist_ok=True)
    compile_peer(
        "cc", ["cc", "-O2", "-pthread", "-o", BUILT / "load", HERE / "peers/load.c"], HERE
    )
    commands = {PRODUCT: [sys.executable, "-m", "benchmarks.peers.pump_product"]}
    if compile_peer("go", ["go", "build", "-o", BUILT / "pump_go", "."], HERE / "peers/pump_go"):
        go = [str(BUILT / "pump_go")]
        commands |= {GO_SHIM: go, GO_KATA: go, GO_SPLICE: go, GO_LOG: go}
    cargo: list[str | Path] = [
        "cargo",
        "build",
        "--quiet",
        "--release",
        "--target-dir",
        BUILT / "tokio",
    ]
    if compile_peer("cargo", cargo, HERE / "peers/pump_tokio"):
        commands[TOKIO] = [str(BUILT / "tokio/release/pump")]
    return commands


def compile_peer(tool: str, argv: Sequence[str | Path], cwd: Path) -> bool:
    if shutil.which(tool) is None:
        print(f"left out: {tool} is not installed", file=sys.stderr)
        return False
    done = subprocess.run(argv, cwd=cwd, check=False)
    if done.returncode:
        print(f"left out: {tool} failed", file=sys.stderr)
    return not done.returncode


@contextlib.contextmanager
def _wires(scenario: Scenario, directory: Path) -> Iterator[tuple[list[int], list[int]]]:
    """The fds of the peer and those of the load, numbered as both expect them."""
    with contextlib.ExitStack() as stack:
        insides, outsides, readers = [], [], []
        for number in range(scenario.streams):
            inside, outside = socket.socketpair()
            stack.enter_context(inside)
            stack.enter_context(outside)
            insides.append(inside.fileno())
            outsides.append(outside.fileno())
            names = ["out", "in"] if scenario.mode == "echo" else ["out"]
            for name in names:
                path = directory / f"{name}.{number}"
                os.mkfifo(path)
                readers.append(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
                stack.callback(os.close, readers[-1])
        yield outsides, insides + readers


def _spawn(argv: list[str], fds: list[int]) -> subprocess.Popen[str]:
    """Start with `fds` as BASE_FD and up."""
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD, BASE_FD + len(fds) + 64) for fd in fds]
    pairs = list(zip(moved, range(BASE_FD, BASE_FD + len(fds)), strict=True))

    def place() -> None:
        for source, target in pairs:
            os.dup2(source, target)
        os.closerange(BASE_FD + len(fds), 1 << 16)

    try:
        return subprocess.Popen(
            argv, stdout=subprocess.PIPE, text=True, close_fds=False, preexec_fn=place
        )
    finally:
        for fd in moved:
            os.close(fd)


def _cpu_s(pid: int) -> float:
    """CPU time of all threads, in nanoseconds of the scheduler's own books."""
    total = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            total += int(path.read_text().split()[0])
    return total / 1e9


def measure(
    scenario: Scenario, command: list[str], options: str, seconds: float
) -> dict[str, float]:
    """Run the load once through one peer."""
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as name,
        _wires(scenario, Path(name)) as (theirs, ours),
    ):
        mode, buffer = options.split()
        argv = [*command, mode, buffer, str(scenario.streams), str(BASE_FD), name]
        peer = _spawn(argv, theirs)
        try:
            assert peer.stdout is not None
            if peer.stdout.readline() != "ready\n":
                raise RuntimeError(f"{argv} did not start")
            if scenario.mode == "echo":
                load_argv = ["echo", str(int(seconds * 10_000)), str(BASE_FD)]
            else:
                load_argv = [
                    "flow", str(seconds), str(scenario.write_bytes), str(scenario.streams),
                    str(BASE_FD), "read",
                ]  # fmt: skip
            load = _spawn([str(BUILT / "load"), *load_argv], ours)
            assert load.stdout is not None
            load.stdout.readline()
            before = _cpu_s(peer.pid)
            logged = _log_bytes(name)
            end = load.stdout.readline().split()
            spent = _cpu_s(peer.pid) - before
            logged = _log_bytes(name) - logged
            load.wait(START_TIMEOUT_S)
            load.stdout.close()
        finally:
            peer.kill()
            peer.wait()
            if peer.stdout is not None:
                peer.stdout.close()
    if scenario.mode == "echo":
        rounds = sorted(float(value) / 1000 for value in end[1:])
        return {
            "p50": rounds[len(rounds) // 2],
            "least": rounds[0],
            "cpu": spent / len(rounds) * 1e6,
        }
    gib = int(end[1]) / (1 << 30)
    if scenario.mode == "log":
        # The pump's client may lag behind its log, a Go program's cannot: count both halves.
        gib = (gib + logged / (1 << 30)) / 2
    return {"cpu": spent / gib, "rate": gib / float(end[2])}


def _log_bytes(directory: str) -> int:
    return sum(path.stat().st_size for path in Path(directory).glob("log.*"))


UNITS = {"cpu": "CPU s/GiB", "rate": "GiB/s", "p50": "µs p50", "least": "µs min"}


def _report(scenario: Scenario, samples: dict[str, dict[str, list[float]]]) -> None:
    echo = scenario.mode == "echo"
    print(f"\n{scenario.name}")
    for label, figures in samples.items():
        print(f"  {label:40}", end="")
        for figure, values in figures.items():
            unit = "CPU µs" if echo and figure == "cpu" else UNITS[figure]
            middle = statistics.median(values)
            print(f"  {middle:8.3f} [{min(values):.3f}..{max(values):.3f}] {unit}", end="")
        print()
    for figure, peer, limit in scenario.promises:
        if peer not in samples:
            continue
        ours = statistics.median(samples[PRODUCT][figure])
        ratio = ours / statistics.median(samples[peer][figure])
        met = ratio >= limit if figure == "rate" else ratio <= limit
        sign = "≥" if figure == "rate" else "≤"
        print(
            f"    {figure} / {peer:38} {ratio:6.3f}  promised {sign} {limit:.3f}"
            f"  {'met' if met else 'missed'}"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pump", description=__doc__)
    parser.add_argument(
        "--runs", type=int, default=5, help="rounds, in each of which all take turns"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one measurement")
    parser.add_argument("--only", default="", help="scenarios whose name contains this")
    options = parser.parse_args(arguments)
    _raise_file_limit()
    commands = build()
    for scenario in SCENARIOS:
        if options.only not in scenario.name:
            continue
        runners = {PRODUCT: f"{scenario.mode} 0", **scenario.peers}
        samples: dict[str, dict[str, list[float]]] = {}
        before = machine.load()
        for _ in range(options.runs):
            for label, mode in runners.items():
                if label not in commands:
                    continue
                for figure, value in measure(
                    scenario, commands[label], mode, options.seconds
                ).items():
                    samples.setdefault(label, {}).setdefault(figure, []).append(value)
        _report(scenario, samples)
        record = {
            "benchmark": "pump",
            "scenario": scenario.name,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": machine.facts(),
            "load": [before, machine.load()],
            "samples": samples,
        }
        with RESULTS.open("a") as file:
            file.write(json.dumps(record) + "\n")


def _raise_file_limit() -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    main()
