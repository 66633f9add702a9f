"""Users and groups of an image: who `nginx` or `1000` is, out of its /etc/passwd and /etc/group.

The files are read out of the image's unpacked snapshot by debugfs, without mounting it. Only our
unpacking wrote that; no guest ever does, so what a microVM adds to its own copy does not count.
"""

import asyncio
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypercore.errors import InvalidArgument, Unavailable

READ_TIMEOUT_S = 10.0
MAX_FILE_BYTES = 1024 * 1024
_ROOT = ("", "0", "root", "0:0", "root:root")
_LARGEST_ID = 2**32 - 2


@dataclass(frozen=True, slots=True)
class Accounts:
    """The text of the two files; empty where the image has none."""

    passwd: str = ""
    group: str = ""

    def resolve(self, user: str) -> dict[str, Any]:
        """The OCI user for `user`, `uid`, `user:group` or `uid:gid`, by docker's rules.

        Raises:
            InvalidArgument: a name that is not in the files, or a number that is no id.
        """
        if user in _ROOT:
            return {"uid": 0, "gid": 0, "additionalGids": [0]}
        name, _, group = user.partition(":")
        entry = next((e for e in _entries(self.passwd, 4) if name in (e[0], e[2])), None)
        if name.isdecimal():
            uid = _id(user, name)
        elif entry is not None:
            uid = _id(user, entry[2])
        else:
            raise InvalidArgument(
                f"user {user!r}: {name!r} is not in the image's /etc/passwd",
                hint="a uid works without an entry",
            )
        gid = _id(user, entry[3]) if entry and entry[3].isdecimal() else 0
        gids = []
        if group:
            gid = self._gid(user, group)
        elif entry is not None:
            members = (e for e in _entries(self.group, 4) if entry[0] in e[3].split(","))
            gids = [_id(user, e[2]) for e in members]
        return {"uid": uid, "gid": gid, "additionalGids": [gid, *(g for g in gids if g != gid)]}

    def _gid(self, user: str, group: str) -> int:
        if group.isdecimal():
            return _id(user, group)
        for entry in _entries(self.group, 3):
            if entry[0] == group:
                return _id(user, entry[2])
        raise InvalidArgument(
            f"user {user!r}: group {group!r} is not in the image's /etc/group",
            hint="a gid works without an entry",
        )


def are_needed(user: str) -> bool:
    """Whether the image's files must be read to resolve `user`."""
    name, colon, group = user.partition(":")
    return user not in _ROOT and not (colon and name.isdecimal() and group.isdecimal())


async def read(image: Path) -> Accounts:
    """The accounts in the ext4 file system at `image`.

    Raises:
        Unavailable: debugfs is not installed or does not end.
    """
    passwd, group = await asyncio.gather(_cat(image, "/etc/passwd"), _cat(image, "/etc/group"))
    return Accounts(passwd, group)


async def _cat(image: Path, path: str) -> str:
    program = shutil.which("debugfs", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is None:
        raise Unavailable("debugfs is not installed", hint="run `hypercore setup`")
    child = await asyncio.create_subprocess_exec(
        program,
        *("-R", f"cat {path}"),
        str(image),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert child.stdout is not None
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            data = b""
            while len(data) < MAX_FILE_BYTES and (part := await child.stdout.read(65536)):
                data += part
    except TimeoutError as exc:
        raise Unavailable(f"debugfs does not read {path} out of {image}") from exc
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()
    return data.decode(errors="replace")


def _entries(text: str, fields: int) -> list[list[str]]:
    """The lines with at least `fields` fields whose third is a number, as it is in both files."""
    lines = (line.split(":") for line in text.splitlines())
    return [entry for entry in lines if len(entry) >= fields and entry[2].isdecimal()]


def _id(user: str, digits: str) -> int:
    """The uid or gid that `digits` are; int() would refuse very long ones in words of its own."""
    if len(digits) > 10 or int(digits) > _LARGEST_ID:
        shown = digits if len(digits) <= 20 else f"{digits[:20]}…"
        raise InvalidArgument(f"user {user[:40]!r}: {shown} is no uid or gid")
    return int(digits)
