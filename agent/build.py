#!/usr/bin/env python3
"""Compile the agent into one static ELF, and the initrd's init, inside a private root of packages.

    build.py --root DIR --version TEXT --agent OUT --initrd-init OUT

The compiler, libc and libpython.a are those of one Debian suite, unpacked in `--root` (see
hypercore/guest/toolchain.py), and run in a chroot of it. A host's gcc with --sysroot would do too,
but every distribution's gcc makes other bytes, and one may be missing; a chroot needs root, which
a host that runs microVMs has. Only Cython comes from the interpreter that runs this: it makes C
that depends on its own version alone.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

AGENT_DIR = Path(__file__).resolve().parent
HYPERCORE_DIR = AGENT_DIR.parent / "hypercore"

SHARED = ("wire/codec.py", "wire/tar.py", "proto/types_pb.py", "proto/agent_pb.py")
"""What host and guest have in common."""

PACKAGES = ("agent", "hypercore", "hypercore.wire", "hypercore.proto")
FROZEN = (
    "_frozen_importlib=importlib._bootstrap",
    "_frozen_importlib_external=importlib._bootstrap_external",
    "abc",
    "codecs",
    "encodings",
    "encodings.aliases",
    "encodings.utf_8",
    "io",
)
NOT_COMPILED = ("__init__.py", "build.py", "freeze.py")

PYTHON = "3.11"
CC = "/usr/bin/gcc-12"
CFLAGS = ("-Os", "-w", "-ffunction-sections", "-fdata-sections", "-fno-ident")
LDFLAGS = ("-static", "-s", "-Wl,--gc-sections", "-Wl,--build-id=none", "-Wl,--no-warnings")


def source_files() -> list[Path]:
    """Everything in the tree that decides about the ELF's bytes, in a fixed order."""
    own = [p for p in AGENT_DIR.iterdir() if p.suffix in (".py", ".pyx", ".c") and is_source(p)]
    return sorted(own) + [HYPERCORE_DIR / name for name in SHARED]


def is_source(path: Path) -> bool:
    """Not C that Cython has left beside its source."""
    return path.suffix != ".c" or path.stem in ("frozen", "inittab", "initrd", "main")


def stage(work: Path, version: str) -> list[str]:
    """Copy the sources to compile into `work`; returns them as relative paths."""
    modules = []
    for path in source_files():
        relative = path.relative_to(AGENT_DIR.parent)
        target = work / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        (target.parent / "__init__.py").touch()
        if path.name in NOT_COMPILED and path.parent == AGENT_DIR:
            if path.name == "freeze.py":
                shutil.copyfile(path, work / path.name)
            continue
        shutil.copyfile(path, work / path.name if path.suffix == ".c" else target)
        if path.suffix != ".c":
            modules.append(str(relative))
    (work / "hypercore" / "__init__.py").touch()
    (work / "agent" / "_build.py").write_text(
        f'"""Made by build.py."""\n\nVERSION = {version!r}\n'
    )
    return [*modules, "agent/_build.py"]


def cythonize(work: Path, modules: list[str]) -> list[str]:
    """Translate to C; returns the C files as relative paths."""
    options = ["-3", "-X", "binding=False"]
    argv = [sys.executable, "-m", "cython", *options, *modules]
    subprocess.run(argv, cwd=work, check=True, stdin=subprocess.DEVNULL)
    return [str(Path(module).with_suffix(".c")) for module in modules]


def run_in(root: Path, work: Path, *commands: list[str]) -> None:
    """Run programs of `root`, chrooted there, in the directory `work` below it; some at once."""

    def enter() -> None:
        os.chroot(root)
        os.chdir("/" / work.relative_to(root))

    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "PYTHONHASHSEED": "0"}
    running = []
    for argv in commands:
        if len(running) >= (os.cpu_count() or 1):
            finish(running.pop(0))
        running.append(
            subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, preexec_fn=enter)
        )
    for process in running:
        finish(process)


def finish(process: subprocess.Popen[bytes]) -> None:
    if process.wait() != 0:
        raise SystemExit(f"build.py: {process.args} ended with status {process.returncode}")


def module_table(work: Path, c_files: list[str]) -> None:
    """The header that lists our modules for inittab.c."""
    rows = []
    for name in c_files:
        module = name.removesuffix(".c").replace("/", ".")
        rows.append(f'    M("{module}", PyInit_{module.rpartition(".")[2]})')
    text = "#define OWN_MODULES(M) \\\n" + " \\\n".join(rows) + "\n"
    (work / "modules.h").write_text(text)


def build(root: Path, version: str, agent: Path, initrd_init: Path) -> None:
    """Make both programs."""
    work = root / "work"
    shutil.rmtree(work, ignore_errors=True)
    (root / "tmp").mkdir(exist_ok=True)
    work.mkdir()
    try:
        c_files = cythonize(work, stage(work, version))
        module_table(work, c_files)
        packages = [name + "/" for name in PACKAGES]
        python = [f"/usr/bin/python{PYTHON}", "-S", "-B"]
        run_in(root, work, [*python, "freeze.py", "frozen.h", *FROZEN, *packages])
        machine = os.uname().machine
        include = f"-I/usr/include/python{PYTHON}"
        defines = ['-DFROZEN="frozen.h"', '-DAGENT_MODULES="modules.h"', "-I."]
        sources = [*c_files, "main.c", "inittab.c", "frozen.c"]
        objects = [name.replace("/", "_").removesuffix(".c") + ".o" for name in sources]
        compile_command = [CC, *CFLAGS, include, *defines, "-c"]
        run_in(
            root,
            work,
            *(
                [*compile_command, name, "-o", out]
                for name, out in zip(sources, objects, strict=True)
            ),
        )
        triple = f"{machine}-linux-gnu"
        library = f"/usr/lib/python{PYTHON}/config-{PYTHON}-{triple}/libpython{PYTHON}.a"
        run_in(root, work, [CC, *LDFLAGS, "-o", "init", *objects, library, "-lz", "-lm"])
        musl = f"/usr/lib/{machine}-linux-musl/musl-gcc.specs"
        flags = [*CFLAGS, *LDFLAGS, "-specs", musl]
        run_in(root, work, [CC, *flags, "-o", "initrd-init", "initrd.c"])
        for name, target in (("init", agent), ("initrd-init", initrd_init)):
            shutil.copyfile(work / name, target)
            target.chmod(0o755)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("--agent", type=Path, required=True)
    parser.add_argument("--initrd-init", type=Path, required=True)
    args = parser.parse_args()
    build(args.root.resolve(), args.version, args.agent.resolve(), args.initrd_init.resolve())


if __name__ == "__main__":
    main()
