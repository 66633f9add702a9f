"""Wrong input: one clear line that names key, value and remedy, an exit code, nothing left behind.

The fixture that compares the host before and after runs for each of these.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.functional import images, instance, leaks
from tests.functional.conftest import SHELL_REF
from tests.functional.instance import HYPERCORE, Instance, Result
from tests.functional.registry import Registry

GOOD = """\
[spacecore]
name = "Test"
description = "A good file"
[hardware]
cores = 1
memory = 128
ref = "docker.io/test/shell:1"
"""


DISK_MIB = 128


@dataclass(frozen=True, slots=True)
class FullDisk:
    """An instance whose data directory is a small filesystem of its own."""

    made: Instance

    @contextmanager
    def filled(self, left_kib: int) -> Iterator[None]:
        filler = self.made.data_dir / "filler"
        try:
            with filler.open("wb", buffering=0) as file:
                found = os.fstatvfs(file.fileno())
                size = found.f_bavail * found.f_frsize - left_kib * 1024
                os.posix_fallocate(file.fileno(), 0, size - 64 * 1024)
                for part in (4096, 1024):  # what the file's own metadata has left
                    try:
                        while left_kib == 0:
                            file.seek(0, os.SEEK_END)
                            file.write(bytes(part))
                    except OSError:
                        continue
            yield
        finally:
            filler.unlink()


@pytest.fixture(scope="module")
def full_disk(
    root: None, shell_archive: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FullDisk]:
    image = tmp_path_factory.mktemp("disk") / "disk.img"
    with image.open("wb") as file:
        file.truncate(DISK_MIB << 20)
    mke2fs = shutil.which("mke2fs", path="/usr/sbin:/sbin")
    assert mke2fs is not None
    subprocess.run([mke2fs, "-q", "-t", "ext4", image], check=True, timeout=60)
    shared = instance.shared_data_dir()
    with instance.instance(shared) as made:
        subprocess.run(["mount", "-o", "loop", image, made.data_dir], check=True, timeout=60)
        try:
            for name in instance.SHARED:
                (made.data_dir / name).symlink_to(shared / name)
            made.run("containerd", "start")
            made.run("image", "load", shell_archive)
            yield FullDisk(made)
        finally:
            made.run("containerd", "stop")
            subprocess.run(["umount", made.data_dir], check=True, timeout=60)


def spawn(made: Instance, directory: Path, text: str, *args: str) -> Result:
    (directory / "hac.toml").write_text(text)
    return made.run("spawn", *args, cwd=directory, check=False)


def assert_one_clear_line(result: Result, *words: str) -> None:
    """The error is one line, perhaps with a line for the hint, and says all of `words`."""
    lines = [line for line in result.err.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("hypercore: ")]
    assert len(errors) == 1, result
    assert "Traceback" not in result.err, result
    assert result.out == "", result
    for word in words:
        assert word in result.err, f"{word!r} is missing in\n{result}"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("cores = 1", "coers = 1", ["coers", "cores", "hac.toml:5"]),
        ("cores = 1", 'cores = "one"', ["cores", "one"]),
        ("cores = 1", "cores = 0", ["cores", "0"]),
        ("memory = 128", "memory = 8", ["memory", "8", "MiB"]),
        ("memory = 128", "memory = 128\nmemory = 1", ["hac.toml", "line 7"]),
        ("[hardware]", "[hardwear]", ["hardwear", "hardware"]),
        ("cores = 1", 'kernel = "hac.toml"', ["kernel", "hac.toml", "hypercore guest build"]),
        ("cores = 1", 'kernel = "/nowhere/vmlinux"', ["kernel", "/nowhere/vmlinux"]),
        ("cores = 1", 'drive = "hac.toml"', ["drive", "hac.toml", "hypercore guest build"]),
        ("cores = 1", 'interface = "nosuch0"', ["interface", "nosuch0", "interfaces here"]),
        ("docker.io/test/shell:1", "Not A Reference", ["ref", "Not A Reference"]),
    ],
)
def test_bad_hac_toml(
    hypercore: Instance, tmp_path: Path, old: str, new: str, words: list[str]
) -> None:
    assert old in GOOD
    result = spawn(hypercore, tmp_path, GOOD.replace(old, new))
    assert result.code == 64, result
    assert_one_clear_line(result, *words)
    checked = hypercore.run("spec", "check", tmp_path / "hac.toml", check=False)
    assert checked.code == 64, checked


def test_no_hac_toml_and_no_reference(hypercore: Instance, tmp_path: Path) -> None:
    result = hypercore.run("spawn", cwd=tmp_path, check=False)
    assert result.code in (64, 66), result
    assert_one_clear_line(result, "hac.toml")


def test_image_that_the_registry_has_not(
    hypercore: Instance, local_registry: Registry, tmp_path: Path
) -> None:
    ref = f"{local_registry.host}/test/nosuch:1"
    result = hypercore.run("spawn", ref, cwd=tmp_path, check=False)
    assert result.code == 66, result
    assert_one_clear_line(result, ref)


def test_registry_that_is_down(hypercore: Instance, tmp_path: Path) -> None:
    ref = "127.0.0.1:1/test/shell:1"
    result = hypercore.run("spawn", ref, cwd=tmp_path, check=False)
    assert result.code == 69, result
    assert_one_clear_line(result, "127.0.0.1:1")


def test_unknown_provider(hypercore: Instance, shell_image: str) -> None:
    result = hypercore.run("spawn", "--provider", "qmeu", shell_image, check=False)
    assert result.code == 64, result
    assert_one_clear_line(result, "qmeu", "qemu")


@pytest.mark.parametrize("verb", ["attach", "logs", "stop", "rm"])
def test_id_that_does_not_exist(hypercore: Instance, verb: str) -> None:
    result = hypercore.run(verb, "08cf7306", check=False)
    assert result.code == 66, result
    assert_one_clear_line(result, "08cf7306")


@pytest.mark.parametrize("bad_id", ["../../etc", "a/b", ""])
def test_id_that_is_a_path(hypercore: Instance, bad_id: str) -> None:
    for verb in ("attach", "rm", "cleanup"):
        result = hypercore.run(verb, bad_id, check=False)
        assert result.code in (64, 66), result


def test_containerd_is_not_running(root: None, tmp_path: Path) -> None:
    made = Instance(tmp_path, tmp_path / "run")
    for args in (("list",), ("spawn", "docker.io/test/shell:1")):
        result = made.run(*args, check=False)
        assert result.code == 69, result
        assert_one_clear_line(result, "containerd", "hypercore containerd start")


@pytest.mark.parametrize("left_kib", [0, 40, 4000])
def test_full_disk(full_disk: FullDisk, left_kib: int) -> None:
    """Nothing, too little for the template of a disk, too little for what a guest writes."""
    made = full_disk.made
    before = leaks.take(made)
    with full_disk.filled(left_kib):
        result = made.run("spawn", SHELL_REF, "true", check=False)
    assert result.code == 74, result
    assert_one_clear_line(result, "the disk is full", str(made.data_dir), "HYPERCORE_DATA_DIR")
    assert not list(made.data_dir.glob("vm/*"))
    assert leaks.compare(made, before) == []


def test_full_disk_for_an_image(full_disk: FullDisk, tmp_path: Path) -> None:
    """containerd's own words; what it had begun is gone with its lease."""
    made = full_disk.made
    archive = tmp_path / "more.tar"
    files = {"file": "x" * 10_000}
    images.write_oci_archive(images.busybox_image(files=files), "docker.io/test/more:1", archive)
    before = leaks.take(made)
    with full_disk.filled(0):
        result = made.run("image", "load", archive, check=False)
    assert result.code == 74, result
    assert_one_clear_line(result, "space")
    assert "test/more" not in made.run("images", "-q").out
    assert leaks.compare(made, before) == []


def test_not_root(hypercore: Instance, shell_image: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    done = subprocess.run(
        [HYPERCORE, "spawn", shell_image],
        user=65534,
        group=65534,
        extra_groups=[],
        env=hypercore.env,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
    )
    result = Result(("spawn",), done.returncode, done.stdout, done.stderr)
    assert result.code == 77, result
    assert_one_clear_line(result, "root")


def test_command_that_the_image_has_not(hypercore: Instance, shell_image: str) -> None:
    result = hypercore.boot("spawn", "--rm", shell_image, "/no/such/command", check=False)
    assert result.code == 127, result
    assert "/no/such/command" in result.err
