"""OCI runtime documents (config.json, process) from an image's config and what the user asked.

Pure functions; what must be changed for the guest's kernel and runtime is the shim's business.
Formats: https://github.com/opencontainers/runtime-spec and image-spec.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hypercore.errors import InvalidArgument
from hypercore.spec import WorkloadSpec

Document = dict[str, Any]
"""A JSON object of one of those formats."""

OCI_VERSION = "1.0.2"  # crun before 1.9 refuses newer ones
DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# What docker and containerd leave to a container's root.
_CAPABILITIES = [
    f"CAP_{name}"
    for name in (
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "NET_RAW",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    )
]
_SECCOMP_ARCHITECTURES = {"amd64": ("X86_64", "X86", "X32"), "arm64": ("AARCH64", "ARM")}
_MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
_READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_NAMESPACES = ("pid", "ipc", "uts", "mount", "cgroup")  # the network is the microVM's
_CHARACTER_DEVICES = (  # null, zero, full, random, urandom, tty, console, ptmx, any pty
    (1, 3),
    (1, 5),
    (1, 7),
    (1, 8),
    (1, 9),
    (5, 0),
    (5, 1),
    (5, 2),
    (136, None),
)


def runtime_config(
    container_id: str,
    image_config: Mapping[str, Any],
    workload: WorkloadSpec,
    *,
    user: Document,
    hostname: str,
    annotations: Mapping[str, str],
) -> Document:
    """The config.json of a container.

    Args:
        image_config: the image's config document (with its own "config" member).
        user: OCI user, from accounts.py.

    Raises:
        InvalidArgument: neither image nor workload names a command, or the image is built for a
            machine that guests are not.
    """
    return {
        "ociVersion": OCI_VERSION,
        "process": _process(image_config.get("config") or {}, workload, user, hostname),
        "root": {"path": "rootfs", "readonly": False},
        "hostname": hostname,
        "mounts": _mounts(),
        "annotations": dict(annotations),
        "linux": {
            "cgroupsPath": f"/hypercore/{container_id}",
            "namespaces": [{"type": name} for name in _NAMESPACES],
            "maskedPaths": list(_MASKED_PATHS),
            "readonlyPaths": list(_READONLY_PATHS),
            "resources": {"devices": _device_rules()},
            "seccomp": seccomp(image_config.get("architecture") or "amd64"),
        },
    }


def exec_process(
    process: Mapping[str, Any],
    args: Sequence[str],
    *,
    env: Sequence[str] = (),
    workdir: str = "",
    user: Document | None = None,
    tty: bool = False,
) -> Document:
    """The process object of an exec in the container whose init has the object `process`."""
    new = dict(process)
    new.pop("consoleSize", None)
    new["args"] = list(args)
    new["terminal"] = tty
    defaults = [DEFAULT_PATH, *(["TERM=xterm"] if tty else [])]
    new["env"] = merge_env(defaults, process.get("env", ()), env)
    if workdir:
        new["cwd"] = workdir
    if user:
        new["user"] = user
    return new


def merge_env(*lists: Sequence[str]) -> list[str]:
    """Environments laid over each other; the last value of a name wins, in its first place."""
    merged: dict[str, str] = {}
    for items in lists:
        for item in items:
            merged[item.partition("=")[0]] = item
    return list(merged.values())


def user_of(image_config: Mapping[str, Any], workload: WorkloadSpec) -> str:
    """Who the init process is to run as, as the user or the image names it; empty: root."""
    return workload.user or (image_config.get("config") or {}).get("User") or ""


def command(image: Mapping[str, Any], workload: WorkloadSpec) -> list[str]:
    """The arguments of the init process, by docker's rule for entrypoint and cmd.

    Args:
        image: the "config" member of the image's config document.
    """
    if workload.command:
        args = [*workload.command, *workload.args]
    else:
        cmd = workload.args or image.get("Cmd") or []
        args = [*(image.get("Entrypoint") or []), *cmd]
    if not args or not args[0]:
        raise InvalidArgument(
            "no command: the image names none",
            hint="give one after the image, or [workload] command in hac.toml",
        )
    return args


def seccomp(architecture: str = "amd64") -> Document:
    """A profile that allows all, also to 32-bit programs; the shim takes AF_VSOCK out of any."""
    if architecture not in _SECCOMP_ARCHITECTURES:
        raise InvalidArgument(
            f"the image is built for {architecture}",
            hint="guests run " + " and ".join(_SECCOMP_ARCHITECTURES),
        )
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": [f"SCMP_ARCH_{name}" for name in _SECCOMP_ARCHITECTURES[architecture]],
    }


def _process(
    image: Mapping[str, Any], workload: WorkloadSpec, user: Document, hostname: str
) -> Document:
    defaults = [DEFAULT_PATH, f"HOSTNAME={hostname}"]
    if workload.tty:
        defaults.append("TERM=xterm")
    return {
        "terminal": workload.tty,
        "user": user,
        "args": command(image, workload),
        "env": merge_env(defaults, image.get("Env") or (), workload.env),
        "cwd": workload.workdir or image.get("WorkingDir") or "/",
        "capabilities": {
            name: list(_CAPABILITIES) for name in ("bounding", "effective", "permitted")
        },
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 1024 * 1024}],
    }


def _mounts() -> list[Document]:
    def mount(destination: str, fs_type: str, source: str, options: str) -> Document:
        return {
            "destination": destination,
            "type": fs_type,
            "source": source,
            "options": options.split(","),
        }

    return [
        mount("/proc", "proc", "proc", "nosuid,noexec,nodev"),
        mount("/dev", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5",
        ),
        mount("/dev/shm", "tmpfs", "shm", "nosuid,noexec,nodev,mode=1777,size=65536k"),
        mount("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
        mount("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro"),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid,noexec,nodev,relatime,ro"),
    ]


def _device_rules() -> list[Document]:
    rules: list[Document] = [{"allow": False, "access": "rwm"}]
    for major, minor in _CHARACTER_DEVICES:
        rule: Document = {"allow": True, "type": "c", "major": major, "access": "rwm"}
        if minor is not None:
            rule["minor"] = minor
        rules.append(rule)
    return rules
