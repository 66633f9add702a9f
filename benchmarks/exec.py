"""`hypercore exec ID true` from start to end, the command line's own start included."""

import time

from tests.functional.instance import Instance

RUNS = 20


def samples(made: Instance, runs: int) -> dict[str, list[float]]:
    microvm_id = made.spawn("docker.io/hypercore/hello:latest", "sh", "-c", "read line")
    took = []
    try:
        for _ in range(runs):
            begin = time.monotonic()
            made.run("exec", microvm_id, "true")
            took.append((time.monotonic() - begin) * 1e3)
    finally:
        made.run("rm", "--force", microvm_id)
    return {"whole command": took}
