"""hac.toml's `[vm] kind = "unikernel"`: its keys, and those that mean nothing beside it."""

from hypercore.spec import HardwareSpec
from hypercore.tomlfile import Table
from hypercore.unikernel_spec import KIND, MAX_DISKS, UnikernelDisk, UnikernelSpec, check_kernel

KINDS = ("container", KIND)
READ_ONLY = ":ro"


def parse(vm: Table, others: dict[str, Table], *, ref: str) -> UnikernelSpec | None:
    """What `[vm]` says of a unikernel; None: it asks for a container.

    Args:
        others: the other tables, by name.
        ref: image named on the command line.

    Raises:
        InvalidArgument: naming file, line and key.
    """
    kind = vm.choice("kind", KINDS[0], KINDS)
    disks = vm.texts("disks")
    if kind != KIND:
        if "disks" in vm:
            vm.fail("disks", f'belongs to kind = "{KIND}"', hint="a container has its image")
        return None
    hardware = others["hardware"]
    if ref:
        vm.fail("kind", f'"{KIND}" takes no image, but {ref!r} is named on the command line')
    if "kernel" not in hardware:
        vm.fail("kind", f'"{KIND}" needs its kernel', hint='[hardware] kernel = "path/to/kernel"')
    refused = [(hardware, key) for key in ("ref", "drive", "interface") if key in hardware]
    refused += [(others["workload"], key) for key in others["workload"].keys()]  # noqa: SIM118
    refused += [
        (others["network"], key)
        for key in others["network"].keys()  # noqa: SIM118
        if (key, others["network"].text(key)) != ("mode", "none")
    ]
    for table, key in refused:
        table.fail(
            key,
            f'means nothing with [vm] kind = "{KIND}"',
            hint="a unikernel has no image, no agent, no command and no network yet",
        )
    if len(disks) > MAX_DISKS:
        vm.fail("disks", f"has {len(disks)} entries, more than {MAX_DISKS}")
    return UnikernelSpec(tuple(_disk(vm, text) for text in disks))


def check_host(spec: UnikernelSpec, machine: HardwareSpec, hardware: Table, vm: Table) -> None:
    """Refuse files that are not there, or not what they are to be."""
    for table, key, path in (
        (hardware, "kernel", machine.kernel_path),
        (vm, "initrd", machine.initrd_path),
    ):
        if path is not None and not path.is_file():
            table.fail(key, "is no regular file" if path.exists() else "no such file")
    if machine.kernel_path is not None:
        check_kernel(machine.kernel_path, hardware.where("kernel"))
    for disk in spec.disks:
        if not (disk.path.is_file() or disk.path.is_block_device()):
            vm.fail("disks", f'"{disk.path}" is neither a file nor a block device')


def _disk(vm: Table, text: str) -> UnikernelDisk:
    name = text.removesuffix(READ_ONLY)
    if not name:
        vm.fail("disks", f'"{text}" names no file')
    return UnikernelDisk(vm.resolve(name), read_only=name != text)
