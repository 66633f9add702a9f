"""_vsock's connects against a server that speaks, refuses, lingers or lies."""

import contextlib
import errno
import fcntl
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hypercore import _vsock


@contextlib.contextmanager
def hybrid_server(path: Path, *answers: Callable[[socket.socket], None]) -> Iterator[list[bytes]]:
    """Accepts one connection for each of `answers` and reads its first line."""
    lines: list[bytes] = []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)

    def serve() -> None:
        for answer in answers:
            connection, _ = listener.accept()
            with connection:
                line = b""
                while not line.endswith(b"\n"):
                    line += connection.recv(1)
                lines.append(line)
                answer(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield lines
    finally:
        thread.join(30)
        listener.close()


def say(*pieces: bytes) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(0.005)

    return answer


def refuse(connection: socket.socket) -> None:
    """What a VMM does when nobody listens on the guest's port."""


def linger(connection: socket.socket) -> None:
    connection.recv(1)


def test_connects_and_leaves_the_stream_untouched(tmp_path: Path) -> None:
    with hybrid_server(tmp_path / "v", say(b"OK 10", b"73741824\nfirst bytes")) as lines:
        fd = _vsock.connect_hybrid(tmp_path / "v", 10790, 5)
    assert lines == [b"CONNECT 10790\n"]
    assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK
    assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    assert os.read(fd, 100) == b"first bytes"
    os.close(fd)


def test_tries_again_until_the_port_is_there(tmp_path: Path) -> None:
    with hybrid_server(tmp_path / "v", refuse, refuse, say(b"OK 1\n")) as lines:
        os.close(_vsock.connect_hybrid(str(tmp_path / "v"), 5, 30))
    assert len(lines) == 3


def test_tries_again_until_the_socket_is_there(tmp_path: Path) -> None:
    result: list[int] = []
    thread = threading.Thread(
        target=lambda: result.append(_vsock.connect_hybrid(tmp_path / "v", 5, 30))
    )
    thread.start()
    time.sleep(0.03)
    with hybrid_server(tmp_path / "v", say(b"OK 1\n")):
        thread.join()
    os.close(result[0])


def test_one_deadline_for_all_tries(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    started = time.monotonic()
    with pytest.raises(TimeoutError, match="last: No such file") as caught:
        _vsock.connect_hybrid(tmp_path / "nothing", 7, 0.05)
    assert 0.05 <= time.monotonic() - started < 5
    assert caught.value.errno == errno.ETIMEDOUT
    assert caught.value.filename == f"{tmp_path}/nothing port 7"
    with (
        hybrid_server(tmp_path / "v", linger),
        pytest.raises(TimeoutError, match="timed out"),
    ):
        _vsock.connect_hybrid(tmp_path / "v", 7, 0.05)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("reply", [b"HTTP/1.1 400 Bad Request\r\n", b"OK\n", b"x" * 100, b"\n"])
def test_something_else_answers(tmp_path: Path, reply: bytes) -> None:
    with (
        hybrid_server(tmp_path / "v", say(reply)),
        pytest.raises(OSError, match="port 7") as caught,
    ):
        _vsock.connect_hybrid(tmp_path / "v", 7, 5)
    assert caught.value.errno == errno.EPROTO


def test_cancel(tmp_path: Path) -> None:
    cancel = os.eventfd(0, os.EFD_CLOEXEC)
    for path, server in (
        (tmp_path / "nothing", contextlib.nullcontext()),
        (tmp_path / "v", hybrid_server(tmp_path / "v", linger)),
    ):
        timer = threading.Timer(0.02, os.eventfd_write, (cancel, 1))
        timer.start()
        with server, pytest.raises(OSError, match="port 7") as caught:
            _vsock.connect_hybrid(path, 7, 30, cancel_fd=cancel)
        assert caught.value.errno == errno.ECANCELED
        timer.join()
        os.eventfd_read(cancel)
    os.close(cancel)


def test_path_too_long_for_a_socket(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="too long") as caught:
        _vsock.connect_hybrid("/" + "x" * 107, 7, 5)
    assert caught.value.errno == errno.ENAMETOOLONG


def test_failure_that_waiting_does_not_cure(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "deep").touch()
    with pytest.raises(NotADirectoryError):
        _vsock.connect_hybrid(tmp_path / "file/deep/v", 7, 5)


def test_kernel_vsock_loopback_or_its_absence() -> None:
    """Connects over vsock_loopback where the kernel has it; else fails at once, by name."""
    try:
        listener = socket.socket(socket.AF_VSOCK)
    except OSError:
        with pytest.raises(OSError, match="vsock CID 1 port 4711"):
            _vsock.connect_kernel(1, 4711, 0.05)
        return
    with listener:
        listener.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
        listener.listen()
        port = listener.getsockname()[1]
        try:
            fd = _vsock.connect_kernel(1, port, 0.5)
        except OSError as exc:
            kept = exc
        else:
            accepted, _ = listener.accept()
            accepted.sendall(b"hello")
            accepted.close()
            os.set_blocking(fd, True)
            assert os.read(fd, 10) == b"hello"
            os.close(fd)
            with pytest.raises(TimeoutError, match="last: Connection re"):
                _vsock.connect_kernel(1, port ^ 1, 0.05)
            return
    assert f"vsock CID 1 port {port}" in str(kept)
