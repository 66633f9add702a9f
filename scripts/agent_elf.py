#!/usr/bin/env python3
"""Compile the agent for this machine into hypercore/guest/prebuilt/, from where wheels take it.

Needs root and a Debian or Ubuntu host, like `hypercore guest build`, whose toolchain it uses; the
bytes do not depend on the host.
"""

import os
from pathlib import Path

import hypercore
from hypercore.guest import drive, toolchain


def main() -> None:
    into = Path(hypercore.__file__).parent / "guest" / "prebuilt" / os.uname().machine
    into.mkdir(parents=True, exist_ok=True)
    with toolchain.acquire_compiler(print) as tools:
        for path in drive.compile_agent(tools, hypercore.__version__, into):
            print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
