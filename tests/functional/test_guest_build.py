"""The build of guest assets: the same inputs give the same bytes, and are built once."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from hypercore import guest
from tests.functional import instance


def build_in(directory: Path) -> tuple[guest.GuestAssets, list[str]]:
    """Build below `directory`, with the packages that were fetched before."""
    shared = instance.shared_data_dir() / "cache"
    shared.mkdir(parents=True, exist_ok=True)
    if not (directory / "cache").exists():
        (directory / "cache").symlink_to(shared)
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYPERCORE_DATA_DIR", str(directory))
        return guest.build(lines.append), lines


def digests(assets: guest.GuestAssets) -> dict[str, str]:
    files = assets.drive_path.parent.iterdir()
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.timeout(900)  # two builds, beside whatever else the machine does
def test_two_builds_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "a-longer-name-2"
    first.mkdir()
    made, _ = build_in(first)
    # The second directory holds that version already, but damaged.
    damaged = second / "guest" / made.version
    damaged.mkdir(parents=True)
    for name in (guest.MANIFEST, guest.DRIVE):
        shutil.copy(made.drive_path.parent / name, damaged)
    again, _ = build_in(second)
    assert made.version == again.version
    assert digests(made) == digests(again)
    manifest = json.loads((made.drive_path.parent / guest.MANIFEST).read_text())
    recorded = {name: facts["sha256"] for name, facts in manifest["files"].items()}
    found = digests(made)
    del found[guest.MANIFEST]
    assert recorded == found
    assert manifest["inputs"]["package crun"]
    guest.check_kernel(made.kernel_path)
    guest.check_drive(made.drive_path)
    _, lines = build_in(first)
    assert lines == [f"guest assets {made.version} are up to date"]
