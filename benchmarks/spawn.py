"""Phases of a spawn of the demo image, as `spawn --timings` reports them, in milliseconds."""

import json
import time

from tests.functional.instance import ROOT, Instance

RUNS = 5


def samples(made: Instance, runs: int) -> dict[str, list[float]]:
    series: dict[str, list[float]] = {}
    example = ROOT / "examples" / "hello" / "hac.toml"
    for _ in range(runs):
        begin = time.monotonic()
        answer = made.boot("spawn", "--format", "json", "--timings", "--hac", example).out
        series.setdefault("whole command", []).append((time.monotonic() - begin) * 1e3)
        result = json.loads(answer)
        for room, phases in result["timings_ms"].items():
            for phase, value in phases.items():
                series.setdefault(f"{room}: {phase}", []).append(value)
        made.run("rm", "--force", result["id"])
    return series
