"""_process without privileges: start, fds, environment, exit, failures."""

import errno
import os
import select
import signal
import sys
import threading

import pytest

from hypercore import _process

SH = "/bin/sh"


def wait(pidfd: int) -> int:
    try:
        assert select.select([pidfd], [], [], 30)[0], "the process did not end within 30 s"
        status = _process.reap(pidfd)
        assert status is not None
        return status
    finally:
        os.close(pidfd)


def output(argv: list[str], **kwargs: object) -> tuple[int, bytes]:
    reader, writer = os.pipe()
    fds = [(writer, 1), *kwargs.pop("fds", ())]  # type: ignore[misc]
    try:
        _, pidfd = _process.spawn(argv, env=kwargs.pop("env", {}), fds=fds, **kwargs)  # type: ignore[arg-type]
    finally:
        os.close(writer)
    with open(reader, "rb") as stream:
        text = stream.read()
    return wait(pidfd), text


def test_exit_code_and_environment():
    status, text = output([SH, "-c", 'echo "$A:$PATH0"; exit 7'], env={"A": "x y"})
    assert (status, text) == (7, b"x y:\n")


def test_death_by_signal_is_negative():
    _, pidfd = _process.spawn(["/bin/sleep", "60"], env={})
    assert _process.reap(pidfd) is None
    _process.send_signal(pidfd, signal.SIGKILL)
    assert wait(pidfd) == -signal.SIGKILL


def test_signal_to_an_ended_process_is_refused():
    _, pidfd = _process.spawn(["/bin/true"], env={})
    select.select([pidfd], [], [], 30)
    assert _process.reap(pidfd) == 0
    with pytest.raises(ProcessLookupError):
        _process.send_signal(pidfd, signal.SIGTERM)
    with pytest.raises(ChildProcessError):
        _process.reap(pidfd)
    os.close(pidfd)


def test_only_named_fds_are_open_and_swaps_work():
    readers = []
    writers = []
    for _ in range(2):
        reader, writer = os.pipe()
        readers.append(reader)
        writers.append(writer)
        os.set_inheritable(writer, True)
    # each target is the other's source
    a, b = writers
    status, text = output(
        [SH, "-c", f"echo a >/dev/fd/{b}; echo b >/dev/fd/{a}; ls /proc/self/fd"],
        fds=[(a, b), (b, a)],
    )
    for fd in writers:
        os.close(fd)
    assert status == 0
    # ls itself has /proc/self/fd open as one more
    listed = {int(line) for line in text.split()}
    assert listed - {3} == {0, 1, 2, a, b}
    assert os.read(readers[0], 10) == b"a\n"
    assert os.read(readers[1], 10) == b"b\n"
    for fd in readers:
        os.close(fd)


def test_standard_fds_not_named_are_dev_null():
    status, text = output([SH, "-c", "readlink /proc/self/fd/0 /proc/self/fd/2"])
    assert (status, text) == (0, b"/dev/null\n/dev/null\n")


def test_signals_are_default_and_unblocked_in_the_child():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        status, text = output([SH, "-c", "grep -E '^Sig(Blk|Ign)' /proc/self/status"])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert status == 0
    # glibc's posix_spawn, and so make, ignores libc's own two signals for good (spawni.c).
    libc_own = 1 << (32 - 1) | 1 << (33 - 1)
    blocked, ignored = (int(line.split()[1], 16) for line in text.splitlines())
    assert (blocked, ignored & ~libc_own) == (0, 0)
    assert signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_own_session_cwd_umask_rlimits():
    import resource

    status, text = output(
        [SH, "-c", "pwd; umask; ulimit -n; cut -d' ' -f6 /proc/self/stat; echo $$"],
        cwd="/usr",
        umask=0o027,
        rlimits=[(resource.RLIMIT_NOFILE, 77, 99)],
    )
    cwd, mask, files, session, pid = text.split()
    assert (status, cwd, mask, files) == (0, b"/usr", b"0027", b"77")
    assert session == pid
    status, text = output([SH, "-c", "cut -d' ' -f6 /proc/self/stat"], setsid=False)
    assert int(text) == os.getsid(0)


def test_failed_exec_names_the_step_and_leaves_nothing():
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FileNotFoundError) as caught:
        _process.spawn(["/nowhere/vmm"], env={})
    assert caught.value.filename == "exec /nowhere/vmm"
    with pytest.raises(PermissionError):
        _process.spawn(["/etc/passwd"], env={})
    with pytest.raises(OSError, match="chdir /nowhere") as failed:
        _process.spawn(["/bin/true"], env={}, cwd="/nowhere")
    assert failed.value.errno == errno.ENOENT
    with pytest.raises(OSError, match="duplicate fd") as failed:
        _process.spawn(["/bin/true"], env={}, fds=[(4000, 3)])
    assert failed.value.errno == errno.EBADF
    assert os.listdir("/proc/self/fd") == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.parametrize(
    ("argv", "options"),
    [
        ([], {}),
        (["true"], {}),
        (["/bin/true", "a\0b"], {}),
        (["/bin/true"], {"fds": [(0, 1), (2, 1)]}),
        (["/bin/true"], {"fds": [(-1, 1)]}),
        (["/bin/true"], {"netns_fd": 0, "namespaces": _process.CLONE_NEWNET}),
        (["/bin/true"], {"root": _process.Jail("relative")}),
        (
            ["/bin/true"],
            {"root": _process.Jail("/x", binds=(("/usr", "/a/../usr", True, False),))},
        ),
    ],
)
def test_wrong_arguments(argv, options):
    with pytest.raises(ValueError, match=r"."):
        _process.spawn(argv, env={}, **options)


def test_start_time():
    assert _process.start_time(os.getpid()) > 0
    assert _process.start_time(2**22 + 1) == 0
    pid, pidfd = _process.spawn(["/bin/true"], env={})
    select.select([pidfd], [], [], 30)
    assert _process.start_time(pid) == 0  # a zombie
    assert wait(pidfd) == 0


def test_name_with_parenthesis_does_not_confuse_start_time(tmp_path):
    program = tmp_path / "a) Z 1 (b"
    program.symlink_to("/bin/sleep")
    pid, pidfd = _process.spawn([program, "60"], env={})
    started = _process.start_time(pid)
    _process.send_signal(pidfd, signal.SIGKILL)
    wait(pidfd)
    assert started >= _process.start_time(os.getpid())


def test_from_many_threads_at_once():
    failures = []

    def work() -> None:
        for number in range(25):
            _, pidfd = _process.spawn([SH, "-c", f"exit {number}"], env={})
            if wait(pidfd) != number:
                failures.append(number)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_on_uvloop_exit_wakes_the_loop():
    uvloop = pytest.importorskip("uvloop")
    import asyncio

    async def main() -> int:
        loop = asyncio.get_running_loop()
        _, pidfd = await loop.run_in_executor(
            None, lambda: _process.spawn([SH, "-c", "exit 5"], env={})
        )
        ended = asyncio.Event()
        loop.add_reader(pidfd, ended.set)
        await asyncio.wait_for(ended.wait(), 30)
        loop.remove_reader(pidfd)
        status = _process.reap(pidfd)
        os.close(pidfd)
        assert status is not None
        return status

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(main()) == 5


def test_an_interpreter_starts_with_an_empty_environment():
    status, text = output([sys.executable, "-I", "-S", "-c", "print(6 * 7)"])
    assert (status, text) == (0, b"42\n")
