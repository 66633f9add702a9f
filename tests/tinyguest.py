"""A guest of a few dozen bytes for tests of a VMM's control plane: says its text, ends or stays.

It asks so little of a CPU that any KVM runs it in milliseconds, also a software one that no stock
kernel survives. 32-bit code behind a PVH note (Xen's public/arch-x86/hvm/start_info.h): the VMM
enters it in protected mode with flat segments, so it needs no tables, no stack, no assembler.
"""

import struct
from pathlib import Path

LOAD_ADDRESS = 0x100000
ENTRY = LOAD_ADDRESS + 0x1000
"""The page before it has the file's headers."""
PHYS32_ENTRY = 18
"""Type of the note that names the entry point."""

ENDINGS = {
    # mov dx, 0x600; mov al, 0x34; out dx, al: Cloud Hypervisor's ACPI turns the VM off
    "acpi": b"\x66\xba\0\x06\xb0\x34\xee",
    # mov eax, 0xd0000000; jmp eax: no KVM runs code where there is no memory
    "crash": b"\xb8\0\0\0\xd0\xff\xe0",
    # lidt of six zeros at 0x5000; int3: a triple fault, which is microvm's reset
    "triple": b"\xc7\x05\0\x50\0\0\0\0\0\0\xc7\x05\4\x50\0\0\0\0\0\0\x0f\x01\x1d\0\x50\0\0\xcc",
    # 1: poll COM1's line status; read a byte; 'q' ends the loop; write the byte; jmp 1b
    "echo": b"\x66\xba\xfd\x03\xec\xa8\x01\x74\xf7"
    b"\x66\xba\xf8\x03\xec\x3c\x71\x74\x03\xee\xeb\xeb",
    "reset": b"\xb0\xfe\xe6\x64",  # mov al, 0xfe; out 0x64, al: the keyboard controller resets
    "halt": b"",
    # 1: mov ecx, 5000; 2: dec ecx; jnz 2b; mov al, '.'; out dx, al; jmp 1b
    "tick": b"\xb9\x88\x13\0\0\x49\x75\xfd\xb0\x2e\xee\xeb\xf3",
}
_HALT = b"\xfa\xf4\xeb\xfd"  # cli; 1: hlt; jmp 1b


def write(path: Path, text: str, *endings: str) -> Path:
    """Write the guest as an ELF file that everybody may read; returns `path`.

    Args:
        endings: what it does after its text, of ENDINGS; it halts when that does not end it.
    """
    path.write_bytes(_elf(_program(text.encode(), b"".join(ENDINGS[e] for e in endings))))
    path.chmod(0o644)
    return path


def _program(text: bytes, ending: bytes) -> bytes:
    def code(text_address: int) -> bytes:
        return (
            b"\xbe" + struct.pack("<I", text_address)  # mov esi, text
            + b"\xb9" + struct.pack("<I", len(text))  # mov ecx, its length
            + b"\x66\xba\xf8\x03"  # mov dx, COM1
            + b"\x8a\x06\xee"  # 1: mov al, [esi]; out dx, al
            + b"\x46\x49\x75\xf9"  # inc esi; dec ecx; jnz 1b
            + ending
            + _HALT
        )  # fmt: skip

    return code(ENTRY + len(code(0))) + text


def _elf(program: bytes) -> bytes:
    """The program in an ELF64 file with one segment to load and one note."""
    note_offset = 64 + 2 * 56
    note = struct.pack("<III4sI", 4, 4, PHYS32_ENTRY, b"Xen\0", ENTRY)
    # e_ident, type EXEC, machine x86-64, version, entry, phoff, shoff, flags, sizes and counts
    ident = b"\x7fELF\2\1\1" + bytes(9)
    header = struct.pack("<16sHHIQQQIHHHHHH", ident, 2, 62, 1, ENTRY, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    # type, flags, offset, virtual and physical address, size in file and memory, alignment
    size = len(program)
    load = struct.pack("<IIQQQQQQ", 1, 7, 0x1000, ENTRY, ENTRY, size, size, 0x1000)
    notes = struct.pack(
        "<IIQQQQQQ", 4, 4, note_offset, LOAD_ADDRESS, LOAD_ADDRESS, len(note), len(note), 4
    )
    head = header + load + notes + note
    return head.ljust(0x1000, b"\0") + program
