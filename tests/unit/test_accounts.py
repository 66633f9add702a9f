"""Who a user is in an image."""

import asyncio
import shutil
import subprocess
from pathlib import Path

import pytest

from hypercore import accounts
from hypercore.accounts import Accounts
from hypercore.errors import InvalidArgument

FILES = Accounts(
    passwd=(
        "root:x:0:0:root:/root:/bin/sh\n"
        "www-data:x:33:33:www:/var/www:/bin/false\n"
        "broken\n"
        "dev:x:1000:100:Dev:/home/dev:/bin/sh\n"
        "nogroup:x:1001:zzz::/:\n"
        f"huge:x:{'9' * 5000}:1::/:\n"
    ),
    group="root:x:0:\nwww-data:x:33:\nusers:x:100:\naudio:x:29:dev,other\nwheel:x:10:dev\n",
)


@pytest.mark.parametrize(
    ("user", "uid", "gid", "more"),
    [
        ("", 0, 0, []),
        ("root", 0, 0, []),
        ("dev", 1000, 100, [29, 10]),
        ("1000", 1000, 100, [29, 10]),
        ("4000", 4000, 0, []),
        ("4000:5000", 4000, 5000, []),
        ("dev:33", 1000, 33, []),
        ("dev:www-data", 1000, 33, []),
        ("1000:users", 1000, 100, []),
        ("nogroup", 1001, 0, []),
    ],
)
def test_users(user: str, uid: int, gid: int, more: list[int]) -> None:
    assert FILES.resolve(user) == {"uid": uid, "gid": gid, "additionalGids": [gid, *more]}


@pytest.mark.parametrize(
    ("user", "text"),
    [
        ("nobody", "'nobody' is not in the image's /etc/passwd"),
        ("dev:nobody", "group 'nobody' is not in the image's /etc/group"),
        ("4294967295", "4294967295 is no uid"),
        ("1:4294967295", "4294967295 is no uid or gid"),
        ("9" * 5000, "99999… is no uid or gid"),
        ("1:" + "9" * 5000, "99999… is no uid or gid"),
        ("huge", "is no uid or gid"),
    ],
)
def test_who_is_not_there(user: str, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        FILES.resolve(user)


@pytest.mark.parametrize(
    ("user", "needed"),
    [("", False), ("0", False), ("root", False), ("1:2", False), ("1", True), ("a:2", True)],
)
def test_the_image_is_read_only_when_needed(user: str, needed: bool) -> None:
    assert accounts.are_needed(user) is needed


@pytest.mark.skipif(
    shutil.which("mke2fs", path="/usr/sbin:/sbin") is None, reason="mke2fs is not installed"
)
def test_read_out_of_an_image(tmp_path: Path) -> None:
    (tmp_path / "root/etc").mkdir(parents=True)
    passwd = FILES.passwd + "".join(f"u{n}:x:{n}:1::/:\n" for n in range(2000, 8000))
    (tmp_path / "root/etc/passwd").write_text(passwd)
    image = tmp_path / "image"
    mke2fs = shutil.which("mke2fs", path="/usr/sbin:/sbin")
    command = [mke2fs, "-q", "-t", "ext4", "-d", tmp_path / "root", image, "4M"]
    subprocess.run(command, check=True, timeout=60, stdin=subprocess.DEVNULL)
    assert asyncio.run(accounts.read(image)) == Accounts(passwd, "")
