"""What all tiers share: the tier rule, and the check that a test leaves nothing in this process.

A tier is a directory below tests/. HYPERCORE_TIERS names those that this run promises (make sets
it): a skip in a promised tier is a failure, because a tier that tests nothing looks like one that
passes.
"""

import gc
import os
import sys
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import uvloop

TESTS = Path(__file__).parent
GRPC_CLOSE_S = 2
PROMISED_TIERS = frozenset(os.environ.get("HYPERCORE_TIERS", "").split())


def tier_of(path: Path) -> str:
    return path.relative_to(TESTS).parts[0]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and tier_of(item.path) in PROMISED_TIERS:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: skipped in a promised tier: {reason}"
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick tiers first: a broken unit is seen before guests boot."""
    order = {"unit": 0, "integration": 1, "functional": 2}
    items.sort(key=lambda item: order.get(tier_of(item.path), 3))


def descriptors() -> dict[int, str]:
    """What this process has open."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the listing's own descriptor
            continue
    return found


def children() -> set[int]:
    """Its children, zombies too."""
    pids: set[int] = set()
    for path in Path("/proc/self/task").glob("*/children"):
        try:
            pids.update(int(pid) for pid in path.read_text().split())
        except (FileNotFoundError, ProcessLookupError):  # a thread that ended
            continue
    return pids


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode() or "zombie"
    except (FileNotFoundError, ProcessLookupError):
        return "gone"


def _is_grpc_poller(target: str) -> bool:
    """gRPC's C core keeps its pollers for the life of the process."""
    return "grpc" in sys.modules and target.startswith("anon_inode:[event")


def _left(
    open_before: dict[int, str], children_before: set[int], threads: set[threading.Thread]
) -> list[str]:
    """What this process has now and had not then."""
    left = [
        f"fd {fd} -> {target}"
        for fd, target in descriptors().items()
        if open_before.get(fd) != target and not _is_grpc_poller(target)
    ]
    left += [f"child {pid}: {_command(pid)}" for pid in children() - children_before]
    left += [
        f"thread {thread.name}"
        for thread in threading.enumerate()
        if thread not in threads and not thread.daemon
    ]
    return left


@pytest.fixture(scope="session", autouse=True)
def _uvloop_globals() -> None:
    """libuv makes one signal pipe for the whole process with its first loop: not a test's leak."""
    uvloop.new_event_loop().close()


@pytest.fixture(autouse=True)
def _nothing_left_in_this_process() -> Iterator[None]:
    """Fails a test that leaves a descriptor, a child (also a zombie) or a thread behind."""
    before = descriptors(), children(), set(threading.enumerate())
    yield
    if tap := sys.modules.get("hypercore._tap"):
        tap.close_idle()  # kept on purpose, _netlink.h says why
    gc.collect()
    gc.freeze()  # what survived need not be looked at again: most of the unit tier's time
    left = _left(*before)
    # gRPC's C core closes a channel's sockets in a thread of its own, a moment after us.
    deadline = time.monotonic() + GRPC_CLOSE_S
    while left and "grpc" in sys.modules and time.monotonic() < deadline:
        time.sleep(0.01)
        left = _left(*before)
    assert not left, "left behind: " + "; ".join(left)


@pytest.fixture(scope="session")
def root() -> None:
    """For tests that need root."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
