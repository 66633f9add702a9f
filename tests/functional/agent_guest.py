"""A guest with our agent, started by hand for test_agent.py: QEMU microvm, no shim, no containerd.

Blocking sockets and one thread, so that a test reads as what host and agent say to each other.
"""

import os
import select
import signal
import socket
import struct
import subprocess
import time
from pathlib import Path

from hypercore import aptroot, paths
from hypercore.guest import GuestAssets
from hypercore.proto import agent_pb
from hypercore.proto.types_pb import Status
from hypercore.wire.codec import (
    BYTES,
    INT,
    MESSAGE,
    OPTIONAL,
    STRING,
    Field,
    Message,
    decode_varint,
)

BOOT_DEADLINE_S = 90
CALL_DEADLINE_S = 60


class Request(Message):
    __slots__ = ("method", "payload", "service", "timeout_ns")
    FIELDS = (
        Field(1, "service", STRING),
        Field(2, "method", STRING),
        Field(3, "payload", BYTES),
        Field(4, "timeout_ns", INT),
    )


class Response(Message):
    __slots__ = ("payload", "status")
    FIELDS = (Field(1, "status", MESSAGE, OPTIONAL, Status), Field(2, "payload", BYTES))


class CallError(Exception):
    """The agent answered with a status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message


class Control:
    """ttrpc client on one socket; calls may overlap."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.next_id = 1
        self.replies: dict[int, bytes] = {}
        sock.settimeout(CALL_DEADLINE_S)

    def send(self, method: str, request: Message) -> int:
        body = Request(
            service=agent_pb.Agent.NAME, method=method, payload=request.encode()
        ).encode()
        stream_id, self.next_id = self.next_id, self.next_id + 2
        self.sock.sendall(struct.pack(">IIBB", len(body), stream_id, 1, 0) + body)
        return stream_id

    def receive(self, method: str, stream_id: int) -> Message:
        while stream_id not in self.replies:
            size, other, kind, _ = struct.unpack(">IIBB", self._exactly(10))
            body = self._exactly(size)
            assert kind == 2
            self.replies[other] = body
        response = Response.decode(self.replies.pop(stream_id))
        if response.status is not None and response.status.code:
            raise CallError(response.status.code, response.status.message)
        return agent_pb.Agent.METHODS[method][1].decode(response.payload)

    def call(self, method: str, request: Message) -> Message:
        return self.receive(method, self.send(method, request))

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.sock.recv(size - len(data))
            if not part:
                raise EOFError("the agent has closed the control connection")
            data += part
        return data


class Guest:
    """One VM; `control` is the connection that the agent dialled."""

    def __init__(
        self,
        directory: Path,
        assets: GuestAssets,
        disks: list[tuple[Path, str, bool]],
        *,
        memory_mib: int = 128,
        extra: tuple[str, ...] = (),
    ) -> None:
        self.directory = directory
        self.assets = assets
        self.disks = disks
        self.memory_mib = memory_mib
        self.extra = extra
        self.processes: list[subprocess.Popen[bytes]] = []
        self.vsock = directory / "v.sock"
        self.console = directory / "console.log"

    def __enter__(self) -> "Guest":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{self.vsock}_10788")
            listener.listen(1)
            try:
                self._start()
                self.control = Control(self._accept(listener))
            except BaseException:
                self.__exit__()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "control"):
            self.control.sock.close()
        for process in reversed(self.processes):
            process.kill()
            process.wait()

    def _start(self) -> None:
        backend = self.directory / "vhost.sock"
        device = f"guest-cid=3,socket={backend},uds-path={self.vsock}"
        self._spawn([str(vhost_device_vsock()), "--vm", device])
        deadline = time.monotonic() + 10
        while not backend.exists():
            assert self.processes[0].poll() is None, "vhost-device-vsock has ended"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        self.started = time.monotonic()
        self._spawn(self._qemu(backend))

    def _spawn(self, argv: list[str]) -> None:
        with (self.directory / "vmm.log").open("ab") as log:
            self.processes.append(
                subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            )

    def _qemu(self, backend: Path) -> list[str]:
        cmdline = (
            "console=ttyS0 quiet loglevel=1 reboot=t panic=-1 random.trust_cpu=on "
            f"tsc_early_khz={tsc_khz()}"
        )
        size = f"{self.memory_mib}M"
        argv = ["qemu-system-x86_64", "-M", "microvm,memory-backend=mem", "-accel", "tcg"]
        argv += ["-cpu", "max", "-smp", "1", "-m", str(self.memory_mib)]
        argv += ["-object", f"memory-backend-memfd,id=mem,size={size},share=on"]
        argv += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        argv += ["-kernel", str(self.assets.kernel_path), "-append", cmdline]
        argv += ["-initrd", str(self.assets.initrd_path), "-serial", f"file:{self.console}"]
        argv += ["-chardev", f"socket,id=vs,path={backend}"]
        argv += ["-device", "vhost-user-vsock-device,chardev=vs"]
        disks = [(self.assets.drive_path, "agent", True), *self.disks]
        for number, (path, serial, read_only) in enumerate(disks):
            flag = "on" if read_only else "off"
            argv += ["-drive", f"id=d{number},file={path},if=none,format=raw,readonly={flag}"]
            argv += ["-device", f"virtio-blk-device,drive=d{number},serial={serial}"]
        return [*argv, *self.extra]

    def _accept(self, listener: socket.socket) -> socket.socket:
        vmm = os.pidfd_open(self.processes[1].pid)
        try:
            ready, _, _ = select.select([listener, vmm], [], [], BOOT_DEADLINE_S)
        finally:
            os.close(vmm)
        if listener not in ready:
            raise AssertionError(f"no agent: {self.console_text()}")
        self.ready_s = time.monotonic() - self.started
        return listener.accept()[0]

    def console_text(self) -> str:
        log = (self.directory / "vmm.log").read_text(errors="replace")
        text = self.console.read_text(errors="replace") if self.console.exists() else ""
        return (log + text)[-2000:]

    def dial(self, port: int) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(CALL_DEADLINE_S)
        sock.connect(str(self.vsock))
        sock.sendall(b"CONNECT %d\n" % port)
        reply = b""
        while not reply.endswith(b"\n"):
            part = sock.recv(1)
            if not part:
                sock.close()
                raise EOFError(f"nobody listens on guest port {port}")
            reply += part
        assert reply.startswith(b"OK ")
        return sock

    def open_stream(self, token: bytes) -> socket.socket:
        sock = self.dial(10790)
        header = agent_pb.StreamHeader(version=1, token=token).encode()
        sock.sendall(struct.pack(">H", len(header)) + header)
        assert sock.recv(1) == b"+"
        return sock

    def wait_off(self) -> int:
        """Exit code of the VMM after the guest has turned itself off."""
        return self.processes[1].wait(CALL_DEADLINE_S)


def vhost_device_vsock() -> Path:
    tree = paths.data_dir() / "cache" / "vhost-device-vsock"
    aptroot.fetch(["vhost-device-vsock"], suite="forky", into=tree, progress=print)
    return tree / "usr" / "bin" / "vhost-device-vsock"


def tsc_khz() -> int:
    """The host's TSC rate, which TCG hands to its guest."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("cpu MHz"):
            return int(float(line.split(":")[1]) * 1000)
    raise AssertionError("no TSC rate in /proc/cpuinfo")


def read_bytes(sock: socket.socket, size: int) -> bytes:
    """What a stream delivers, up to `size` bytes."""
    parts = []
    while size > 0:
        part = sock.recv(min(size, 1 << 20))
        if not part:
            break
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


__all__ = ["CallError", "Control", "Guest", "decode_varint", "read_bytes", "signal"]
