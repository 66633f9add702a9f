"""Does KVM here really run a 64-bit guest?

Opening /dev/kvm proves nothing: a software KVM opens too. A throw-away VM with one vCPU and 64 KiB
starts in long mode and runs five steps, each ending in an OUT of its number to port 0x10. Run as a
program it prints one JSON line; it imports nothing of ours, so that it runs in an isolated
interpreter. `probe()` starts that program, because a KVM_RUN that never returns must be killed,
and remembers what it said until the next boot.

The guest ends on an OUT, not on HLT: an in-kernel interrupt controller keeps a HLT to itself.
"""

import json
import mmap
import os
import platform
import struct
import sys
import time
from pathlib import Path

DEVICE = Path("/dev/kvm")
CPU_BUDGET_S = 3.0
"""Of the guest and the VM around it, which take a few milliseconds on real KVM. Processor time,
not the clock's: a busy host must not turn real KVM down."""
PROGRAM_TIMEOUT_S = 10.0
"""For a KVM that hangs without using a processor. The program takes 0.15 s, most of it Python's
start, and several times that on a busy or emulated host."""
MIN_MIPS = 10.0
"""Slower is emulation, whatever the device is called; hardware gives hundreds."""

STEPS = ("start", "long mode", "cmpxchg16b", "xsave/xrstor", "int3 and iretq", "1 M instructions")
EXITS = {2: "IO", 5: "HLT", 8: "SHUTDOWN", 9: "FAIL_ENTRY", 17: "INTERNAL_ERROR"}
EXIT_IO, EXIT_INTERNAL_ERROR = 2, 17

# ioctl numbers of linux/kvm.h on x86-64
GET_API_VERSION, CREATE_VM, GET_VCPU_MMAP_SIZE = 0xAE00, 0xAE01, 0xAE04
GET_SUPPORTED_CPUID, CREATE_VCPU, SET_USER_MEMORY_REGION = 0xC008AE05, 0xAE41, 0x4020AE46
SET_TSS_ADDR, CREATE_IRQCHIP, RUN = 0xAE47, 0xAE60, 0xAE80
SET_REGS, GET_SREGS, SET_SREGS, SET_CPUID2 = 0x4090AE82, 0x8138AE83, 0x4138AE84, 0x4008AE90

PML4, PDPT, PAGE_DIRECTORY, IDT, GDT, SCRATCH, CODE, IRETQ = (
    0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000, 0x8000, 0x8F00,
)  # fmt: skip

GUEST = bytes.fromhex(
    "bc00900000"  # mov esp, 0x9000
    "b001 e610"  # step 1
    "bf00600000 31c0 31d2 bb01000000 b902000000 f0480fc70f"  # lock cmpxchg16b [SCRATCH]
    "b002 e610"
    "31c9 31d2 b803000000 0f01d1"  # xsetbv: x87 and SSE
    "bf00700000 b803000000 31d2 0fae27 0fae2f"  # xsave, xrstor [0x7000]
    "b003 e610"
    "cc b004 e610"  # int3, handled by an iretq
    "b920a10700 ffc9 75fc"  # mov ecx, 500000; dec ecx; jnz
    "b005 e610 f4".replace(" ", "")
)


def run_guest() -> dict[str, object]:
    """How far the guest came: `reached` step, `exit`, and `mips` when it came to the end."""
    import ctypes
    import fcntl
    import signal

    signal.setitimer(signal.ITIMER_PROF, CPU_BUDGET_S)  # its signal ends the program
    kvm = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    if (version := fcntl.ioctl(kvm, GET_API_VERSION, 0)) != 12:
        return {"reached": 0, "exit": f"API version {version}"}
    vm = fcntl.ioctl(kvm, CREATE_VM, 0)
    fcntl.ioctl(vm, SET_TSS_ADDR, 0x70000000)
    fcntl.ioctl(vm, CREATE_IRQCHIP, 0)
    memory = mmap.mmap(-1, 0x10000)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fcntl.ioctl(vm, SET_USER_MEMORY_REGION, struct.pack("<IIQQQ", 0, 0, 0, len(memory), address))
    vcpu = fcntl.ioctl(vm, CREATE_VCPU, 0)
    shared = mmap.mmap(vcpu, fcntl.ioctl(kvm, GET_VCPU_MMAP_SIZE, 0))
    cpuid = bytearray(struct.pack("<II", 256, 0) + bytes(40 * 256))
    fcntl.ioctl(kvm, GET_SUPPORTED_CPUID, cpuid)
    fcntl.ioctl(vcpu, SET_CPUID2, cpuid)
    _fill_memory(memory)
    sregs = bytearray(0x138)
    fcntl.ioctl(vcpu, GET_SREGS, sregs)
    _enter_long_mode(sregs)
    fcntl.ioctl(vcpu, SET_SREGS, sregs)
    fcntl.ioctl(vcpu, SET_REGS, struct.pack("<18Q", *([0] * 16), CODE, 2))

    reached, marks = 0, [time.monotonic()]
    while True:
        fcntl.ioctl(vcpu, RUN, 0)
        reason = struct.unpack_from("<I", shared, 8)[0]
        if reason == EXIT_IO:
            data_offset = struct.unpack_from("<Q", shared, 40)[0]
            reached = shared[data_offset]
            marks.append(time.monotonic())
            if reached < len(STEPS) - 1:
                continue
        result: dict[str, object] = {"reached": reached, "exit": EXITS.get(reason, str(reason))}
        if reason == EXIT_INTERNAL_ERROR:
            result["suberror"] = struct.unpack_from("<I", shared, 32)[0]
        if reached == len(STEPS) - 1:
            result["mips"] = round(1.0 / (marks[-1] - marks[-2]), 1)
        return result


def _fill_memory(memory: mmap.mmap) -> None:
    memory[PML4 : PML4 + 8] = struct.pack("<Q", PDPT | 3)
    memory[PDPT : PDPT + 8] = struct.pack("<Q", PAGE_DIRECTORY | 3)
    memory[PAGE_DIRECTORY : PAGE_DIRECTORY + 8] = struct.pack("<Q", 0x83)  # 2 MiB, one to one
    memory[IRETQ : IRETQ + 2] = b"\x48\xcf"
    for vector in range(32):
        gate = 0x8E if vector == 3 else 0
        entry = struct.pack("<HHBBHII", IRETQ, 8, 0, gate, 0, 0, 0)
        memory[IDT + 16 * vector : IDT + 16 * vector + 16] = entry
    memory[GDT : GDT + 24] = struct.pack("<QQQ", 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF)
    memory[CODE : CODE + len(GUEST)] = GUEST


def _enter_long_mode(sregs: bytearray) -> None:
    # struct kvm_sregs: cs ds es fs gs ss tr ldt (24 bytes each), gdt, idt, then control registers
    code = struct.pack("<QIHBBBBBBBBBB", 0, 0xFFFFFFFF, 8, 11, 1, 0, 0, 1, 1, 1, 0, 0, 0)
    data = struct.pack("<QIHBBBBBBBBBB", 0, 0xFFFFFFFF, 16, 3, 1, 0, 1, 1, 0, 1, 0, 0, 0)
    sregs[0:24] = code
    sregs[24:144] = data * 5
    sregs[192:224] = struct.pack("<QH6xQH6x", GDT, 0x17, IDT, 32 * 16 - 1)
    # cr0 cr2 cr3 cr4 (PAE, OSFXSR, OSXMMEXCPT, OSXSAVE) cr8 efer (LME, LMA)
    sregs[224:272] = struct.pack("<6Q", 0x80050033, 0, PML4, 0x40620, 0, 0x500)


def probe() -> str:
    """Empty when KVM runs guests here, else one phrase that says why not.

    Blocks up to PROGRAM_TIMEOUT_S the first time after a boot.
    """
    from hypercore import probe_cache

    if platform.machine() != "x86_64":
        return f"the probe knows x86_64 only, this is {platform.machine()}"
    try:
        subject = probe_cache.file_identity(DEVICE)
    except FileNotFoundError:
        return f"there is no {DEVICE}"
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return f"no access to {DEVICE}"
    cached = probe_cache.load("kvm", subject)
    if cached is not None:
        return str(cached["problem"])
    result = _run_program()
    problem = judge(result)
    if not result.get("timed_out"):  # a loaded host, perhaps: ask again next time
        probe_cache.store("kvm", subject, {"problem": problem})
    return problem


def judge(result: dict[str, object]) -> str:
    """What the program's answer means, as probe() returns it."""
    reached = result.get("reached", 0)
    if not isinstance(reached, int) or not 0 <= reached < len(STEPS):
        return f"the probe's answer makes no sense: {result}"
    if why := result.get("error"):
        return f"{DEVICE}: {why}"
    if reached < len(STEPS) - 1:
        return (
            f"{DEVICE} opens but its guest stops after step {reached} ({STEPS[reached]}): "
            f"KVM_EXIT_{result.get('exit')}"
        )
    mips = result.get("mips", 0.0)
    if not isinstance(mips, int | float) or mips < MIN_MIPS:
        return (
            f"{DEVICE} runs {mips} million instructions a second, under {MIN_MIPS:.0f}: emulated"
        )
    return ""


def _run_program() -> dict[str, object]:
    import signal
    import subprocess

    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", __file__],
            capture_output=True,
            timeout=PROGRAM_TIMEOUT_S,
            check=False,
            env={},
        )
        answer = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return {
            "error": f"the probe's guest did not end within {PROGRAM_TIMEOUT_S} s",
            "timed_out": True,
        }
    except ValueError:
        if done.returncode == -signal.SIGPROF:
            return {"error": f"its guest did not end in {CPU_BUDGET_S} s of processor time"}
        return {"error": f"the probe died with status {done.returncode}"}
    return answer if isinstance(answer, dict) else {"error": f"the probe said {answer!r}"}


def main() -> None:
    try:
        result = run_guest()
    except (OSError, ValueError, OverflowError) as exc:
        result = {"reached": 0, "error": str(exc)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
