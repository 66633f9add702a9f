"""An executable that speaks Cloud Hypervisor's API, for errors that a real one cannot be made to
show.

`install` writes it as one script that needs no other file in a jail. It takes the command line of
Cloud Hypervisor, "runs" guests of tinyguest.py by printing their text, reports events, and fails
where it is told to. What tests say of it they say of the real one too: they run with both.
"""

import json
import os
import sys
from pathlib import Path

FAULTS: dict[str, str] = {}
"""Verb such as vm.boot → how it fails: refuse, hang, die, garbage, short, huge."""
VERSION = "v53.0.0"


def install(path: Path, faults: dict[str, str] | None = None) -> Path:
    """Write the program to `path`; `faults` is for this copy."""
    source = Path(__file__).read_text().replace("= {}\n", f"= {faults or {}!r}\n", 1)
    path.write_text(f"#!{os.path.realpath(sys.executable)} -IS\n{source}")
    path.chmod(0o755)
    return path


class Vmm:
    """The VM's state, and an answer (status, document) to each request."""

    def __init__(self, events: object) -> None:
        self.config: dict[str, dict[str, object]] | None = None
        self.state = "Created"
        self.kernel = b""
        self.listener: object = None
        self.to_run = False
        """once the request to boot is answered"""
        self._events = events

    def event(self, source: str, event: str) -> None:
        document = {"timestamp": {"secs": 0, "nanos": 1}, "source": source, "event": event}
        self._events.write(json.dumps({**document, "properties": None}, indent=2) + "\n\n")  # type: ignore[attr-defined]

    def answer(self, verb: str, body: dict[str, dict[str, object]]) -> tuple[int, object]:
        if verb == "vmm.ping":
            return 200, {"version": VERSION, "pid": os.getpid()}
        if verb == "vm.create":
            if self.config is not None:
                return _fault("VM is already created")
            self.config = body
            return 204, None
        if self.config is None:
            return 404, ["Error from API", "VM is not created"]
        match verb:
            case "vm.info":
                return 200, {"config": self.config, "state": self.state}
            case "vm.counters" if self.state != "Created":
                return 200, {"disk0": {"read_bytes": 0}}
            case "vm.boot" if self.state == "Created":
                return self._boot()
            case "vm.pause" if self.state == "Running":
                self.state = "Paused"
            case "vm.resume" if self.state == "Paused":
                self.state = "Running"
            case "vm.power-button" if self.state == "Running":
                pass
            case "vm.resize" if self.state == "Running" and "balloon" in self.config:
                self.config["balloon"]["size"] = body["desired_balloon"]
            case "vm.shutdown" if self.state != "Created":
                self.state = "Created"
                self.event("vm", "shutdown")
            case _:
                return _fault(f"{verb}: the VM is {self.state}")
        return 204, None

    def _boot(self) -> tuple[int, object]:
        assert self.config is not None
        try:
            self.kernel = Path(str(self.config["payload"]["kernel"])).read_bytes()
            for disk in self.config["disks"]:
                open(disk["path"], "rb" if disk["readonly"] else "r+b").close()  # type: ignore[index,call-overload]
        except OSError as exc:
            return _fault(f"The VM could not boot: {exc}")
        if not self.kernel.startswith(b"\x7fELF"):
            return _fault("The VM could not boot: Cannot load the kernel into memory")
        self._listen()
        self.state = "Running"
        self.to_run = True
        return 204, None

    def _listen(self) -> None:
        import socket

        assert self.config is not None
        self.listener = listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.config["vsock"]["socket"])
        listener.listen()

    def run_guest(self) -> None:
        self.to_run = False
        self.event("vm", "booted")
        code, _, text = self.kernel.partition(b"\xfa\xf4\xeb\xfd")
        os.write(1, text)
        if code.endswith(b"\xb0\x34\xee"):
            self.state = "Created"
            self.event("vm", "shutdown")
        elif code.endswith(b"\xb0\xfe\xe6\x64"):
            self.event("vm", "rebooting")
            try:
                os.unlink(self.config["vsock"]["socket"])  # type: ignore[index,arg-type]
                self._listen()
            except OSError as exc:
                sys.exit(f"Error: Cloud Hypervisor exited with: {exc}")
        elif code.endswith(b"\xff\xe0"):
            print("ERROR: VCPU generated error: VcpuRun(…)", file=sys.stderr)
            for source, event in (("vm", "shutdown"), ("vm", "deleted"), ("vmm", "shutdown")):
                self.event(source, event)
            os._exit(0)


def _fault(text: str) -> tuple[int, object]:
    return 500, ["Error from API", text]


def main() -> None:
    import argparse
    import socket

    options = argparse.ArgumentParser(prog="cloud-hypervisor")
    options.add_argument("--version", action="version", version=f"cloud-hypervisor {VERSION}")
    options.add_argument("--api-socket")
    options.add_argument("--event-monitor")
    options.add_argument("--seccomp", choices=("true", "false", "log"))
    options.add_argument("--no-shutdown", action="store_true", required=True)
    arguments = options.parse_args()
    listener = socket.socket(fileno=int(arguments.api_socket.removeprefix("fd=")))
    listener.setblocking(True)
    vmm = Vmm(open(int(arguments.event_monitor.removeprefix("fd=")), "w", buffering=1))  # noqa: SIM115
    vmm.event("vmm", "starting")
    while True:
        connection, _ = listener.accept()
        with connection:
            verb, body = _receive(connection)
            if not verb:
                continue
            match FAULTS.get(verb):
                case "refuse":
                    status, document = _fault("no luck today")
                case "hang":
                    connection.recv(1)
                    continue
                case "die":
                    print("out of luck", file=sys.stderr)
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
                case _:
                    status, document = vmm.answer(verb, json.loads(body or "{}"))
            answer = b"" if document is None else json.dumps(document).encode()
            head = (
                f"HTTP/1.1 {status} \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n"
            )
            if answer:
                head += f"Content-Type: application/json\r\nContent-Length: {len(answer)}\r\n"
            connection.sendall(head.encode() + b"\r\n" + answer)
        if vmm.to_run:
            vmm.run_guest()


def _receive(connection: object) -> tuple[str, str]:
    """The verb and the body of one request."""
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
    return lines[0].split(" ")[1].removeprefix("/api/v1/"), body.decode()


if __name__ == "__main__":
    main()
