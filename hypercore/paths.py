"""Every path hypercore owns. Nobody else joins them.

Two roots: `data_dir` outlives a reboot, `run_dir` does not. HYPERCORE_DATA_DIR and
HYPERCORE_RUN_DIR move them, which tests and several instances on one host use. Imports nothing
heavy: the launcher's `delete` path loads it.
"""

import os
from pathlib import Path

MAX_SOCKET_PATH = 107
"""Longest path of a unix socket in bytes (sun_path less its NUL, unix(7))."""

OWN_NAMESPACE = "hypercore"


def data_dir() -> Path:
    return Path(os.environ.get("HYPERCORE_DATA_DIR") or "/var/lib/hypercore")


def run_dir() -> Path:
    return Path(run_dir_text())


def run_dir_text() -> str:
    """run_dir without a Path, for what is asked many times per spawn."""
    return os.environ.get("HYPERCORE_RUN_DIR") or "/run/hypercore"


def config_file() -> Path:
    return Path(os.environ.get("HYPERCORE_CONFIG") or "/etc/hypercore/config.toml")


def tools_dir() -> Path:
    """Programs that `hypercore setup` installed for us alone."""
    return data_dir() / "tools"


def containerd_root() -> Path:
    return data_dir() / "containerd"


def containerd_state() -> Path:
    return run_dir() / "containerd"


def containerd_socket() -> Path:
    override = os.environ.get("HYPERCORE_CONTAINERD_SOCKET")
    return Path(override) if override else run_dir() / "containerd.sock"


def containerd_config() -> Path:
    """Rendered at each start of our containerd; its argv names this file and no other's does."""
    return data_dir() / "containerd.toml"


def containerd_log() -> Path:
    return data_dir() / "containerd.log"


def containerd_record() -> Path:
    """Pid and start time of our containerd."""
    return run_dir() / "containerd.pid"


def containerd_lock() -> Path:
    """Held while our containerd is started or stopped."""
    return run_dir() / "containerd.lock"


def containerd_notify() -> Path:
    """Datagram socket on which a starting containerd says that it serves (sd_notify)."""
    return run_dir() / "containerd.notify"


def api_socket() -> Path:
    """Where `hypercore serve` listens for HTTP."""
    return run_dir() / "api.sock"


def grpc_socket() -> Path:
    """Where `hypercore serve` listens for gRPC."""
    return run_dir() / "grpc.sock"


def grpc_inner_socket() -> Path:
    """gRPC's own socket when systemd holds the one above; its library takes no open one."""
    return run_dir() / "grpc.inner"


def tokens_file() -> Path:
    """Digests of the tokens that remote callers present."""
    return data_dir() / "tokens.json"


def uploads_dir() -> Path:
    """Image archives while they are received."""
    return data_dir() / "uploads"


def blockfile_dir() -> Path:
    return data_dir() / "blockfile"


def guest_dir() -> Path:
    """Guest assets; `guest_dir() / "current"` is a link to the version in use."""
    return data_dir() / "guest"


def microvm_id(namespace: str, task_id: str) -> str:
    """Name of a microVM's state directories: the task's id where that is ours and short.

    Other namespaces may hold the same id, and socket paths end at 107 bytes.
    """
    if namespace == OWN_NAMESPACE and len(task_id) <= 40:
        return task_id
    import hashlib

    digest = hashlib.sha256(f"{namespace}/{task_id}".encode()).hexdigest()
    return f"{task_id[:20]}-{digest[:16]}"


class MicroVMPaths:
    """All paths of one microVM, by its `microvm_id`."""

    __slots__ = ("data", "microvm_id", "run")

    def __init__(self, microvm_id: str) -> None:
        self.microvm_id = microvm_id
        self.data = data_dir() / "vm" / microvm_id
        self.run = run_dir() / "vm" / microvm_id

    # what outlives a reboot
    @property
    def spec(self) -> Path:
        return self.data / "spec.json"

    @property
    def upper(self) -> Path:
        return self.data / "upper.ext4"

    @property
    def layers(self) -> Path:
        """The root's layers: one after the other where they are too many for disks, or what the
        host's directories show.
        """
        return self.data / "layers.img"

    @property
    def binds(self) -> Path:
        """Image of the host files that are bound into the container."""
        return self.data / "binds.erofs"

    @property
    def stdout_log(self) -> Path:
        return self.data / "stdout.log"

    @property
    def stderr_log(self) -> Path:
        return self.data / "stderr.log"

    @property
    def console_log(self) -> Path:
        return self.data / "console.log"

    @property
    def vmm_log(self) -> Path:
        return self.data / "vmm.log"

    def helper_log(self, role: str) -> Path:
        """Messages of a process that serves the VMM."""
        return self.data / f"{role}.log"

    @property
    def vmm_argv(self) -> Path:
        """JSON: command line of each process, by role; kept for `hypercore debug`."""
        return self.data / "vmm.argv"

    @property
    def snapshot_dir(self) -> Path:
        """Where a confined VMM finds the files it is to write a VM snapshot to; else empty."""
        return self.data / "snapshot"

    @property
    def exit_record(self) -> Path:
        return self.data / "exit.json"

    @property
    def timings(self) -> Path:
        """Milliseconds by phase of the last start, as JSON."""
        return self.data / "timings.json"

    # what does not
    @property
    def claim(self) -> Path:
        """Tells one start of a microVM from another of the same id; see reclaim.py."""
        return self.run / "claim"

    @property
    def processes(self) -> Path:
        """Lines of `role pid start_time`, written before and after each start."""
        return self.run / "processes"

    @property
    def network(self) -> Path:
        """The nft elements that are this microVM's, written before they are added."""
        return self.run / "network"

    @property
    def cgroup_record(self) -> Path:
        """Which cgroup a client wanted, and how much of it was made for it; absent: our own."""
        return self.run / "cgroup"

    @property
    def stdio_socket(self) -> Path:
        """Link to the stdio socket of the shim server that owns this microVM."""
        return self.run / "stdio"

    @property
    def vmm_dir(self) -> Path:
        """The one directory the VMM's own user may write: its sockets."""
        return self.run / "vmm"

    @property
    def jail_root(self) -> Path:
        """Empty; a confined process mounts its own root over it, unseen by the host."""
        return self.run / "root"

    @property
    def vsock(self) -> Path:
        return self.vmm_dir / "v.sock"

    def vsock_listener(self, port: int) -> Path:
        """Where the host listens for the guest's dial to host `port` (hybrid vsock)."""
        return self.vmm_dir / f"v.sock_{port}"

    @property
    def vhost_vsock(self) -> Path:
        return self.vmm_dir / "vhost.sock"

    @property
    def vmm_fifo(self) -> Path:
        """Where a VMM writes that opens its log by name; leads into vmm_log."""
        return self.vmm_dir / "log"

    @property
    def metrics_fifo(self) -> Path:
        """Where a VMM writes its counters, for who asks for them."""
        return self.vmm_dir / "metrics"

    @property
    def api_socket(self) -> Path:
        """The VMM's control socket: QMP, or the API of Firecracker and Cloud Hypervisor."""
        return self.vmm_dir / "api.sock"


def slots_dir() -> Path:
    """One link per running microVM; its number gives addresses, uid and CID.

    Those exist once per host, so all instances share it wherever their run directories are.
    """
    return Path(os.environ.get("HYPERCORE_SLOTS_DIR") or "/run/hypercore/slots")


def network_names_dir() -> Path:
    """One link per number of a network by name; for all instances, as slots_dir."""
    return slots_dir().parent / "networks"


def host_settings() -> Path:
    """Kernel settings that were changed, with their old values; one for all instances."""
    return slots_dir().parent / "host-settings"


def shim_dir() -> Path:
    return run_dir() / "shim"


def probe_cache_dir() -> Path:
    """Results of provider probes; in run_dir, so that a reboot forgets them."""
    return run_dir() / "probe"
