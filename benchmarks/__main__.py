"""Runs benchmarks on an instance of their own; see README.md."""

import argparse
import importlib
import json
import statistics
import time
from pathlib import Path

from benchmarks import machine
from tests.functional import instance

HOST_NAMES = ("pump", "shim_start", "ttrpc", "shim")  # need no instance
NAMES = ("spawn", "exec", "network", "api")
RESULTS = Path(".benchmarks/results.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *HOST_NAMES, *NAMES], metavar="NAME")
    parser.add_argument("--runs", type=int, help="instead of each benchmark's own number")
    arguments = parser.parse_args()
    RESULTS.parent.mkdir(exist_ok=True)
    for name in HOST_NAMES:
        if not arguments.names or name in arguments.names:
            runs = ["--runs", str(arguments.runs)] if arguments.runs else []
            importlib.import_module(f"benchmarks.{name}").main(runs)
    guest_names = [name for name in arguments.names or NAMES if name in NAMES]
    if guest_names:
        _run_on_instance(guest_names, arguments.runs)


def _run_on_instance(names: list[str], runs: int | None) -> None:
    with instance.instance(instance.shared_data_dir()) as made:
        made.run("setup", timeout=900)
        made.run("containerd", "start")
        made.boot("spawn", "--rm", "docker.io/hypercore/hello:latest")  # caches and shim server
        for name in names:
            room = importlib.import_module(f"benchmarks.{name}")
            before = machine.load()
            series = room.samples(made, runs or room.RUNS)
            record = {
                "benchmark": name,
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "machine": machine.facts(),
                "load": [before, machine.load()],
                "samples_ms": series,
            }
            with RESULTS.open("a") as file:
                file.write(json.dumps(record) + "\n")
            _print(name, series)


def _print(name: str, series: dict[str, list[float]]) -> None:
    print(f"{name}: milliseconds, median (least to most) of {len(next(iter(series.values())))}")
    for label, values in series.items():
        print(f"  {label:32} {statistics.median(values):9.1f}", end="")
        print(f"  ({min(values):.1f} to {max(values):.1f})")


if __name__ == "__main__":
    main()
