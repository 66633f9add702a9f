"""A containerd of the tests' own, in directories of its own, started by our daemon module."""

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypercore import aptroot, host_setup, paths
from hypercore.config import HostConfig
from hypercore.containerd import daemon, program
from hypercore.errors import Unavailable


def require_binary() -> Path:
    """The containerd that `hypercore setup` would use; fetched if it is not there."""
    try:
        return program.find(HostConfig())
    except Unavailable:
        into = paths.tools_dir() / "containerd" / host_setup.CONTAINERD_SUITE
        aptroot.fetch(["containerd"], suite=host_setup.CONTAINERD_SUITE, into=into, progress=print)
        return program.find(HostConfig())


@contextmanager
def directories(disk_mib: int = 0) -> Iterator[HostConfig]:
    """The environment moved to new data and run directories; a configuration that fits.

    Args:
        disk_mib: put the data directory on a filesystem of this size.
    """
    binary = require_binary()
    names = ("HYPERCORE_DATA_DIR", "HYPERCORE_RUN_DIR", "HYPERCORE_CONTAINERD_SOCKET")
    before = {name: os.environ.pop(name, None) for name in names}
    data_dir = tempfile.mkdtemp(prefix="hcc-", dir="/var/tmp")
    run_dir = tempfile.mkdtemp(prefix="hcc-", dir="/run")
    os.environ.update(HYPERCORE_DATA_DIR=data_dir, HYPERCORE_RUN_DIR=run_dir)
    if disk_mib:
        options = [f"-osize={disk_mib}m", "-ttmpfs", "hypercore-test", data_dir]
        subprocess.run(["mount", *options], check=True)
    try:
        yield HostConfig(binaries={"containerd": binary})
    finally:
        try:
            asyncio.run(daemon.stop())
        finally:
            if disk_mib:
                subprocess.run(["umount", data_dir], check=True)
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
            shutil.rmtree(run_dir)
            shutil.rmtree(data_dir)


@contextmanager
def running(disk_mib: int = 0) -> Iterator[HostConfig]:
    """A containerd that serves until the block ends."""
    with directories(disk_mib) as config:
        asyncio.run(daemon.start(config))
        yield config
