"""Files of the blockfile snapshotter: ext4 filesystems that images are unpacked into.

The snapshotter copies a whole file for every layer and every writable snapshot, on ext4 hosts
without keeping its holes: 0.3 to 1.9 s and 512 MiB of disk each time. An image pulled by us is
therefore one file, made here at the size the image needs, sparse, and filled layer by layer
(images.py). The scratch file only serves other clients of our containerd, such as ctr.
"""

import os
import shutil
import subprocess
import uuid
from pathlib import Path

from hypercore.errors import HypercoreError, ResourceExhausted, Unavailable, from_os_error

BLOCK_SIZE = 4096
SCRATCH_MIB = 512
"""Size of the scratch file, which is what `ctr image pull` can unpack at most; each of its layers
takes this much disk and a second on ext4. Also the least size of an image unpacked by us."""

BASE_BYTES = 256 << 10
"""Size of the snapshot that image snapshots have as their parent; mke2fs makes little smaller."""

SCRATCH = "scratch"
"""Name of the scratch file in the snapshotter's directory (plugins/snapshots/blockfile)."""

_BYTES_PER_INODE = 8192  # twice mke2fs's number: images hold many small files
# Stated in full, for the same filesystem whatever the host's mke2fs.conf says. No journal: the
# file is only ever mounted to unpack, and synced before the snapshot is committed.
_FEATURES = (
    "none,64bit,dir_index,dir_nlink,ext_attr,extent,extra_isize,filetype,flex_bg,huge_file,"
    "large_file,metadata_csum,sparse_super"
)


def create_filesystem(path: Path, size_bytes: int, name: str) -> None:
    """Make the file at `path` an empty ext4 of `size_bytes`, sparse, without lost+found.

    Args:
        path: made, or emptied if it exists.
        name: gives the filesystem's UUID: same name, same bytes.

    Raises:
        Unavailable: mke2fs or debugfs is not installed.
        ResourceExhausted: no space for the file's few blocks.
    """
    size_bytes -= size_bytes % BLOCK_SIZE
    fs_uuid = uuid.uuid5(uuid.NAMESPACE_URL, f"hypercore:{name}")
    features = [
        "root_owner=0:0",
        "lazy_itable_init=1",
        "assume_storage_prezeroed=1",  # else the kernel writes out all inode tables once mounted
        f"hash_seed={fs_uuid}",
        "nodiscard",
    ]
    try:
        with path.open("wb") as file:
            file.truncate(size_bytes)
    except OSError as exc:
        raise from_os_error(exc, f"create {path}") from exc
    mke2fs = ["-q", "-F", "-t", "ext4", "-m", "0", "-b", str(BLOCK_SIZE), "-I", "256"]
    mke2fs += ["-i", str(_BYTES_PER_INODE), "-O", _FEATURES, "-E", ",".join(features)]
    mke2fs += ["-U", str(fs_uuid), str(path)]
    _run("mke2fs", mke2fs, path)
    # A container would see it.
    _run("debugfs", ["-w", "-f", "-", str(path)], path, stdin="rmdir lost+found\n")


def prepare_scratch(directory: Path) -> None:
    """Make the snapshotter's scratch file in its own directory, unless it is there.

    There the snapshotter takes it as it is; told of a file elsewhere it would copy it, holes
    written out. The first one is tiny, so that the base snapshot copied from it costs nothing;
    `grow_scratch` replaces it.
    """
    if not (directory / SCRATCH).exists():
        _place_scratch(directory, BASE_BYTES)


def grow_scratch(directory: Path, size_mib: int = SCRATCH_MIB) -> None:
    """Give the scratch file the size that clients other than us can use; idempotent."""
    if (directory / SCRATCH).stat().st_size < size_mib << 20:
        _place_scratch(directory, size_mib << 20)


def _place_scratch(directory: Path, size_bytes: int) -> None:
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    unfinished = directory / f".{SCRATCH}-{os.getpid()}"
    try:
        create_filesystem(unfinished, size_bytes, SCRATCH)
        unfinished.rename(directory / SCRATCH)
    finally:
        unfinished.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Write the file's data to disk, so that a committed snapshot survives a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _run(program: str, args: list[str], path: Path, *, stdin: str = "") -> None:
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        raise Unavailable(f"{program} is not installed", hint="apt-get install e2fsprogs")
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "MKE2FS_CONFIG": "/dev/null", "LC_ALL": "C"}
    # A fixed time, for the same bytes each time (e2fsprogs/lib/ext2fs/initialize.c).
    env |= {"E2FSPROGS_FAKE_TIME": "1", "SOURCE_DATE_EPOCH": "1", "DEBUGFS_PAGER": "cat"}
    done = subprocess.run(
        [found, *args], env=env, input=stdin, text=True, capture_output=True, check=False
    )
    if done.returncode == 0:
        return
    words = done.stderr.strip() or done.stdout.strip()
    if "No space left" in words:
        raise ResourceExhausted(f"no space for {path}", hint="free some disk space", detail=words)
    reason = words.splitlines()[-1] if words else f"exit status {done.returncode}"
    raise HypercoreError(f"{program} failed on {path}: {reason}", detail=words)
