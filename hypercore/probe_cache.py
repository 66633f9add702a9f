"""What probes of this host found, kept until the next boot or a change of what was probed.

One small JSON file per probe under paths.probe_cache_dir(). A cache that cannot be read or
written is no error: the probe runs again.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from hypercore import paths

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def load(name: str, subject: Mapping[str, object]) -> dict[str, object] | None:
    """The result stored under `name`, if it was for the same `subject` in this boot."""
    try:
        record = json.loads((paths.probe_cache_dir() / f"{name}.json").read_bytes())
        if record["boot_id"] == _boot_id() and record["subject"] == dict(subject):
            result = record["result"]
            return result if isinstance(result, dict) else None
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def store(name: str, subject: Mapping[str, object], result: Mapping[str, object]) -> None:
    record = {"boot_id": _boot_id(), "subject": dict(subject), "result": dict(result)}
    directory = paths.probe_cache_dir()
    with contextlib.suppress(OSError):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=directory)
        try:
            with open(fd, "w") as file:
                json.dump(record, file)
            os.rename(temporary, directory / f"{name}.json")
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def file_identity(path: Path) -> dict[str, object]:
    """Changes when the file is replaced or written; for `subject`."""
    status = path.stat()
    return {
        "path": str(path),
        "inode": status.st_ino,
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "device": status.st_rdev,
        "mode": status.st_mode,
    }


def _boot_id() -> str:
    return BOOT_ID.read_text().strip()
