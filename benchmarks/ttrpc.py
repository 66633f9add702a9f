"""Our ttrpc server against Go's, as containerd calls a shim most: State, in one run, in turns.

Needs no root, guest or containerd. Latency and rate are the client's, CPU is the server process's
own, from the scheduler; the client is one C program for both.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import machine
from benchmarks.pump import compile_peer

HERE = Path(__file__).parent
BUILT = Path(".benchmarks/peers").absolute()
RESULTS = Path(".benchmarks/results.jsonl")
PRODUCT, GO = "hypercore", "Go ttrpc"
LOADS = {"1 client": (1, 8000), "64 clients": (64, 20000)}
WARM_UP = 500
PROMISES = (
    ("1 client", "p50_us", 0.65),
    ("1 client", "cpu_us", 0.75),
    ("64 clients", "rate", 1.1),
)
"""(load, figure, ours / Go's): at most, for a rate at least"""


@contextlib.contextmanager
def _served(argv: Sequence[str]) -> Iterator[tuple[str, int]]:
    """A server's socket and pid."""
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/s"
        with subprocess.Popen([*argv, path], stdout=subprocess.PIPE) as server:
            try:
                assert server.stdout is not None
                if server.stdout.readline() != b"ready\n":
                    sys.exit(f"{argv[0]} did not start")
                yield path, server.pid
            finally:
                server.kill()


def _cpu_s(pid: int) -> float:
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def _measure(path: str, pid: int, clients: int, calls: int) -> dict[str, float]:
    load = [BUILT / "ttrpc_load", path, str(clients)]
    subprocess.run([*load, str(WARM_UP)], check=True, stdout=subprocess.DEVNULL)
    before = _cpu_s(pid)
    done = subprocess.run([*load, str(calls)], check=True, capture_output=True, text=True)
    spent = _cpu_s(pid) - before
    _, seconds, p50, p99 = map(float, done.stdout.split())
    return {
        "p50_us": p50,
        "p99_us": p99,
        "cpu_us": spent / calls * 1e6,
        "rate": calls / seconds,
    }


Samples = dict[str, dict[str, dict[str, list[float]]]]
"""load → server → figure → values"""


def _report(samples: Samples) -> None:
    for load, servers in samples.items():
        print(f"\nttrpc, {load}: median (least)")
        for server, figures in servers.items():
            shown = (
                f"{name} {statistics.median(values):9.1f} ({min(values):.1f})"
                for name, values in figures.items()
            )
            print(f"  {server:12}", "  ".join(shown))
    for load, figure, limit in PROMISES:
        if GO not in samples[load]:
            continue
        best = max if figure == "rate" else min
        for name, of in (("median", statistics.median), ("best", best)):
            ratio = of(samples[load][PRODUCT][figure]) / of(samples[load][GO][figure])
            met = ratio >= limit if figure == "rate" else ratio <= limit
            sign = "≥" if figure == "rate" else "≤"
            print(
                f"    {load}, {name} {figure} / Go's: {ratio:.3f}  promised {sign} {limit}"
                f"  {'met' if met else 'missed'}"
            )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ttrpc", description=__doc__)
    parser.add_argument("--runs", type=int, default=7, help="rounds, in each of which both serve")
    options = parser.parse_args(arguments)
    BUILT.mkdir(parents=True, exist_ok=True)
    compile_peer("cc", ["cc", "-O2", "-o", BUILT / "ttrpc_load", "peers/ttrpc_load.c"], HERE)
    servers = {PRODUCT: [sys.executable, "-m", "benchmarks.peers.ttrpc_product"]}
    go = ["go", "build", "-o", BUILT / "ttrpc_go", "."]
    if compile_peer("go", go, HERE / "peers/ttrpc_go"):
        servers[GO] = [str(BUILT / "ttrpc_go")]
    samples: Samples = {load: {server: {} for server in servers} for load in LOADS}
    before = machine.load()
    for _ in range(options.runs):
        for server, argv in servers.items():
            with _served(argv) as (path, pid):
                for load, (clients, calls) in LOADS.items():
                    for figure, value in _measure(path, pid, clients, calls).items():
                        samples[load][server].setdefault(figure, []).append(value)
    _report(samples)
    record = {
        "benchmark": "ttrpc",
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine.facts(),
        "load": [before, machine.load()],
        "samples": samples,
    }
    with RESULTS.open("a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
