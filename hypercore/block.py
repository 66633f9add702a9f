"""Disk images of microVMs: make upper disks, check root disks. Not for attaching them: vmm.py's.

Everything here may wait for the disk: in async code call it in an executor. A filesystem that a
guest has written is never mounted on the host; the checks read superblocks and nothing more.
"""

import fcntl
import os
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

from hypercore import _blockio, paths
from hypercore.errors import (
    AlreadyExists,
    HypercoreError,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    from_os_error,
)

MIN_UPPER_MIB = 16
MIN_FREE_MIB = 32
"""For templates, logs and a guest's first writes."""
MKE2FS_TIMEOUT_S = 120

# Features are named one by one, so that the host's mke2fs.conf has no say. This leaves a dozen
# blocks that are not zero, whatever the size: no reserved descriptor blocks, no backups, tables
# packed at the front, a small journal. metadata_csum_seed lets the UUID change without a new
# checksum for every table. The inode tables count as zeroed (they are: the file is new), or each
# guest would write 160 MiB of zeros into its 10 GiB disk after the first mount.
_MKE2FS_OPTIONS = (
    *("-F", "-q", "-b", "4096", "-I", "256", "-i", "16384", "-m", "0"),
    "-O",
    "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super2,large_file,"
    "huge_file,dir_nlink,extra_isize,metadata_csum,metadata_csum_seed",
    *("-E", "num_backup_sb=0,packed_meta_blocks=1,lazy_itable_init=0,lazy_journal_init=1"),
    *("-G", "4096"),
)


def require_space(directory: Path) -> None:
    """Refuse to begin what a nearly full disk would let fail half-way: a guest whose sparse disk
    cannot grow hangs instead of failing.

    Args:
        directory: where disks are made; its nearest parent counts while it is not there.

    Raises:
        ResourceExhausted: fewer than MIN_FREE_MIB are free there.
    """
    while not directory.exists():
        directory = directory.parent
    found = os.statvfs(directory)
    free_mib = found.f_bavail * found.f_frsize / 2**20
    if free_mib < MIN_FREE_MIB:
        raise ResourceExhausted(
            f"the disk is full: {free_mib:.1f} MiB are free at {directory},"
            f" and a microVM needs {MIN_FREE_MIB}",
            hint="free some space, or move the data directory (HYPERCORE_DATA_DIR)",
        )


def create_upper(path: Path, size_mib: int) -> None:
    """Create the empty upper disk `path`: a sparse ext4 of `size_mib` with a UUID of its own.

    The first one of a size runs mke2fs; all others take 0.1 ms. On failure no file is left.

    Raises:
        AlreadyExists: there is something at `path`.
        InvalidArgument: a size too small for an ext4 with a journal.
        ResourceExhausted: the disk is full.
        Unavailable: mke2fs is not installed.
    """
    if size_mib < MIN_UPPER_MIB:
        raise InvalidArgument(
            f"upper disk of {size_mib} MiB is too small", hint=f"at least {MIN_UPPER_MIB} MiB"
        )
    require_space(path.parent)
    template = _template(_template_path(size_mib))
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as exc:
        raise AlreadyExists(f"upper disk {path} exists") from exc
    except OSError as exc:
        raise from_os_error(exc, f"create upper disk {path}") from exc
    try:
        template.write(fd, os.urandom(16))
    except BaseException as exc:
        path.unlink(missing_ok=True)
        if isinstance(exc, OSError):
            raise from_os_error(exc, f"create upper disk {path}") from exc
        raise
    finally:
        os.close(fd)


@lru_cache(maxsize=8)
def _template(path: Path) -> _blockio.Template:
    """The template in memory: read once, since the file is never changed once it is there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise from_os_error(exc, f"read disk template {path}") from exc
    try:
        return _blockio.load_template(fd)
    except OSError as exc:
        raise HypercoreError(
            f"disk template {path} is damaged: {exc.filename}: {exc.strerror}",
            hint="remove it; the next spawn makes it again",
        ) from exc
    finally:
        os.close(fd)


def _template_path(size_mib: int) -> Path:
    """The template of this size, made if it is not there."""
    directory = paths.data_dir() / "templates"
    path = directory / f"upper-{size_mib}.ext4"
    if path.exists():
        return path
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(directory / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one maker; closing the file releases it
            if not path.exists():
                _make_template(path, size_mib)
    except OSError as exc:
        raise from_os_error(exc, f"make disk template {path}") from exc
    return path


def _make_template(path: Path, size_mib: int) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".upper-")
    try:
        os.ftruncate(descriptor, size_mib * 1024 * 1024)
        _run_mke2fs(name, journal_mib=8 if size_mib >= 64 else 4)
        os.fsync(descriptor)
        os.rename(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _run_mke2fs(name: str, journal_mib: int) -> None:
    # /usr/sbin is not in every user's PATH; the config file's defaults are not ours
    env = {"PATH": "/usr/sbin:/sbin:/usr/bin:/bin", "MKE2FS_CONFIG": "/dev/null", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            ["mke2fs", *_MKE2FS_OPTIONS, "-J", f"size={journal_mib}", name],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=MKE2FS_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as exc:
        raise Unavailable("mke2fs is not installed", hint="install the package e2fsprogs") from exc
    except subprocess.TimeoutExpired as exc:
        raise Unavailable(f"mke2fs {name} took more than {MKE2FS_TIMEOUT_S} s") from exc
    if done.returncode:
        raise HypercoreError(
            f"mke2fs {name} failed with exit code {done.returncode}",
            detail=done.stderr.decode(errors="replace"),
        )


def check_root_disk(path: Path) -> str:
    """The kind of the filesystem in the root disk `path`: "ext4" or "erofs".

    Raises:
        NotFound: there is no such file.
        InvalidArgument: no filesystem a guest can use as its root, or a file cut short.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as exc:
        raise NotFound(f"root disk {path} does not exist") from exc
    except OSError as exc:
        raise from_os_error(exc, f"open root disk {path}") from exc
    try:
        kind, _, needed_bytes, _ = _blockio.probe_image(fd)
        size_bytes = os.lseek(fd, 0, os.SEEK_END)
    except OSError as exc:
        raise InvalidArgument(f"root disk {path}: {exc.filename}: {exc.strerror}") from exc
    finally:
        os.close(fd)
    if kind not in ("ext4", "erofs"):
        raise InvalidArgument(
            f"root disk {path} holds {kind or 'no filesystem known here'}",
            hint="a root disk is an ext4 or erofs image",
        )
    if size_bytes < needed_bytes:
        raise InvalidArgument(
            f"root disk {path} is cut short: {size_bytes} bytes of {needed_bytes}"
        )
    return kind
