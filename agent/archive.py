"""A container's files as tar, in and out, in the place where the process is.

Runs in a child of the agent that has joined the container's mount namespace (copier.py), so links
lead where they lead in the container, and loaded there only.
"""

import posix

from hypercore.wire import tar

_CHUNK = 65536
_FORMAT, _REGULAR, _DIRECTORY, _LINK, _FIFO = 0o170000, 0o100000, 0o040000, 0o120000, 0o010000
_CHARACTER, _BLOCK = 0o020000, 0o060000
_SPECIAL = {_CHARACTER: tar.CHARACTER, _BLOCK: tar.BLOCK_DEVICE, _FIFO: tar.FIFO}
_FORMATS = {kind: form for form, kind in _SPECIAL.items()}
_KEPT_XATTRS = (b"user.", b"security.capability")


def pack(send, path, only_entry, kernel_devices):
    """Send the archive of `path`, whose entries begin with its last name. Sockets are left out.

    Args:
        kernel_devices: numbers of the devices of procfs and its like, which are not entered.
    """
    top = posix.lstat(path)
    links = {}
    waiting = [(path, _last_name(path))]
    while waiting:
        path, name = waiting.pop()
        try:
            status = posix.lstat(path)
        except FileNotFoundError:
            if not links and not waiting:
                raise
            continue  # gone since its directory was read
        form = status.st_mode & _FORMAT
        if form == _DIRECTORY:
            send(_entry(path, name + b"/", tar.DIRECTORY, status).encode())
            other = status.st_dev != top.st_dev and status.st_dev in kernel_devices
            if not only_entry and not other:
                names = sorted(posix.listdir(path), reverse=True)
                waiting += [(path + b"/" + n, name + b"/" + n) for n in names]
        elif form == _LINK:
            target = posix.readlink(path)
            send(_entry(path, name, tar.SYMLINK, status, target).encode())
        elif form in _SPECIAL:
            send(_entry(path, name, _SPECIAL[form], status).encode())
        elif form == _REGULAR:
            key = (status.st_dev, status.st_ino)
            if key in links:
                send(_entry(path, name, tar.HARD_LINK, status, links[key]).encode())
                continue
            if status.st_nlink > 1:
                links[key] = name
            _pack_file(send, path, name)
    send(tar.END)


def _last_name(path):
    """As cp names what it copies: the last name, or `.` where there is none."""
    name = path.rstrip(b"/").rpartition(b"/")[2]
    return b"." if name in (b"", b".", b"..") else name


def _entry(path, name, kind, status, link=b""):
    return tar.Entry(
        name,
        kind,
        status.st_mode & 0o7777,
        status.st_uid,
        status.st_gid,
        0,
        status.st_mtime_ns,
        link,
        posix.major(status.st_rdev) if kind in (tar.CHARACTER, tar.BLOCK_DEVICE) else 0,
        posix.minor(status.st_rdev) if kind in (tar.CHARACTER, tar.BLOCK_DEVICE) else 0,
        _xattrs(path) if kind in (tar.REGULAR, tar.DIRECTORY) else None,
    )


def _xattrs(path):
    found = {}
    try:
        for name in posix.listxattr(path, follow_symlinks=False):
            raw = name.encode("utf-8", "surrogateescape")
            if raw.startswith(_KEPT_XATTRS):
                found[raw] = posix.getxattr(path, name, follow_symlinks=False)
    except OSError:
        return {}  # a filesystem without them
    return found


def _pack_file(send, path, name):
    flags = posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_NONBLOCK | posix.O_CLOEXEC
    fd = posix.open(path, flags)
    try:
        status = posix.fstat(fd)
        if status.st_mode & _FORMAT != _REGULAR:
            raise tar.TarError(f"{_shown(path)} was replaced while it was copied")
        entry = _entry(path, name, tar.REGULAR, status)
        entry.size = status.st_size
        send(entry.encode())
        left = entry.size
        while left:
            data = posix.read(fd, min(_CHUNK, left))
            if not data:
                raise tar.TarError(f"{_shown(path)} became shorter while it was copied")
            send(data)
            left -= len(data)
        send(tar.padding(entry.size))
    finally:
        posix.close(fd)


def unpack(read, path, preserve_ownership):
    """Put an archive's entries into the directory `path`."""
    posix.chdir(path)
    reader = tar.Reader(read)
    times = []
    while (entry := reader.next()) is not None:
        name = _checked_name(entry.name)
        if entry.kind == tar.DIRECTORY:
            fresh = _make_directory(name, entry.mode)
            if name == b"." or not (fresh or preserve_ownership):
                continue
            # Its time changes with every entry in it.
            times.append((name, entry.mtime_ns))
            _set_status(name, entry, preserve_ownership)
            continue
        _make_parents(name)
        _make_way(name)
        if entry.kind == tar.HARD_LINK:
            posix.link(_checked_name(entry.link), name, follow_symlinks=False)
            continue
        if entry.kind == tar.REGULAR:
            _unpack_file(reader, name)
        elif entry.kind == tar.SYMLINK:
            posix.symlink(entry.link, name)
        else:
            device = posix.makedev(entry.major, entry.minor)
            posix.mknod(name, entry.mode | _FORMATS[entry.kind], device)
        _set_status(name, entry, preserve_ownership)
        _set_time(name, entry.mtime_ns)
    for name, mtime_ns in reversed(times):
        _set_time(name, mtime_ns)


def _set_status(name, entry, preserve_ownership):
    uid, gid = (entry.uid, entry.gid) if preserve_ownership else (0, 0)
    posix.chown(name, uid, gid, follow_symlinks=False)
    if entry.kind != tar.SYMLINK:
        posix.chmod(name, entry.mode)
        for key, value in entry.xattrs.items():
            if key.startswith(_KEPT_XATTRS):
                posix.setxattr(name, key, value, follow_symlinks=False)


def _set_time(name, mtime_ns):
    try:
        posix.utime(name, ns=(mtime_ns, mtime_ns), follow_symlinks=False)
    except FileNotFoundError:
        pass  # somebody in the container has removed it


def _checked_name(raw):
    parts = [part for part in raw.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise tar.TarError(f"entry {_shown(raw)} leads out of the archive")
    return b"/".join(parts) or b"."


def _make_parents(name):
    parent = name.rpartition(b"/")[0]
    if parent:
        _make_directory(parent, 0o755)


def _make_directory(name, mode):
    """Make it, and what is missing above; returns whether it is new."""
    try:
        posix.mkdir(name, mode)
    except FileNotFoundError:
        _make_parents(name)
        posix.mkdir(name, mode)
    except FileExistsError:
        if posix.stat(name).st_mode & _FORMAT != _DIRECTORY:
            raise
        return False
    return True


def _make_way(name):
    """What stands in a file's place goes, but for a directory."""
    try:
        posix.unlink(name)
    except FileNotFoundError:
        pass


def _unpack_file(reader, name):
    flags = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_CLOEXEC
    fd = posix.open(name, flags, 0o600)
    try:
        while data := reader.data(_CHUNK):
            view = memoryview(data)
            while view:
                view = view[posix.write(fd, view) :]
    finally:
        posix.close(fd)


def _shown(path):
    return path.decode("utf-8", "backslashreplace")
