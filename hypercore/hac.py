"""hac.toml → SpawnSpec. The only place that knows the file's keys; docs/hac.md lists them.

`[spacecore]` and `[hardware]` are the first hypercore's and keep their meaning. What a missing key
means on this host (provider, interface, guest assets) is decided later, by the engine.
"""

import re
from dataclasses import replace
from pathlib import Path

from hypercore import hac_network, hac_unikernel, providers
from hypercore.containerd import reference
from hypercore.errors import InvalidArgument
from hypercore.hostnet import interfaces
from hypercore.spec import DiskLimits, HardwareSpec, NetworkSpec, SpawnSpec, WorkloadSpec
from hypercore.tomlfile import Table, load, nearest

DEFAULT_FILE = Path("hac.toml")
MIN_MEMORY_MIB, MAX_MEMORY_MIB = 64, 1024 * 1024
MAX_CORES = 64
MAX_PER_S = 10_000_000
"""Bound on disks beyond which there is none."""
PROVIDER_ALIASES = {"cloudhypervisor": "cloud-hypervisor"}

_ENV = re.compile(r"[^=\0\s]+=[^\0]*", re.DOTALL)


def parse(path: Path, *, ref: str = "", check_host: bool = True) -> SpawnSpec:
    """Read the file at `path`.

    Args:
        ref: image reference that replaces the file's; without it the file must have one.
        check_host: also check that kernel and drive are what they claim and that the interface
            exists on this host.

    Raises:
        InvalidArgument, NotFound: naming file, line, key, value and remedy.
    """
    return from_document(load(path), ref=ref, check_host=check_host)


def from_document(document: Table, *, ref: str = "", check_host: bool = True) -> SpawnSpec:
    """As `parse`, of a document that may have come from elsewhere than a file."""
    spacecore = document.table("spacecore")
    hardware = document.table("hardware")
    vm = document.table("vm")
    network = document.table("network")
    workload = document.table("workload")
    document.finish()
    others = {"hardware": hardware, "workload": workload, "network": network}
    unikernel = hac_unikernel.parse(vm, others, ref=ref)
    file_ref = hardware.text("ref")
    if file_ref:
        _check_ref(hardware, file_ref)
    spec = SpawnSpec(
        ref=ref or file_ref,
        provider=_provider(vm),
        name=spacecore.text("name"),
        description=spacecore.text("description"),
        hardware=_hardware(hardware, vm),
        network=hac_network.parse(network, hardware.text("interface")),
        workload=_workload(workload),
        cmdline=vm.text("cmdline"),
        hostname=hac_network.hostname(network),
        unikernel=unikernel,
    )
    if unikernel is not None:
        spec = replace(spec, network=NetworkSpec(mode="none"))
    for table in (spacecore, hardware, vm, network, workload):
        table.finish()
    if unikernel is not None:
        if check_host:
            hac_unikernel.check_host(unikernel, spec.hardware, hardware, vm)
        return spec
    if not (ref or file_ref):
        hardware.fail(
            "ref",
            "is missing: which image is to run?",
            hint='for example ref = "docker.io/library/alpine:latest", or name it on the command'
            " line",
        )
    if check_host:
        _check_host(spec, hardware, vm)
    return spec


def _provider(vm: Table) -> str:
    name = vm.text("provider")
    if "provider" in vm and PROVIDER_ALIASES.get(name, name) not in providers.NAMES:
        vm.fail("provider", "unknown provider", hint=_provider_hint(name))
    return PROVIDER_ALIASES.get(name, name)


def provider_name(name: str) -> str:
    """`--provider NAME` as the canonical name.

    Raises:
        InvalidArgument: there is no such provider.
    """
    canonical = PROVIDER_ALIASES.get(name, name)
    if canonical not in providers.NAMES:
        raise InvalidArgument(f"--provider {name}: unknown provider", hint=_provider_hint(name))
    return canonical


def _provider_hint(name: str) -> str:
    return nearest(name, providers.NAMES) or "providers here: " + ", ".join(providers.NAMES)


def _hardware(table: Table, vm: Table) -> HardwareSpec:
    defaults = HardwareSpec()
    return HardwareSpec(
        cores=table.integer("cores", defaults.cores, least=1, most=MAX_CORES),
        memory_mib=table.integer(
            "memory", defaults.memory_mib, least=MIN_MEMORY_MIB, most=MAX_MEMORY_MIB, unit="MiB"
        ),
        kernel_path=table.path("kernel"),
        drive_path=table.path("drive"),
        initrd_path=vm.path("initrd"),
        disk_limits=DiskLimits(
            mib_per_s=vm.integer("disk_mib_per_s", 0, least=0, most=MAX_PER_S, unit="MiB"),
            ops_per_s=vm.integer("disk_ops_per_s", 0, least=0, most=MAX_PER_S),
        ),
    )


def _workload(table: Table) -> WorkloadSpec:
    command, args = table.texts("command"), table.texts("args")
    if "command" in table and not command:
        table.fail("command", "must not be empty", hint="leave it out to use the image's")
    env = table.texts("env")
    for item in env:
        if problem := env_problem(item):
            table.fail("env", problem)
    workdir = table.text("workdir")
    if workdir and not workdir.startswith("/"):
        table.fail("workdir", "must be an absolute path in the container")
    user = table.text("user")
    if problem := user_problem(user):
        table.fail("user", problem)
    return WorkloadSpec(
        command=command,
        args=args,
        env=env,
        workdir=workdir,
        user=user,
        tty=table.boolean("tty", False),
    )


def _check_ref(hardware: Table, ref: str) -> None:
    try:
        reference.parse(ref)
    except InvalidArgument as exc:
        raise InvalidArgument(f"{hardware.where('ref')}: {exc.message}", hint=exc.hint) from exc


def env_problem(item: str) -> str:
    return "" if _ENV.fullmatch(item) else f'"{item}" is not of the form NAME=value'


def user_problem(user: str) -> str:
    if not user or re.fullmatch(
        r"[A-Za-z0-9_][A-Za-z0-9_.-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?", user
    ):
        return ""
    return f'"{user}" is not of the form user, uid, user:group or uid:gid'


def _check_host(spec: SpawnSpec, hardware: Table, vm: Table) -> None:
    if spec.network.interface and spec.network.mode in ("nat", "bridge"):
        names = interfaces()
        if spec.network.interface not in names:
            usable = ", ".join(name for name in names if name != "lo") or "none but lo"
            hardware.fail(
                "interface",
                "no such network interface on this host",
                hint=f"interfaces here: {usable}; without the key the one with the default"
                " route is taken",
            )
    if path := spec.hardware.kernel_path:
        _check_file(hardware, "kernel", path)
    if path := spec.hardware.drive_path:
        _check_file(hardware, "drive", path)
    if path := spec.hardware.initrd_path:
        _check_file(vm, "initrd", path)


def _check_file(table: Table, key: str, path: Path) -> None:
    if not path.is_file():
        table.fail(
            key,
            "is no regular file" if path.exists() else "no such file",
            hint=f"leave {key} out to use the one of `hypercore guest build`",
        )
    if key == "kernel":
        from hypercore.guest import check_kernel

        check_kernel(path, table.where(key))
    elif key == "drive":
        from hypercore.guest import check_drive

        check_drive(path, table.where(key))
