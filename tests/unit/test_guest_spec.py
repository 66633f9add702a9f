"""config.json of the host → config.json for the guest."""

import json
from pathlib import Path

import pytest

from hypercore.errors import InvalidArgument, NotFound
from hypercore.shim import guest_spec
from hypercore.shim.binds import HostBind
from hypercore.shim.hooks import Hook

CONFIG = {
    "ociVersion": "1.2.0",
    "process": {
        "args": ["sh"],
        "cwd": "/",
        "user": {"uid": 7},
        "apparmorProfile": "docker-default",
        "selinuxLabel": "x",
        "oomScoreAdj": 500,
    },
    "root": {"path": "/run/bundle/rootfs", "readonly": True},
    "hostname": "box",
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro", "rro"]},
    ],
    "linux": {
        "cgroupsPath": "system.slice:cri:abc",
        "namespaces": [
            {"type": "pid"},
            {"type": "ipc", "path": "/proc/1/ns/ipc"},
            {"type": "mount"},
            {"type": "network", "path": "/var/run/netns/x"},
        ],
        "mountLabel": "x",
        "intelRdt": {},
        "maskedPaths": ["/proc/kcore"],
        "resources": {"memory": {"limit": 1 << 20}},
    },
}


def translated(**changes):
    return guest_spec.translate({**CONFIG, **changes}, "abc").config


def test_what_belongs_to_the_host_is_left_out():
    config = translated()
    assert config["ociVersion"] == "1.0.2"
    assert config["root"] == {"path": "rootfs", "readonly": True}
    assert config["process"] == {"args": ["sh"], "cwd": "/", "user": {"uid": 7}}
    assert config["hostname"] == "box"
    linux = config["linux"]
    assert linux["cgroupsPath"] == "/hc/abc"
    assert linux["namespaces"] == [{"type": "pid"}, {"type": "mount"}, {"type": "cgroup"}]
    assert linux["maskedPaths"] == ["/proc/kcore"]
    assert linux["resources"] == {"memory": {"limit": 1 << 20}}
    assert not {"mountLabel", "intelRdt"} & linux.keys()
    assert config["mounts"][1]["options"] == ["ro"]


@pytest.mark.parametrize(
    ("limit", "memory_mib"),
    [
        *((None, 128), (0, 128), (-1, 128), (1 << 62, 128), ("lots", 128)),
        *((1 << 20, 128), (128 << 20, 192), ((200 << 20) + 1, 265)),
    ],
)
def test_a_memory_limit_fits_into_the_microvm(limit, memory_mib):
    config = {"linux": {"resources": {"memory": {"limit": limit}}}}
    assert guest_spec.memory_mib(config, 128) == memory_mib


def test_the_host_document_is_not_changed():
    before = json.dumps(CONFIG)
    translated()
    assert json.dumps(CONFIG) == before


def test_three_files_of_the_host_are_injected(tmp_path):
    source = tmp_path / "r"
    source.write_bytes(b"nameserver 192.0.2.1\n")
    bind = {"destination": "/etc/resolv.conf", "type": "bind", "source": str(source)}
    spec = guest_spec.translate({**CONFIG, "mounts": [bind]}, "abc")
    assert spec.config["mounts"] == []
    assert spec.binds == ()
    assert [(f.path, f.content) for f in spec.files] == [
        ("/etc/resolv.conf", b"nameserver 192.0.2.1\n")
    ]
    assert guest_spec.network_files(spec, ["192.0.2.9"], [])[0].content.endswith(b".1\n")
    with pytest.raises(NotFound, match="/nonexistent"):
        translated(mounts=[{**bind, "source": "/nonexistent"}])


def test_other_binds_come_from_a_disk_and_are_read_only():
    given = [
        {"destination": "/data/", "type": "none", "source": "/srv", "options": ["rbind", "rw"]},
        {"destination": "/x", "type": "bind", "source": "/f", "options": ["rshared", "nosuid"]},
    ]
    spec = guest_spec.translate({**CONFIG, "mounts": given}, "abc")
    assert spec.binds == (
        HostBind("0", Path("/srv"), "/data"),
        HostBind("1", Path("/f"), "/x"),
    )
    first, second = spec.config["mounts"]
    assert first["source"] == "/run/hc/abc/binds/0"
    assert (first["type"], first["options"]) == ("bind", ["bind", "ro"])
    assert second["source"] == "/run/hc/abc/binds/1"
    assert second["options"] == ["nosuid", "bind", "ro"]
    with pytest.raises(InvalidArgument, match="'srv' on /data: relative path"):
        translated(mounts=[{**given[0], "source": "srv"}])


def test_network_files():
    spec = guest_spec.translate(CONFIG, "abc")
    assert guest_spec.network_files(spec, [], []) == ()
    resolv, hosts = guest_spec.network_files(spec, ["192.0.2.1", "192.0.2.2"], ["example.org"])
    assert resolv.content == b"nameserver 192.0.2.1\nnameserver 192.0.2.2\nsearch example.org\n"
    assert b"127.0.1.1\tbox\n" in hosts.content


def test_sysctls_of_the_network_are_the_guests():
    found = translated(linux={**CONFIG["linux"], "sysctl": {"net.ipv4.ip_forward": "1"}})
    assert found["linux"]["namespaces"][-1] == {"type": "network", "path": "/proc/1/ns/net"}
    plain = translated(linux={**CONFIG["linux"], "sysctl": {"kernel.msgmax": "1"}})
    assert "network" not in [n["type"] for n in plain["linux"]["namespaces"]]


def test_hooks_run_where_they_belong():
    given = {"path": "/bin/x", "args": ["x", "y"], "env": ["A=b=c"], "timeout": 3}
    kinds = ("poststop", "prestart", "startContainer", "createRuntime")
    hooked = {**CONFIG, "hooks": {kind: [given] for kind in kinds}}
    spec = guest_spec.translate(hooked, "abc")
    assert spec.config["hooks"] == {"startContainer": [given]}
    assert [hook.kind for hook in spec.hooks] == ["prestart", "createRuntime", "poststop"]
    assert spec.hooks[0] == Hook("prestart", "/bin/x", ("x", "y"), ("A=b=c",), 3.0)


@pytest.mark.parametrize(
    ("name", "hook", "complaint"),
    [
        ("createContainer", {"path": "/bin/true"}, r"hooks.createContainer .* not supported"),
        ("prestart", {"path": "true"}, r"hooks.prestart\[0\]: path 'true'"),
        ("poststop", {"path": "/x", "timeout": 0}, r"hooks.poststop\[0\]: timeout 0"),
        ("poststart", {"path": "/x", "args": [1]}, r"hooks.poststart\[0\]: args and env"),
    ],
)
def test_hooks_that_are_refused(name, hook, complaint):
    with pytest.raises(InvalidArgument, match=complaint):
        translated(hooks={name: [hook]})


def test_windows_is_refused():
    with pytest.raises(InvalidArgument, match="windows"):
        translated(windows={})


def rules(seccomp):
    return guest_spec.deny_vsock(seccomp)["syscalls"]


def test_vsock_is_denied_without_a_profile():
    io_uring, deny, socketcall = rules(None)
    assert io_uring["names"] == ["io_uring_enter", "io_uring_register", "io_uring_setup"]
    assert io_uring["action"] == "SCMP_ACT_ERRNO"
    assert "args" not in io_uring
    assert deny["names"] == ["socket"]
    assert deny["args"] == [{"index": 0, "value": 40, "op": "SCMP_CMP_EQ"}]
    assert socketcall["names"] == ["socketcall"]


def test_vsock_is_denied_by_a_profile_that_allows_socket():
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": ["read", "socket"], "action": "SCMP_ACT_ALLOW"}],
    }
    assert rules(profile) == [
        {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
        {
            "names": ["socket"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_NE"}],
        },
    ]


def test_io_uring_is_taken_from_a_profile_that_allows_it():
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [
            {"names": ["io_uring_setup", "read", "io_uring_enter"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["io_uring_register"], "action": "SCMP_ACT_LOG"},
            {"names": ["io_uring_setup"], "action": "SCMP_ACT_KILL"},
        ],
    }
    assert rules(profile) == [
        {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["io_uring_setup"], "action": "SCMP_ACT_KILL"},
    ]


def test_a_profile_that_tells_families_apart_is_kept():
    socket = {
        "names": ["socket"],
        "action": "SCMP_ACT_ALLOW",
        "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}],
    }
    assert rules({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [socket]}) == [socket]


def test_only_harmless_devices_are_kept():
    linux = {
        **CONFIG["linux"],
        "devices": [
            {"path": "/dev/null", "type": "c", "major": 1, "minor": 3},
            {"path": "/dev/sda", "type": "b", "major": 8, "minor": 0},
        ],
    }
    assert [d["path"] for d in translated(linux=linux)["linux"]["devices"]] == ["/dev/null"]


@pytest.mark.parametrize(
    ("text", "problem"), [("{", "no JSON document"), ("[]", "no JSON object")]
)
def test_bad_config_json(tmp_path, text, problem):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InvalidArgument, match=problem):
        guest_spec.load(tmp_path)


def test_missing_config_json(tmp_path):
    with pytest.raises(InvalidArgument, match="does not exist"):
        guest_spec.load(tmp_path)
