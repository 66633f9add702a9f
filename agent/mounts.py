"""The guest's own mounts, and containers' roots made of the disks that the host attached.

A root is always writable for the agent: the container's own ext4, an overlay with a private ext4
as its upper layer, or (for a root without a writable disk) an overlay with a tmpfs on top, so that
files can be injected and mount points made. Whether the container may write is config.json's
`root.readonly`.
"""

import posix
import time

from agent import _sys, files
from agent.errors import FAILED_PRECONDITION, INVALID_ARGUMENT, RpcError
from agent.loop import Sleep

RUN = "/run/hc"
DISK_DEADLINE_S = 5
FS_TYPES = ("ext4", "erofs")

_NO_EXEC = _sys.NOSUID | _sys.NODEV | _sys.NOEXEC
_EBUSY, _EINVAL, _ENOENT = 16, 22, 2


def mount_system():
    """What every Linux program expects to find, on top of the agent's read-only root."""
    _sys.mount("proc", "/proc", "proc", _NO_EXEC)
    _sys.mount("sysfs", "/sys", "sysfs", _NO_EXEC)
    _sys.mount("cgroup2", "/sys/fs/cgroup", "cgroup2", _NO_EXEC)
    _sys.mount("tmpfs", "/run", "tmpfs", _sys.NOSUID | _sys.NODEV, "mode=0755")
    _sys.mount("tmpfs", "/tmp", "tmpfs", _sys.NOSUID | _sys.NODEV, "mode=1777")
    files.make_dir("/dev/pts")
    _sys.mount(
        "devpts",
        "/dev/pts",
        "devpts",
        _sys.NOSUID | _sys.NOEXEC,
        "gid=5,mode=620,ptmxmode=666",
    )
    files.make_dir("/dev/shm")
    _sys.mount("tmpfs", "/dev/shm", "tmpfs", _sys.NOSUID | _sys.NODEV, "mode=1777")
    files.make_dir(RUN, 0o700)
    files.make_dir("/run/crun", 0o700)
    files.make_dir("/run/runc", 0o700)


def find_disk(serial):
    """Path of the block device with this serial number, or "" when there is none."""
    try:
        names = posix.listdir("/sys/block")
    except OSError:
        return ""
    for name in names:
        try:
            if files.read(f"/sys/block/{name}/serial", 64).strip(b"\0\n ") == serial.encode():
                return "/dev/" + name
        except OSError:
            continue  # loop devices and the like have no serial number
    return ""


class Root:
    """A container's root file system below `directory`; knows what to unmount."""

    def __init__(self, directory):
        self.directory = directory
        self.path = directory + "/rootfs"
        self._mounted = []

    def mount(self, root_disks, binds=None):
        """Mount it, and the disk `binds` beside it; a generator for the loop.

        On failure nothing stays mounted.
        """
        try:
            yield from self._mount(root_disks)
            if binds is not None:
                yield from self._mount_disk(binds, self.directory + "/binds", False)
        except OSError as exc:
            self.unmount()
            raise RpcError(FAILED_PRECONDITION, f"mount {exc.filename}: {exc.strerror}") from exc
        except BaseException:
            self.unmount()
            raise

    def _mount(self, root_disks):
        if root_disks is None or not (root_disks.writable or root_disks.read_only):
            raise RpcError(INVALID_ARGUMENT, "root_disks names no disk")
        files.make_dir(self.path)
        lower = root_disks.read_only
        if not lower:
            yield from self._mount_disk(root_disks.writable, self.path, True)
            return
        lowers = []
        for number, disk in enumerate(lower):
            target = f"{self.directory}/lower{number}"
            yield from self._mount_disk(disk, target, False, number + 1)
            lowers.append(f"lower{number}")
        upper = self.directory + "/upper"
        if root_disks.writable is not None:
            yield from self._mount_disk(root_disks.writable, upper, True)
        else:
            files.make_dir(upper)
            self._do_mount("tmpfs", upper, "tmpfs", _sys.NODEV, "mode=0755")
        fresh = self._make_upper(upper)
        options = f"lowerdir={':'.join(lowers)},upperdir={upper}/upper,workdir={upper}/work"
        posix.chdir(self.directory)  # mount(2) takes a page of options: many layers, short paths
        try:
            self._do_mount("overlay", self.path, "overlay", 0, options)
        finally:
            posix.chdir("/")
        if fresh:
            self._hide_lost_and_found()

    def _make_upper(self, upper):
        """Make the overlay's directories; returns whether they are new."""
        files.make_dir(upper + "/upper", 0o755)
        try:
            posix.mkdir(upper + "/work", 0o700)
        except FileExistsError:
            return False
        return True

    def _hide_lost_and_found(self):
        """ext4 makes it in every layer; no image has it."""
        try:
            posix.rmdir(self.path + "/lost+found")
        except OSError:
            pass  # absent, or an image's own that is not empty

    def _mount_disk(self, disk, target, writable, part=1):
        if disk.fs_type not in FS_TYPES:
            raise RpcError(INVALID_ARGUMENT, f"fs_type {disk.fs_type!r} of disk {disk.serial}")
        deadline = time.monotonic() + DISK_DEADLINE_S
        while not (device := find_disk(disk.serial)):
            if time.monotonic() > deadline:
                raise RpcError(FAILED_PRECONDITION, f"no disk with serial {disk.serial!r}")
            yield Sleep(0.01)
        if disk.size_bytes:
            device = _part_device(device, part, disk.offset_bytes, disk.size_bytes)
        files.make_dir(target)
        if writable:
            self._do_mount(device, target, disk.fs_type, _sys.NOATIME)
        else:
            data = "noload" if disk.fs_type == "ext4" else ""
            self._do_mount(device, target, disk.fs_type, _sys.RDONLY, data)

    def _do_mount(self, source, target, fs_type, flags, data=""):
        _sys.mount(source, target, fs_type, flags, data)
        self._mounted.append(target)

    def unmount(self):
        """Unmount all; what is busy is detached. Idempotent. Returns the busy ones."""
        busy = []
        while self._mounted:
            target = self._mounted.pop()
            try:
                _sys.umount(target)
            except OSError as exc:
                if exc.errno in (_EINVAL, _ENOENT):
                    continue
                busy.append(target)
                _sys.umount(target, True)
        return busy

    def inject(self, path, mode, content):
        """Make a file in the root; a link in its place is replaced, missing directories made."""
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if not path.startswith("/") or not parts or ".." in parts:
            raise RpcError(INVALID_ARGUMENT, f"injected file {path!r}: not an absolute path")
        flags = posix.O_RDONLY | posix.O_DIRECTORY
        root_fd = posix.open(self.path, flags | posix.O_CLOEXEC)
        try:
            directory_fd = _make_directories(root_fd, parts[:-1])
        finally:
            posix.close(root_fd)
        try:
            _replace(directory_fd, parts[-1], mode, content)
        finally:
            posix.close(directory_fd)


def _part_device(device, number, offset, size):
    """Path of the device that is this part of `device`."""
    fd = posix.open(device, posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        _sys.add_partition(fd, number, offset, size)
    except OSError as exc:
        if exc.errno != _EBUSY:  # there since an earlier container of this disk
            raise
    finally:
        posix.close(fd)
    return f"{device}{'p' if device[-1:].isdigit() else ''}{number}"


def _make_directories(root_fd, parts):
    """A descriptor of the directory `parts`, as seen from inside the root."""
    flags = posix.O_RDONLY | posix.O_DIRECTORY
    walked = "."
    for part in parts:
        walked += "/" + part
        try:
            fd = _sys.open_beneath(root_fd, walked, flags)
        except FileNotFoundError:
            parent_fd = _sys.open_beneath(root_fd, walked[: -len(part)], flags)
            try:
                posix.mkdir(part, 0o755, dir_fd=parent_fd)
            finally:
                posix.close(parent_fd)
        else:
            posix.close(fd)
    return _sys.open_beneath(root_fd, walked, flags)


def _replace(directory_fd, name, mode, content):
    try:
        posix.unlink(name, dir_fd=directory_fd)
    except FileNotFoundError:
        pass
    flags = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_CLOEXEC
    fd = posix.open(name, flags, mode or 0o644, dir_fd=directory_fd)
    try:
        posix.fchmod(fd, mode or 0o644)
        files.write_all(fd, content)
    finally:
        posix.close(fd)
