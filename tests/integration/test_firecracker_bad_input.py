"""What provider firecracker says of a host, a program or a guest that will not do.

More of it, with the VMM already running, is in test_firecracker.py.
"""

import asyncio
import ctypes
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from shutil import rmtree

import pytest

from hypercore import boot_files, paths, vm_features, vm_snapshot
from hypercore.config import HostConfig
from hypercore.errors import (
    DeadlineExceeded,
    HypercoreError,
    InvalidArgument,
    Unavailable,
    VmmError,
)
from hypercore.microvm import MicroVM
from hypercore.paths import MicroVMPaths
from hypercore.providers import kvm_probe, load
from hypercore.providers.base import VmSnapshot
from hypercore.providers.firecracker import FirecrackerProvider
from hypercore.spec import DiskLimits, HardwareSpec
from tests import fake_firecracker
from tests.integration.test_firecracker import (
    HOPELESS_S,
    TEXT,
    UID,
    assert_nothing_left,
    boot_spec,
    console_says,
    files,
    microvm,
    run,
    running,
    started,
)

__all__ = ["files", "microvm"]

pytestmark = pytest.mark.usefixtures("root")


# -- the program --


def test_a_missing_program_is_named(files: MicroVMPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(Unavailable, match="firecracker is not installed") as caught:
        FirecrackerProvider().probe(HostConfig())
    assert "hypercore setup --provider firecracker" in caught.value.hint


def program(script: str, mode: int = 0o755) -> HostConfig:
    path = paths.data_dir() / "program"
    path.write_text(script)
    path.chmod(mode)
    return HostConfig(binaries={"firecracker": path})


@pytest.mark.parametrize(
    ("script", "mode", "error", "named"),
    [
        ("#!/bin/sh\n", 0o644, InvalidArgument, r"\[binaries\] firecracker = .*not an executable"),
        ("\x7fELF but no program", 0o755, Unavailable, "does not run: .*Exec format error"),
        ("#!/nonexistent/interpreter\n", 0o755, Unavailable, "does not run: .*No such file"),
        ("#!/bin/sh\nexit 3\n", 0o755, Unavailable, "ended with status 3 and names no version"),
        ("#!/bin/sh\necho Firecracker v1.6.2\n", 0o755, Unavailable, r"needs 1\.7 or newer"),
        ("#!/bin/sh\necho Cloud v1.9.0\n", 0o755, Unavailable, "no version of Firecracker"),
    ],
    ids=["not-executable", "no-program", "no-interpreter", "fails", "old", "another"],
)
def test_a_program_that_will_not_do(
    files: MicroVMPaths, script: str, mode: int, error: type[HypercoreError], named: str
) -> None:
    with pytest.raises(error, match=named) as caught:
        FirecrackerProvider().probe(program(script, mode))
    assert caught.value.hint


# -- /dev/kvm --


PR_SET_DUMPABLE = 4


@contextmanager
def as_nobody() -> Iterator[None]:
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        # A change of user takes this away, and whoever runs later in this process may want it.
        assert ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) == 0


def test_no_device(files: MicroVMPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm_probe, "DEVICE", paths.data_dir() / "kvm")
    with pytest.raises(Unavailable, match=r"needs KVM: there is no .*") as caught:
        FirecrackerProvider().probe(
            HostConfig(binaries={"firecracker": fake_firecracker.install(paths.data_dir() / "f")})
        )
    assert "--provider qemu" in caught.value.hint


def test_no_permission(files: MicroVMPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    device = paths.data_dir() / "kvm"
    device.touch(mode=0o600)
    monkeypatch.setattr(kvm_probe, "DEVICE", device)
    with as_nobody():
        assert kvm_probe.probe() == f"no access to {device}"


def test_a_device_that_is_no_kvm(files: MicroVMPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    script = paths.data_dir() / "probe.py"
    source = Path(kvm_probe.__file__).read_text()
    script.write_text(source.replace('Path("/dev/kvm")', 'Path("/dev/null")', 1))
    monkeypatch.setattr(kvm_probe, "__file__", str(script))
    assert "Inappropriate ioctl" in kvm_probe.judge(kvm_probe._run_program())


def test_a_guest_that_uses_up_its_time(
    files: MicroVMPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = paths.data_dir() / "probe.py"
    script.write_text(
        "import signal\nsignal.setitimer(signal.ITIMER_PROF, 0.01)\nwhile True: pass\n"
    )
    monkeypatch.setattr(kvm_probe, "__file__", str(script))
    assert "did not end in 3.0 s of processor time" in kvm_probe.judge(kvm_probe._run_program())


# -- what is asked for --


def test_a_bzimage_is_refused_with_a_way_out(tmp_path: Path) -> None:
    kernel = tmp_path / "bzImage"
    kernel.write_bytes(bytes(0x202) + b"HdrS" + bytes(64))
    with pytest.raises(InvalidArgument, match="firecracker cannot boot a bzImage") as caught:
        vm_features.check(load("firecracker"), HardwareSpec(), kernel)
    assert "extract-vmlinux" in caught.value.hint
    assert "--provider " in caught.value.hint
    assert "qemu" in caught.value.hint
    vm_features.check(load("qemu"), HardwareSpec(), kernel)


def test_what_another_provider_lacks(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(bytes(0x400))
    for hardware, named in (
        (HardwareSpec(disk_limits=DiskLimits(ops_per_s=5)), "qemu cannot bound what disks take"),
        (HardwareSpec(balloon_mib=5), "qemu cannot hold memory back"),
    ):
        with pytest.raises(InvalidArgument, match=named) as caught:
            vm_features.check(load("qemu"), hardware, kernel)
        assert "firecracker" in caught.value.hint
        vm_features.check(load("firecracker"), hardware, kernel)


def test_a_run_directory_too_deep_for_sockets(
    files: MicroVMPaths, microvm: Callable[..., MicroVM], monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = Path(tempfile.mkdtemp(prefix="hct-", dir="/run"))
    monkeypatch.setenv("HYPERCORE_RUN_DIR", str(deep / ("d" * 90)))
    try:
        with pytest.raises(InvalidArgument, match=r"v\.sock_10788 has 1\d\d bytes") as caught:
            run(started(microvm, fake_firecracker.install(paths.data_dir() / "fake")))
        assert "HYPERCORE_RUN_DIR" in caught.value.hint
        assert not list(deep.rglob("vm"))
    finally:
        rmtree(deep)


@pytest.mark.parametrize("kind", ["missing", "text"])
def test_a_kernel_that_is_none(kind: str, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    if kind == "text":
        kernel.write_text("no kernel" * 100)
    with pytest.raises(InvalidArgument, match=r"hardware\.kernel = "):
        boot_files.choose(HardwareSpec(kernel_path=kernel, drive_path=kernel))


# -- a VMM that fails --


def test_a_vmm_that_dies_at_once(files: MicroVMPaths, microvm: Callable[..., MicroVM]) -> None:
    script = '#!/usr/bin/sh\n[ "$1" = --version ] && exec echo Firecracker v1.12.1\n'
    config = program(script + "echo no luck today >&2\nexit 7\n")
    with pytest.raises(VmmError, match="vmm ended with status 7: no luck today"):
        run(started(microvm, config.binaries["firecracker"]))
    assert_nothing_left(files)


@pytest.mark.parametrize(
    ("fault", "error", "named"),
    [
        ("hang", DeadlineExceeded, "did not answer PATCH /vm"),
        ("die", Unavailable, "does not answer PATCH /vm"),
        ("refuse", VmmError, "refused PATCH /vm .*no luck today"),
    ],
)
def test_a_vmm_that_does_not_pause(
    files: MicroVMPaths, fault: str, error: type[HypercoreError], named: str
) -> None:
    binary = fake_firecracker.install(paths.data_dir() / "fake", {"PATCH /vm": fault})

    async def body() -> None:
        boot = boot_spec(files)
        async with running(boot, binary):
            await FirecrackerProvider().launch(boot, asyncio.get_running_loop().time() + 10)
            await console_says(files, TEXT)
            soon = asyncio.get_running_loop().time() + (0.3 if fault == "hang" else HOPELESS_S)
            with pytest.raises(error, match=named):
                await FirecrackerProvider().pause(boot, soon)

    run(body())


@pytest.mark.parametrize("fault", ["hang", "die", "refuse"])
def test_a_vm_snapshot_that_fails_leaves_nothing(files: MicroVMPaths, fault: str) -> None:
    binary = fake_firecracker.install(paths.data_dir() / "fake", {"PUT /snapshot/create": fault})
    kept = paths.data_dir() / "snapshots" / "one"

    async def body() -> None:
        boot = boot_spec(files)
        provider = FirecrackerProvider()
        async with running(boot, binary):
            soon = asyncio.get_running_loop().time() + (0.5 if fault == "hang" else 10)
            what = vm_snapshot.Origin("fc-test", "firecracker", "1.12.1", 1, 64, (), ())
            with pytest.raises(HypercoreError, match="PUT /snapshot/create"):
                await vm_snapshot.take(provider, boot, UID, what, kept, soon)

    run(body())
    assert list(kept.parent.iterdir()) == []
    assert list(files.snapshot_dir.iterdir()) == []


def test_a_vm_snapshot_of_another_machine_is_named(files: MicroVMPaths) -> None:
    binary = fake_firecracker.install(paths.data_dir() / "fake")
    kept = paths.data_dir() / "one"
    addresses = ("10.210.0.2/30",)
    what = vm_snapshot.Origin("fc-test", "firecracker", "1.12.1", 1, 64, addresses, ("/x",))

    async def body() -> None:
        boot = boot_spec(files)
        provider = FirecrackerProvider()
        async with running(boot, binary):
            await provider.launch(boot, asyncio.get_running_loop().time() + 10)
            await provider.pause(boot, asyncio.get_running_loop().time() + 10)
            await vm_snapshot.take(
                provider, boot, UID, what, kept, asyncio.get_running_loop().time() + 10
            )

    run(body())
    assert vm_snapshot.files_in(kept) == VmSnapshot(kept / "state", kept / "memory")
    assert sorted(path.name for path in kept.iterdir()) == [
        "disk1",
        "memory",
        "snapshot.json",
        "state",
    ]
    vm_snapshot.check(kept, what)
    for change, named in (
        ({"memory_mib": 128}, "has memory_mib = 64, this microVM 128"),
        ({"microvm_id": "other"}, "has microvm_id = 'fc-test'"),
        ({"addresses": ("10.210.0.6/30",)}, "gets 10.210.0.6/30 now"),
    ):
        with pytest.raises(HypercoreError, match=named):
            vm_snapshot.check(kept, replace(what, **change))
    (kept / "snapshot.json").write_text("{}")
    with pytest.raises(InvalidArgument, match="is no VM snapshot"):
        vm_snapshot.check(kept, what)
    with pytest.raises(InvalidArgument, match="is no VM snapshot"):
        vm_snapshot.check(kept.parent, what)
