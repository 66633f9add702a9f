"""`python -m tests.fuzz`: damaged input for everything that reads what others wrote.

Runs for --seconds, or until each target had its share of --cases, and prints the seed; --seed
replays. A finding names the target and the seed of its one case. --ext takes the compiled rooms
from another directory, where they were built with sanitizers.
"""

import argparse
import asyncio
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GROWTH_LIMIT_MIB = 128
BATCH = 50
C_BATCH = 2000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000_000)
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--cases", type=int, default=0, help="of all targets together")
    parser.add_argument("--only", default="", help="targets whose name contains this")
    parser.add_argument("--ext", type=Path, help="directory with other builds of the rooms")
    options = parser.parse_args()
    if options.ext:
        _use_rooms_of(options.ext)
    print(f"fuzz: seed {options.seed}", flush=True)
    counts = fuzz(options.seed, options.seconds, options.cases, options.only)
    print("fuzz: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    print(f"fuzz: {sum(counts.values())} cases, nothing found")


def _use_rooms_of(directory: Path) -> None:
    import hypercore.wire

    place = directory.resolve() / "hypercore" / "wire"
    hypercore.wire.__path__.insert(0, str(place))
    from hypercore.wire import _frame

    if not _frame.__file__.startswith(str(place)):
        sys.exit(f"fuzz: {place} holds no compiled _frame")


def fuzz(seed: int, seconds: float, cases: int, only: str = "") -> dict[str, int]:
    """Cases by target; exits with a message at the first finding."""
    import logging

    from tests.fuzz import targets

    logging.disable(logging.CRITICAL)
    chosen = {name: target for name, target in targets.TARGETS.items() if only in name}
    with_launcher = only in "launcher"
    counts = dict.fromkeys(chosen, 0)
    share = cases // (len(chosen) + with_launcher) if cases else 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as scratch:
        harness = _harness(Path(scratch)) if with_launcher else None
        deadline = time.monotonic() + seconds if seconds else float("inf")
        while time.monotonic() < deadline and (
            not share or any(count < share for count in counts.values())
        ):
            for name, target in chosen.items():
                todo = min(BATCH, share - counts[name]) if share else BATCH
                asyncio.run(_batch(name, target, seed, counts[name], todo))
                counts[name] += todo
            if harness:
                counts["launcher"] = counts.get("launcher", 0)
                if not share or counts["launcher"] < share:
                    _launcher_batch(harness, seed, counts["launcher"])
                    counts["launcher"] += C_BATCH
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
            if grown > GROWTH_LIMIT_MIB:
                sys.exit(f"fuzz: {grown} MiB more memory than at the start")
    return counts


async def _batch(name: str, target: object, seed: int, first: int, count: int) -> None:
    for number in range(first, first + count):
        try:
            async with asyncio.timeout(30):
                await target(random.Random(f"{name} {seed} {number}"))
        except Exception:
            traceback.print_exc()
            sys.exit(f"fuzz: found with --seed {seed}: {name}, case {number}")


def _harness(scratch: Path) -> Path:
    program = scratch / "launcher"
    flags = [
        "-O1",
        "-g",
        "-std=gnu11",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
    ]
    source = ROOT / "tests/fuzz/launcher.c"
    subprocess.run(["cc", *flags, "-o", program, source], check=True)
    return program


def _launcher_batch(harness: Path, seed: int, first: int) -> None:
    from tests.fuzz import targets

    cases = [
        targets.bootstrap(random.Random(f"launcher {seed} {number}"))
        for number in range(first, first + C_BATCH)
    ]
    data = b"".join(struct.pack("<I", len(case)) + case for case in cases)
    # It links its own sanitizer: one that is preloaded for Python would come twice.
    done = subprocess.run([harness], input=data, capture_output=True, env={}, timeout=300)
    if done.returncode or not done.stdout.startswith(f"{C_BATCH} ".encode()):
        sys.exit(
            f"fuzz: found with --seed {seed}: launcher, cases from {first}:\n"
            f"{done.stderr.decode(errors='replace')}"
        )


if __name__ == "__main__":
    main()
