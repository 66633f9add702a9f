"""`hypercore cp` between this host and a real guest."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.functional.conftest import SharedVM
from tests.functional.instance import BOOT_DEADLINE_S

pytestmark = pytest.mark.timeout(4 * BOOT_DEADLINE_S)


@pytest.fixture
def place(shared_vm: SharedVM, request: pytest.FixtureRequest) -> str:
    """A new directory in the guest."""
    path = f"/cp-{request.node.name.replace('[', '-').rstrip(']')}"
    assert shared_vm.exec("mkdir", path).code == 0
    return path


def cp(vm: SharedVM, *args: str | Path, **options: object):
    return vm.made.run("cp", *args, **options)


def test_files_and_directories_both_ways(shared_vm: SharedVM, place: str, tmp_path: Path) -> None:
    there = f"{shared_vm.microvm_id}:{place}"
    blob = os.urandom(3 << 20)
    (tmp_path / "dir" / "sub").mkdir(parents=True)
    (tmp_path / "dir" / "sub" / "blob").write_bytes(blob)
    (tmp_path / "dir" / "run").write_text("#!/bin/sh\necho ran\n")
    os.chown(tmp_path / "dir" / "run", 1234, 1234)
    (tmp_path / "dir" / "run").chmod(0o4755)
    (tmp_path / "dir" / "link").symlink_to("sub/blob")

    cp(shared_vm, tmp_path / "dir", there)
    assert shared_vm.exec(f"{place}/dir/run").out == "ran\n"
    script = f"cd {place}/dir; stat -c %a:%u:%g run; readlink link; wc -c <sub/blob"
    assert shared_vm.exec("sh", "-c", script).out == "4755:0:0\nsub/blob\n3145728\n"

    cp(shared_vm, f"{there}/dir/.", tmp_path / "back")
    assert (tmp_path / "back" / "sub" / "blob").read_bytes() == blob
    assert os.stat(tmp_path / "back" / "run").st_mode & 0o7777 == 0o755
    cp(shared_vm, "-L", f"{there}/dir/link", tmp_path / "followed")
    assert (tmp_path / "followed").read_bytes() == blob
    cp(shared_vm, f"{there}/dir/link", tmp_path / "kept")
    assert os.readlink(tmp_path / "kept") == "sub/blob"

    cp(shared_vm, "-a", tmp_path / "dir" / "run", f"{there}/owned")
    assert shared_vm.exec("stat", "-c", "%u:%g", f"{place}/owned").out == "1234:1234\n"


def test_archives_on_stdin_and_stdout(shared_vm: SharedVM, place: str, tmp_path: Path) -> None:
    there = f"{shared_vm.microvm_id}:{place}"
    (tmp_path / "one").write_text("1\n")
    archive = subprocess.run(
        ["tar", "-C", tmp_path, "-cf", "-", "one"], capture_output=True, check=True
    ).stdout
    cp(shared_vm, "-", there, stdin=archive)
    assert shared_vm.exec("cat", f"{place}/one").out == "1\n"
    process = shared_vm.made.popen("cp", there, "-", stdin=subprocess.DEVNULL)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    listed = subprocess.run(["tar", "-tf", "-"], input=out, capture_output=True, check=True)
    name = place.lstrip("/")
    assert listed.stdout.decode().split() == [f"{name}/", f"{name}/one"]


def test_the_container_sees_its_own_mounts(shared_vm: SharedVM, tmp_path: Path) -> None:
    """/dev/shm is a tmpfs that only the container has."""
    there = f"{shared_vm.microvm_id}:/dev/shm"
    (tmp_path / "note").write_text("seen\n")
    cp(shared_vm, tmp_path / "note", there)
    assert shared_vm.exec("cat", "/dev/shm/note").out == "seen\n"
    cp(shared_vm, f"{there}/note", tmp_path / "again")
    assert (tmp_path / "again").read_text() == "seen\n"


def test_links_in_the_guest_lead_nowhere_else(
    shared_vm: SharedVM, place: str, tmp_path: Path
) -> None:
    there = f"{shared_vm.microvm_id}:{place}"
    secret = tmp_path / "secret"
    secret.write_text("the host's\n")
    script = f"cd {place}; ln -s {secret} out; ln -s {tmp_path} dir; ln -s / up; ln -s .. d2"
    assert shared_vm.exec("sh", "-c", script).code == 0
    # The guest has no such file, whatever the host has.
    for path in ("out", "dir/secret", f"../../../../../..{secret}"):
        done = cp(shared_vm, "-L", f"{there}/{path}", tmp_path / "got", check=False)
        assert done.code != 0, path
    assert not (tmp_path / "got").exists()
    # As a file's place they are replaced, and as a directory followed within the guest.
    (tmp_path / "new").write_text("new\n")
    cp(shared_vm, tmp_path / "new", f"{there}/up")
    assert shared_vm.exec("cat", "/new").out == "new\n"
    assert secret.read_text() == "the host's\n"
    shared_vm.exec("rm", "/new")


def test_device_nodes_come_only_when_asked(
    shared_vm: SharedVM, place: str, tmp_path: Path
) -> None:
    there = f"{shared_vm.microvm_id}:{place}"
    assert shared_vm.exec("mkfifo", f"{place}/fifo").code == 0
    done = cp(shared_vm, f"{there}/.", tmp_path / "without")
    assert (os.listdir(tmp_path / "without"), "fifo" in done.err) == ([], True)
    cp(shared_vm, "--special-files", f"{there}/.", tmp_path / "with")
    assert os.listdir(tmp_path / "with") == ["fifo"]


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        ("/etc/hostname", "{id}:/no/such/dir/", "does not exist"),
        ("/etc/hostname", "{id}:/no/such/file", "/no/such"),
        ("{id}:/no/such", ".", "/no/such"),
        ("{id}:/bin", "/etc/hostname", "no directory"),
        ("/nosuch", "{id}:/", "/nosuch"),
        ("{id}:/bin", "{id}:/", "one of SRC and DEST"),
        ("/a", "/b", "one of SRC and DEST"),
        ("nosuchvm:/a", "/b", "nosuchvm"),
    ],
)
def test_what_cannot_be(shared_vm: SharedVM, source: str, target: str, said: str) -> None:
    args = [text.format(id=shared_vm.microvm_id) for text in (source, target)]
    done = cp(shared_vm, *args, check=False)
    assert done.code != 0
    assert said in done.err, done
