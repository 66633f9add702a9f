"""The host's own package manager, for programs that belong to the distribution (qemu, mke2fs).

Installs nothing but what it is given and what that depends on, and says so. Programs of our own
choice of version go into a private directory instead: aptroot.py.
"""

import asyncio
import os
import shutil
from collections.abc import Mapping
from typing import Protocol

from hypercore.errors import Unavailable


class Report(Protocol):
    def __call__(self, line: str, /) -> None: ...


async def install(packages: Mapping[str, str], report: Report) -> None:
    """Install distribution packages.

    Args:
        packages: name → what it is wanted for, for messages.
        report: called with a line now and then, with percent.

    Raises:
        Unavailable: this is no Debian or Ubuntu, or apt-get failed; `detail` has its words.
    """
    if not packages:
        return
    if shutil.which("apt-get") is None:
        raise Unavailable(
            "this host has no apt-get; missing: " + ", ".join(packages.values()),
            hint="install these with the host's own package manager and run setup again",
        )
    names = sorted(packages)
    report(f"installing with apt-get, for the whole host: {' '.join(names)}")
    try:
        await _apt_get(report, "install", "-y", "--no-install-recommends", *names)
    except Unavailable:
        # Its package lists may be old, or none in a fresh container.
        report("reading the host's package lists anew")
        await _apt_get(report, "update")
        await _apt_get(report, "install", "-y", "--no-install-recommends", *names)


async def _apt_get(report: Report, *args: str) -> None:
    read_fd, write_fd = os.pipe()
    try:
        child = await asyncio.create_subprocess_exec(
            "apt-get",
            "-q",
            "-oDPkg::Lock::Timeout=300",
            f"-oAPT::Status-Fd={write_fd}",
            *args,
            pass_fds=(write_fd,),
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
    except BaseException:
        os.close(read_fd)
        raise
    finally:
        os.close(write_fd)
    try:
        follower = asyncio.create_task(_follow(read_fd, report))
        try:
            _, said = await child.communicate()
        finally:
            if child.returncode is None:
                child.terminate()
                await child.wait()
            follower.cancel()
            await asyncio.gather(follower, return_exceptions=True)
    finally:
        os.close(read_fd)
    if child.returncode != 0:
        text = said.decode(errors="replace")
        lines = [line for line in text.splitlines() if line.startswith("E:")]
        raise Unavailable(
            f"apt-get {args[0]} failed: {lines[0][2:].strip() if lines else 'see its output'}",
            hint=f"try it by hand: apt-get {' '.join(args)}",
            detail=text,
        )


async def _follow(fd: int, report: Report) -> None:
    """Report apt's status lines (`dlstatus:1:20.1:Retrieving file 3 of 9`) at each tenth."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    os.set_blocking(fd, False)
    loop.add_reader(fd, readable.set)
    last = ("", -1)
    try:
        while True:
            await readable.wait()
            readable.clear()
            try:
                data = os.read(fd, 65536)
            except BlockingIOError:
                continue
            if not data:
                return
            for line in data.decode(errors="replace").splitlines():
                kind, _, percent = (*line.split(":", 3), "", "")[:3]
                doing = {"dlstatus": "downloading", "pmstatus": "installing"}.get(kind)
                number = percent.partition(".")[0]
                if doing and number.isdecimal() and (doing, int(number) // 10) != last:
                    last = (doing, int(number) // 10)
                    report(f"{doing}, {number} %")
    finally:
        loop.remove_reader(fd)
