"""Networks by name: the number under which the rules know each.

A number is a link in a directory of the host's, its target the name: made or refused by the
kernel in one step, so that no two names ever share one, whoever asks at the same time. Names are
few and small, and their numbers stay until the host is rebooted.
"""

import hashlib
import os

from hypercore import paths
from hypercore.errors import ResourceExhausted, from_os_error

_FIRST = 0x48000000
"""A traffic class nobody has; its low bits, which would choose a queue, are 0."""
_STEP, _COUNT = 16, 1 << 20
_TRIES = 1000


def number_of(name: str) -> int:
    """The number of the network called `name`, the same for everybody on this host."""
    directory = paths.network_names_dir()
    start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for tried in range(_TRIES):
            number = _FIRST + (start + tried) % _COUNT * _STEP
            link = directory / str(number)
            try:
                os.symlink(name, link)
            except FileExistsError:
                if os.readlink(link) != name:
                    continue
            return number
    except OSError as exc:
        raise from_os_error(exc, f"number network {name!r} in {directory}") from exc
    raise ResourceExhausted(f"no number is left for network {name!r} in {directory}")


def names() -> dict[int, str]:
    """Number → name of all that have been used."""
    directory = paths.network_names_dir()
    try:
        return {int(each): os.readlink(directory / each) for each in os.listdir(directory)}
    except FileNotFoundError:
        return {}
