"""What a user must be allowed to do before anything is tried."""

import os

from hypercore.errors import PermissionDenied


def require_root() -> None:
    """Raises PermissionDenied for anybody else."""
    if os.geteuid() != 0:
        raise PermissionDenied(
            "hypercore must run as root: it makes network devices and starts VMMs",
            hint="try `sudo hypercore …`",
        )
