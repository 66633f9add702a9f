"""Build the Cython rooms, and the launcher for a wheel. What is declarative is in pyproject.toml.

HYPERCORE_DEBUG=1 builds with line tracing and asserts; HYPERCORE_SANITIZE=address,undefined
builds with those sanitizers. make builds all anew when they change.
"""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOMS = [
    "hypercore/_blockio.pyx",
    "hypercore/_inotify.pyx",
    "hypercore/_process.pyx",
    "hypercore/_pump.pyx",
    "hypercore/_pumploop.pyx",
    "hypercore/_tap.pyx",
    "hypercore/_tsc.pyx",
    "hypercore/_vsock.pyx",
    "hypercore/wire/_frame.pyx",
]

debug = os.environ.get("HYPERCORE_DEBUG") == "1"
sanitize = os.environ.get("HYPERCORE_SANITIZE", "")

compile_args = ["-std=gnu11", "-fvisibility=hidden", "-Wall", "-Wno-unused-function"]
link_args: list[str] = []
macros = [("CYTHON_TRACE_NOGIL", "1")] if debug else [("NDEBUG", "1")]
compile_args += ["-O0", "-g"] if debug else ["-O2", "-g1"]
if sanitize:
    compile_args += [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer"]
    link_args += [f"-fsanitize={sanitize}"]


def room(path: str) -> Extension:
    module = path.removesuffix(".pyx").replace("/", ".")
    return Extension(
        module,
        [path],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
        define_macros=macros,
        depends=[str(header) for header in sorted(Path(path).parent.glob("*.h"))],
    )


LAUNCHER_DIR = Path("build/launcher")
LAUNCHER_NAMES = ("containerd-shim-hypercore-v1", "containerd-shim-hypercore-example")


class build_all(build_ext):
    """Also compiles what containerd executes, unless it builds in place: make does that."""

    def run(self) -> None:
        super().run()
        if self.inplace:
            return
        LAUNCHER_DIR.mkdir(parents=True, exist_ok=True)
        first, *others = (LAUNCHER_DIR / name for name in LAUNCHER_NAMES)
        version = self.distribution.get_version()
        compiler = (sysconfig.get_config_var("CC") or "cc").split()
        command = [*compiler, "-Os", "-std=gnu11", "-Wall", f'-DHYPERCORE_VERSION="{version}"']
        command += ["-s", "-o", str(first), "hypercore/shim/launcher.c"]
        try:
            subprocess.run([*command, "-static"], check=True)
        except subprocess.CalledProcessError:
            # Not every distribution's libc comes with libc.a; a shared one costs 0.3 ms a start.
            subprocess.run(command, check=True)
        for other in others:
            shutil.copy(first, other)


setup(
    ext_modules=cythonize(
        [room(path) for path in ROOMS if Path(path).exists()],
        language_level=3,
        compiler_directives={"linetrace": debug, "embedsignature": True},
        gdb_debug=False,
    ),
    cmdclass={"build_ext": build_all},
    data_files=[("bin", [str(LAUNCHER_DIR / name) for name in LAUNCHER_NAMES])],
)
