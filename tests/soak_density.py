"""How many confined VMMs one process holds at once: Firecrackers with a guest of a few bytes each.

Part of `make soak`; DENSITY=n changes the number. Creates them, looks at each from outside,
removes them, and fails unless the host is as before. The figures are printed, not judged. Runs on
any KVM, also a software one, because the guest does next to nothing.
"""

import argparse
import asyncio
import contextlib
import gc
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import uvloop

from hypercore import paths, slots
from hypercore.config import HostConfig
from hypercore.providers import kvm_probe
from hypercore.spec import HardwareSpec, MicroVMSpec, NetworkSpec
from hypercore.unikernel import UnikernelVM
from hypercore.unikernel_spec import UnikernelSpec
from tests import tinyguest
from tests.lab.get_firecracker import firecracker

AT_ONCE = 8
"""Starts and removals under way together."""
GUEST_MIB = 64
RESERVE_MIB = 2048
"""Left to the rest of the host."""
VMM_MIB = 6
"""What one VMM with this guest takes of the host, generously."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    count = parser.parse_args().count
    fit = (_memory_mib("MemAvailable") - RESERVE_MIB) // VMM_MIB
    if count > fit:
        print(f"density: memory for {fit} VMMs, not {count}", flush=True)
        count = fit
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    kvm_probe.probe = lambda: ""  # this guest needs no KVM that runs stock kernels
    with _place() as binary, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        config = HostConfig(binaries={"firecracker": binary})
        runner.run(_density(1, config))  # what is opened once stays
        before = _host()
        runner.run(_density(count, config))
        gc.collect()
        if left := _host() - before:
            sys.exit("density: the host is not as before:\n" + "\n".join(sorted(left)))
    print("density: passed, nothing left", flush=True)


@contextlib.contextmanager
def _place() -> Iterator[Path]:
    """Directories of this run's own; yields the VMM's program."""
    data = Path(tempfile.mkdtemp(prefix="hct-", dir="/var/tmp"))
    run = Path(tempfile.mkdtemp(prefix="hct-", dir="/run"))
    for directory in (data, run):
        directory.chmod(0o711)
    os.environ.update(
        HYPERCORE_DATA_DIR=str(data),
        HYPERCORE_RUN_DIR=str(run),
        HYPERCORE_SLOTS_DIR=str(run / "slots"),
    )
    try:
        yield firecracker()
    finally:
        shutil.rmtree(run)
        shutil.rmtree(data)


async def _density(count: int, config: HostConfig) -> None:
    kernel = tinyguest.write(paths.data_dir() / "kernel", "up")
    gate = asyncio.Semaphore(AT_ONCE)
    console_fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    vms = [
        UnikernelVM(
            MicroVMSpec(
                f"density-{number}",
                "firecracker",
                HardwareSpec(memory_mib=GUEST_MIB, kernel_path=kernel),
                NetworkSpec("none"),
                unikernel=UnikernelSpec(),
            ),
            config,
            console_fd=console_fd,
        )
        for number in range(count)
    ]

    async def up(vm: UnikernelVM) -> None:
        async with gate:
            await vm.start()
            await vm.run()

    async def down(vm: UnikernelVM) -> None:
        async with gate:
            await vm.delete()

    try:
        await up(vms[0])  # what is loaded once is not one VM's
        gc.collect()
        own_kib, own_fds, host_mib = _own_kib(), _own_fds(), _memory_mib("MemAvailable")
        took = await _all(up(vm) for vm in vms[1:])
        gc.collect()
        others = max(1, count - 1)
        print(
            f"density: {count} VMs up, {(count - 1) / took:.0f} a second;"
            f" per VM: {(_own_kib() - own_kib) / others:.1f} KiB and"
            f" {(_own_fds() - own_fds) / others:.1f} descriptors of our process,"
            f" {_vmm_kib(vms) / count:.0f} KiB of its VMM's own (private),"
            f" {(host_mib - _memory_mib('MemAvailable')) / others:.1f} MiB of the host",
            flush=True,
        )
        _look(vms)
    finally:
        took = await _all(down(vm) for vm in vms)
        os.close(console_fd)
    print(f"density: removed, {count / took:.0f} a second", flush=True)


async def _all(work: Iterator[object]) -> float:
    """Do all of it; returns how long it took. One failure fails the run, after the others."""
    begun = time.monotonic()
    results = await asyncio.gather(*work, return_exceptions=True)  # type: ignore[call-overload]
    failed = [result for result in results if isinstance(result, BaseException)]
    if failed:
        print(f"density: {len(failed)} of {len(results)} failed", flush=True)
        raise failed[0]
    return time.monotonic() - begun


def _look(vms: list[UnikernelVM]) -> None:
    """Each VMM lives, confined, as a user of its own."""
    uids = set()
    for vm in vms:
        status = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{vm.pid}/status").read_text().splitlines()
        )
        uids.add(status["Uid"])
        assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0, vm.spec.microvm_id
        assert status["NoNewPrivs"] == "1", vm.spec.microvm_id
        held = [os.readlink(path) for path in Path(f"/proc/{vm.pid}/fd").iterdir()]
        assert any("kvm-vcpu" in target for target in held), vm.spec.microvm_id
    assert len(uids) == len(vms), f"{len(vms)} VMMs run as {len(uids)} users"
    print(f"density: {len(vms)} live VMMs of {len(uids)} users, all confined", flush=True)


def _host() -> frozenset[str]:
    """What a microVM of this run may have on the host."""
    found = [f"slot {slot}: {owner}" for slot, owner in slots.owners().items()]
    found += [f"run directory {path}" for path in (paths.run_dir() / "vm").glob("*")]
    found += [f"cgroup {path}" for path in Path("/sys/fs/cgroup").rglob("*density-*")]
    found += [
        f"mount {line.split()[4]}"
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if str(paths.run_dir()) in line
    ]
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if b"HYPERCORE_MICROVM=density-" in path.read_bytes():
                found.append(f"process {path.parent.name}")
    return frozenset([*found, f"{_own_fds()} descriptors"])


def _own_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def _own_kib() -> int:
    """Memory that is this process's alone."""
    return _kib(Path("/proc/self/smaps_rollup"), "Private_Dirty")


def _vmm_kib(vms: list[UnikernelVM]) -> int:
    return sum(_kib(Path(f"/proc/{vm.pid}/smaps_rollup"), "Private_Dirty") for vm in vms)


def _kib(path: Path, name: str) -> int:
    (line,) = (line for line in path.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])


def _memory_mib(name: str) -> int:
    return _kib(Path("/proc/meminfo"), name) // 1024


if __name__ == "__main__":
    main()
