"""`containerd-shim-hypercore-v1 -info`: what this runtime is and can do.

Run by the launcher as a file, without site and asyncio.
"""

import os
import sys

if not __package__:
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from hypercore.proto.bootstrap_pb import RuntimeInfo, RuntimeVersion
from hypercore.proto.types_pb import Any

FEATURES_TYPE_URL = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
FEATURES = {
    "ociVersionMin": "1.0.0",
    "ociVersionMax": "1.2.0",
    "hooks": [],
    "mountOptions": ["nodev", "noexec", "nosuid", "relatime", "ro", "rw", "strictatime"],
    "linux": {
        "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "user", "uts"],
        "cgroup": {"v1": False, "v2": True, "systemd": False, "systemdUser": False},
        "seccomp": {"enabled": True},
        "apparmor": {"enabled": False},
        "selinux": {"enabled": False},
        "intelRdt": {"enabled": False},
    },
}


ANNOTATIONS = {"containerd.io/runtime-allow-mounts": "mkdir/*,format/*,erofs"}
"""Mounts that containerd ≥ 2.2 hands over as they are, instead of mounting them on the host."""


def runtime_info(version: str) -> RuntimeInfo:
    import json

    return RuntimeInfo(
        name="io.containerd.hypercore.v1",
        version=RuntimeVersion(version=version),
        features=Any(type_url=FEATURES_TYPE_URL, value=json.dumps(FEATURES).encode()),
        annotations=ANNOTATIONS,
    )


def main() -> None:
    sys.stdin.buffer.read()  # runtime options, of which there are none
    info = runtime_info(os.environ.get("HYPERCORE_VERSION", "unknown"))
    sys.stdout.buffer.write(info.encode())


if __name__ == "__main__":
    main()
