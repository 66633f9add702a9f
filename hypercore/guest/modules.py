"""Kernel modules of the guest's kernel: which a driver needs, in the order to load them.

Reads `depends=` of each module's .modinfo section; needs neither depmod nor kmod.
"""

import struct
from collections.abc import Iterable
from pathlib import Path

from hypercore.errors import HypercoreError, NotFound


def release_of(kernel_tree: Path) -> str:
    """`uname -r` of the kernel whose package is unpacked in `kernel_tree`."""
    releases = sorted(path.name for path in (kernel_tree / "lib" / "modules").iterdir())
    if len(releases) != 1:
        raise HypercoreError(f"{kernel_tree} holds not one kernel but {releases}")
    return releases[0]


class ModuleTree:
    """The module files of one kernel, by name (`-` and `_` are the same)."""

    def __init__(self, kernel_tree: Path) -> None:
        self.release = release_of(kernel_tree)
        base = kernel_tree / "lib" / "modules" / self.release / "kernel"
        self._paths = {_name(path.stem): path for path in base.rglob("*.ko")}

    def ordered(self, wanted: Iterable[str]) -> list[Path]:
        """Files for the modules `wanted` and all they need, each after what it needs."""
        order: list[Path] = []
        for name in wanted:
            self._add(_name(name), order)
        return order

    def _add(self, name: str, order: list[Path]) -> None:
        path = self._paths.get(name)
        if path is None:
            raise NotFound(f"the kernel {self.release} has no module {name}")
        if path in order:
            return
        for needed in depends(path.read_bytes()):
            # One that is built in has no file.
            if _name(needed) in self._paths:
                self._add(_name(needed), order)
        order.append(path)


def depends(module: bytes) -> list[str]:
    """Names in `depends=` of an ELF64 little-endian kernel module."""
    for entry in _section(module, b".modinfo").split(b"\0"):
        if entry.startswith(b"depends="):
            return [name for name in entry[8:].decode().split(",") if name]
    return []


def _section(elf: bytes, wanted: bytes) -> bytes:
    table, size, count, names_index = _section_table(elf)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + i * size) for i in range(count)]
    names_offset = headers[names_index][4]
    for name, _, _, _, offset, length in headers:
        start = names_offset + name
        if elf[start : elf.index(b"\0", start)] == wanted:
            return elf[offset : offset + length]
    return b""


def _section_table(elf: bytes) -> tuple[int, int, int, int]:
    if not elf.startswith(b"\x7fELF\x02\x01"):
        raise HypercoreError("a kernel module is no ELF64 file")
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names_index = struct.unpack_from("<HHH", elf, 0x3A)
    return table, size, count, names_index


def _name(text: str) -> str:
    return text.replace("-", "_")
