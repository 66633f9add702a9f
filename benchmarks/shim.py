"""containerd's shimtest benchmarks against our shim and against containerd's shim for runc.

Both take turns, round by round, in one run of one binary; containers are the same little program.
What differs is the root: ours gets images, as a shim for VMs does, runc's a mounted directory. Our
create boots a microVM. Needs root and Go (else Debian's is fetched); no containerd.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import machine
from hypercore import aptroot
from tests.conformance import golang
from tests.functional import instance

RESULTS = Path(".benchmarks/results.jsonl")
BUILT = Path(".benchmarks/shimtest")
MODULE = Path(__file__).resolve().parents[1] / "tests/conformance"
OURS = Path(__file__).resolve().parents[1] / "bin/containerd-shim-hypercore-v1"
SELECTION = "^BenchmarkShim$/^(Lifecycle|StartupPhases|Start|Exec|StdioRoundTrip)$"
ROUNDS = 3
TIMES = 3
"""of each benchmark in a round"""
ROUND_S = 1800

Samples = dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Peer:
    name: str
    shim: Path
    env: Mapping[str, str]


def main(argv: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shim", description=__doc__)
    parser.add_argument("--runs", type=int, default=ROUNDS, help="rounds")
    parser.add_argument("--times", type=int, default=TIMES, help="of each benchmark in a round")
    arguments = parser.parse_args(argv)
    suite, testbin = _build()
    with (
        tempfile.TemporaryDirectory() as programs,
        instance.instance(instance.shared_data_dir(), HYPERCORE_SHIM_IDLE_S="60") as made,
    ):
        (made.data_dir / "config.toml").write_text('[binaries]\nfirecracker = "/bin/false"\n')
        (made.data_dir / "tmp").mkdir()
        env = {**made.env, "TMPDIR": str(made.data_dir / "tmp"), "SHIMTEST_TESTBIN": str(testbin)}
        peers = [Peer("ours", OURS, env)]
        runc = _runc_shim(Path(programs))
        if runc is not None:
            path = f"{programs}:{env['PATH']}"
            mounted = {**env, "PATH": path, "HYPERCORE_SHIM_FORMAT_MOUNTS": "false"}
            peers.append(Peer("runc-v2", runc, mounted))
        before = machine.load()
        found: dict[str, Samples] = {peer.name: defaultdict(list) for peer in peers}
        for _ in range(arguments.runs):
            for peer in peers:
                _round(suite, peer, made.data_dir, arguments.times, found[peer.name])
        record = {
            "benchmark": "shim",
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": machine.facts(),
            "load": [before, machine.load()],
            "samples": found,
        }
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(record) + "\n")
    _print(found, record["load"])


def _build() -> tuple[Path, Path]:
    BUILT.mkdir(parents=True, exist_ok=True)
    suite, testbin = (BUILT.resolve() / name for name in ("suite", "testbin"))
    golang.build(MODULE, suite, ["."], test=True)
    golang.build(MODULE, testbin, ["github.com/containerd/shimtest/cmd/testbin"])
    return suite, testbin


def _runc_shim(programs: Path) -> Path | None:
    """containerd's shim for runc, with a runc in `programs` if the host has none."""
    tools = instance.shared_data_dir() / "tools"
    # That of containerd 1.7 answers `start` in a form that shimtest does not read.
    built = sorted(tools.glob("containerd2/*/usr/bin/containerd-shim-runc-v2"))
    if not built:
        hint = "`hypercore setup` fetches containerd 2 where the host can run it"
        print(f"left out: no containerd-shim-runc-v2 of containerd 2; {hint}", file=sys.stderr)
        return None
    if shutil.which("runc") is None:
        into = tools / "runc"
        aptroot.fetch(["runc"], suite="bookworm", into=into, progress=print)
        (programs / "runc").symlink_to(into / "usr/sbin/runc")
    return built[-1]


def _round(suite: Path, peer: Peer, cwd: Path, times: int, samples: Samples) -> None:
    arguments = ["-test.run=^$", f"-test.bench={SELECTION}", f"-test.benchtime={times}x"]
    done = subprocess.run(
        [suite, *arguments, f"-test.timeout={ROUND_S}s"],
        env={**peer.env, "HYPERCORE_SHIM": str(peer.shim)},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=ROUND_S + 30,
    )
    if done.returncode:
        raise SystemExit(f"shimtest against {peer.name}: {done.stdout}{done.stderr}")
    for name, figures in re.findall(
        r"^BenchmarkShim/(\S+?)(?:-\d+)?\s+\d+\s+(.+)$", done.stdout, re.MULTILINE
    ):
        for value, unit in re.findall(r"([\d.]+) (\S+)", figures):
            if unit == "ns/op":
                samples[f"{name} ms"].append(float(value) / 1e6)
            else:
                samples[f"{name} {unit}"].append(float(value))


def _print(found: Mapping[str, Samples], load: object) -> None:
    names = list(found)
    print(f"medians of rounds; load {load}")
    print(f"{'':44}" + "".join(f"{name:>12}" for name in names))
    for label in found[names[0]]:
        row = [found[name].get(label) for name in names]
        cells = (f"{statistics.median(v):12.2f}" if v else f"{'-':>12}" for v in row)
        print(f"{label:44}" + "".join(cells))


if __name__ == "__main__":
    if os.geteuid() != 0:
        raise SystemExit("run it as root")
    main(sys.argv[1:])
