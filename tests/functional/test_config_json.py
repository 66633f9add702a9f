"""What a client's config.json asks for, looked at from inside: one container for all of it.

It is made by `ctr run --config` of a bundle's document over a directory of the host, so it also
shows hooks, annotations, and a root without an image.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hypercore import cgroup
from hypercore.proto import task_pb
from hypercore.proto.types_pb import Any
from hypercore.shim import metrics
from tests.functional import images, shim_calls
from tests.functional.instance import BOOT_DEADLINE_S, Instance

pytestmark = pytest.mark.timeout(4 * BOOT_DEADLINE_S)

NAME = "allofit"
NAMESPACE = "confignamespace"
HOST_HOOKS = ("prestart", "createRuntime", "poststart", "poststop")


def document(root: Path, notes: Path) -> dict[str, object]:
    def hook(kind: str) -> dict[str, object]:
        return {"path": "/bin/sh", "args": ["sh", "-c", f"cat >{notes}/{kind}"]}

    def mount(where: str, kind: str, *options: str) -> dict[str, object]:
        return {"destination": where, "type": kind, "source": kind, "options": list(options)}

    deny = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 122}
    inside = {"path": "/bin/sh", "args": ["sh", "-c", "cat >/tmp/hook"]}
    caps = ["CAP_NET_BIND_SERVICE"]
    names = ("bounding", "effective", "permitted", "inheritable", "ambient")
    return {
        "ociVersion": "1.1.0",
        "process": {
            "args": ["/bin/sleep", "100000"],
            "cwd": "/tmp",
            "env": ["PATH=/bin", "GREETING=hello"],
            "user": {"uid": 1234, "gid": 1235, "additionalGids": [77], "umask": 0o027},
            "capabilities": dict.fromkeys(names, caps),
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 123, "hard": 456}],
            "noNewPrivileges": True,
            "oomScoreAdj": 500,
        },
        "root": {"path": str(root), "readonly": True},
        "hostname": "a-name-of-its-own",
        "mounts": [
            mount("/proc", "proc"),
            mount("/dev", "tmpfs", "nosuid", "mode=755"),
            mount("/dev/mqueue", "mqueue", "nosuid", "noexec", "nodev"),
            mount("/sys", "sysfs", "nosuid", "noexec", "nodev", "ro"),
            mount("/sys/fs/cgroup", "cgroup", "nosuid", "noexec", "nodev", "ro"),
            mount("/tmp", "tmpfs", "mode=1777", "size=1m"),
        ],
        "hooks": {**{kind: [hook(kind)] for kind in HOST_HOOKS}, "startContainer": [inside]},
        "annotations": {
            "io.hypercore.provider": "qemu",
            "io.hypercore.cores": "2",
            "io.hypercore.memory": "160",
            "org.example.note": "kept",
        },
        "linux": {
            "cgroupsPath": f"/{NAMESPACE}/{NAME}",
            "namespaces": [{"type": t} for t in ("pid", "ipc", "uts", "mount", "network")],
            "resources": {
                "memory": {"limit": 64 << 20},
                "pids": {"limit": 50},
                "cpu": {"shares": 512, "quota": 50000, "period": 100000},
                "devices": [
                    {"allow": False, "access": "rwm"},
                    {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "rw"},
                ],
            },
            "devices": [
                {"path": "/dev/nothing", "type": "c", "major": 1, "minor": 5, "fileMode": 0o666},
                {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o666},
            ],
            "sysctl": {
                "kernel.shm_rmid_forced": "1",
                "kernel.msgmax": "4242",
                "net.ipv4.ip_unprivileged_port_start": "81",
            },
            "maskedPaths": ["/proc/kcore", "/proc/acpi", "/bin/hidden"],
            "readonlyPaths": ["/proc/sys"],
            "seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [deny]},
        },
    }


@dataclass(frozen=True, slots=True, eq=False)
class Box:
    made: Instance
    program: Path
    notes: Path

    def ctr(self, *args: str) -> subprocess.CompletedProcess[str]:
        socket = str(self.made.run_dir / "containerd.sock")
        argv = [str(self.program), "-a", socket, "-n", NAMESPACE, *args]
        return subprocess.run(
            argv,
            capture_output=True,
            text=True,
            timeout=BOOT_DEADLINE_S,
            stdin=subprocess.DEVNULL,
        )

    def sh(self, script: str) -> str:
        name = f"e{os.urandom(4).hex()}"
        done = self.ctr("task", "exec", "--exec-id", name, NAME, "sh", "-c", script)
        return done.stdout + done.stderr

    @property
    def shim(self) -> shim_calls.Shim:
        return shim_calls.shim_of(self.made, NAME)


@pytest.fixture(scope="module")
def box(hypercore: Instance, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    root, notes = (tmp_path_factory.mktemp(name) for name in ("root", "notes"))
    for name in ("bin", "proc", "dev", "sys", "tmp", "etc"):
        (root / name).mkdir()
    shutil.copy(images.BUSYBOX, root / "bin" / "busybox")
    for name in (
        "sh",
        "cat",
        "id",
        "stat",
        "sleep",
        "mkdir",
        "hostname",
        "nc",
        "dd",
        "ls",
        "nproc",
    ):
        (root / "bin" / name).symlink_to("busybox")
    (root / "bin" / "hidden").write_text("nobody sees this\n")
    config = notes / "config.json"
    config.write_text(json.dumps(document(root, notes)))
    programs = sorted((hypercore.data_dir / "tools").rglob("bin/ctr"))
    assert programs, "run `hypercore setup` first"
    made = Box(hypercore, programs[0], notes)
    done = made.ctr(
        "run", "-d", "--runtime", "io.containerd.hypercore.v1", "--config", str(config), NAME
    )
    assert done.returncode == 0, done
    try:
        yield made
    finally:
        made.ctr("task", "kill", "-s", "KILL", NAME)
        made.ctr("task", "rm", "-f", NAME)
        assert json.loads((notes / "poststop").read_text())["status"] == "stopped"
        assert made.ctr("containers", "rm", NAME).returncode == 0
        for tree in cgroup.hierarchies(Path("/proc/self/mountinfo").read_text()):
            assert not (tree.root / NAMESPACE).exists()


def test_process(box: Box) -> None:
    said = box.sh(
        "id -u; id -g; id -G; pwd; echo $GREETING; ulimit -n; ulimit -Hn; umask;"
        " cat /proc/self/status"
    ).split("\n", 8)
    assert said[:2] == ["1234", "1235"]
    assert set(said[2].split()) >= {"1235", "77"}
    assert said[3:8] == ["/tmp", "hello", "123", "456", "0027"]
    status = dict(re.findall(r"^(\w+):\s*(.*)$", said[8], re.MULTILINE))
    bind_service = f"{1 << 10:016x}"
    for name in ("CapBnd", "CapEff", "CapPrm", "CapInh", "CapAmb"):
        assert status[name] == bind_service
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"


def test_names_and_namespaces(box: Box) -> None:
    assert box.sh("hostname; cat /proc/1/cmdline | tr '\\0' ' '").startswith("a-name-of-its-own\n")
    assert "100000" in box.sh("cat /proc/1/cmdline")


def test_the_root_is_read_only(box: Box) -> None:
    assert "Read-only file system" in box.sh("echo x >/etc/file")
    assert box.sh("echo x >/tmp/file; cat /tmp/file") == "x\n"


def test_masked_and_read_only_paths(box: Box) -> None:
    assert box.sh("cat /proc/kcore /bin/hidden | wc -c").strip() == "0"
    assert "Read-only file system" in box.sh("echo 1 >/proc/sys/kernel/msgmax")


def test_sysctls(box: Box) -> None:
    names = "kernel/shm_rmid_forced kernel/msgmax net/ipv4/ip_unprivileged_port_start"
    assert box.sh(f"cd /proc/sys; cat {names}").split() == ["1", "4242", "81"]


def test_seccomp(box: Box) -> None:
    assert "quota exceeded" in box.sh("mkdir /tmp/x").lower()


def test_devices(box: Box) -> None:
    assert box.sh("stat -c '%t:%T %a' /dev/nothing /dev/fuse").split("\n")[:2] == [
        "1:5 666",
        "a:e5 666",
    ]
    assert box.sh("dd if=/dev/nothing bs=4 count=1 2>/dev/null | wc -c").strip() == "4"
    assert "not permitted" in box.sh("cat </dev/fuse")


def test_resources_and_their_update(box: Box) -> None:
    files = "memory.max pids.max cpu.max cpu.weight"
    first = box.sh(f"cd /sys/fs/cgroup; cat {files}").split()
    assert first[:4] == [str(64 << 20), "50", "50000", "100000"]
    assert 1 < int(first[4]) < 100
    resources = {"memory": {"limit": 48 << 20}, "pids": {"limit": 40}}
    request = task_pb.UpdateTaskRequest(
        id=NAME,
        resources=Any(
            type_url="types.containerd.io/opencontainers/runtime-spec/1/LinuxResources",
            value=json.dumps(resources).encode(),
        ),
    )
    box.shim.call("Update", request)
    assert box.sh(f"cd /sys/fs/cgroup; cat {files}").split()[:2] == [str(48 << 20), "40"]


def test_annotations_choose_the_machine(box: Box) -> None:
    cores, _, memory = box.sh("nproc; cat /proc/meminfo").partition("\n")
    assert cores == "2"
    total_mib = int(re.search(r"MemTotal:\s+(\d+)", memory)[1]) >> 10
    assert 96 < total_mib < 160


def test_statistics_as_this_hosts_clients_expect_them(box: Box) -> None:
    request = task_pb.StatsRequest(id=NAME)
    answer = box.shim.call("Stats", request)
    assert answer.stats.type_url == f"io.containerd.cgroups.v{metrics.host_version()}.Metrics"
    said = box.ctr("task", "metrics", NAME).stdout
    found = dict(re.findall(r"^(\S+)\s+(\d+)\s*$", said, re.MULTILINE))
    version_2 = metrics.host_version() == 2
    assert int(found["memory.usage" if version_2 else "memory.usage_in_bytes"]) > 0
    assert int(found["cpu.usage_usec" if version_2 else "cpuacct.usage"]) > 0
    assert int(found["pids.current"]) >= 1


def test_a_checkpoint_is_refused_clearly(box: Box) -> None:
    done = box.ctr("task", "checkpoint", NAME)
    assert done.returncode != 0
    assert "checkpoint" in done.stderr


def test_the_vmm_is_in_the_cgroup_that_was_named(box: Box) -> None:
    pid = json.loads((box.notes / "poststart").read_text())["pid"]
    trees = cgroup.hierarchies(Path("/proc/self/mountinfo").read_text())
    assert trees
    wanted = f"{NAMESPACE}/{NAME}"
    for tree in trees:
        assert str(pid) in (tree.root / wanted / "cgroup.procs").read_text().split()


def test_hooks_ran_where_they_belong(box: Box) -> None:
    states = {
        kind: json.loads((box.notes / kind).read_text())
        for kind in ("prestart", "createRuntime", "poststart")
    }
    assert [states[kind]["status"] for kind in states] == ["creating", "creating", "running"]
    for state in states.values():
        assert state["id"] == NAME
        assert state["annotations"]["org.example.note"] == "kept"
        os.kill(state["pid"], 0)  # the VMM's
    assert not (box.notes / "poststop").exists()
    assert json.loads(box.sh("cat /tmp/hook"))["id"] == NAME
