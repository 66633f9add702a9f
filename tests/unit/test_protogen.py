"""The committed message modules and stubs are what scripts/protogen.py makes of the sources."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROTO_DIR = ROOT / "hypercore" / "proto"


def protogen(root: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, root / "scripts" / "protogen.py", *args],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_committed_modules_are_current() -> None:
    result = protogen(ROOT, "--check")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree that holds the generator and no messages yet."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "hypercore" / "proto").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "protogen.py", tmp_path / "scripts")
    return tmp_path


def test_module_and_stub_of_a_new_message(tree: Path) -> None:
    source = """
    syntax = "proto3";
    package p;
    message Later { Inner inner = 1; map<string, uint32> counts = 2; }
    message Inner { optional string name = 1; enum Kind { A = 0; B = 3; } Kind kind = 2; }
    service S { rpc Do(Later) returns (Inner); }
    """
    (tree / "hypercore" / "proto" / "p.proto").write_text(source)
    assert protogen(tree, "--check").returncode == 1
    assert protogen(tree).returncode == 0
    assert protogen(tree, "--check").returncode == 0

    namespace: dict[str, object] = {}
    exec((tree / "hypercore" / "proto" / "p_pb.py").read_text(), namespace)
    later, inner = namespace["Later"], namespace["Inner"]
    assert namespace["Inner_Kind"].B == 3
    assert {"Do": (later, inner)} == namespace["S"].METHODS
    message = later(inner=inner(name=""), counts={"a": 1})
    assert later.decode(message.encode()) == message

    stub = ast.parse((tree / "hypercore" / "proto" / "p_pb.pyi").read_text())
    hints = {
        (cls.name, field.target.id): ast.unparse(field.annotation)
        for cls in stub.body
        if isinstance(cls, ast.ClassDef)
        for field in cls.body
        if isinstance(field, ast.AnnAssign)
    }
    assert hints["Later", "inner"] == "Inner | None"
    assert hints["Later", "counts"] == "dict[str, int]"
    assert hints["Inner", "name"] == "str | None"
    assert hints["Inner_Kind", "B"] == "ClassVar[int]"


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("message M { M inner = 1; M2 x = 2; } message M2 { M x = 1; }", "refers to itself"),
        ("message M { map<uint32, string> x = 1; }", "only maps with string keys"),
        ("message M { fixed32 x = 1; }", "type fixed32 is not supported"),
        ("message M { uint32 bytes = 1; }", "hides a Python type"),
    ],
)
def test_what_is_not_supported_is_refused(tree: Path, body: str, what: str) -> None:
    (tree / "hypercore" / "proto" / "p.proto").write_text(f'syntax = "proto3"; package p; {body}')
    result = protogen(tree)
    assert result.returncode == 1
    assert what in result.stderr
    assert not (tree / "hypercore" / "proto" / "p_pb.py").exists()
