"""Orders the build of guest assets: packages → agent → drive → initrd → kernel → version in use.

The version is a digest of all inputs, so an asset directory never changes once it is there.
"""

import hashlib
import json
import os
import shutil
import tempfile
from importlib.metadata import version as package_version
from pathlib import Path

import hypercore
from hypercore import paths
from hypercore.guest import DRIVE, INITRD, KERNEL, MANIFEST, drive, initrd, kernel, toolchain
from hypercore.guest.modules import ModuleTree
from hypercore.guest.toolchain import Progress, Toolchain

_SOURCES = Path(__file__).resolve().parent
_AGENT = _SOURCES.parents[1] / "agent"
_WIRE = ("wire/codec.py", "wire/tar.py", "proto/types_pb.py", "proto/agent_pb.py")


def build_assets(progress: Progress) -> Path:
    """Build what is not there yet, point `current` at it, return its directory."""
    paths.guest_dir().mkdir(parents=True, exist_ok=True)
    with toolchain.acquire(progress) as tools:
        inputs = _inputs(tools)
        digest = drive.digest_of(inputs)
        version = f"{hypercore.__version__}-{digest.hex()[:12]}"
        target = paths.guest_dir() / version
        if _complete(target):
            progress(f"guest assets {version} are up to date")
        else:
            shutil.rmtree(target, ignore_errors=True)
            _build(tools, inputs, version, digest, target, progress)
        _put_in_use(version)
        _remove_old(version)
        return target


def _build(
    tools: Toolchain,
    inputs: dict[str, str],
    version: str,
    digest: bytes,
    target: Path,
    progress: Progress,
) -> None:
    work = tools.root / "work"
    with tempfile.TemporaryDirectory(prefix=".build-", dir=paths.guest_dir()) as scratch:
        out = Path(scratch)
        progress("compiling the agent (half a minute)")
        agent, initrd_init = drive.compile_agent(tools, version, out)
        modules = ModuleTree(tools.kernel)
        assets = out / "assets"
        assets.mkdir(mode=0o755)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            progress(f"making {DRIVE}")
            drive.lay_out(work / "tree", tools, agent, modules)
            drive.make_image(work / "tree", work / DRIVE, tools, digest)
            shutil.copyfile(work / DRIVE, assets / DRIVE)
            progress(f"making {INITRD}")
            early = [
                (path.name, drive.stripped(path, tools))
                for path in modules.ordered(initrd.MODULES)
            ]
        finally:
            shutil.rmtree(work, ignore_errors=True)
        (assets / INITRD).write_bytes(initrd.render(initrd_init.read_bytes(), early))
        progress(f"extracting the kernel {modules.release}")
        image = tools.kernel / "boot" / f"vmlinuz-{modules.release}"
        (assets / KERNEL).write_bytes(kernel.extract_vmlinux(image.read_bytes()))
        manifest = {
            "version": version,
            "machine": os.uname().machine,
            "kernel": modules.release,
            "agent_size": agent.stat().st_size,
            "suite": toolchain.SUITE,
            "inputs": inputs,
            "files": {path.name: _file_facts(path) for path in sorted(assets.iterdir())},
        }
        text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
        (assets / MANIFEST).write_text(text)
        for path in assets.iterdir():
            path.chmod(0o644)
        assets.rename(target)
    progress(f"built guest assets {version}")


def _inputs(tools: Toolchain) -> dict[str, str]:
    """All that decides about the bytes: versions of packages and digests of sources."""
    inputs = {f"package {name}": version for name, version in tools.versions().items()}
    files = [*_SOURCES.glob("*.py"), *(_SOURCES.parent / name for name in _WIRE)]
    if _AGENT.is_dir():
        inputs["cython"] = package_version("cython")
        files += [path for path in _AGENT.iterdir() if path.suffix in (".py", ".pyx", ".c")]
    elif drive.PREBUILT.is_dir():
        files += drive.PREBUILT.iterdir()
    for path in files:
        if path.is_file():
            relative = path.relative_to(_SOURCES.parents[1])
            inputs[f"source {relative}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return inputs


def _file_facts(path: Path) -> dict[str, str | int]:
    data = path.read_bytes()
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def _put_in_use(version: str) -> None:
    """Point the link `current` at a version, in one step."""
    link = paths.guest_dir() / "current"
    if link.is_symlink() and os.readlink(link) == version:
        return
    fresh = link.with_name(".current-new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(version)
    fresh.replace(link)


def _remove_old(version: str) -> None:
    """Remove versions but this one and the two built last: a VM may be about to open those.

    A running VM keeps the files it has open.
    """
    manifests = sorted(
        paths.guest_dir().glob(f"*/{MANIFEST}"), key=lambda path: path.stat().st_mtime
    )
    others = [path.parent for path in manifests if not path.parent.is_symlink()]
    for directory in others[:-2]:
        if directory.name != version:
            shutil.rmtree(directory)


def _complete(directory: Path) -> bool:
    """Whether a version is there, with all its files in their sizes."""
    try:
        files = json.loads((directory / MANIFEST).read_text())["files"]
        return all((directory / name).stat().st_size == files[name]["size"] for name in files)
    except FileNotFoundError:
        return False
