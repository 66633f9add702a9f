"""Which version of Landlock the kernel has: a process may give up paths by it, root or not."""

import ctypes
import errno
import os

_CREATE_RULESET = 444
_VERSION = 1
"""LANDLOCK_CREATE_RULESET_VERSION of linux/landlock.h; the number is one on all architectures"""


def abi() -> int:
    """The ABI's version; 0 where the kernel has no Landlock, or has it turned off."""
    libc = ctypes.CDLL(None, use_errno=True)
    found: int = libc.syscall(_CREATE_RULESET, None, 0, _VERSION)
    if found >= 0:
        return found
    error = ctypes.get_errno()
    # EPERM is what a container's seccomp filter answers to calls it does not know.
    if error not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
        raise OSError(error, os.strerror(error), "landlock_create_ruleset")
    return 0
