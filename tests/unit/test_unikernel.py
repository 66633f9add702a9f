"""Unikernels without a VMM: what hac.toml says, what the shim is told, what each VMM is told."""

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from hypercore import hac, spec, unikernel_spec
from hypercore.errors import InvalidArgument
from hypercore.paths import MicroVMPaths
from hypercore.providers import firecracker, qemu
from hypercore.providers.base import BootSpec, Probe
from hypercore.spec import HardwareSpec, MicroVMSpec, NetworkSpec
from hypercore.unikernel import command_line, open_terminal
from hypercore.unikernel_spec import UnikernelDisk, UnikernelSpec
from hypercore.vmm_events import MAX_DOCUMENT_BYTES, EventPipe
from tests import tinyguest

HAC = """\
[hardware]
kernel = "kernel"
[vm]
kind = "unikernel"
cmdline = "a=1"
disks = ["data.img", "sub/shared.img:ro"]
"""
BOOT = BootSpec(
    microvm_id="vm1",
    cores=1,
    memory_mib=64,
    kernel_path=Path("/images/kernel"),
    initrd_path=None,
    cmdline="a=1",
    disks=(),
    guest_mac="",
    tap_name="",
    cid=7,
    control_port=0,
    paths=MicroVMPaths("vm1"),
    jail=True,
    agent=False,
)


def write(directory: Path, text: str = HAC) -> Path:
    tinyguest.write(directory / "kernel", "x")
    path = directory / "hac.toml"
    path.write_text(text)
    return path


def test_the_file(tmp_path: Path) -> None:
    found = hac.parse(write(tmp_path), check_host=False)
    assert found.unikernel == UnikernelSpec(
        (UnikernelDisk(tmp_path / "data.img"), UnikernelDisk(tmp_path / "sub/shared.img", True))
    )
    assert (found.ref, found.network.mode, found.cmdline) == ("", "none", "a=1")
    assert found.hardware.kernel_path == tmp_path / "kernel"


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('kernel = "kernel"', "", r"\[vm\] kind = .*needs its kernel"),
        ("[hardware]", '[hardware]\nref = "alpine"', r"\[hardware\] ref = .*means nothing"),
        ("[hardware]", '[hardware]\ndrive = "d"', r"\[hardware\] drive = .*means nothing"),
        ("[hardware]", '[hardware]\ninterface = "lo"', r"\[hardware\] interface"),
        ("[vm]", "[workload]\ntty = true\n[vm]", r"\[workload\] tty = .*means nothing"),
        ("[vm]", '[network]\nmode = "bridge"\n[vm]', r"\[network\] mode"),
        ("unikernel", "unicorn", "must be one of container, unikernel"),
        ("unikernel", "container", r"\[vm\] disks = .*belongs to kind"),
        ('"data.img"', '":ro"', "names no file"),
        ('"data.img"', ", ".join(['"d"'] * 9), "more than 8"),
        ('"data.img", ', "", r"shared\.img\" is neither a file nor a block device"),
        ('"kernel"', '"hac.toml"', r"\[hardware\] kernel = .*neither an ELF"),
    ],
)
def test_what_means_nothing_is_named(tmp_path: Path, old: str, new: str, named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        hac.parse(write(tmp_path, HAC.replace(old, new)))


def test_mode_none_may_be_said(tmp_path: Path) -> None:
    text = HAC.replace("[vm]", '[network]\nmode = "none"\n[vm]')
    assert hac.parse(write(tmp_path, text), check_host=False).unikernel


def test_an_image_on_the_command_line_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="takes no image, but 'alpine'"):
        hac.parse(write(tmp_path), ref="alpine")


@pytest.mark.parametrize(
    "wanted", [None, UnikernelSpec(), UnikernelSpec((UnikernelDisk(Path("/a,b"), True),))]
)
def test_the_annotations_come_back(wanted: UnikernelSpec | None) -> None:
    hardware = HardwareSpec(kernel_path=Path("/k"))
    given = MicroVMSpec("vm1", "qemu", hardware, NetworkSpec("none"), unikernel=wanted)
    assert spec.from_annotations("vm1", spec.to_annotations(given)) == given


@pytest.mark.parametrize("values", [{"kind": "pod"}, {"kind": "unikernel", "disks": "[1]"}])
def test_annotations_that_make_no_sense(values: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"kind = |disks = "):
        unikernel_spec.from_values(values)


def test_the_command_line_is_the_users_alone() -> None:
    given = MicroVMSpec("vm1", "qemu", HardwareSpec(), NetworkSpec("none"), cmdline="a=1  b")
    assert command_line(given) == "a=1 b"


def test_qemu_joins_the_console_with_stdio_and_serves_no_vsock() -> None:
    probe = Probe(Path("/usr/bin/qemu-system-x86_64"), "7.2", "tcg")
    (command,) = qemu.QemuProvider().render(BOOT, probe)
    line = " ".join(command.argv)
    assert "-chardev stdio,id=console" in line
    assert "vsock" not in line
    assert command.console_on_stdout
    assert command.fds == ("api",)


def test_firecracker_serves_no_vsock() -> None:
    probe = Probe(Path("/usr/bin/firecracker"), "1.12", "kvm")
    (command,) = firecracker.FirecrackerProvider().render(BOOT, probe)
    assert command.sockets_later == ()
    targets = [target for target, _ in firecracker.render_requests(BOOT)]
    assert "/vsock" not in targets
    assert "/vsock" in [t for t, _ in firecracker.render_requests(replace(BOOT, agent=True))]


def test_firecrackers_log_tells_of_a_crash() -> None:
    tells = firecracker.FirecrackerProvider().tells_crash
    assert tells("2026 [vm1:fc_vcpu 0] Received KVM_EXIT_INTERNAL_ERROR signal")
    assert not tells("")


def test_a_terminal_passes_every_byte_and_echoes_none() -> None:
    ours, theirs = open_terminal()
    try:
        os.write(ours, bytes(range(256)))
        assert os.read(theirs, 512) == bytes(range(256))
        with pytest.raises(BlockingIOError):
            os.read(ours, 1)
        os.write(theirs, b"\n")
        assert os.read(ours, 2) == b"\n"
    finally:
        os.close(ours)
        os.close(theirs)


def events_of(*chunks: bytes) -> list[object]:
    """What an EventPipe makes of these chunks."""
    seen: list[object] = []

    async def body() -> None:
        pipe = EventPipe(seen.append)
        for chunk in chunks:
            os.write(pipe.write_fd, chunk)
            pipe.drain()
        pipe.close()

    asyncio.run(body())
    return seen


def test_events_in_any_pieces() -> None:
    documents: list[dict[str, object]] = [
        {"event": "booted", "n": {"a": 1}},
        {"event": "shutdown"},
    ]
    text = "\n\n".join(json.dumps(document, indent=2) for document in documents).encode() + b"\n\n"
    assert events_of(text) == documents
    assert events_of(*(text[i : i + 1] for i in range(len(text)))) == documents


def test_what_is_no_event_is_passed_over() -> None:
    good = b'{"event": "shutdown"}'
    assert events_of(b"nonsense " + good + b"\xff\xfe [1, 2] " + good) == [
        {"event": "shutdown"},
        {"event": "shutdown"},
    ]
    endless = b'{"event": "' + b"x" * (MAX_DOCUMENT_BYTES + 100)
    assert events_of(endless) == []
    assert events_of(endless, good) == [{"event": "shutdown"}]
    assert events_of(b"[" * 3000 + b'{"a":' * 3000) == []
