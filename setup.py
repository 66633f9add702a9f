"""Build the Cython rooms. Everything declarative lives in pyproject.toml.

HYPERCORE_DEBUG=1 builds with line tracing and asserts; HYPERCORE_SANITIZE=address,undefined
builds with those sanitizers. make builds all anew when they change.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

ROOMS = [
    "hypercore/_blockio.pyx",
    "hypercore/_inotify.pyx",
    "hypercore/_process.pyx",
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


setup(
    ext_modules=cythonize(
        [room(path) for path in ROOMS if Path(path).exists()],
        language_level=3,
        compiler_directives={"linetrace": debug, "embedsignature": True},
        gdb_debug=False,
    )
)
