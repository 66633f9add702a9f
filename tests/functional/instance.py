"""One hypercore instance of the tests' own: directories, containerd, and its command line.

Its directories are apart from the host's /var/lib/hypercore and /run/hypercore; what was
downloaded or built there once (tools, guest assets) is linked, not made again.
"""

import os
import re
import select
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HYPERCORE = ROOT / "bin" / "hypercore"
SHARED = ("tools", "guest", "cache")
"""Parts of the data directory that instances may share: written atomically, then only read."""

BOOT_DEADLINE_S = 90
COMMAND_DEADLINE_S = 60
VMM_FAILED, BOOT_DEADLINE_EXCEEDED = 125, 75

retried_boots: list[str] = []
"""What failed the first time and was tried once more; printed at the end of the run."""


@dataclass(frozen=True, slots=True)
class Result:
    """An ended command; `args` for messages."""

    args: tuple[str, ...]
    code: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"{' '.join(self.args)}: exit {self.code}\n--- out\n{self.out}--- err\n{self.err}"


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """Directories and environment; commands see nothing else of the caller's environment."""

    data_dir: Path
    run_dir: Path
    extra_env: dict[str, str] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        return {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "HYPERCORE_DATA_DIR": str(self.data_dir),
            "HYPERCORE_RUN_DIR": str(self.run_dir),
            "HYPERCORE_CONFIG": str(self.data_dir / "config.toml"),
            "HYPERCORE_BOOT_TIMEOUT_S": str(BOOT_DEADLINE_S),
            **self.extra_env,
        }

    def run(
        self,
        *args: str | Path,
        check: bool = True,
        stdin: bytes | None = None,
        timeout: float = COMMAND_DEADLINE_S,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
    ) -> Result:
        """Run `hypercore ARGS`.

        Raises:
            AssertionError: it failed and `check` is set; the message has its output.
        """
        argv = [str(HYPERCORE), *map(str, args)]
        source = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        done = subprocess.run(
            argv,
            capture_output=True,
            timeout=timeout,
            env={**self.env, **(env or {})},
            cwd=cwd or self.data_dir,
            **source,
        )
        result = Result(
            ("hypercore", *argv[1:]),
            done.returncode,
            done.stdout.decode(errors="replace"),
            done.stderr.decode(errors="replace"),
        )
        assert not check or result.code == 0, result
        return result

    def popen(self, *args: str | Path, **options: object) -> subprocess.Popen[bytes]:
        """`hypercore ARGS` as a running process; the caller ends it."""
        settings: dict[str, object] = {
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "env": self.env,
            "cwd": self.data_dir,
        }
        return subprocess.Popen([str(HYPERCORE), *map(str, args)], **{**settings, **options})

    def spawn(self, *args: str | Path, **options: object) -> str:
        """`hypercore spawn ARGS` with its output piped; returns the id it prints alone."""
        result = self.boot("spawn", *args, **options)
        assert re.fullmatch(r"[0-9a-z][0-9a-z-]{7,}\n", result.out), result
        return result.out.strip()

    def boot(self, *args: str | Path, check: bool = True, **options: object) -> Result:
        """A command that boots a VM; a VMM that fails or is too slow is reported and retried once.

        A loaded machine without KVM makes a boot slow, not wrong; two in a row are a failure.
        """
        result = self.run(*args, check=False, timeout=BOOT_DEADLINE_S + 30, **options)
        if result.code in (VMM_FAILED, BOOT_DEADLINE_EXCEEDED) and "VM" in result.err:
            retried_boots.append(str(result))
            result = self.run(*args, check=False, timeout=BOOT_DEADLINE_S + 30, **options)
        assert not check or result.code == 0, result
        return result


@contextmanager
def instance(shared: Path, **extra_env: str) -> Iterator[Instance]:
    """A new instance whose tools and guest assets are those of the data directory `shared`."""
    data_dir = Path(tempfile.mkdtemp(prefix="hct-", dir="/var/tmp"))
    run_dir = Path(tempfile.mkdtemp(prefix="hct-", dir="/run"))
    made = Instance(data_dir, run_dir, extra_env)
    try:
        for directory in (data_dir, run_dir):
            directory.chmod(0o711)  # VMMs, which are not root, pass through
        for name in SHARED:
            (data_dir / name).symlink_to(shared / name)
        yield made
    finally:
        try:
            if (run_dir / "containerd.sock").exists():
                _end(made, (("cleanup", "--all"), ("containerd", "stop")))
            for pid in shim_servers(made):
                _terminate(pid)
        finally:
            if not os.environ.get("HYPERCORE_TEST_KEEP"):
                shutil.rmtree(run_dir)
                shutil.rmtree(data_dir)


def _end(made: Instance, commands: Sequence[tuple[str, ...]]) -> None:
    """Run all `commands`, then fail if one did."""
    failed = [
        str(result) for args in commands if (result := made.run(*args, check=False)).code != 0
    ]
    assert not failed, "\n".join(failed)


def shim_servers(made: Instance) -> list[int]:
    """Pids of the instance's shim servers; more than one after a change of the sources."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            argv = path.read_bytes()
            if b"hypercore.shim.server" in argv and os.fsencode(made.run_dir) in argv:
                pids.append(int(path.parent.name))
    return pids


def _terminate(pid: int) -> None:
    """SIGTERM, which ends an idle shim server, and wait for it."""
    with suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            ended, _, _ = select.select([pidfd], [], [], 15)
            assert ended, f"shim server {pid} does not end"
        finally:
            os.close(pidfd)


def shared_data_dir() -> Path:
    return Path(os.environ.get("HYPERCORE_DATA_DIR") or "/var/lib/hypercore")
