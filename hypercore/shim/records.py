"""What a task leaves on disk for whoever asks later: how it ended, how long its phases took, and
whether its Delete left anything for the shim binary's own `delete`."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from hypercore.paths import MicroVMPaths
from hypercore.proto.task_pb import DeleteResponse
from hypercore.shim.process import Exit

logger = logging.getLogger(__name__)

DELETED = "deleted"
"""File in the bundle that launcher.c looks for, too."""


def write_exit(paths: MicroVMPaths, end: Exit) -> None:
    write(
        paths.exit_record,
        {
            "exit_status": end.status,
            "exited_unix_ns": end.unix_ns,
            "missing_bytes": end.missing_bytes,
            "reason": end.reason,
            "oom_killed": end.oom_killed,
        },
    )


def write(path: Path, document: Mapping[str, object]) -> None:
    """Write JSON atomically; a full disk costs the record, not the task. Blocking."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.write_text(json.dumps(document) + "\n")
        temporary.rename(path)
    except OSError as exc:
        logger.error("cannot write %s: %s", path, exc.strerror)


def write_deleted(bundle: Path, response: DeleteResponse) -> None:
    """Note in the bundle that nothing of the task is left.

    containerd executes `delete` after every Delete and removes the bundle then: finding this, it
    need not look for itself. Without it, it does, so failing is harmless. Blocking.
    """
    temporary = bundle / f".{DELETED}.new"
    try:
        temporary.write_bytes(response.encode())
        temporary.rename(bundle / DELETED)
    except OSError as exc:
        logger.debug("cannot write %s: %s", bundle / DELETED, exc.strerror)
