"""`hypercore serve` as a process of the tests, told apart from systemd by nothing it could see."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
READY_S = 30
STOP_S = 30


@dataclass(frozen=True, slots=True)
class Daemon:
    """A daemon that serves."""

    process: subprocess.Popen[bytes]
    notify: socket.socket
    directory: Path
    """its output, and the sockets it was told to make"""

    @property
    def http_socket(self) -> Path:
        return self.directory / "api.sock"

    @property
    def grpc_socket(self) -> Path:
        return self.directory / "grpc.sock"

    @property
    def output(self) -> str:
        return (self.directory / "out").read_text()

    @property
    def errors(self) -> str:
        return (self.directory / "err").read_text()

    def address(self, kind: str) -> str:
        """http-unix, grpc-unix, http-tcp or grpc-tcp, as a client takes it."""
        if kind.endswith("unix"):
            path = self.http_socket if kind.startswith("http") else self.grpc_socket
            return f"{'grpc+' if kind.startswith('grpc') else ''}unix://{path}"
        if kind.startswith("http"):
            return re.findall(r"serving HTTP at (https?://\S+)", self.output)[0]
        port, safety = re.findall(r"serving gRPC at \S+:(\d+), (\w+)", self.output)[0]
        return f"{'grpcs' if safety == 'TLS' else 'grpc'}://127.0.0.1:{port}"

    def told(self, wanted: str) -> str:
        """Read what it tells systemd until `wanted` comes."""
        self.notify.settimeout(READY_S)
        while True:
            try:
                text = self.notify.recv(4096).decode()
            except TimeoutError:
                raise AssertionError(f"never said {wanted}:\n{self.errors}") from None
            if wanted in text:
                return text

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(STOP_S) == 0, self.errors

    def rss_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/statm").read_text()
        return int(status.split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


@contextmanager
def daemon(
    *args: str | Path,
    env: Mapping[str, str] | None = None,
    listeners: Sequence[tuple[str, socket.socket]] = (),
) -> Iterator[Daemon]:
    """A daemon on unix sockets of its own, and what `args` say; stopped at the end of the block.

    Args:
        listeners: sockets to pass as systemd does, with their names.
    """
    with (
        tempfile.TemporaryDirectory(prefix="hcs-", dir="/run") as made,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify,
    ):
        directory = Path(made)
        notify.bind(str(directory / "notify"))
        command = [sys.executable, "-m", "hypercore", "serve"]
        sockets = {"--http-socket": "api.sock", "--grpc-socket": "grpc.sock"}
        for option, name in sockets.items():
            command += [option, str(directory / name)]
        environ = {**os.environ, **(env or {}), "NOTIFY_SOCKET": str(directory / "notify")}
        fds = [sock.fileno() for _name, sock in listeners]

        def place() -> None:
            high = [os.dup(fd) for fd in fds]
            for number, fd in enumerate(high):
                os.dup2(fd, 3 + number)
            os.environ["LISTEN_PID"] = str(os.getpid())

        if listeners:
            names = ":".join(name for name, _sock in listeners)
            environ |= {"LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": names}
            # The pid is only known in the child: sh sets it as systemd does.
            command = ["/bin/sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh", *command]
        with open(directory / "out", "wb") as out, open(directory / "err", "wb") as err:
            process = subprocess.Popen(
                [*command, *map(str, args)],
                stdout=out,
                stderr=err,
                cwd=ROOT,
                env=environ,
                close_fds=not listeners,
                preexec_fn=place if listeners else None,
            )
        running = Daemon(process, notify, directory)
        try:
            running.told("READY=1")
            yield running
            if process.poll() is None:
                running.stop()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def wait_until(condition: object, seconds: float = 15) -> None:
    """Until `condition()` is true."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it has not come true"
        time.sleep(0.05)
