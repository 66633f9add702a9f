"""The command line on a terminal, and interrupted: what a person at a keyboard does."""

import os
import pty
import random
import re
import select
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.functional.instance import BOOT_DEADLINE_S, HYPERCORE, Instance

pytestmark = pytest.mark.timeout(4 * BOOT_DEADLINE_S)


class Terminal:
    """`hypercore ARGS` as the foreground process of a terminal of its own."""

    def __init__(self, made: Instance, *args: str) -> None:
        self.master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (33, 101))
        self.process = subprocess.Popen(
            # setsid --ctty: the terminal becomes its controlling one, so that ^C is a SIGINT.
            ["setsid", "--ctty", "--wait", HYPERCORE, *args],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=made.env,
            cwd=made.data_dir,
        )
        os.close(slave)
        self.seen = ""

    def expect(self, pattern: str, timeout: float = BOOT_DEADLINE_S) -> str:
        """Read until `pattern` matches what came since the last match."""
        deadline = time.monotonic() + timeout
        while not (match := re.search(pattern, self.seen)):
            ready, _, _ = select.select((self.master,), (), (), deadline - time.monotonic())
            assert ready, f"{pattern!r} did not come in {self.seen!r}"
            try:
                data = os.read(self.master, 65536)
            except OSError:  # EIO: the other side is closed
                data = b""
            assert data, f"{pattern!r} did not come before the end: {self.seen!r}"
            self.seen += data.decode(errors="replace")
        self.seen = self.seen[match.end() :]
        return match[0]

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait(self, timeout: float = 60) -> int:
        return self.process.wait(timeout)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)


@contextmanager
def terminal(made: Instance, *args: str) -> Iterator[Terminal]:
    opened = Terminal(made, *args)
    try:
        yield opened
    finally:
        opened.close()


def ids(made: Instance) -> set[str]:
    """All microVMs; among them the session's shared one, once a test has wanted it."""
    return set(made.run("list", "--all", "--quiet").out.split())


def traces(made: Instance) -> set[str]:
    """What is in the state directories of microVMs."""
    roots = (made.data_dir / "vm", made.run_dir / "vm")
    return {str(path) for root in roots if root.exists() for path in root.iterdir()}


def test_spawn_on_a_terminal_is_like_docker_run(hypercore: Instance, shell_image: str) -> None:
    before = ids(hypercore)
    with terminal(hypercore, "spawn", "--rm", "-it", shell_image) as shell:
        shell.expect("# ")
        shell.type("stty size; tty\n")
        shell.expect("33 101\r\n/dev/")
        shell.type("sleep 1000 || echo interrupted; echo still $((40 + 2))\n")
        time.sleep(2)  # until the shell has handed its terminal over to sleep; nothing tells
        shell.type("\x03")
        shell.type("echo alive $((41 + 1))\n")
        shell.expect("alive 42\r\n", 30)
        shell.type("exit 5\n")
        assert shell.wait() == 5
    assert ids(hypercore) == before


def test_detach_and_attach_again(hypercore: Instance, shell_image: str) -> None:
    with terminal(hypercore, "spawn", "-it", shell_image) as shell:
        shell.expect("# ")
        shell.type("echo first $((40 + 2))\n")
        shell.expect("first 42\r\n")
        shell.type("\x10\x11")
        microvm_id = shell.expect(r"detached from (\S+)\r\n").split()[-1]
        assert shell.wait() == 0
    try:
        assert microvm_id in hypercore.run("list", "--quiet").out.split()
        with terminal(hypercore, "attach", microvm_id) as shell:
            shell.expect("first 42\r\n")
            shell.type("exit 3\n")
            assert shell.wait() == 3
    finally:
        hypercore.run("rm", "--force", microvm_id)


def test_first_lines_on_a_terminal(hypercore: Instance, shell_image: str) -> None:
    with terminal(hypercore, "spawn", shell_image) as spawn:
        created = spawn.expect(r"Creating VM '\S+' with config \{.*\}\r\n").split("'")[1]
        assert spawn.expect(r"ID: \S+\r\n").split()[1] == created
        assert spawn.wait() == 0
    hypercore.run("rm", "--force", created)


def test_exec_on_a_terminal(hypercore: Instance, shared_vm: object) -> None:
    with terminal(hypercore, "exec", "-it", shared_vm.microvm_id, "sh") as shell:
        shell.expect("# ")
        shell.type("stty size\n")
        shell.expect("33 101\r\n")
        shell.type("exit 6\n")
        assert shell.wait() == 6


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_task_and_removes_it(
    hypercore: Instance, shell_image: str, signum: signal.Signals
) -> None:
    script = "trap 'echo bye; exit 4' INT TERM HUP; echo ready; while :; do sleep 1; done"
    before = ids(hypercore)
    spawn = hypercore.popen("spawn", "--rm", shell_image, "sh", "-c", script)
    try:
        assert spawn.stdout.readline() == b"ready\n"
        spawn.send_signal(signum)
        out, err = spawn.communicate(timeout=60)
    finally:
        spawn.kill()
        spawn.communicate()
    assert out == b"bye\n", err
    assert spawn.returncode == 128 + signum
    assert ids(hypercore) == before


def test_ctrl_c_at_any_moment_leaves_nothing(hypercore: Instance, shell_image: str) -> None:
    """The fixture compares the host before and after."""
    seed = int(os.environ.get("HYPERCORE_SEED") or time.time())
    moments = random.Random(seed)
    before, traces_before = ids(hypercore), traces(hypercore)
    for _ in range(8):
        delay = moments.uniform(0, 3)
        with terminal(hypercore, "spawn", "--rm", shell_image, "sleep", "1000") as spawn:
            time.sleep(delay)
            spawn.type("\x03\x03")
            code = spawn.wait()
            assert code == 130, f"seed {seed}: {code} after {delay:.3f} s: {spawn.seen}"
        assert ids(hypercore) == before, f"seed {seed}, {delay:.3f} s"
        assert traces(hypercore) == traces_before, f"seed {seed}, {delay:.3f} s"


def test_cleanup_after_the_command_line_was_killed(hypercore: Instance, shell_image: str) -> None:
    before, traces_before = ids(hypercore), traces(hypercore)
    for delay in (0.5, 1.5):
        spawn = hypercore.popen("spawn", shell_image, stdin=subprocess.DEVNULL)
        try:
            time.sleep(delay)
        finally:
            spawn.kill()
            spawn.communicate()
        hypercore.run("cleanup")
        assert ids(hypercore) == before
        assert traces(hypercore) == traces_before


def test_users_of_the_image(hypercore: Instance, shared_vm: object) -> None:
    def identity(user: str) -> str:
        return hypercore.run("exec", "-u", user, shared_vm.microvm_id, "id").out

    assert identity("nobody").startswith("uid=65534(nobody) gid=65534(nogroup)")
    assert identity("1000:7").startswith("uid=1000 gid=7")
    unknown = hypercore.run("exec", "-u", "nosuch", shared_vm.microvm_id, "id", check=False)
    assert unknown.code == 64
    assert "'nosuch' is not in the image's /etc/passwd" in unknown.err


def test_workload_of_hac_toml(hypercore: Instance, shell_image: str, tmp_path: Path) -> None:
    (tmp_path / "hac.toml").write_text(
        f"""
        [spacecore]
        name = "worker"
        [hardware]
        ref = "{shell_image}"
        [network]
        mode = "none"
        [workload]
        command = ["sh", "-c", "echo $0 $1 $MODE; pwd; id -u; ip addr | grep -c eth0"]
        args = ["zero", "one"]
        env = ["MODE=test"]
        workdir = "/tmp"
        user = "nobody"
        """
    )
    result = hypercore.boot("spawn", "--rm", cwd=tmp_path, check=False)
    assert result.out == "zero one test\n/tmp\n65534\n0\n", result


def test_start_keeps_the_disk(hypercore: Instance, shell_image: str) -> None:
    microvm_id = hypercore.spawn("--name", "keeper", shell_image)
    try:
        hypercore.run("exec", "keeper", "sh", "-c", "echo kept > /root/file; sync")
        taken = hypercore.run("spawn", "--name", "keeper", shell_image, check=False)
        assert taken.code == 73, taken
        hypercore.run("stop", "--time", "0", "keeper")
        hypercore.boot("start", "keeper")
        assert hypercore.run("exec", "keeper", "cat", "/root/file").out == "kept\n"
    finally:
        hypercore.run("rm", "--force", microvm_id)
