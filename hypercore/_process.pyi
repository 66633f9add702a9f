from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import NamedTuple

CLONE_NEWNS: int
CLONE_NEWPID: int
CLONE_NEWNET: int
CLONE_NEWIPC: int
CLONE_NEWUTS: int
CLONE_NEWCGROUP: int

_Text = str | bytes | PathLike[str]

class Bind(NamedTuple):
    source: str
    target: str
    read_only: bool = True
    is_file: bool = False

@dataclass(frozen=True)
class Jail:
    root: str
    binds: Sequence[Bind | tuple[str, str, bool, bool]] = ()
    symlinks: Sequence[tuple[str, str]] = ()
    directories: Sequence[str] = ()
    proc: bool = False

def spawn(
    argv: Sequence[_Text],
    *,
    env: Mapping[str, str],
    fds: Sequence[tuple[int, int]] = (),
    cwd: _Text = "/",
    setsid: bool = True,
    uid: int = -1,
    gid: int = -1,
    groups: Sequence[int] = (),
    namespaces: int = 0,
    netns_fd: int = -1,
    cgroup_fds: Sequence[int] = (),
    rlimits: Sequence[tuple[int, int, int]] = (),
    drop_capabilities: bool | None = None,
    no_new_privs: bool = True,
    umask: int = 0o077,
    oom_score_adj: int | None = None,
    root: Jail | None = None,
) -> tuple[int, int]: ...
def reap(pidfd: int) -> int | None: ...
def send_signal(pidfd: int, signal_number: int) -> None: ...
def start_time(pid: int) -> int: ...
