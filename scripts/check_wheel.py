#!/usr/bin/env python3
"""Check that wheels hold all that an installation needs: rooms, the shims' launcher, the agent.

usage: scripts/check_wheel.py [--no-agent] WHEEL...

A wheel of a build without scripts/agent_elf.py has no agent; --no-agent allows that.
"""

import argparse
import re
import struct
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MACHINES = {"x86_64": 62, "aarch64": 183}
"""e_machine by the end of the platform tag"""
LAUNCHERS = ("containerd-shim-hypercore-v1", "containerd-shim-hypercore-example")
AGENT = ("init", "initrd-init")
PT_INTERP = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-agent", action="store_true")
    parser.add_argument("wheels", nargs="+", type=Path)
    given = parser.parse_args()
    found = [line for path in given.wheels for line in problems(path, agent=not given.no_agent)]
    if found:
        sys.exit("\n".join(found))
    print(f"{len(given.wheels)} wheels hold all that they should")


def problems(path: Path, *, agent: bool) -> list[str]:
    """What is wrong with a wheel, one line each."""
    machine = next((name for name in MACHINES if path.stem.endswith(name)), "")
    if not machine:
        return [f"{path.name}: not for a machine that hypercore knows"]
    static = [f"hypercore/guest/prebuilt/{machine}/{name}" for name in AGENT] if agent else []
    found = []
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())

        def check(name: str, *, is_static: bool) -> None:
            if name not in names:
                found.append(f"{path.name}: {name} is missing")
            elif elf := elf_problem(wheel.read(name), machine, is_static=is_static):
                found.append(f"{path.name}: {name}: {elf}")
            elif is_static and not wheel.getinfo(name).external_attr >> 16 & 0o111:
                found.append(f"{path.name}: {name} is not executable")

        for name in static:
            check(name, is_static=True)
        for launcher in LAUNCHERS:
            found_as = [name for name in names if name.endswith(f".data/data/bin/{launcher}")]
            check(found_as[0] if found_as else f"bin/{launcher}", is_static=True)
        for source in sorted((ROOT / "hypercore").rglob("*.pyx")):
            stem = source.relative_to(ROOT).with_suffix("").as_posix()
            built = [name for name in names if re.fullmatch(rf"{stem}\.[^/]*\.so", name)]
            check(built[0] if built else f"{stem}.*.so", is_static=False)
        for source in sorted((ROOT / "hypercore").rglob("*.py")):
            if source.relative_to(ROOT).as_posix() not in names:
                found.append(f"{path.name}: {source.relative_to(ROOT)} is missing")
        if "hypercore/py.typed" not in names:
            found.append(f"{path.name}: hypercore/py.typed is missing")
        surplus = [name for name in names if name.endswith((".c", ".pyx", ".h"))]
        found += [f"{path.name}: {name} is of no use there" for name in sorted(surplus)]
    return found


def elf_problem(data: bytes, machine: str, *, is_static: bool) -> str:
    """Why an ELF cannot be used on `machine`; "" if it can."""
    if data[:5] != b"\x7fELF\x02":
        return "no 64-bit ELF"
    (e_machine,) = struct.unpack_from("<H", data, 18)
    if e_machine != MACHINES[machine]:
        return f"for machine {e_machine}, not {machine}"
    (offset,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    kinds = [struct.unpack_from("<I", data, offset + n * size)[0] for n in range(count)]
    if is_static and PT_INTERP in kinds:
        return "not static"
    return ""


if __name__ == "__main__":
    main()
