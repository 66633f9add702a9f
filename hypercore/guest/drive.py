"""The drive: a read-only EROFS image with the agent, crun, their libraries and late modules.

Uncompressed and without inlined data, so that a VMM may map it (DAX) and all guests share its
pages. It is known as ours by its UUID, whose first half says so: cheap to check, and kept by any
file system that the tree may be copied to.
"""

import hashlib
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

from hypercore.errors import HypercoreError, InvalidArgument, Unavailable
from hypercore.guest.modules import ModuleTree
from hypercore.guest.toolchain import Toolchain

UUID_MARK = b"hypercor"
"""First half of the UUID of every drive we build."""

GOALS = {
    "vsock": ("vmw_vsock_virtio_transport",),
    "net": ("virtio_net",),
    "overlay": ("overlay",),
}
"""Modules that the agent loads when it needs them (agent/modules.py)."""

DIRECTORIES = ("dev", "proc", "sys", "run", "tmp", "etc", "mnt")
PROGRAMS = ("usr/bin/crun", "usr/sbin/runc")

_AGENT_BUILD = Path(__file__).resolve().parents[2] / "agent" / "build.py"
PREBUILT = Path(__file__).resolve().parent / "prebuilt" / os.uname().machine
"""Where a wheel has the agent's ELF and the initrd's init (scripts/agent_elf.py)."""
_SUPERBLOCK = 1024
_EROFS_MAGIC, _EXT4_MAGIC = b"\xe2\xe1\xf5\xe0", b"\x53\xef"


def compile_agent(toolchain: Toolchain, version: str, into: Path) -> tuple[Path, Path]:
    """Make the agent's ELF and the initrd's init in `into`.

    A clone compiles its own sources; an installation has none and takes what its wheel carries.
    """
    if not _AGENT_BUILD.exists():
        if PREBUILT.is_dir():
            return PREBUILT / "init", PREBUILT / "initrd-init"
        raise Unavailable(
            "neither the agent's sources nor a compiled agent for this machine are installed",
            hint="build the guest in a clone of the repository, then copy its guest directory",
        )
    agent, initrd_init = into / "init", into / "initrd-init"
    argv = [sys.executable, str(_AGENT_BUILD), f"--root={toolchain.root}", f"--version={version}"]
    argv += [f"--agent={agent}", f"--initrd-init={initrd_init}"]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise HypercoreError(
            "compiling the agent failed: " + (done.stderr.strip().splitlines() or ["?"])[-1],
            hint="is Cython installed in this environment? (pip install 'cython>=3.1,<4')",
            detail=done.stdout + done.stderr,
        )
    return agent, initrd_init


def lay_out(tree: Path, toolchain: Toolchain, agent: Path, modules: ModuleTree) -> None:
    """Fill the directory `tree` with what the drive holds."""
    for name in DIRECTORIES:
        (tree / name).mkdir(parents=True)
    shutil.copyfile(agent, tree / "init")
    (tree / "init").chmod(0o755)
    for name in PROGRAMS:
        _copy(toolchain.root, name, tree)
    for name in sorted(libraries(toolchain.root, PROGRAMS)):
        _copy(toolchain.root, name, tree)
    base = tree / "lib" / "modules" / modules.release
    base.mkdir(parents=True)
    lines = []
    for goal, wanted in GOALS.items():
        files = modules.ordered(wanted)
        for file in files:
            (base / file.name).write_bytes(stripped(file, toolchain))
        lines.append(f"{goal}: {' '.join(file.name for file in files)}\n")
    (base / "hypercore.load").write_text("".join(lines))


def make_image(tree: Path, image: Path, toolchain: Toolchain, digest: bytes) -> None:
    """Make the EROFS image of `tree`; both are below the toolchain's root."""
    below = Path("/") / tree.relative_to(toolchain.root)
    target = Path("/") / image.relative_to(toolchain.root)
    uuid = (UUID_MARK + digest[:8]).hex()
    dashed = "-".join((uuid[:8], uuid[8:12], uuid[12:16], uuid[16:20], uuid[20:]))
    options = ["--quiet", "-T0", "--all-root", "-x-1", "-Enoinline_data", f"-U{dashed}"]
    toolchain.run(["/usr/bin/mkfs.erofs", *options, str(target), str(below)], cwd=tree)


def stripped(module: Path, toolchain: Toolchain) -> bytes:
    """A module's bytes without its debug information, which is most of it."""
    scratch = toolchain.root / "work" / "module.ko"
    shutil.copyfile(module, scratch)
    toolchain.run(["/usr/bin/strip", "--strip-debug", "module.ko"], cwd=scratch.parent)
    return scratch.read_bytes()


def libraries(root: Path, programs: tuple[str, ...]) -> set[str]:
    """Paths, relative to `root`, of all that `programs` need to run: loader and libraries."""
    found: set[str] = set()
    waiting = list(programs)
    while waiting:
        interpreter, needed = dynamic_needs(inside(root, waiting.pop()).read_bytes())
        names = [_find_library(root, name) for name in needed]
        if interpreter:
            names.append(interpreter.lstrip("/"))
        for name in names:
            if name not in found:
                found.add(name)
                waiting.append(name)
    return found


def _find_library(root: Path, name: str) -> str:
    triple = f"{os.uname().machine}-linux-gnu"
    for directory in (f"lib/{triple}", f"usr/lib/{triple}", "lib", "lib64"):
        if inside(root, f"{directory}/{name}").exists():
            return f"{directory}/{name}"
    raise HypercoreError(f"library {name} is not among the packages in {root}")


def dynamic_needs(elf: bytes) -> tuple[str, list[str]]:
    """(loader, names of needed libraries) of an ELF64 little-endian file."""
    (table,) = struct.unpack_from("<Q", elf, 0x20)
    size, count = struct.unpack_from("<HH", elf, 0x36)
    segments = [struct.unpack_from("<IIQQQQ", elf, table + i * size) for i in range(count)]
    interpreter = ""
    needed_at: list[int] = []
    strings = 0
    for kind, _, offset, _, _, length in segments:
        if kind == 3:  # PT_INTERP
            interpreter = elf[offset : offset + length].rstrip(b"\0").decode()
        elif kind == 2:  # PT_DYNAMIC
            for at in range(offset, offset + length, 16):
                tag, value = struct.unpack_from("<QQ", elf, at)
                if tag == 1:  # DT_NEEDED
                    needed_at.append(value)
                elif tag == 5:  # DT_STRTAB, a virtual address
                    strings = value
    base = next(
        (offset + strings - address
         for kind, _, offset, address, _, length in segments
         if kind == 1 and address <= strings < address + length),
        0,
    )  # fmt: skip
    names = [elf[base + at : elf.index(b"\0", base + at)].decode() for at in needed_at]
    return interpreter, names


def inside(root: Path, name: str) -> Path:
    """The file `name` as a process chrooted to `root` sees it.

    Packages link by absolute paths (the loader of libc6 is such a link); followed from outside
    they lead to the host's files.

    Raises:
        HypercoreError: it leads out of `root`, or in circles.
    """
    path = root / name
    for _ in range(40):  # the kernel's own limit
        if not path.is_symlink():
            break
        target = path.parent.relative_to(root) / os.readlink(path)
        path = root / os.path.normpath(f"/{target}").lstrip("/")
    if path.is_symlink() or not path.resolve().is_relative_to(root.resolve()):
        raise HypercoreError(f"{root / name} is a link out of the packages")
    return path


def _copy(root: Path, name: str, tree: Path) -> None:
    target = tree / name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(inside(root, name), target)
    target.chmod(0o755)


def check_drive(path: Path, key: str = "hardware.drive") -> None:
    """Whether `path` is a drive with our agent.

    Raises:
        InvalidArgument: it cannot be read, or is not one of ours; names `key` and the value.
    """
    hint = "make one with `hypercore guest build`, or leave the key out to use it"
    try:
        with path.open("rb") as file:
            file.seek(_SUPERBLOCK)
            superblock = file.read(128)
    except OSError as exc:
        raise InvalidArgument(f"{key} = {str(path)!r}: {exc.strerror}", hint=hint) from exc
    uuid = drive_uuid(superblock)
    if uuid is None:
        raise InvalidArgument(
            f"{key} = {str(path)!r}: neither an EROFS nor an ext4 image", hint=hint
        )
    if not uuid.startswith(UUID_MARK):
        raise InvalidArgument(f"{key} = {str(path)!r}: our agent is not in it", hint=hint)


def drive_uuid(superblock: bytes) -> bytes | None:
    """UUID of an EROFS or ext4 superblock; None for anything else."""
    if superblock.startswith(_EROFS_MAGIC):
        return superblock[48:64]
    if superblock[56:58] == _EXT4_MAGIC:
        return superblock[104:120]
    return None


def digest_of(values: dict[str, str]) -> bytes:
    """A stable digest of names and values."""
    text = "".join(f"{key}={values[key]}\n" for key in sorted(values))
    return hashlib.sha256(text.encode()).digest()
