"""Run scenarios under the preloaded library: `python -m tests.faults NAME…`; status 1 tells."""

import contextlib
import errno
import faulthandler
import gc
import os
import sys
from collections.abc import Callable, Iterator

from tests.conftest import children, descriptors
from tests.faults.injector import Fault, Injector, faults
from tests.faults.scenarios import SCENARIOS, Scenario

HANG_S = 60
RETRYABLE = frozenset({errno.EINTR, errno.EAGAIN})
MAX_REPORTED = 40


@contextlib.contextmanager
def _nothing_left(problems: list[str]) -> Iterator[None]:
    before, running = descriptors(), children()
    yield
    gc.collect()
    after = descriptors()
    problems += [f"left fd {fd} -> {to}" for fd, to in after.items() if before.get(fd) != to]
    problems += [f"closed fd {fd} -> {to}" for fd, to in before.items() if fd not in after]
    problems += [f"left child {pid}" for pid in children() - running]


def _may_pass(scenario: Scenario, fault: Fault) -> bool:
    return (
        scenario.tells_by_event or fault.error in RETRYABLE or fault.function in scenario.tolerates
    )


def _try(scenario: Scenario, injector: Injector, fault: Fault) -> list[str]:
    """What is wrong after the scenario met this fault."""
    problems: list[str] = []
    faulthandler.dump_traceback_later(HANG_S, exit=True)
    with _nothing_left(problems):
        try:
            with scenario.ready() as once:
                problems += _meet(scenario, injector, fault, once)
        except AssertionError as error:  # of the scenario's own clearing up
            problems.append(f"left: {error}")
    faulthandler.cancel_dump_traceback_later()
    return problems


def _meet(
    scenario: Scenario, injector: Injector, fault: Fault, once: Callable[[], None]
) -> list[str]:
    injector.arm(fault)
    try:
        once()
    except OSError as error:
        if error.errno != fault.error and error.errno not in scenario.translates:
            return [f"another error: {error!r}"]
    except MemoryError:
        if fault.error != errno.ENOMEM:
            return ["MemoryError"]
    except AssertionError as error:
        return [f"wrong result: {error}"]
    else:
        if injector.hit and not _may_pass(scenario, fault):
            return ["the error was swallowed"]
    finally:
        injector.arm(None)
    return []


def run(name: str, injector: Injector) -> int:
    """The number of faults that were not met well."""
    scenario = SCENARIOS[name]
    for room in scenario.rooms:
        injector.watch(room)
    with scenario.ready() as once:
        once()  # what is made once for the process
    with scenario.ready() as once:
        injector.arm(None)
        once()
        calls = injector.calls()
    assert calls, f"{name} makes no calls: is the library preloaded?"
    tried = failed = 0
    for fault in faults(calls):
        tried += 1
        if problems := _try(scenario, injector, fault):
            failed += 1
            if failed <= MAX_REPORTED:
                print(f"{name}: {fault}: {'; '.join(problems)}", flush=True)
    counted = ", ".join(f"{function} {count}" for function, count in calls.items())
    print(f"{name}: {tried} faults tried, {failed} not met well; calls: {counted}", flush=True)
    return failed


def main() -> int:
    os.environ.pop("LD_PRELOAD", None)  # not for the children
    injector = Injector()
    return 1 if sum(run(name, injector) for name in sys.argv[1:]) else 0


if __name__ == "__main__":
    sys.exit(main())
