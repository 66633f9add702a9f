"""The initrd: the modules that the root disk needs, and nothing else.

Everything in it is guest memory until it is used, so drivers that can wait are on the drive.
Format: Linux's Documentation/driver-api/early-userspace/buffer-format.rst ("newc" cpio).
"""

from collections.abc import Iterable

MODULES = ("virtio_mmio", "virtio_pci", "virtio_blk", "erofs")
"""What the agent's disk needs on any of our VMMs: MMIO or PCI transport, disk, file system."""

_DIRECTORY, _REGULAR, _CHARACTER = 0o040755, 0o100000, 0o020600
_CONSOLE_DEVICE = (5, 1)


def render(init: bytes, modules: Iterable[tuple[str, bytes]]) -> bytes:
    """The archive's bytes: a pure function of its arguments.

    Args:
        init: the program to run.
        modules: file name and content, in the order to load them.
    """
    entries: list[tuple[str, int, bytes, tuple[int, int]]] = [
        ("dev", _DIRECTORY, b"", (0, 0)),
        # Opened by the kernel for init's stdio before anything can mount /dev.
        ("dev/console", _CHARACTER, b"", _CONSOLE_DEVICE),
        ("init", _REGULAR | 0o755, init, (0, 0)),
        ("modules", _DIRECTORY, b"", (0, 0)),
    ]
    names = []
    for name, content in modules:
        entries.append((f"modules/{name}", _REGULAR | 0o644, content, (0, 0)))
        names.append(name)
    listing = "".join(name + "\n" for name in names).encode()
    entries.append(("modules/list", _REGULAR | 0o644, listing, (0, 0)))
    out = bytearray()
    for number, (name, mode, content, device) in enumerate(entries, start=1):
        out += _entry(number, name, mode, content, device)
    out += _entry(0, "TRAILER!!!", 0, b"", (0, 0))
    return bytes(out)


def _entry(inode: int, name: str, mode: int, content: bytes, device: tuple[int, int]) -> bytes:
    encoded = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(encoded), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)
