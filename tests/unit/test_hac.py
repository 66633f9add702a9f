"""hac.toml: what is read, and what each mistake is told."""

import os
from pathlib import Path

import pytest

from hypercore import hac
from hypercore.errors import InvalidArgument, NotFound
from hypercore.spec import DiskLimits, HardwareSpec, NetworkSpec, SpawnSpec, WorkloadSpec

FIRST_HYPERCORE = """
[spacecore]
name = "Test Node"
description = "Testing"
[hardware]
cores = 4
memory = 4096
kernel = "/home/dev/images/vmlinux"
drive = "/home/dev/images/agent.erofs"
ref = "docker.io/library/alpine:latest"
interface = "ens2"
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "hac.toml"
    path.write_text(text)
    return path


def test_the_first_hypercores_file_keeps_its_meaning(tmp_path: Path) -> None:
    spec = hac.parse(write(tmp_path, FIRST_HYPERCORE), check_host=False)
    assert spec == SpawnSpec(
        ref="docker.io/library/alpine:latest",
        name="Test Node",
        description="Testing",
        hardware=HardwareSpec(
            cores=4,
            memory_mib=4096,
            kernel_path=Path("/home/dev/images/vmlinux"),
            drive_path=Path("/home/dev/images/agent.erofs"),
        ),
        network=NetworkSpec(mode="nat", interface="ens2"),
    )


def test_all_our_tables(tmp_path: Path) -> None:
    text = """
    [hardware]
    ref = "busybox"
    kernel = "images/vmlinux"
    [vm]
    provider = "qemu"
    cmdline = "debug"
    initrd = "/i"
    disk_mib_per_s = 50
    disk_ops_per_s = 1000
    [network]
    mode = "nat"
    dns = ["1.1.1.1", "2606:4700:4700::1111"]
    mtu = 1400
    [workload]
    command = ["sh"]
    args = ["-c", "id"]
    env = ["A=b=c", "EMPTY="]
    workdir = "/srv"
    user = "1000:1000"
    tty = true
    """
    spec = hac.parse(write(tmp_path, text), check_host=False)
    assert spec == SpawnSpec(
        ref="busybox",
        provider="qemu",
        cmdline="debug",
        hardware=HardwareSpec(
            kernel_path=tmp_path / "images/vmlinux",
            initrd_path=Path("/i"),
            disk_limits=DiskLimits(50, 1000),
        ),
        network=NetworkSpec(mode="nat", dns=("1.1.1.1", "2606:4700:4700::1111"), mtu=1400),
        workload=WorkloadSpec(
            command=("sh",),
            args=("-c", "id"),
            env=("A=b=c", "EMPTY="),
            workdir="/srv",
            user="1000:1000",
            tty=True,
        ),
    )


def test_defaults(tmp_path: Path) -> None:
    spec = hac.parse(write(tmp_path, '[hardware]\nref = "busybox"\n'))
    assert spec == SpawnSpec(ref="busybox")
    assert (spec.hardware.cores, spec.hardware.memory_mib) == (1, 128)


def test_a_ref_from_the_command_line_wins(tmp_path: Path) -> None:
    path = write(tmp_path, '[hardware]\nref = "busybox"\n')
    assert hac.parse(path, ref="alpine").ref == "alpine"
    assert hac.parse(write(tmp_path, ""), ref="alpine").ref == "alpine"


# text after `[hardware]` → parts of the message, part of the hint
MISTAKES = {
    "unknown key": ("memroy = 512", ("hac.toml:3: [hardware] memroy", "unknown key"), "'memory'"),
    "key of another table": ("zzz = 1", ("[hardware] zzz: unknown key",), "known here: "),
    "unknown table": ("[netwrok]\nmode = 'nat'", (":3: netwrok: unknown table",), "'network'"),
    "wrong type": ('cores = "4"', (':3: [hardware] cores = "4"', "not a string"), ""),
    "bool is no number": ("cores = true", ("cores = true", "not true or false"), ""),
    "fraction": ("memory = 128.5", ("memory = 128.5", "not a fraction"), ""),
    "zero cores": ("cores = 0", ("cores = 0: must be 1 to 64, 1 at the least",), ""),
    "negative cores": ("cores = -1", ("cores = -1",), ""),
    "many cores": ("cores = 65", ("cores = 65: must be 1 to 64",), ""),
    "8 MiB": ("memory = 8", ("memory = 8", "MiB, 64 at the least"), ""),
    "bad ref": ("ref = 'not a ref'", ("[hardware] ref: image reference 'not a ref': ",), ""),
    "empty ref": ("ref = ''", ("ref", "is missing"), "alpine"),
    "table twice": ("[hardware]", ("not valid TOML", "line 3"), ""),
    "no TOML": ("cores = ", ("not valid TOML", "line 3"), ""),
    "not a table": ("[spacecore]\nname = ['a']", (":4: [spacecore] name", "not a list"), ""),
    "provider": ("[vm]\nprovider = 'qmeu'", (':4: [vm] provider = "qmeu"', "unknown"), "'qemu'"),
    "mode": ("[network]\nmode = 'nta'", ('[network] mode = "nta"', "one of nat"), "'nat'"),
    "netns path": ("[network]\nmode = 'netns'", ("needs the path",), "netns ="),
    "dns": ("[network]\ndns = ['dns.example']", ('"dns.example" is no IP address',), ""),
    "env": ("[workload]\nenv = ['A']", ('"A" is not of the form NAME=value',), ""),
    "workdir": ("[workload]\nworkdir = 'srv'", ('workdir = "srv": must be an absolute',), ""),
    "user": ("[workload]\nuser = 'a b'", ('"a b" is not of the form',), ""),
    "args": ("[workload]\nargs = [1]", ("must be a list of strings",), ""),
    "command": ("[workload]\ncommand = []", ("must not be empty",), "image's"),
    "interface and none": (
        "interface = 'lo'\n[network]\nmode = 'none'",
        ('contradicts [hardware] interface = "lo"',),
        "",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_names_line_key_and_value(tmp_path: Path, case: str) -> None:
    text, wanted, hint = MISTAKES[case]
    first = '[hardware]\nref = "busybox"\n' if "ref =" not in text else "# first\n[hardware]\n"
    path = write(tmp_path, first + text + "\n")
    with pytest.raises(InvalidArgument) as caught:
        hac.parse(path, check_host=False)
    message = str(caught.value)
    assert message.startswith(str(path)), message
    assert "\n" not in message
    for part in wanted:
        assert part in message
    assert hint in caught.value.hint


def test_a_top_level_key_that_belongs_into_a_table(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"hac.toml:1: cores: unknown key"):
        hac.parse(write(tmp_path, "cores = 1\n"), check_host=False)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such file"):
        hac.parse(tmp_path / "none.toml")
    with pytest.raises(InvalidArgument, match="is a directory"):
        hac.parse(tmp_path)
    (tmp_path / "latin1.toml").write_bytes(b'[spacecore]\nname = "\xe9"\n')
    with pytest.raises(InvalidArgument, match="not UTF-8 at byte 20"):
        hac.parse(tmp_path / "latin1.toml")


def test_an_interface_must_exist(tmp_path: Path) -> None:
    path = write(tmp_path, '[hardware]\nref = "busybox"\ninterface = "nosuch0"\n')
    with pytest.raises(InvalidArgument, match=r'3: \[hardware\] interface = "nosuch0"') as caught:
        hac.parse(path)
    assert "interfaces here: " in caught.value.hint
    write(tmp_path, '[hardware]\nref = "busybox"\ninterface = "lo"\n')
    assert hac.parse(path).network.interface == "lo"


def test_kernel_and_drive_must_be_files(tmp_path: Path) -> None:
    path = write(tmp_path, '[hardware]\nref = "busybox"\nkernel = "vmlinux"\n')
    with pytest.raises(InvalidArgument, match=r"\[hardware\] kernel = .*no such file") as caught:
        hac.parse(path)
    assert "hypercore guest build" in caught.value.hint
    os.mkfifo(tmp_path / "vmlinux")  # must not be opened: that would wait for a writer
    with pytest.raises(InvalidArgument, match="is no regular file"):
        hac.parse(path)


def test_provider_names() -> None:
    assert hac.provider_name("qemu") == "qemu"
    with pytest.raises(InvalidArgument, match="--provider qmeu: unknown provider") as caught:
        hac.provider_name("qmeu")
    assert "'qemu'" in caught.value.hint
