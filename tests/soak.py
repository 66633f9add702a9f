"""The long counts: many spawns, some at once, each used and ended in a way drawn by chance.

Not part of a tier: `make soak` runs it and prints its seed, `make soak SEED=n` draws the same.
Every exit code, last line and hash must be right, and afterwards the host must be as before
(functional/leaks.py).
"""

import argparse
import hashlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tests.functional import images, instance, leaks
from tests.functional.instance import HYPERCORE, Instance

T = TypeVar("T")

REF = "docker.io/test/soak:1"
BULK_BYTES = 64 << 20


def main() -> None:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--spawns", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--execs", type=int, default=1000)
    arguments = parser.parse_args()
    print(f"soak: seed {arguments.seed} (replay: make soak SEED={arguments.seed})", flush=True)
    with _instance() as made:
        before = leaks.take(made)
        _bulk(made)
        _execs(made, arguments.execs, random.Random(arguments.seed))
        _spawns(made, arguments.spawns, arguments.at_once, arguments.seed)
        if differences := leaks.compare(made, before):
            sys.exit("soak: the host is not as before:\n" + "\n".join(differences))
    print(f"soak: passed; boots that were tried once more: {len(instance.retried_boots)}")


@contextmanager
def _instance() -> Iterator[Instance]:
    """An instance whose shim server runs already, so that it does not count as a leak."""
    with (
        tempfile.TemporaryDirectory() as directory,
        instance.instance(instance.shared_data_dir()) as made,
    ):
        archive = Path(directory) / "soak.tar"
        images.write_oci_archive(images.busybox_image(), REF, archive)
        made.run("containerd", "start")
        made.run("image", "load", archive)
        made.boot("spawn", "--rm", REF, "true")
        yield made


@contextmanager
def _vm(made: Instance) -> Iterator[str]:
    microvm_id = made.spawn(REF)
    try:
        yield microvm_id
    finally:
        made.run("rm", "--force", microvm_id)


def _bulk(made: Instance) -> None:
    """BULK_BYTES through `exec -i cat`, in and out."""
    data = random.Random(1).randbytes(BULK_BYTES)
    with _vm(made) as microvm_id:
        done = subprocess.run(
            [HYPERCORE, "exec", "-i", microvm_id, "cat"],
            input=data,
            capture_output=True,
            env=made.env,
            timeout=600,
        )
    wanted, got = (hashlib.sha256(part).hexdigest() for part in (data, done.stdout))
    if (done.returncode, got) != (0, wanted):
        sys.exit(
            f"soak: {len(done.stdout)} of {BULK_BYTES} bytes came back, exit"
            f" {done.returncode}: {done.stderr.decode(errors='replace')}"
        )
    print(f"soak: {BULK_BYTES >> 20} MiB through exec cat: same hash", flush=True)


def _execs(made: Instance, count: int, rng: random.Random) -> None:
    """`count` processes in one VM, whose exit code and last line must arrive."""
    plans = [(rng.randrange(256), rng.randrange(1, 400)) for _ in range(count)]

    def check(plan: tuple[int, int]) -> None:
        code, lines = plan
        result = made.run(
            "exec", microvm_id, "sh", "-c", f"seq 1 {lines}; echo end; exit {code}", check=False
        )
        wanted = "".join(f"{n}\n" for n in range(1, lines + 1)) + "end\n"
        assert (result.code, result.out) == (code, wanted), result

    with _vm(made) as microvm_id, ThreadPoolExecutor(4) as pool:
        _drain(pool, check, plans, "execs")


def _spawns(made: Instance, count: int, at_once: int, seed: int) -> None:
    with ThreadPoolExecutor(at_once) as pool:
        _drain(
            pool, lambda n: _life(made, random.Random(seed * 1_000_000 + n)), range(count), "VMs"
        )


def _life(made: Instance, rng: random.Random) -> None:
    """One VM from spawn to rm, with an end drawn by chance."""
    microvm_id = made.spawn(REF)
    for _ in range(rng.randrange(1, 4)):
        word = f"{rng.getrandbits(64):x}"
        result = made.run("exec", microvm_id, "sh", "-c", f"echo {word}; exit 3", check=False)
        assert (result.code, result.out) == (3, f"{word}\n"), result
    match rng.choice(("kill", "stop", "force", "cleanup")):
        case "kill":
            made.run("kill", microvm_id)
            made.run("rm", "--force", microvm_id)
        case "stop":
            made.run("stop", "--time", "1", microvm_id)
            made.run("rm", microvm_id)
        case "force":
            made.run("rm", "--force", microvm_id)
        case "cleanup":
            made.run("cleanup", microvm_id)


def _drain(
    pool: ThreadPoolExecutor, work: Callable[[T], None], items: Sequence[T], what: str
) -> None:
    """All `items` through `work`, with progress; the first failure ends the soak."""
    for done, _ in enumerate(pool.map(work, items), 1):
        if done % 50 == 0 or done == len(items):
            print(f"soak: {done} of {len(items)} {what}", flush=True)


if __name__ == "__main__":
    main()
