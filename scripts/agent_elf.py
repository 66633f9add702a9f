#!/usr/bin/env python3
"""Compile the agent for this machine into hypercore/guest/prebuilt/, from where wheels take it.

Needs root and a Debian or Ubuntu host, like `hypercore guest build`, whose toolchain it uses; the
bytes do not depend on the host.
"""

import os
from pathlib import Path

import hypercore
from hypercore import aptroot, paths
from hypercore.guest import drive, toolchain


def main() -> None:
    root = paths.data_dir() / "cache" / "guest" / toolchain.SUITE / "root"
    aptroot.fetch(
        toolchain.PACKAGES, suite=toolchain.SUITE, into=root, progress=print, dependencies=True
    )
    into = Path(hypercore.__file__).parent / "guest" / "prebuilt" / os.uname().machine
    into.mkdir(parents=True, exist_ok=True)
    # The kernel's package is not needed here, and Debian's is known for some machines only.
    tools = toolchain.Toolchain(root, kernel=root)
    for path in drive.compile_agent(tools, hypercore.__version__, into):
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
