"""_process as root: other users, namespaces, jails, cgroups."""

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hypercore import _process
from hypercore._process import Bind, Jail

ALL_NAMESPACES = (
    _process.CLONE_NEWNS
    | _process.CLONE_NEWPID
    | _process.CLONE_NEWNET
    | _process.CLONE_NEWIPC
    | _process.CLONE_NEWUTS
)
SYSTEM = (
    Bind("/usr", "/usr"),
    Bind("/dev/null", "/dev/null", False, True),
)
LINKS = (("usr/lib", "/lib"), ("usr/lib64", "/lib64"), ("usr/bin", "/bin"))


@contextlib.contextmanager
def running(argv: list[str], **options: object) -> Iterator[tuple[int, int]]:
    pid, pidfd = _process.spawn(argv, env={}, **options)  # type: ignore[arg-type]
    try:
        yield pid, pidfd
    finally:
        with contextlib.suppress(ProcessLookupError):
            _process.send_signal(pidfd, signal.SIGKILL)
        assert select.select([pidfd], [], [], 30)[0]
        with contextlib.suppress(ChildProcessError):
            _process.reap(pidfd)
        os.close(pidfd)


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def output(argv: list[str], **options: object) -> tuple[int, str]:
    reader, writer = os.pipe()
    fds = [(writer, 1), (writer, 2)]
    try:
        _, pidfd = _process.spawn(argv, env={}, fds=fds, **options)  # type: ignore[arg-type]
    finally:
        os.close(writer)
    with open(reader) as stream:
        text = stream.read()
    assert select.select([pidfd], [], [], 30)[0]
    status = _process.reap(pidfd)
    os.close(pidfd)
    assert status is not None
    return status, text


def test_confined_process_seen_from_outside(tmp_path: Path) -> None:
    jail = Jail(str(tmp_path), binds=SYSTEM, symlinks=LINKS, proc=True)
    with running(
        ["/usr/bin/sleep", "60"],
        namespaces=ALL_NAMESPACES,
        uid=61234,
        gid=61235,
        groups=(61236,),
        root=jail,
        oom_score_adj=500,
    ) as (pid, _):
        status = status_of(pid)
        assert status["Uid"].split() == ["61234"] * 4
        assert status["Gid"].split() == ["61235"] * 4
        assert status["Groups"].split() == ["61236"]
        for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[kind], 16) == 0, kind
        assert status["NoNewPrivs"] == "1"
        assert status["NSpid"].split() == [str(pid), "1"]
        for name in ("mnt", "pid", "net", "ipc", "uts"):
            ours, theirs = (os.readlink(f"/proc/{who}/ns/{name}") for who in ("self", pid))
            assert ours != theirs, name
        assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "500"
        assert sorted(os.listdir(f"/proc/{pid}/root")) == [
            "bin", "dev", "lib", "lib64", "proc", "usr",
        ]  # fmt: skip
        assert sorted(os.listdir(f"/proc/{pid}/fd")) == ["0", "1", "2"]
    assert os.listdir(tmp_path) == []  # nothing of the jail was on the host


def test_jail_from_inside(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o777)
    shared.chmod(0o777)
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "file").write_text("content\n")
    jail = Jail(
        str(root),
        binds=(
            *SYSTEM,
            (str(tmp_path / "file"), "/etc/deep/file", True, True),
            (str(shared), "/work", False, False),
        ),
        symlinks=LINKS,
        directories=("/tmp", "/var/empty"),
        proc=True,
    )
    script = """
        cat /etc/deep/file
        (echo x > /new) 2>/dev/null && echo root is writable
        (echo x > /usr/new) 2>/dev/null && echo usr is writable
        (echo x > /etc/deep/file) 2>/dev/null && echo file is writable
        echo x > /work/made || echo work is not writable
        cp /usr/bin/true /work/true; /work/true 2>/dev/null && echo work is executable
        echo x > /dev/null || echo no dev null
        mknod /work/node c 1 3 2>/dev/null
        (cat /work/node 2>&1; echo) | grep -q denied || echo device nodes work
        ls /var /proc/1/status
        cat /proc/meminfo 2>/dev/null && echo proc is not restricted
        grep -c . /proc/self/mountinfo
    """
    status, text = output(
        ["/bin/sh", "-c", script], namespaces=ALL_NAMESPACES, root=jail, drop_capabilities=False
    )
    assert text.splitlines() == ["content", "/proc/1/status", "", "/var:", "empty", "6"]
    assert status == 0
    assert (shared / "made").read_text() == "x\n"


def test_host_mounts_are_untouched(tmp_path: Path) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    jail = Jail(str(tmp_path), binds=SYSTEM, symlinks=LINKS)
    with running(["/bin/sleep", "60"], namespaces=ALL_NAMESPACES, root=jail):
        assert Path("/proc/self/mountinfo").read_text() == before
    assert Path("/proc/self/mountinfo").read_text() == before


def test_static_program_alone_in_its_jail(tmp_path: Path) -> None:
    source = tmp_path / "main.c"
    source.write_text("int main(void) { return 42; }\n")
    program = tmp_path / "main"
    subprocess.run(["gcc", "-static", "-o", program, source], check=True)
    root = tmp_path / "root"
    root.mkdir()
    jail = Jail(str(root), binds=(Bind(str(program), "/main", True, True),))
    assert output(["/main"], namespaces=ALL_NAMESPACES, uid=1, gid=1, root=jail) == (42, "")


def test_failing_step_of_a_jail_is_named(tmp_path: Path) -> None:
    jail = Jail(str(tmp_path), binds=(Bind("/nowhere", "/usr"),))
    with pytest.raises(FileNotFoundError) as caught:
        _process.spawn(["/usr/bin/true"], env={}, root=jail)
    assert caught.value.filename == "bind /nowhere"
    jail = Jail(str(tmp_path / "missing"))
    with pytest.raises(FileNotFoundError) as caught:
        _process.spawn(["/usr/bin/true"], env={}, root=jail)
    assert caught.value.filename == f"mount jail {tmp_path}/missing"
    with pytest.raises(FileNotFoundError) as caught:
        _process.spawn(["/usr/bin/true"], env={}, root=Jail(str(tmp_path)))
    assert caught.value.filename == "exec /usr/bin/true"


def test_set_uid_programs_gain_nothing(tmp_path: Path) -> None:
    status, text = output(
        ["/bin/sh", "-c", "grep -E '^(CapEff|NoNewPrivs)' /proc/self/status; exec su -c id"],
        uid=65534,
        gid=65534,
    )
    assert text.splitlines()[:2] == ["CapEff:\t0000000000000000", "NoNewPrivs:\t1"]
    assert status != 0


def test_root_without_capabilities(tmp_path: Path) -> None:
    with running(["/bin/sleep", "60"], drop_capabilities=True) as (pid, _):
        status = status_of(pid)
        assert status["Uid"].split()[0] == "0"
        assert {int(status[k], 16) for k in ("CapPrm", "CapEff", "CapBnd", "CapInh")} == {0}


def test_change_of_user_leaves_the_caller_dumpable() -> None:
    import ctypes

    get_dumpable = 3
    libc = ctypes.CDLL(None)
    assert libc.prctl(get_dumpable, 0, 0, 0, 0) == 1
    with running(["/bin/sleep", "60"], uid=65534, gid=65534):
        assert libc.prctl(get_dumpable, 0, 0, 0, 0) == 1


def test_changes_of_user_by_several_threads_leave_the_caller_dumpable() -> None:
    import ctypes
    from concurrent.futures import ThreadPoolExecutor

    get_dumpable = 3
    libc = ctypes.CDLL(None)

    def spawn_some(_: int) -> None:
        for _n in range(50):
            with running(["/bin/true"], uid=65534, gid=65534):
                pass

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(spawn_some, range(4)))
    assert libc.prctl(get_dumpable, 0, 0, 0, 0) == 1


def test_sigterm_of_pid_1_without_handler_is_ignored_and_sigkill_is_not() -> None:
    with running(["/bin/sleep", "60"], namespaces=_process.CLONE_NEWPID) as (_, pidfd):
        _process.send_signal(pidfd, signal.SIGTERM)
        assert not select.select([pidfd], [], [], 0.1)[0]
        _process.send_signal(pidfd, signal.SIGKILL)
        assert select.select([pidfd], [], [], 30)[0]
        assert _process.reap(pidfd) == -signal.SIGKILL


def test_enters_an_existing_network_namespace() -> None:
    with running(["/bin/sleep", "60"], namespaces=_process.CLONE_NEWNET) as (holder, _):
        netns_fd = os.open(f"/proc/{holder}/ns/net", os.O_RDONLY)
        try:
            with running(["/bin/sleep", "60"], netns_fd=netns_fd) as (pid, _):
                assert os.readlink(f"/proc/{pid}/ns/net") == os.readlink(f"/proc/{holder}/ns/net")
        finally:
            os.close(netns_fd)


def _cgroup_dirs() -> list[Path]:
    """A directory to make a group in, for each hierarchy of this host."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, kind = line.partition(" - ")
        if kind.startswith("cgroup2 ") or (kind.startswith("cgroup ") and "pids" in kind):
            found.append(Path(mount.split()[4]))
    return found


def test_enters_cgroups_before_it_runs() -> None:
    roots = _cgroup_dirs()
    assert roots, "no cgroup hierarchy is mounted"
    groups = [root / f"hypercore-test-{os.getpid()}" for root in roots]
    fds: list[int] = []
    with contextlib.ExitStack() as stack:
        for group in groups:
            group.mkdir()
            stack.callback(group.rmdir)
            fds.append(os.open(group / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
            stack.callback(os.close, fds[-1])
        with running(["/bin/sleep", "60"], cgroup_fds=fds) as (pid, _):
            for group in groups:
                assert (group / "cgroup.procs").read_text().split() == [str(pid)]
