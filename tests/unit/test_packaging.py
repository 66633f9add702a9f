"""What pyproject.toml, setup.py and MANIFEST.in list is what there is; and the check of wheels."""

import importlib.util
import re
import struct
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def directories_with(pattern: str) -> set[str]:
    return {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob(f"hypercore/{pattern}")}


def test_every_package_is_listed() -> None:
    found = {name.replace("/", ".") for name in directories_with("**/*.py")}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found


def test_every_room_is_built() -> None:
    listed = set(re.findall(r'"(hypercore/\S+\.pyx)"', (ROOT / "setup.py").read_text()))
    assert listed == {
        path.relative_to(ROOT).as_posix() for path in ROOT.glob("hypercore/**/*.pyx")
    }


def test_every_stub_and_proto_is_installed() -> None:
    globs = PROJECT["tool"]["setuptools"]["package-data"]["hypercore"]
    installed = {path for glob in globs for path in (ROOT / "hypercore").glob(glob)}
    wanted = {
        path
        for suffix in ("pyi", "proto", "json", "html", "typed")
        for path in ROOT.glob(f"hypercore/**/*.{suffix}")
    }
    assert wanted <= installed


@pytest.fixture(scope="module")
def check_wheel() -> ModuleType:
    path = ROOT / "scripts" / "check_wheel.py"
    spec = importlib.util.spec_from_file_location("check_wheel", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def elf(machine: int, segment: int = 1) -> bytes:
    header = bytearray(64)
    header[:5] = b"\x7fELF\x02"
    struct.pack_into("<H", header, 18, machine)
    struct.pack_into("<Q", header, 32, 64)
    struct.pack_into("<HH", header, 54, 56, 1)
    return bytes(header) + struct.pack("<I", segment).ljust(56, b"\0")


def write_wheel(path: Path, machine: int, *, left_out: str = "", segment: int = 1) -> None:
    """A wheel with a minimal ELF in place of each binary."""
    binaries = [
        f"hypercore/guest/prebuilt/{'x86_64' if machine == 62 else 'aarch64'}/{name}"
        for name in ("init", "initrd-init")
    ]
    for name in ("containerd-shim-hypercore-v1", "containerd-shim-hypercore-example"):
        binaries.append(f"hypercore-1.data/data/bin/{name}")
    sources = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("hypercore/**/*.py*")]
    rooms = [name[:-4] + ".cpython-313-x.so" for name in sources if name.endswith(".pyx")]
    modules = [name for name in sources if name.endswith(".py")]
    with zipfile.ZipFile(path, "w") as wheel:
        for name in (*binaries, *rooms, *modules, "hypercore/py.typed"):
            if name == left_out:
                continue
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o100755 << 16
            binary = name in binaries
            data = elf(machine, segment if binary else 3) if binary or name in rooms else b""
            wheel.writestr(entry, data)


def test_a_whole_wheel_passes(check_wheel: ModuleType, tmp_path: Path) -> None:
    for machine, number in (("x86_64", 62), ("aarch64", 183)):
        path = tmp_path / f"hypercore-1-cp313-cp313-manylinux_2_28_{machine}.whl"
        write_wheel(path, number)
        assert check_wheel.problems(path, agent=True) == []


@pytest.mark.parametrize(
    ("left_out", "said"),
    [
        ("hypercore/guest/prebuilt/x86_64/init", "is missing"),
        ("hypercore-1.data/data/bin/containerd-shim-hypercore-v1", "containerd-shim-hypercore-v1"),
        ("hypercore/_tap.cpython-313-x.so", "hypercore/_tap"),
        ("hypercore/shim/server.py", "hypercore/shim/server.py is missing"),
    ],
)
def test_what_is_missing_is_told(
    check_wheel: ModuleType, tmp_path: Path, left_out: str, said: str
) -> None:
    path = tmp_path / "hypercore-1-cp313-cp313-linux_x86_64.whl"
    write_wheel(path, 62, left_out=left_out)
    (problem,) = check_wheel.problems(path, agent=True)
    assert said in problem


def test_binaries_of_another_machine_or_with_a_loader_are_told(
    check_wheel: ModuleType, tmp_path: Path
) -> None:
    path = tmp_path / "hypercore-1-cp313-cp313-linux_x86_64.whl"
    write_wheel(path, 62, segment=3)
    assert {p.rpartition(": ")[2] for p in check_wheel.problems(path, agent=True)} == {
        "not static"
    }
    other = path.rename(tmp_path / "hypercore-1-cp313-cp313-linux_aarch64.whl")
    assert any("for machine 62" in p for p in check_wheel.problems(other, agent=True))
