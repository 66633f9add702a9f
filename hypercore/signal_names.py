"""Signals by the names and numbers that users give."""

import signal

from hypercore.errors import InvalidArgument


def signal_number(text: str) -> int:
    """`9`, `KILL` or `SIGKILL`, in any case, as a number.

    Raises:
        InvalidArgument: no such signal.
    """
    name = text.upper().removeprefix("SIG")
    if name.isdecimal() and 1 <= int(name) <= signal.SIGRTMAX:
        return int(name)
    try:
        return signal.Signals[f"SIG{name}"].value
    except KeyError:
        raise InvalidArgument(
            f"no signal {text!r}", hint="for example TERM, KILL, HUP or a number"
        ) from None
