"""Kernel modules from the agent's disk, loaded when they are first needed.

/lib/modules/RELEASE/hypercore.load has a line for each goal: `vsock: a.ko b.ko`, files in the
order to load them. A kernel with everything built in has no such directory, and that is fine.
"""

import posix

from agent import _sys, files

_EEXIST = 17


def read_goals():
    """Module paths by goal."""
    base = "/lib/modules/" + posix.uname().release
    try:
        text = files.read(base + "/hypercore.load").decode()
    except FileNotFoundError:
        return {}
    goals = {}
    for line in text.splitlines():
        goal, _, names = line.partition(":")
        goals[goal] = [f"{base}/{name}" for name in names.split()]
    return goals


class Modules:
    """What is loaded so far."""

    def __init__(self):
        self._goals = read_goals()
        self._loaded = set()

    def load(self, goal):
        """Load all modules of a goal; those that are there already are fine."""
        for path in self._goals.get(goal, ()):
            if path in self._loaded:
                continue
            fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
            result = _sys.load_module(fd)
            posix.close(fd)
            if result == 0 or result == -_EEXIST:
                self._loaded.add(path)
            else:
                files.log(f"module {path}: error {-result}")
