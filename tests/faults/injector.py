"""The preloaded library, from Python: which room is watched, which of its calls fails."""

import ctypes
import errno
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

SOURCE = Path(__file__).with_name("inject.c")

ERRORS = (
    errno.EINTR,
    errno.EAGAIN,
    errno.ENOSPC,
    errno.ENOMEM,
    errno.EMFILE,
    errno.EPERM,
)
ALLOCATORS = frozenset({"malloc", "calloc", "realloc"})

EVERY_CALL = 8
"""more of one function than this, and only some fail: the first, the last, a few between"""


def build(into: Path) -> Path:
    """Compile the library below `into`; its path, for LD_PRELOAD."""
    library = into / "inject.so"
    flags = ("-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-fno-builtin")
    subprocess.run(["gcc", *flags, "-o", library, SOURCE, "-ldl"], check=True)
    return library


@dataclass(frozen=True, slots=True)
class Fault:
    function: str
    nth: int
    error: int

    def __str__(self) -> str:
        return f"call {self.nth} of {self.function}: {errno.errorcode[self.error]}"


class Injector:
    """Of this process, which runs with the library preloaded."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        self._library.faults_name.restype = ctypes.c_char_p
        self._library.faults_calls.restype = ctypes.c_long
        self._numbers: dict[str, int] = {}
        while (name := self._library.faults_name(len(self._numbers))) is not None:
            self._numbers[name.decode()] = len(self._numbers)

    def watch(self, room: ModuleType) -> None:
        """Count and fail the calls that `room`'s own code makes."""
        assert room.__file__ is not None
        for line in Path("/proc/self/maps").read_text().splitlines():
            span, flags, *_, path = line.split(maxsplit=5)
            if path == room.__file__ and "x" in flags:
                low, high = (int(edge, 16) for edge in span.split("-"))
                full = self._library.faults_watch(ctypes.c_ulong(low), ctypes.c_ulong(high))
                assert not full, "inject.c watches no more rooms"

    def arm(self, fault: Fault | None) -> None:
        """Let this one call fail, counted from now on; None: no call."""
        if fault is None:
            self._library.faults_arm(-1, ctypes.c_long(0), 0)
        else:
            self._library.faults_arm(
                self._numbers[fault.function], ctypes.c_long(fault.nth), fault.error
            )

    @property
    def hit(self) -> bool:
        """Whether the armed call was made."""
        return bool(self._library.faults_hit())

    def calls(self) -> dict[str, int]:
        """How often each function was called since arm(); those never called left out."""
        counts = {
            name: self._library.faults_calls(number) for name, number in self._numbers.items()
        }
        return {name: count for name, count in counts.items() if count}


def faults(calls: dict[str, int]) -> Iterator[Fault]:
    """All that are tried on a scenario that makes these calls."""
    for function, count in calls.items():
        chosen: set[int] | range = range(1, count + 1)
        if count > EVERY_CALL:
            chosen = {1, 2, 3, count // 3, count // 2, 2 * count // 3, count - 1, count}
        for nth in sorted(chosen):
            for error in (errno.ENOMEM,) if function in ALLOCATORS else ERRORS:
                yield Fault(function, nth, error)
