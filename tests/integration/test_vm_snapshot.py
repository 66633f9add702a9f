"""VM snapshots of a whole microVM: with the real Firecracker, on any KVM, and what others say.

The guest of tinyguest.py has no agent; tests/kvm has one that has.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from hypercore import paths
from hypercore.config import HostConfig
from hypercore.errors import AlreadyExists, InvalidArgument, StateError
from hypercore.providers import kvm_probe
from hypercore.spec import HardwareSpec, MicroVMSpec
from hypercore.unikernel import UnikernelVM
from hypercore.unikernel_spec import UnikernelDisk, UnikernelSpec
from tests.integration.test_unikernel import TEXT, Console, Host, files, guest, made, run, spec
from tests.lab.get_firecracker import firecracker

__all__ = ["files"]

pytestmark = pytest.mark.usefixtures("root")


@pytest.fixture
def host(files: paths.MicroVMPaths, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(kvm_probe, "probe", lambda: "")
    return Host("firecracker", HostConfig(binaries={"firecracker": firecracker()}))


def ticking(host: Host) -> MicroVMSpec:
    disk = paths.data_dir() / "private.img"
    disk.write_bytes(b"as it was".ljust(1 << 20, b"\0"))
    return spec(host, guest("tick"), unikernel=UnikernelSpec((UnikernelDisk(disk),)))


async def kept(host: Host, wanted: MicroVMSpec, directory: Path) -> None:
    """A snapshot in `directory` of a guest that has said its text, and goes on."""
    async with made(host, wanted) as (vm, console):
        await vm.run()
        await console.says(TEXT + ".")
        with pytest.raises(StateError, match="is running, not paused"):
            await vm.take_snapshot(directory)
        await vm.pause()
        await vm.take_snapshot(directory)
        with pytest.raises(AlreadyExists, match="is there already"):
            await vm.take_snapshot(directory)
        await vm.resume()
        console.said = b""
        await console.says("....")


def test_a_microvm_goes_on_where_it_was(host: Host) -> None:
    directory = paths.data_dir() / "kept"

    async def body() -> None:
        wanted = ticking(host)
        await kept(host, wanted, directory)
        assert directory.stat().st_mode & 0o777 == 0o700
        disk = paths.data_dir() / "private.img"
        disk.write_bytes(b"what came later".ljust(1 << 20, b"\0"))
        for _ in range(2):  # it can be used again
            console = Console()
            vm = UnikernelVM(wanted, host.config, **console.theirs)
            try:
                await vm.start(snapshot_dir=directory)
                console.lend()
                await vm.run()
                await console.says("....")
                assert TEXT.encode() not in console.said
                assert disk.read_bytes().startswith(b"as it was")
            finally:
                await vm.delete()
                console.close()

    run(body())


def test_only_the_same_machine_goes_on(host: Host) -> None:
    directory = paths.data_dir() / "kept"

    async def body() -> None:
        wanted = ticking(host)
        await kept(host, wanted, directory)
        larger = HardwareSpec(memory_mib=96, kernel_path=wanted.hardware.kernel_path)
        for changed, named in (
            (replace(wanted, hardware=larger), "has memory_mib = 64, this microVM 96"),
            (replace(wanted, provider="qemu"), "provider qemu cannot go on from a VM snapshot"),
        ):
            console = Console()
            vm = UnikernelVM(changed, host.config, **console.theirs)
            try:
                with pytest.raises(InvalidArgument, match=named):
                    await vm.start(snapshot_dir=directory)
            finally:
                console.lend()
                console.close()

    run(body())


def test_a_provider_that_takes_none_names_one_that_does(host: Host) -> None:
    async def body() -> None:
        other = Host("qemu", HostConfig())
        async with made(other, spec(other, guest("tick"))) as (vm, console):
            await vm.run()
            await console.says(TEXT)
            await vm.pause()
            with pytest.raises(InvalidArgument, match="qemu cannot take a VM snapshot") as caught:
                await vm.take_snapshot(paths.data_dir() / "kept")
            assert "--provider firecracker" in caught.value.hint

    kvm_problem = "a test's"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kvm_probe, "probe", lambda: kvm_problem)
        run(body())
