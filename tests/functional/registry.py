"""A real registry (Debian's docker-registry) on a free loopback port, its storage in a folder."""

import base64
import http.client
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_DEADLINE_S = 30


@dataclass(frozen=True, slots=True)
class Registry:
    """A running registry; `host` is host:port, as it stands in an image reference."""

    host: str
    authorization: str = ""
    """value of the Authorization header that it wants; empty: anybody may push and pull"""


@contextmanager
def serve(
    binary: Path, directory: Path, *, htpasswd: str = "", password: str = ""
) -> Iterator[Registry]:
    """Run `binary` until the block ends.

    Args:
        htpasswd: one line `user:bcrypt hash`; then the registry asks for it and `password`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    config = directory / "config.yml"
    config.write_text(_config(host, directory, htpasswd))
    log_path = directory / "log"
    with log_path.open("wb") as log:
        env = {**os.environ, "OTEL_TRACES_EXPORTER": "none"}
        process = subprocess.Popen(
            [binary, "serve", config], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env
        )
        try:
            _wait_until_it_answers(host, process, log_path)
            user = htpasswd.partition(":")[0]
            token = base64.b64encode(f"{user}:{password}".encode()).decode()
            yield Registry(host, f"Basic {token}" if htpasswd else "")
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _config(host: str, directory: Path, htpasswd: str) -> str:
    text = f"""\
version: 0.1
log: {{accesslog: {{disabled: true}}, level: warn}}
storage:
  filesystem: {{rootdirectory: {directory}/storage}}
  delete: {{enabled: true}}
http: {{addr: "{host}", secret: test}}
"""
    if htpasswd:
        (directory / "htpasswd").write_text(htpasswd + "\n")
        text += f"auth: {{htpasswd: {{realm: test, path: {directory}/htpasswd}}}}\n"
    return text


def _wait_until_it_answers(host: str, process: subprocess.Popen[bytes], log_path: Path) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    while process.poll() is None and time.monotonic() < deadline:
        connection = http.client.HTTPConnection(host, timeout=5)
        try:
            connection.request("GET", "/v2/")
            connection.getresponse().read()
            return
        except OSError:
            time.sleep(0.05)
        finally:
            connection.close()
    raise RuntimeError(f"the registry does not answer at {host}: {log_path.read_text()[-2000:]}")
