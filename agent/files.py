"""Small files, whole: read, write, make directories. Never below a container's root."""

import posix


def read(path, limit=65536):
    """The first `limit` bytes of a file."""
    fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        parts = []
        while limit > 0:
            part = posix.read(fd, limit)
            if not part:
                break
            parts.append(part)
            limit -= len(part)
        return b"".join(parts)
    finally:
        posix.close(fd)


def write(path, data, mode=0o600):
    """Make or replace a file."""
    fd = posix.open(path, posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | posix.O_CLOEXEC, mode)
    try:
        write_all(fd, data)
    finally:
        posix.close(fd)


def write_all(fd, data):
    data = memoryview(data)
    while data:
        data = data[posix.write(fd, data) :]


def make_dir(path, mode=0o755):
    """mkdir; a directory that is there already is fine."""
    try:
        posix.mkdir(path, mode)
    except FileExistsError:
        pass


def remove(path):
    """unlink; a file that is not there is fine."""
    try:
        posix.unlink(path)
    except FileNotFoundError:
        pass


def remove_tree(path):
    """Remove a directory and the plain files in it, one level deep."""
    try:
        names = posix.listdir(path)
    except FileNotFoundError:
        return
    for name in names:
        child = f"{path}/{name}"
        try:
            posix.unlink(child)
        except IsADirectoryError:
            posix.rmdir(child)
    posix.rmdir(path)


def log(text):
    """One line on the console."""
    try:
        posix.write(2, f"agent: {text}\n".encode("utf-8", "replace"))
    except OSError:
        pass
