"""Providers without a VMM: what is rendered, the registry, the probes' judgement."""

import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from hypercore import probe_cache, providers, tsc
from hypercore.config import HostConfig
from hypercore.errors import InvalidArgument, Unavailable
from hypercore.paths import MicroVMPaths
from hypercore.providers import kvm_probe, qemu
from hypercore.providers.base import FIRST_FD, Bind, BootSpec, Feature, Probe, find_binary
from hypercore.spec import (
    Disk,
    DiskLimits,
    HardwareSpec,
    MicroVMSpec,
    NetworkSpec,
    from_annotations,
    to_annotations,
)

HELPER = Path("/opt/tools/usr/bin/vhost-device-vsock")
TCG = Probe(
    binary=Path("/usr/bin/qemu-system-x86_64"),
    version="7.2.22",
    accelerator="tcg",
    kvm_problem="there is no /dev/kvm",
    vsock_helper=HELPER,
    tsc_khz=2596144,
)
KVM = Probe(
    binary=Path("/opt/qemu/bin/qemu-system-x86_64"),
    version="9.2.0",
    accelerator="kvm",
    kernel_vsock=True,
)


@pytest.fixture
def boot(monkeypatch: pytest.MonkeyPatch) -> BootSpec:
    monkeypatch.setenv("HYPERCORE_RUN_DIR", "/run/h,c")
    return BootSpec(
        microvm_id="vm1",
        cores=2,
        memory_mib=256,
        kernel_path=Path("/assets/vmlinux"),
        initrd_path=Path("/assets/initrd"),
        cmdline="console=ttyS0 quiet",
        disks=(
            Disk(Path("/assets/agent.erofs"), "hc0", read_only=True, fs_type="erofs"),
            Disk(Path("/vm/upper.ext4"), "hc1", read_only=False),
        ),
        guest_mac="02:00:00:00:00:01",
        tap_name="hc4",
        cid=7,
        control_port=10788,
        paths=MicroVMPaths("vm1"),
        jail=True,
    )


def test_qemu_under_tcg_with_a_vsock_helper(boot: BootSpec) -> None:
    helper, vmm = qemu.QemuProvider().render(boot, TCG)

    assert list(helper.argv) == [
        str(HELPER),
        *("--guest-cid", "7"),
        *("--socket", "/run/h,c/vm/vm1/vmm/vhost.sock"),
        *("--uds-path", "/run/h,c/vm/vm1/vmm/v.sock"),
    ]
    assert helper.sockets == (boot.paths.vhost_vsock, boot.paths.vsock)
    assert Bind(boot.paths.vmm_dir, read_only=False) in helper.binds
    assert Bind(Path("/opt/tools/usr")) in helper.binds
    assert list(vmm.argv) == [
        "/usr/bin/qemu-system-x86_64",
        *("-name", "vm1,debug-threads=on"),
        *("-M", "microvm,acpi=on,pit=on,pic=on,memory-backend=mem"),
        *("-accel", "tcg,tb-size=128"),
        *("-cpu", "max,-erms,-fsrm"),
        *("-smp", "2"),
        *("-m", "256M"),
        *("-global", "virtio-mmio.force-legacy=off"),
        *("-nodefaults", "-no-user-config", "-no-reboot"),
        *("-display", "none"),
        *("-msg", "timestamp=on"),
        *("-sandbox", qemu.SANDBOX),
        *("-object", "memory-backend-memfd,id=mem,size=256M,share=on"),
        *("-kernel", "/assets/vmlinux"),
        *("-initrd", "/assets/initrd"),
        *("-append", "console=ttyS0 quiet"),
        *("-chardev", "socket,id=api,fd=3,server=on,wait=off"),
        *("-mon", "chardev=api,mode=control"),
        *("-add-fd", "fd=4,set=0,opaque=console"),
        *("-chardev", "file,id=console,path=/dev/fdset/0,append=on"),
        *("-serial", "chardev:console"),
        *("-add-fd", "fd=5,set=1,opaque=hc0"),
        "-blockdev",
        "node-name=disk0,driver=raw,read-only=on,discard=unmap,"
        "file.driver=file,file.filename=/dev/fdset/1",
        *("-device", "virtio-blk-device,drive=disk0,serial=hc0,werror=report"),
        *("-add-fd", "fd=6,set=2,opaque=hc1"),
        "-blockdev",
        "node-name=disk1,driver=raw,read-only=off,discard=unmap,"
        "file.driver=file,file.filename=/dev/fdset/2",
        *("-device", "virtio-blk-device,drive=disk1,serial=hc1,werror=report"),
        *("-netdev", "tap,id=net0,fd=7"),
        *("-device", "virtio-net-device,netdev=net0,mac=02:00:00:00:00:01"),
        *("-chardev", "socket,id=vsock,path=/run/h,,c/vm/vm1/vmm/vhost.sock"),
        *("-device", "vhost-user-vsock-device,chardev=vsock"),
    ]
    assert vmm.fds == ("api", "console", "disk0", "disk1", "tap")
    assert vmm.binds == (
        Bind(Path("/assets/vmlinux")),
        Bind(Path("/assets/initrd")),
        Bind(boot.paths.vmm_dir),
    )
    assert vmm.devices == ()


def test_qemu_under_kvm_with_the_kernels_vsock(boot: BootSpec) -> None:
    (vmm,) = qemu.QemuProvider().render(replace(boot, guest_mac="", initrd_path=None), KVM)

    assert vmm.fds == ("api", "console", "disk0", "disk1", "vhost-vsock")
    number = FIRST_FD + vmm.fds.index("vhost-vsock")
    assert f"vhost-vsock-device,guest-cid=7,vhostfd={number}" in vmm.argv
    assert "-netdev" not in vmm.argv
    assert "-initrd" not in vmm.argv
    assert not any("memory-backend" in argument for argument in vmm.argv)
    assert vmm.argv[vmm.argv.index("-accel") + 1] == "kvm"
    assert vmm.argv[vmm.argv.index("-cpu") + 1] == "host"
    assert vmm.devices == (Path("/dev/kvm"),)
    assert vmm.binds == (Bind(Path("/assets/vmlinux")), Bind(Path("/opt/qemu")))


def test_qemu_without_a_jail_is_not_sandboxed(boot: BootSpec) -> None:
    (vmm,) = qemu.QemuProvider().render(replace(boot, jail=False), KVM)
    assert "-sandbox" not in vmm.argv


def test_only_a_guest_that_cannot_calibrate_is_told_the_tsc_rate() -> None:
    provider = qemu.QemuProvider()
    assert ("tsc_early_khz", "2596144") in provider.boot_parameters(TCG)
    assert ("tsc", "reliable") in provider.boot_parameters(TCG)
    assert ("no_timer_check", None) in provider.boot_parameters(TCG)
    names = [name for name, _ in provider.boot_parameters(KVM)]
    assert not any(name.startswith("tsc") or name == "no_timer_check" for name in names)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright", "7.2.22"),
        ("QEMU emulator version 10.0\n", "10.0"),
        ("something else", ""),
    ],
)
def test_reads_qemus_version(text: str, version: str) -> None:
    assert qemu.parse_version(text) == version


def test_registry_names_what_it_knows() -> None:
    assert "qemu" in providers.NAMES
    assert providers.load("qemu").features & Feature.PAUSE
    with pytest.raises(InvalidArgument, match="unknown provider 'xen'") as caught:
        providers.load("xen")
    assert "qemu" in caught.value.hint


def test_a_configured_binary_must_be_executable(tmp_path: Path) -> None:
    program = tmp_path / "qemu"
    program.write_text("#!/bin/sh\n")
    config = HostConfig(binaries={"qemu": program})
    with pytest.raises(InvalidArgument, match=r"\[binaries\] qemu = .* not an executable file"):
        find_binary(config, "qemu", "qemu-system-x86_64")
    program.chmod(0o755)
    assert find_binary(config, "qemu", "qemu-system-x86_64") == program


def test_a_binary_is_found_among_our_tools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYPERCORE_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", "/nonexistent")
    program = tmp_path / "tools" / "usr" / "bin" / "hc-some-tool"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    assert find_binary(HostConfig(), "hc-some-tool") == program
    assert find_binary(HostConfig(), "hc-other-tool") is None


def _fake_qemu(tmp_path: Path, script: str) -> HostConfig:
    program = tmp_path / "qemu"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return HostConfig(binaries={"qemu": program})


@pytest.mark.parametrize(
    ("script", "named"),
    [
        ("echo QEMU emulator version 2.11.1", "is QEMU 2.11.1, hypercore needs 7.0 or newer"),
        ("echo no such library >&2; exit 127", "ended with status 127 and names no version"),
    ],
)
def test_qemus_probe_names_a_binary_that_will_not_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, named: str
) -> None:
    monkeypatch.setenv("HYPERCORE_RUN_DIR", str(tmp_path / "run"))
    with pytest.raises(Unavailable, match=named) as caught:
        qemu.QemuProvider().probe(_fake_qemu(tmp_path, script))
    assert "hypercore setup" in caught.value.hint


@pytest.mark.parametrize(
    ("result", "named"),
    [
        ({"reached": 5, "exit": "IO", "mips": 400.0}, ""),
        ({"reached": 5, "exit": "IO", "mips": 1.5}, "1.5 million instructions a second"),
        ({"reached": 1, "exit": "INTERNAL_ERROR"}, "stops after step 1 (long mode)"),
        ({"error": "[Errno 13] Permission denied"}, "Permission denied"),
        ({"reached": 77}, "makes no sense"),
    ],
)
def test_judges_what_the_kvm_probe_said(result: dict[str, object], named: str) -> None:
    problem = kvm_probe.judge(result)
    assert named in problem
    assert bool(problem) == bool(named)


def test_the_kvm_probe_ends_and_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYPERCORE_RUN_DIR", str(tmp_path))
    problem = kvm_probe.probe()
    monkeypatch.setattr(kvm_probe, "_run_program", lambda: pytest.fail("ran again"))
    if probe_cache.load("kvm", probe_cache.file_identity(kvm_probe.DEVICE)) is not None:
        assert kvm_probe.probe() == problem


def test_a_probes_result_is_forgotten_after_a_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYPERCORE_RUN_DIR", str(tmp_path))
    probe_cache.store("x", {"size": 1}, {"answer": 42})
    assert probe_cache.load("x", {"size": 1}) == {"answer": 42}
    assert probe_cache.load("x", {"size": 2}) is None
    file = tmp_path / "probe" / "x.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "boot_id": "earlier"}))
    assert probe_cache.load("x", {"size": 1}) is None
    file.write_text("{")
    assert probe_cache.load("x", {"size": 1}) is None


def test_tsc_rate_agrees_with_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hypercore._tsc import measure_khz

    monkeypatch.setenv("HYPERCORE_RUN_DIR", str(tmp_path))
    rate = tsc.khz()
    assert tsc.khz() == rate
    assert measure_khz(20) == pytest.approx(rate, rel=0.001)
    with pytest.raises(ValueError, match="sample_ms"):
        measure_khz(0)


def test_a_machine_travels_in_annotations() -> None:
    hardware = HardwareSpec(disk_limits=DiskLimits(50, 1000), balloon_mib=64)
    spec = MicroVMSpec("vm1", "firecracker", hardware, NetworkSpec("none"))
    assert from_annotations("vm1", to_annotations(spec)) == spec
