"""A bare microVM on real KVM: what a provider's VMM does with a guest that has an agent."""

import asyncio
import contextlib
from pathlib import Path

import pytest

from hypercore import block, paths
from hypercore.config import HostConfig
from hypercore.errors import AlreadyExists, InvalidArgument, StateError
from hypercore.microvm import MicroVM
from hypercore.spec import (
    Disk,
    DiskLimits,
    HardwareSpec,
    MicroVMSpec,
    NetworkSpec,
    RootDisks,
)
from tests.functional.instance import BOOT_DEADLINE_S
from tests.functional.test_microvm import VM_ID, Run, place, run

__all__ = ["place", "run"]

pytestmark = [pytest.mark.usefixtures("place"), pytest.mark.timeout(3 * BOOT_DEADLINE_S)]


@pytest.fixture
def config(firecracker_binary: Path) -> HostConfig:
    return HostConfig(boot_timeout_s=BOOT_DEADLINE_S, binaries={"firecracker": firecracker_binary})


@pytest.fixture
def disk(place: None) -> Disk:
    path = paths.data_dir() / "private.ext4"
    block.create_upper(path, 64)
    return Disk(path, "hc1", read_only=False)


def test_a_guest_goes_on_from_a_vm_snapshot(run: Run, config: HostConfig, disk: Disk) -> None:
    spec = MicroVMSpec(VM_ID, "firecracker", HardwareSpec(), NetworkSpec("none"))
    kept = paths.data_dir() / "kept"

    def made(spec: MicroVMSpec = spec) -> MicroVM:
        return MicroVM(spec, RootDisks(writable=disk), config)

    async def body() -> None:
        async with contextlib.AsyncExitStack() as stack:
            first = made()
            stack.push_async_callback(first.delete)
            await first.start()
            ready_us = first.hello.ready_us
            with pytest.raises(StateError, match="is running, not paused"):
                await first.take_snapshot(kept)
            await first.set_disk_limits(DiskLimits(mib_per_s=50))
            counted = await first.vmm_metrics()
            assert counted["vsock"]["rx_packets_count"] > 0  # type: ignore[index]
            await first.pause()
            await first.take_snapshot(kept)
            with pytest.raises(AlreadyExists):
                await first.take_snapshot(kept)
            await first.resume()
            await first.delete()
            await asyncio.to_thread(disk.path.write_bytes, bytes(64 << 20))  # put back below

            other = made(MicroVMSpec(VM_ID, "firecracker", HardwareSpec(2), NetworkSpec("none")))
            with pytest.raises(InvalidArgument, match="has cores = 1, this microVM 2"):
                await other.start(snapshot_dir=kept)

            again = made()
            stack.push_async_callback(again.delete)
            await again.start(snapshot_dir=kept)
            # It did not boot: its agent became ready when the first did.
            assert again.hello.ready_us == ready_us
            assert disk.path.read_bytes()[1080:1082] == b"\x53\xef"  # ext4's magic
            await again.stop(10)

    run(body())


def test_a_balloon_needs_a_provider_that_has_one(run: Run, config: HostConfig) -> None:
    hardware = HardwareSpec(balloon_mib=16)

    async def body() -> None:
        microvm = MicroVM(
            MicroVMSpec(VM_ID, "qemu", hardware, NetworkSpec("none")), RootDisks(), config
        )
        with pytest.raises(
            InvalidArgument, match="provider qemu cannot hold memory back"
        ) as caught:
            await microvm.start()
        assert "--provider firecracker" in caught.value.hint

    run(body())
