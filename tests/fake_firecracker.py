"""An executable that speaks Firecracker's API, for errors that a real one cannot be made to show.

`install` writes it as one script that needs no other file in a jail. It takes the command line of
Firecracker, "runs" guests of tinyguest.py by printing their text, and fails where it is told to.
What tests say of it they say of the real one too: they run with both.
"""

import json
import os
import sys
from pathlib import Path

FAULTS: dict[str, str] = {}
"""Request → how it fails: refuse, hang, die, garbage, short, huge, endless."""


def install(path: Path, faults: dict[str, str] | None = None) -> Path:
    """Write the program to `path`; `faults` is for this copy."""
    source = Path(__file__).read_text().replace("= {}\n", f"= {faults or {}!r}\n", 1)
    path.write_text(f"#!{os.path.realpath(sys.executable)} -IS\n{source}")
    path.chmod(0o755)
    return path


class Vmm:
    """The VM's state, and an answer (status, document) to each request."""

    def __init__(self, microvm_id: str) -> None:
        self.microvm_id = microvm_id
        self.state = "Not started"
        self.kernel = b""
        self.to_run = False
        """once the request to start is answered"""
        self.metrics = self.vsock = ""
        self.listeners: list[object] = []

    def answer(self, request: str, body: dict[str, object]) -> tuple[int, object]:
        match request.split("/"):
            case ["GET ", ""]:
                return 200, {
                    "id": self.microvm_id,
                    "state": self.state,
                    "vmm_version": "1.12.1",
                    "app_name": "Firecracker",
                }
            case ["PATCH ", "vm"]:
                if self.state == "Not started":
                    return _fault("The requested operation is not supported before starting")
                self.state = {"Paused": "Paused", "Resumed": "Running"}[str(body["state"])]
            case ["PUT ", "snapshot", "create"]:
                if self.state != "Paused":
                    return _fault("Operation not allowed: the microVM is not paused")
                with open(str(body["snapshot_path"]), "w") as file:
                    json.dump({"vsock": self.vsock}, file)
                Path(str(body["mem_file_path"])).write_bytes(self.kernel)
            case ["PUT ", "actions"] if body["action_type"] == "FlushMetrics":
                if not self.metrics:
                    return _fault("Metrics are not configured")
                with open(self.metrics, "w") as fifo:
                    fifo.write('{"utc_timestamp_ms": 1, "block": {"read_count": 0}}\n')
            case ["PATCH ", "drives", _] | ["PATCH ", "balloon"]:
                if self.state == "Not started":
                    return _fault("The requested operation is not supported before starting")
            case ["PUT ", *_] if self.state != "Not started":
                return _fault("The requested operation is not supported after starting")
            case ["PUT ", "boot-source"]:
                try:
                    self.kernel = Path(str(body["kernel_image_path"])).read_bytes()
                except OSError as exc:
                    return _fault(f"The kernel file cannot be opened: {exc.strerror}")
            case ["PUT ", "drives", _]:
                try:
                    open(
                        str(body["path_on_host"]), "rb" if body["is_read_only"] else "r+b"
                    ).close()
                except OSError as exc:
                    return _fault(f"Unable to open the drive: {exc}")
            case ["PUT ", "vsock"]:
                self.vsock = str(body["uds_path"])
                self.listeners.append(_listen(self.vsock))
            case ["PUT ", "actions"]:
                if not self.kernel:
                    return _fault("Cannot start microvm without kernel configuration.")
                self.state = "Running"
                self.to_run = True
            case ["PUT ", "snapshot", "load"]:
                try:
                    saved = json.loads(Path(str(body["snapshot_path"])).read_text())
                except (OSError, ValueError) as exc:
                    return _fault(f"Load snapshot error: {exc}")
                self.listeners.append(_listen(saved["vsock"]))
                self.state = "Paused"
            case ["PUT ", "metrics"]:
                self.metrics = str(body["metrics_path"])
            case ["PUT ", "machine-config" | "entropy" | "balloon"] | [
                "PUT ",
                "network-interfaces",
                _,
            ]:
                pass
            case _:
                return _fault(f"Invalid request method and/or path: {request}")
        return 204, None

    def run_guest(self) -> None:
        self.to_run = False
        code, _, text = self.kernel.partition(b"\xfa\xf4\xeb\xfd")
        os.write(1, text)
        if code.endswith(b"\xb0\xfe\xe6\x64"):
            os._exit(0)


def _fault(text: str) -> tuple[int, object]:
    return 400, {"fault_message": text}


def _listen(path: str) -> object:
    import socket

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    return listener


def main() -> None:
    import argparse
    import socket

    options = argparse.ArgumentParser(prog="firecracker")
    options.add_argument("--version", action="version", version="Firecracker v1.12.1")
    for name in ("--id", "--api-sock", "--log-path", "--level", "--http-api-max-payload-size"):
        options.add_argument(name)
    arguments = options.parse_args()
    log = open(arguments.log_path, "a", buffering=1)  # noqa: SIM115
    vmm = Vmm(arguments.id)
    listener = _listen(arguments.api_sock)
    assert isinstance(listener, socket.socket)
    while True:
        connection, _ = listener.accept()
        with connection:
            request, body = _receive(connection)
            if not request:
                continue
            match FAULTS.get(request):
                case "refuse":
                    status, document = _fault("no luck today")
                case "hang":
                    connection.recv(1)
                    continue
                case "die":
                    log.write("out of luck\n")
                    os._exit(3)
                case "garbage":
                    connection.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
                    continue
                case "short":
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
                    continue
                case "huge":
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n")
                    continue
                case "endless":
                    _send_for_ever(connection)
                    continue
                case _:
                    status, document = vmm.answer(request, json.loads(body or "{}"))
            answer = b"" if document is None else json.dumps(document).encode()
            head = f"HTTP/1.1 {status} \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n"
            if answer:
                head += f"Content-Type: application/json\r\nContent-Length: {len(answer)}\r\n"
            connection.sendall(head.encode() + b"\r\n" + answer)
        if vmm.to_run:
            vmm.run_guest()


def _receive(connection: object) -> tuple[str, str]:
    """`METHOD /target` and the body of one request."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = connection.recv(65536)  # type: ignore[attr-defined]
        if not chunk:
            return "", ""
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    length = next((int(x[15:]) for x in lines if x.lower().startswith("content-length:")), 0)
    while len(body) < length:
        body += connection.recv(65536)  # type: ignore[attr-defined]
    method, target, _ = lines[0].split(" ")
    return f"{method} {target}", body.decode()


def _send_for_ever(connection: object) -> None:
    try:
        connection.sendall(b"HTTP/1.1 200 OK\r\n")  # type: ignore[attr-defined]
        while True:
            connection.sendall(b"X-Filler: " + b"x" * 4096 + b"\r\n")  # type: ignore[attr-defined]
    except OSError:
        return


if __name__ == "__main__":
    main()
