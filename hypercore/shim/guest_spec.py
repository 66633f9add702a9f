"""The host's config.json → the config.json for the container runtime in the guest.

Pure but for the few host files it injects. What cannot be had in a guest is refused by name,
never dropped silently; what is dropped has no meaning there: paths of the host's namespaces and
cgroups, and its security labels.
"""

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypercore.errors import InvalidArgument, from_os_error
from hypercore.proto.agent_pb import InjectedFile
from hypercore.shim.binds import HostBind
from hypercore.shim.forward import HostSocket
from hypercore.shim.hooks import Hook
from hypercore.shim.hooks import parse as parse_hooks

GUEST_OCI_VERSION = "1.0.2"
"""crun before 1.9 refuses later ones ("unknown version specified")."""

MAX_CONFIG_BYTES = 4 * 1024 * 1024
MAX_INJECTED_BYTES = 1024 * 1024
ROOM_MIB = 64
"""What a guest needs beside its container: kernel, agent, container runtime."""
GUEST_NETWORK = "/proc/1/ns/net"
INJECTED = ("/etc/resolv.conf", "/etc/hosts", "/etc/hostname")
AF_VSOCK = 40
IO_URING = frozenset({"io_uring_setup", "io_uring_enter", "io_uring_register"})
EPERM, EAFNOSUPPORT, ENOSYS = 1, 97, 38

_NAMESPACES = frozenset({"pid", "ipc", "uts", "mount", "cgroup", "user", "time"})
_PROCESS_DROPPED = ("apparmorProfile", "selinuxLabel", "oomScoreAdj")
_BIND_DROPPED = (
    *("bind", "rbind", "ro", "rw"),
    *("shared", "rshared", "slave", "rslave", "private", "unbindable", "runbindable"),
)
"""Of a copy there is nothing to propagate."""
_LINUX_DROPPED = ("mountLabel", "intelRdt", "rootfsPropagation", "personality")

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class GuestSpec:
    """What the agent gets."""

    config: Document
    files: tuple[InjectedFile, ...]
    binds: tuple[HostBind, ...] = ()
    sockets: tuple[HostSocket, ...] = ()
    hooks: tuple[Hook, ...] = ()
    """for the host"""
    annotations: Mapping[str, str] = field(default_factory=dict)


def translate(config: Mapping[str, Any], container_id: str) -> GuestSpec:
    """The guest's document for the host's `config`.

    Raises:
        InvalidArgument: something in it has no equivalent in a guest; names it.
    """
    linux = dict(config.get("linux") or {})
    hooks = config.get("hooks") or {}
    if hooks.get("createContainer"):
        raise InvalidArgument(
            "config.json: hooks.createContainer is a program of the host for the container's "
            "namespaces, which are a guest's: it is not supported",
            hint="createRuntime runs on the host, startContainer in the container",
        )
    for name in ("vm", "windows", "solaris"):
        if name in config:
            raise InvalidArgument(f"config.json has a section {name!r}: it is not for Linux")
    mounts = _mounts(config.get("mounts") or (), f"/run/hc/{container_id}")
    for name in _LINUX_DROPPED:
        linux.pop(name, None)
    linux["namespaces"] = _namespaces(linux.get("namespaces") or ())
    if any(name.startswith(("net.", "net/")) for name in linux.get("sysctl") or ()):
        # crun sets these only where the network is the container's; the guest's is, as it stands.
        linux["namespaces"].append({"type": "network", "path": GUEST_NETWORK})
    # The agent looks for its counters and processes there (agent/cgroups.py).
    linux["cgroupsPath"] = f"/hc/{container_id}"
    linux["seccomp"] = deny_vsock(linux.get("seccomp"))
    if linux.get("devices"):
        linux["devices"] = _devices(linux["devices"])
    result: Document = {
        "ociVersion": GUEST_OCI_VERSION,
        "process": process(config.get("process") or {}),
        "root": {"path": "rootfs", "readonly": bool((config.get("root") or {}).get("readonly"))},
        "mounts": mounts.kept,
        "linux": linux,
    }
    if hooks.get("startContainer"):
        result["hooks"] = {"startContainer": hooks["startContainer"]}
    for name in ("hostname", "domainname"):
        if config.get(name):
            result[name] = config[name]
    return GuestSpec(
        result,
        tuple(mounts.files),
        tuple(mounts.binds),
        tuple(mounts.sockets),
        parse_hooks(hooks),
        dict(config.get("annotations") or {}),
    )


def memory_mib(config: Mapping[str, Any], default_mib: int) -> int:
    """Memory of the microVM for a container whose client did not say: its limit fits in.

    A limit above the host's memory is none.
    """
    memory = ((config.get("linux") or {}).get("resources") or {}).get("memory") or {}
    limit = memory.get("limit") or 0
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if not isinstance(limit, int) or not 0 < limit <= host:
        return default_mib
    return max(default_mib, -(-limit >> 20) + ROOM_MIB)


def network_files(
    spec: GuestSpec, dns_servers: Sequence[str], dns_search: Sequence[str]
) -> tuple[InjectedFile, ...]:
    """The files to inject: what the client bound wins over what the guest's network offers."""
    files = list(spec.files)
    bound = {file.path for file in files}
    hostname = spec.config.get("hostname") or ""
    if dns_servers and "/etc/resolv.conf" not in bound:
        files.append(_resolv_conf(dns_servers, dns_search))
    if dns_servers and hostname and "/etc/hosts" not in bound:
        files.append(_hosts(hostname))
    return tuple(files)


def process(document: Mapping[str, Any]) -> Document:
    """An OCI process object without what belongs to the host."""
    return {key: value for key, value in document.items() if key not in _PROCESS_DROPPED}


def _namespaces(given: Sequence[Mapping[str, Any]]) -> list[Document]:
    """The container's own: its network is the microVM's, and so is what a path would join."""
    types = [n["type"] for n in given if n.get("type") in _NAMESPACES and not n.get("path")]
    for needed in ("mount", "cgroup"):
        if needed not in types:
            types.append(needed)
    return [{"type": name} for name in types]


def deny_vsock(seccomp: Mapping[str, Any] | None) -> Document:
    """`seccomp` with AF_VSOCK denied, and io_uring, which makes sockets past every filter.

    vsock knows no namespaces: a container could reach the host's listener as if it were the agent.
    """
    profile: Document = dict(seccomp or {"defaultAction": "SCMP_ACT_ALLOW"})
    allows = profile["defaultAction"] in ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG")
    rules: list[Document] = []
    for rule in profile.get("syscalls") or ():
        names = list(rule.get("names") or ())
        passes = rule.get("action") in ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG")
        if passes and not IO_URING.isdisjoint(names):
            names = [name for name in names if name not in IO_URING]
            if not names:
                continue
            rule = {**rule, "names": names}
        if "socket" not in names or not passes or rule.get("args"):
            rules.append(dict(rule))
            continue
        # libseccomp lets a rule without conditions win over one with them.
        names.remove("socket")
        if names:
            rules.append({**rule, "names": names})
        if not allows:
            other = {"index": 0, "value": AF_VSOCK, "op": "SCMP_CMP_NE"}
            rules.append({**rule, "names": ["socket"], "args": [other]})
    if allows:
        vsock = {"index": 0, "value": AF_VSOCK, "op": "SCMP_CMP_EQ"}
        deny: Document = {"names": ["socket"], "action": "SCMP_ACT_ERRNO"}
        rules.append({**deny, "names": sorted(IO_URING), "errnoRet": EPERM})
        rules.append({**deny, "errnoRet": EAFNOSUPPORT, "args": [vsock]})
        if not any("socketcall" in (r.get("names") or ()) for r in rules):
            # i386's socketcall hides its arguments from the filter; libcs then use socket.
            rules.append({**deny, "names": ["socketcall"], "errnoRet": ENOSYS})
    profile["syscalls"] = rules
    return profile


def _devices(devices: Sequence[Mapping[str, Any]]) -> list[Document]:
    """Device nodes that mean the same in the guest; `--privileged` names all of the host's."""
    return [
        dict(device)
        for device in devices
        if (device.get("type"), device.get("major")) in (("c", 1), ("c", 5), ("u", 1))
        or device.get("path") in ("/dev/fuse", "/dev/net/tun")
    ]


@dataclass(slots=True)
class _Mounts:
    """config.json's mounts, sorted by how a guest gets them."""

    kept: list[Document] = field(default_factory=list)
    files: list[InjectedFile] = field(default_factory=list)
    binds: list[HostBind] = field(default_factory=list)
    sockets: list[HostSocket] = field(default_factory=list)


def _mounts(mounts: Sequence[Mapping[str, Any]], guest_dir: str) -> _Mounts:
    """What the host provides is to be found below `guest_dir`."""
    found = _Mounts()
    for mount in mounts:
        options = list(mount.get("options") or ())
        destination = os.path.normpath(mount.get("destination") or "/")
        source = mount.get("source") or ""
        kind = mount.get("type") or ""
        if kind in ("bind", "uds") or "bind" in options or "rbind" in options:
            if destination in INJECTED and kind != "uds":
                content = _read(source)
                found.files.append(InjectedFile(path=destination, mode=0o644, content=content))
                continue
            if not os.path.isabs(source):
                raise InvalidArgument(f"bind mount of {source!r} on {destination}: relative path")
            options = [o for o in options if o not in _BIND_DROPPED]
            if kind == "uds" or _is_socket(source):
                given = HostSocket(str(len(found.sockets)), source, destination)
                found.sockets.append(given)
                mount = {**mount, "type": "bind", "source": f"{guest_dir}/sockets/{given.name}"}
                options += ["bind"]
            else:
                bind = HostBind(str(len(found.binds)), Path(source), destination)
                found.binds.append(bind)
                mount = {**mount, "type": "bind", "source": f"{guest_dir}/binds/{bind.name}"}
                options += ["bind", "ro"]
        options = [o for o in options if o not in ("rro", "rprivate")]
        found.kept.append({**mount, "options": options})
    return found


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False  # whoever copies it says what is wrong


def _read(source: str) -> bytes:
    try:
        with open(source, "rb") as file:
            content = file.read(MAX_INJECTED_BYTES + 1)
    except OSError as exc:
        raise from_os_error(exc, f"read {source}, to be bound into the container") from exc
    if len(content) > MAX_INJECTED_BYTES:
        raise InvalidArgument(f"{source} is longer than {MAX_INJECTED_BYTES} bytes")
    return content


def _resolv_conf(servers: Sequence[str], search: Sequence[str]) -> InjectedFile:
    lines = [f"nameserver {server}" for server in servers]
    if search:
        lines.append("search " + " ".join(search))
    content = ("\n".join(lines) + "\n").encode()
    return InjectedFile(path="/etc/resolv.conf", mode=0o644, content=content)


def _hosts(hostname: str) -> InjectedFile:
    content = f"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n127.0.1.1\t{hostname}\n"
    return InjectedFile(path="/etc/hosts", mode=0o644, content=content.encode())


def load(bundle: Path) -> Document:
    """The bundle's config.json.

    Raises:
        InvalidArgument: it is missing or no JSON object.
    """
    import json

    path = bundle / "config.json"
    try:
        with path.open("rb") as file:
            text = file.read(MAX_CONFIG_BYTES + 1)
        if len(text) > MAX_CONFIG_BYTES:
            raise InvalidArgument(f"{path} is longer than {MAX_CONFIG_BYTES} bytes")
        config = json.loads(text)
    except FileNotFoundError as exc:
        raise InvalidArgument(f"{path} does not exist") from exc
    except ValueError as exc:
        raise InvalidArgument(f"{path} is no JSON document: {exc}") from exc
    if not isinstance(config, dict):
        raise InvalidArgument(f"{path} is no JSON object")
    return config
