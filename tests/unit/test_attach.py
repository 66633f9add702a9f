"""The client side of the stdio socket, against a server that does what the shim server does.

The client runs as a process of its own, with real pipes or a real terminal on its fds 0 to 2.
"""

import asyncio
import os
import pty
import signal
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hypercore import attach
from hypercore.errors import NotFound, StateError, Unavailable
from hypercore.proto.stdio_pb import (
    Attach,
    Attached,
    Dropped,
    Error,
    Exit,
    StdioReply,
    StdioRequest,
)

DEADLINE_S = 30

CLIENT = """
import asyncio, sys
from pathlib import Path
from hypercore import attach
from hypercore.cli import signals, terminal

path, stdin, tty = Path(sys.argv[1]), sys.argv[2] == "stdin", sys.argv[3] == "tty"
skip = {1: int(sys.argv[4])}

def open_stdio(stdin_fd, stdout_fd, stderr_fd):
    return attach.connect(
        path, namespace="n", task_id="t",
        stdin_fd=stdin_fd, stdout_fd=stdout_fd, stderr_fd=stderr_fd,
    )

async def on_signal(signum):
    print(f"signal {signum}", file=sys.stderr, flush=True)

async def main():
    local = terminal.Local(stdin=stdin, tty=tty, detach_keys=b"\\x10\\x11")
    try:
        status = await terminal.join(open_stdio, local, on_signal=on_signal, skip_bytes=skip)
    except terminal.Detached:
        return 99
    return status.exit_code

sys.exit(signals.run_async(main))
"""


@dataclass
class Peer:
    """The server's side of one client."""

    sock: socket.socket
    request: Attach
    fds: dict[str, int] = field(default_factory=dict)

    def receive(self) -> StdioRequest | None:
        packet = self.sock.recv(65536)
        return StdioRequest.decode(packet) if packet else None

    def send(self, **reply: object) -> None:
        self.sock.send(StdioReply(**reply).encode())

    def write(self, name: str, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self.fds[name], view) :]

    def read_stdin(self) -> bytes:
        data = b""
        while chunk := os.read(self.fds["stdin"], 65536):
            data += chunk
        return data

    def close_outputs(self) -> None:
        for name in ("stdout", "stderr"):
            if name in self.fds:
                os.close(self.fds.pop(name))

    def end(self, **exit_fields: object) -> None:
        self.close_outputs()
        self.send(exit=Exit(**exit_fields))


Script = Callable[[Peer], None]


@contextmanager
def serving(
    path: Path, script: Script, *, terminal: bool = False
) -> Iterator[list[BaseException]]:
    """Run `script` for one client in a thread; what it raised is raised here."""
    failures: list[BaseException] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(DEADLINE_S)

        def serve() -> None:
            try:
                sock, _ = listener.accept()
                with sock:
                    sock.settimeout(DEADLINE_S)
                    packet, fds, _, _ = socket.recv_fds(sock, 65536, 3)
                    request = StdioRequest.decode(packet).attach
                    assert request is not None
                    names = [n for n in ("stdin", "stdout", "stderr") if getattr(request, n)]
                    peer = Peer(sock, request, dict(zip(names, fds, strict=True)))
                    try:
                        peer.send(attached=Attached(terminal=terminal))
                        script(peer)
                    finally:
                        for fd in peer.fds.values():
                            os.close(fd)
            except BaseException as exc:
                failures.append(exc)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield failures
        finally:
            thread.join(DEADLINE_S)
    if failures:
        raise failures[0]


def client_argv(path: Path, *, stdin: bool = False, tty: bool = False, skip: int = 0) -> list[str]:
    flags = ("stdin" if stdin else "-", "tty" if tty else "-", str(skip))
    return [sys.executable, "-c", CLIENT, str(path), *flags]


def test_output_and_exit_code_come_whole(tmp_path: Path) -> None:
    data = os.urandom(3_000_001)

    def script(peer: Peer) -> None:
        assert (peer.request.namespace, peer.request.task_id) == ("n", "t")
        assert peer.request.replay
        peer.write("stderr", b"to stderr\n")
        peer.write("stdout", data)
        peer.end(exit_status=7)

    path = tmp_path / "stdio"
    with serving(path, script):
        done = subprocess.run(client_argv(path), capture_output=True, timeout=DEADLINE_S)
    assert done.returncode == 7, done.stderr
    assert done.stdout == data
    assert done.stderr == b"to stderr\n"


def test_output_goes_to_files_and_files_opened_for_appending(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        peer.write("stdout", b"x" * 200_000)
        peer.end(exit_status=0)

    for mode in ("wb", "ab"):
        path = tmp_path / f"stdio-{mode}"
        with serving(path, script), open(tmp_path / mode, mode) as out:
            assert (
                subprocess.run(client_argv(path), stdout=out, timeout=DEADLINE_S).returncode == 0
            )
        assert (tmp_path / mode).stat().st_size == 200_000


def test_output_goes_into_a_pipe_that_somebody_made_non_blocking(tmp_path: Path) -> None:
    size = 3_000_000

    def script(peer: Peer) -> None:
        peer.write("stdout", b"x" * size)
        peer.end(exit_status=0)

    path = tmp_path / "stdio"
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    with open(read_fd, "rb") as ours, serving(path, script):
        client = subprocess.Popen(client_argv(path), stdout=write_fd, stderr=subprocess.PIPE)
        os.close(write_fd)
        try:
            assert len(ours.read()) == size
            assert client.wait(DEADLINE_S) == 0
        finally:
            client.kill()
            client.communicate()


def test_bytes_that_are_skipped(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        peer.write("stdout", b"0123456789" * 30_000)
        peer.end(exit_status=0)

    path = tmp_path / "stdio"
    with serving(path, script):
        done = subprocess.run(
            client_argv(path, skip=299_995), capture_output=True, timeout=DEADLINE_S
        )
    assert done.stdout == b"56789"


def test_stdin_and_its_end_reach_the_process(tmp_path: Path) -> None:
    data = os.urandom(1_000_003)

    def script(peer: Peer) -> None:
        received = peer.read_stdin()
        request = peer.receive()
        assert request is not None
        assert request.close_stdin is not None
        peer.write("stdout", received)
        peer.end(exit_status=0)

    path = tmp_path / "stdio"
    with serving(path, script):
        done = subprocess.run(
            client_argv(path, stdin=True), input=data, capture_output=True, timeout=DEADLINE_S
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout == data


def test_the_end_does_not_wait_for_stdin(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        peer.end(exit_status=3)

    path = tmp_path / "stdio"
    with serving(path, script):
        client = subprocess.Popen(client_argv(path, stdin=True), stdin=subprocess.PIPE)
        try:
            assert client.wait(DEADLINE_S) == 3
        finally:
            client.kill()
            client.communicate()


def test_signals_are_passed_on(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        peer.write("stdout", b"ready\n")
        assert peer.receive() is None  # until the client is gone

    path = tmp_path / "stdio"
    with serving(path, script):
        client = subprocess.Popen(
            client_argv(path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            assert client.stdout.readline() == "ready\n"
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                client.send_signal(number)
                assert client.stderr.readline() == f"signal {number.value}\n"
        finally:
            client.kill()
            client.communicate()


class Pty:
    """A client on a terminal."""

    def __init__(self, path: Path) -> None:
        self.master, self.slave = pty.openpty()
        termios.tcsetwinsize(self.slave, (30, 100))
        self.before = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            client_argv(path, stdin=True, tty=True),
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
        )

    def read_until(self, mark: bytes) -> bytes:
        data = b""
        while mark not in data:
            data += os.read(self.master, 1024)
        return data

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def pty_client() -> Iterator[Callable[[Path], Pty]]:
    made: list[Pty] = []

    def make(path: Path) -> Pty:
        made.append(Pty(path))
        return made[-1]

    yield make
    for client in made:
        client.close()


def test_a_terminal_is_raw_sized_and_restored(
    tmp_path: Path, pty_client: Callable[[Path], Pty]
) -> None:
    sizes: list[tuple[int, int]] = []
    path = tmp_path / "stdio"

    def script(peer: Peer) -> None:
        assert "stderr" not in peer.fds
        for _ in range(2):
            request = peer.receive()
            assert request is not None
            assert request.resize is not None
            sizes.append((request.resize.rows, request.resize.columns))
            peer.write("stdout", b"size\n")
        assert os.read(peer.fds["stdin"], 1) == b"\x03"  # Ctrl-C is the guest's to obey
        peer.end(exit_status=130)

    with serving(path, script, terminal=True):
        client = pty_client(path)
        client.read_until(b"size\n")
        assert not termios.tcgetattr(client.slave)[3] & (termios.ECHO | termios.ISIG)
        termios.tcsetwinsize(client.slave, (40, 120))
        # It is not the client's controlling terminal, so the kernel does not tell it.
        client.process.send_signal(signal.SIGWINCH)
        client.read_until(b"size\n")
        os.write(client.master, b"\x03")
        assert client.process.wait(DEADLINE_S) == 130
    assert sizes == [(30, 100), (40, 120)]
    assert termios.tcgetattr(client.slave) == client.before


def test_what_was_printed_before_comes_unchanged_on_a_terminal(
    tmp_path: Path, pty_client: Callable[[Path], Pty]
) -> None:
    path = tmp_path / "stdio"
    replayed = b"".join(b"line %d\r\n" % number for number in range(100))

    def script(peer: Peer) -> None:
        peer.write("stdout", replayed)
        assert peer.receive().resize is not None
        assert os.read(peer.fds["stdin"], 1) == b"\r"  # Enter, as the guest's terminal wants it
        peer.end(exit_status=0)

    with serving(path, script, terminal=True):
        client = pty_client(path)
        assert client.read_until(b"line 99\r\n") == replayed
        os.write(client.master, b"\r")
        assert client.process.wait(DEADLINE_S) == 0


def test_detach_keys_leave_the_process_alone(
    tmp_path: Path, pty_client: Callable[[Path], Pty]
) -> None:
    received: list[bytes] = []
    path = tmp_path / "stdio"

    def script(peer: Peer) -> None:
        assert peer.receive().resize is not None
        peer.write("stdout", b"ready")
        received.append(peer.read_stdin())
        assert peer.receive() is None

    with serving(path, script, terminal=True):
        client = pty_client(path)
        client.read_until(b"ready")
        os.write(client.master, b"ab\x10\x11cd")
        assert client.process.wait(DEADLINE_S) == 99
    assert received == [b"ab"]
    assert termios.tcgetattr(client.slave) == client.before


def connect_and_wait(path: Path) -> attach.ExitStatus:
    async def main() -> attach.ExitStatus:
        async with attach.connect(path, namespace="n", task_id="t") as connection:
            return await connection.wait()

    return asyncio.run(main())


def test_what_the_exit_says(tmp_path: Path) -> None:
    path = tmp_path / "stdio"

    def script(peer: Peer) -> None:
        peer.end(exit_status=137, missing_bytes=12, reason="the VMM died")

    with serving(path, script):
        assert connect_and_wait(path) == attach.ExitStatus(137, 12, "the VMM died")


@pytest.mark.parametrize(
    ("reply", "error", "text"),
    [
        ({"error": Error(code=9, message="has a client already")}, StateError, "already"),
        ({"dropped": Dropped(reason="too slow")}, Unavailable, "too slow"),
        (None, Unavailable, "closed the connection"),
    ],
)
def test_what_goes_wrong_later(
    tmp_path: Path, reply: dict[str, object] | None, error: type[Exception], text: str
) -> None:
    path = tmp_path / "stdio"

    def script(peer: Peer) -> None:
        if reply is not None:
            peer.send(**reply)

    with serving(path, script), pytest.raises(error, match=text):
        connect_and_wait(path)


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no shim server listens"):
        connect_and_wait(tmp_path / "none")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(tmp_path / "dead"))
    with pytest.raises(NotFound, match="no shim server listens"):
        connect_and_wait(tmp_path / "dead")
