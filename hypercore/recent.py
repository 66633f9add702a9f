"""Answers about the host that are taken to hold for a moment longer, for bursts of spawns.

Each belongs to the network namespace it was asked in. What has changed since is noticed within
HOLDS_S; nobody may rely on less, for it could change just after a fresh answer too.
"""

import functools
import os
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

HOLDS_S = 0.5
_MOST = 64

P = ParamSpec("P")
R = TypeVar("R")

_generation = 0


def forget() -> None:
    """Ask anew next time: something of it was changed by ourselves."""
    global _generation
    _generation += 1


def remembered(function: Callable[P, R]) -> Callable[P, R]:
    """Answer from memory what was asked with the same arguments within HOLDS_S."""
    known: dict[object, tuple[float, R]] = {}

    @functools.wraps(function)
    def asked(*args: P.args, **kwargs: P.kwargs) -> R:
        netns = os.stat("/proc/thread-self/ns/net").st_ino
        key = (netns, os.getpid(), _generation, args, tuple(kwargs.items()))
        now = time.monotonic()
        found = known.get(key)
        if found is not None and now - found[0] < HOLDS_S:
            return found[1]
        answer = function(*args, **kwargs)
        if len(known) >= _MOST:
            known.clear()
        known[key] = now, answer
        return answer

    return asked
