"""What the library answers with, where the engine has no word of its own for it."""

from dataclasses import dataclass

from hypercore.errors import TaskError


@dataclass(frozen=True, slots=True)
class RunResult:
    """A command that has run."""

    args: tuple[str, ...]
    exit_code: int
    stdout_bytes: bytes = b""
    stderr_bytes: bytes = b""
    missing_bytes: int = 0
    """output that the guest counted and the host never got"""
    reason: str = ""
    """why, when the microVM died instead of the command"""
    elapsed_ms: float = 0.0

    @property
    def stdout(self) -> str:
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        return self.stderr_bytes.decode(errors="replace")

    def check(self) -> "RunResult":
        """Itself. Raises TaskError when the command has failed."""
        if self.exit_code or self.missing_bytes or self.reason:
            command = " ".join(self.args)
            raise TaskError(
                f"{command[:200]!r} ended with {self.exit_code}"
                + (f": {self.reason}" if self.reason else ""),
                detail=self.stderr[-2000:],
                exit_code=self.exit_code,
            )
        return self


@dataclass(frozen=True, slots=True)
class Output:
    """Bytes that a process or a log gave."""

    stream: str
    """stdout or stderr"""
    data: bytes

    @property
    def text(self) -> str:
        return self.data.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """An image that is here."""

    ref: str
    digest: str
    created_at: float
    """seconds since the epoch"""


@dataclass(frozen=True, slots=True)
class HostInfo:
    """What serves."""

    version: str
    containerd_version: str
    namespace: str
    microvms: int
    running: int
    providers: tuple[str, ...]
    started_at: float


@dataclass(frozen=True, slots=True)
class CheckStep:
    """One thing a host needs."""

    name: str
    ready: bool
    found: str


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file or directory in a microVM."""

    name: str
    """relative to the directory that was listed"""
    kind: str
    """file, directory, link or other"""
    size: int
    mode: int
