"""The launcher and the shim server as containerd starts them, without a guest."""

import asyncio
import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest

from hypercore.errors import HypercoreError, InvalidArgument, NotFound
from hypercore.proto import stdio_pb, task_pb
from hypercore.proto.bootstrap_pb import BootstrapParams, BootstrapResult, RuntimeInfo
from hypercore.proto.types_pb import Any, Mount
from hypercore.shim import records
from hypercore.wire.ttrpc import Client

BIN = Path(__file__).resolve().parents[2] / "bin"
SHIM = BIN / "containerd-shim-hypercore-v1"
NAMESPACE = "test"
V2, V3 = "containerd.task.v2.Task", "containerd.task.v3.Task"
CONFIG = {"ociVersion": "1.0.2", "process": {"args": ["true"]}, "root": {"path": "rootfs"}}


class Shim:
    """A private run directory, bundles in it, and the servers that were started for it."""

    def __init__(self, directory, env):
        self.directory = directory
        self.run_dir = directory / "r"
        self.env = {
            "PATH": os.environ["PATH"],
            "HYPERCORE_RUN_DIR": str(self.run_dir),
            "HYPERCORE_DATA_DIR": str(directory / "d"),
            "HYPERCORE_SLOTS_DIR": str(directory / "s"),
            "HYPERCORE_CONFIG": str(directory / "config.toml"),
            **env,
        }
        self.pidfds = {}

    def bundle(self, task_id, config=CONFIG):
        bundle = self.directory / "b" / task_id
        (bundle / "rootfs").mkdir(parents=True, exist_ok=True)
        if config is not None:
            (bundle / "config.json").write_text(json.dumps(config))
        if not (bundle / "log").exists():
            os.mkfifo(bundle / "log", 0o700)
        return bundle

    def invoke(self, action, task_id, stdin=b"", binary=SHIM, **extra):
        """Run the binary as containerd does: both outputs in one pipe, read to the end."""
        argv = [binary, "-namespace", NAMESPACE, "-address", "/run/x/containerd.sock"]
        argv += ["-publish-binary", "/usr/bin/containerd", "-id", task_id, action]
        done = subprocess.run(
            argv,
            cwd=self.bundle(task_id),
            env={**self.env, **extra},
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=30,
            check=False,
        )
        return done.returncode, done.stdout

    def start(self, task_id, **extra):
        """Start, and return the socket's path."""
        code, out = self.invoke("start", task_id, **extra)
        assert code == 0, out
        answer = json.loads(out)
        assert (answer["version"], answer["protocol"]) == (2, "ttrpc")
        assert (self.bundle(task_id) / "address").read_bytes() == out
        path = answer["address"].removeprefix("unix://")
        self.watch(path)
        return path

    def watch(self, path):
        """Remember the server behind `path`, to end it; returns its pid."""
        pid = asyncio.run(self.ask(path, "Connect", task_pb.ConnectRequest(id="x"))).shim_pid
        if pid not in self.pidfds:
            self.pidfds[pid] = os.pidfd_open(pid)
        return pid

    async def ask(self, path, method, request, service=V2):
        client = await Client.connect(path)
        try:
            reply = task_pb.Task.METHODS[method][1]
            return await client.request(service, method, request, reply, timeout_s=20)
        finally:
            client.close()
            await client.closed

    def call(self, path, method, request, service=V2):
        return asyncio.run(self.ask(path, method, request, service))

    def kill(self, pid, number):
        pidfd = self.pidfds.pop(pid)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, number)
        ended, _, _ = select.select([pidfd], [], [], 10)
        os.close(pidfd)
        assert ended, f"server {pid} does not end"


@pytest.fixture
def make_shim(root):
    assert SHIM.exists(), "run `make build` first"
    with contextlib.ExitStack() as stack:

        def make(**env):
            directory = Path(tempfile.mkdtemp(prefix="hct", dir="/run"))
            stack.callback(shutil.rmtree, directory)
            shim = Shim(directory, env)
            stack.callback(lambda: [shim.kill(p, signal.SIGKILL) for p in list(shim.pidfds)])
            return shim

        yield make


@pytest.fixture
def shim(make_shim):
    return make_shim()


def test_start_serves_both_versions(shim):
    path = shim.start("a")
    for service in (V2, V3):
        reply = shim.call(path, "Connect", task_pb.ConnectRequest(id="a"), service)
        assert reply.shim_pid in shim.pidfds


def test_second_start_finds_the_server(shim):
    assert shim.start("a") == shim.start("b")
    assert len(shim.pidfds) == 1


def test_bootstrap_message_is_answered_in_kind(shim):
    params = BootstrapParams(instance_id="a", namespace=NAMESPACE, containerd_version="2.4.2")
    code, out = shim.invoke("start", "a", stdin=params.encode())
    assert code == 0
    result = BootstrapResult.decode(out)
    assert (result.version, result.protocol) == (3, "ttrpc")
    shim.watch(result.address.removeprefix("unix://"))


@pytest.mark.parametrize(
    "stdin",
    [
        Any(type_url="runtime.options", value=b"x").encode(),
        BootstrapParams(instance_id="b", namespace=NAMESPACE).encode(),
        b"\xff\xff\xff",
    ],
    ids=["options", "of another container", "garbage"],
)
def test_other_input_is_not_taken_for_a_bootstrap_message(shim, stdin):
    shim.start("a", stdin=stdin)


def test_parallel_starts_make_one_server(shim):
    paths = []
    threads = [
        threading.Thread(target=lambda n=n: paths.append(shim.start(f"c{n}"))) for n in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 12
    assert len(set(paths)) == 1
    assert len(shim.pidfds) == 1


def test_sharding(make_shim):
    shim = make_shim(HYPERCORE_VMS_PER_SERVER="2")
    paths = [shim.start(name) for name in ("a", "b", "c", "a")]
    assert paths[0] == paths[1] == paths[3] != paths[2]
    assert len(shim.pidfds) == 2


def test_a_server_for_each(make_shim):
    shim = make_shim(HYPERCORE_VMS_PER_SERVER="1")
    paths = [shim.start(name) for name in ("a", "b", "c")]
    assert len(set(paths)) == len(shim.pidfds) == 3
    shim.kill(shim.watch(paths[1]), signal.SIGKILL)
    for name, path in zip(("a", "c"), (paths[0], paths[2]), strict=True):
        assert shim.call(path, "Connect", task_pb.ConnectRequest(id=name)).shim_pid in shim.pidfds
    assert shim.start("d") == paths[1]


def test_an_upgrade_starts_a_server_beside_the_old(shim):
    old = shim.start("a")
    upgraded = shim.directory / "upgraded"
    upgraded.mkdir()
    newer = upgraded / SHIM.name
    shutil.copy(SHIM, newer)
    (upgraded / f"{SHIM.name}.python").write_text(f"{BIN.parent / '.venv/bin/python'}\n")
    code, out = shim.invoke("start", "b", binary=newer)
    assert code == 0, out
    new = json.loads(out)["address"].removeprefix("unix://")
    assert new != old
    assert shim.watch(new) != shim.watch(old)
    assert shim.start("c") == old


def test_a_killed_server_is_replaced(shim):
    path = shim.start("a")
    (pid,) = shim.pidfds
    shim.kill(pid, signal.SIGKILL)
    assert shim.start("b") == path
    assert pid not in shim.pidfds


def create(task_id, shim, **values):
    bundle = str(shim.bundle(task_id))
    return task_pb.CreateTaskRequest(id=task_id, bundle=bundle, **values)


def test_idle_server_ends_and_comes_back(make_shim):
    shim = make_shim(HYPERCORE_SHIM_IDLE_S="0.1")
    path = shim.start("a")
    (pid,) = shim.pidfds
    with pytest.raises(InvalidArgument):
        shim.call(path, "Create", create("a", shim))
    ended, _, _ = select.select([shim.pidfds[pid]], [], [], 10)
    assert ended
    assert not os.path.exists(path)
    shim.kill(pid, 0)
    assert shim.start("a") == path


def test_sigterm_ends_a_server_without_tasks(make_shim):
    shim = make_shim()
    path = shim.start("a")
    with pytest.raises(InvalidArgument):
        shim.call(path, "Create", create("a", shim))
    (pid,) = shim.pidfds
    shim.kill(pid, signal.SIGTERM)
    assert not os.path.exists(path)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({}, "no rootfs mount"),
        ({"rootfs": [Mount(type="fuse3.x", source="/x")]}, "fuse3.x /x"),
        ({"rootfs": [Mount(type="ext4", source="/x", options=["bind"])]}, "bind"),
        ({"rootfs": [Mount(type="ext4", source="x", options=["ro"])]}, "no absolute path"),
    ],
)
def test_create_refuses_other_roots_by_name(shim, values, problem):
    path = shim.start("a")
    with pytest.raises(InvalidArgument, match=problem):
        shim.call(path, "Create", create("a", shim, **values))
    assert not (shim.directory / "d" / "vm").exists() or not os.listdir(shim.directory / "d/vm")
    with pytest.raises(NotFound, match="task a does not exist"):
        shim.call(path, "State", task_pb.StateRequest(id="a"))


def test_create_refuses_to_forward_what_is_no_socket(shim):
    path = shim.start("a")
    mount = {"destination": "/data", "type": "uds", "source": "/etc/hostname"}
    shim.bundle("a", {**CONFIG, "mounts": [mount]})
    request = task_pb.CreateTaskRequest(id="a", bundle=str(shim.directory / "b" / "a"))
    with pytest.raises(InvalidArgument, match="/etc/hostname on /data: it is no socket"):
        shim.call(path, "Create", request)


def test_create_refuses_a_path_as_id(shim):
    path = shim.start("a")
    with pytest.raises(InvalidArgument, match="no valid identifier"):
        shim.call(path, "Create", task_pb.CreateTaskRequest(id="../x", bundle="/x"))


def test_checkpoint_is_refused_clearly(shim):
    path = shim.start("a")
    with pytest.raises(HypercoreError, match="checkpoint"):
        shim.call(path, "Create", create("a", shim, checkpoint="/x"))


def test_delete_is_idempotent_and_says_137(shim):
    for _ in range(2):
        code, out = shim.invoke("delete", "a")
        assert code == 0
        response = task_pb.DeleteResponse.decode(out)
        assert response.exit_status == 137
        assert response.exited_at.seconds > 1_700_000_000


def test_delete_repeats_what_a_server_noted_at_its_end(shim):
    noted = task_pb.DeleteResponse(pid=5, exit_status=3)
    records.write_deleted(shim.bundle("a"), noted)
    assert shim.invoke("delete", "a") == (0, noted.encode())
    argv = [SHIM, "-namespace", NAMESPACE, "-id", "a", "-bundle", shim.bundle("a"), "delete"]
    assert subprocess.run(argv, capture_output=True, check=True).stdout == noted.encode()


def test_delete_removes_what_a_stranger_left(shim):
    from hypercore.paths import microvm_id

    data = shim.directory / "d" / "vm" / microvm_id(NAMESPACE, "a")
    data.mkdir(parents=True)
    record = {"exit_status": 7, "exited_unix_ns": 1_700_000_000_000_000_000}
    (data / "exit.json").write_text(json.dumps(record))
    _, out = shim.invoke("delete", "a")
    assert task_pb.DeleteResponse.decode(out).exit_status == 7
    assert not data.exists()


def test_delete_keeps_what_the_engine_owns(shim):
    from hypercore.paths import microvm_id

    data = shim.directory / "d" / "vm" / microvm_id(NAMESPACE, "a")
    data.mkdir(parents=True)
    bundle = shim.bundle("a")
    owned = {**CONFIG, "annotations": {"io.hypercore.owner": "engine"}}
    (bundle / "config.json").write_text(json.dumps(owned))
    argv = [SHIM, "-namespace", NAMESPACE, "-id", "a", "-bundle", str(bundle), "delete"]
    subprocess.run(argv, env=shim.env, check=True, stdout=subprocess.DEVNULL)
    assert data.exists()


def test_delete_imports_no_event_loop(shim):
    script = BIN.parent / "hypercore" / "shim" / "delete.py"
    argv = [BIN.parent / ".venv/bin/python", "-X", "importtime", "-I", "-S", "-E", script]
    argv += ["-namespace", NAMESPACE, "-id", "a", "delete"]
    done = subprocess.run(argv, env=shim.env, capture_output=True, check=True)
    assert not re.search(rb"asyncio|uvloop|logging|subprocess", done.stderr)


def test_info_and_version(shim):
    info = subprocess.run(
        [SHIM, "-info"], input=b"", env=shim.env, capture_output=True, check=True
    )
    decoded = RuntimeInfo.decode(info.stdout)
    assert decoded.name == "io.containerd.hypercore.v1"
    assert json.loads(decoded.features.value)["linux"]["cgroup"]["v2"] is True
    assert "erofs" in decoded.annotations["containerd.io/runtime-allow-mounts"]
    version = subprocess.run([SHIM, "-v"], env=shim.env, capture_output=True, check=True)
    assert f"Version:  {decoded.version.version}".encode() in version.stdout


def test_stdio_socket_refuses_clearly(shim):
    path = shim.start("a").replace(".sock", ".io")

    def answer(packet):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.settimeout(5)
            sock.connect(path)
            sock.send(packet)
            reply = stdio_pb.StdioReply.decode(sock.recv(65536))
            assert sock.recv(1) == b""
            return reply.error

    attach = stdio_pb.Attach(namespace=NAMESPACE, task_id="a")
    assert answer(stdio_pb.StdioRequest(attach=attach).encode()).code == 5
    attach = stdio_pb.Attach(namespace="other", task_id="a")
    assert (
        "this server is for 'test'"
        in answer(stdio_pb.StdioRequest(attach=attach).encode()).message
    )
    attach = stdio_pb.Attach(namespace=NAMESPACE, task_id="a", stdout=True)
    assert "0 fds" in answer(stdio_pb.StdioRequest(attach=attach).encode()).message
    assert "malformed" in answer(b"\xff").message
    assert "Attach" in answer(stdio_pb.StdioRequest(resize=stdio_pb.Resize()).encode()).message

    read_fd, write_fd = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(path)
        socket.send_fds(sock, [b"\xff"], [write_fd])
        os.close(write_fd)
        assert "malformed" in stdio_pb.StdioReply.decode(sock.recv(65536)).error.message
    assert select.select([read_fd], [], [], 10)[0], "the server keeps a fd it refused"
    os.close(read_fd)


def test_launcher_runs_the_cli_under_its_other_name(shim):
    done = subprocess.run(
        [BIN / "hypercore", "version"], env=shim.env, capture_output=True, text=True, check=True
    )
    assert done.stdout
