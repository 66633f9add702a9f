"""systemd's side of a service: sockets it has opened for us, and what we tell it.

Interfaces: sd_listen_fds(3), sd_notify(3). Without systemd nothing happens.
"""

import os
import socket
import time
from collections.abc import Mapping, MutableMapping

FIRST_FD = 3


def listen_fds(environ: MutableMapping[str, str]) -> dict[str, list[socket.socket]]:
    """The sockets passed to this process, by name; the variables are removed from `environ`."""
    pid = environ.pop("LISTEN_PID", "")
    count = environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    found: dict[str, list[socket.socket]] = {}
    if pid != str(os.getpid()) or not count.isdecimal():
        return found
    for number in range(int(count)):
        fd = FIRST_FD + number
        os.set_inheritable(fd, False)
        name = names[number] if number < len(names) else ""
        found.setdefault(name, []).append(socket.socket(fileno=fd))
    return found


def watchdog_s(environ: Mapping[str, str]) -> float:
    """How often to say that we live: half of what systemd waits; 0: it does not."""
    text = environ.get("WATCHDOG_USEC", "")
    if not text.isdecimal() or environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    return int(text) / 2e6


def notify(state: str) -> None:
    """Tell systemd, for example "READY=1"; a line each."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(state.encode(), address)
        except OSError:
            return  # who started us listens no more


def reloading() -> str:
    """The state that begins a reload (Type=notify-reload)."""
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    return f"RELOADING=1\nMONOTONIC_USEC={now}"
