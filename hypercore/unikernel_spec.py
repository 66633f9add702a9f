"""A guest that is all the user's, as asked for: what goes beyond the machine's own spec.

Kernel, initrd and command line are where any microVM has them; an image, an agent and a container
there are not. Carried to the shim as two annotations.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hypercore.errors import InvalidArgument

KIND = "unikernel"
KEYS = ("kind", "disks")
MAX_DISKS = 8


@dataclass(frozen=True, slots=True)
class UnikernelDisk:
    """A file or block device; the guest may write to it, and what it writes stays."""

    path: Path
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class UnikernelSpec:
    disks: tuple[UnikernelDisk, ...] = ()
    """in the order the guest sees them"""


def to_values(spec: UnikernelSpec | None) -> dict[str, str]:
    """As annotations without their prefix; from_values is the inverse."""
    if spec is None:
        return {}
    disks = [[str(disk.path), disk.read_only] for disk in spec.disks]
    return {"kind": KIND, "disks": json.dumps(disks) if disks else ""}


def from_values(values: Mapping[str, str]) -> UnikernelSpec | None:
    """None: it is not of this kind.

    Raises:
        ValueError: says which value is wrong.
    """
    if not (kind := values.get("kind", "")):
        return None
    if kind != KIND:
        raise ValueError(f"kind = {kind!r}: the one kind that is named is {KIND}")
    try:
        disks = [
            UnikernelDisk(Path(path), bool(read_only))
            for path, read_only in json.loads(values.get("disks") or "[]")
        ]
    except (ValueError, TypeError) as exc:
        raise ValueError(f"disks = {values['disks']!r}: {exc}") from exc
    return UnikernelSpec(tuple(disks))


def check_kernel(path: Path, key: str = "hardware.kernel") -> None:
    """Refuse what no VMM could load; what this one cannot, it says itself.

    Raises:
        InvalidArgument: names `key` and the value.
    """
    from hypercore import guest

    try:
        guest.check_kernel(path, key)
    except InvalidArgument as exc:
        raise InvalidArgument(
            exc.message, hint="a unikernel is a 64-bit ELF file that a VMM can load (PVH)"
        ) from exc
