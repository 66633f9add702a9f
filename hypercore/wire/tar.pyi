# Types of tar.py, which carries none itself: a guest should not load annotations.
from collections.abc import Callable
from typing import Final

BLOCK: Final = 512
END: bytes
MAX_EXTENSION: int
REGULAR: bytes
HARD_LINK: bytes
SYMLINK: bytes
CHARACTER: bytes
BLOCK_DEVICE: bytes
DIRECTORY: bytes
FIFO: bytes
XATTR: bytes

class TarError(ValueError): ...

class Entry:
    name: bytes
    kind: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    link: bytes
    major: int
    minor: int
    xattrs: dict[bytes, bytes]
    def __init__(
        self,
        name: bytes,
        kind: bytes,
        mode: int = 0,
        uid: int = 0,
        gid: int = 0,
        size: int = 0,
        mtime_ns: int = 0,
        link: bytes = b"",
        major: int = 0,
        minor: int = 0,
        xattrs: dict[bytes, bytes] | None = None,
    ) -> None: ...
    def encode(self) -> bytes: ...

def padding(size: int) -> bytes: ...

class Reader:
    def __init__(self, read: Callable[[int], bytes]) -> None: ...
    def next(self) -> Entry | None: ...
    def data(self, limit: int) -> bytes: ...
