"""What is observed of microVMs besides their records: events and usage. Imports nothing heavy."""

from dataclasses import dataclass

EVENT_KINDS = ("created", "started", "exited", "paused", "resumed", "oom", "deleted")


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened to a microVM."""

    kind: str
    """one of EVENT_KINDS for users"""
    microvm_id: str
    at: float
    """seconds since the epoch"""
    exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What a container uses, by its cgroup in the guest."""

    at: float
    """seconds since the epoch"""
    cpu_us: int = 0
    memory_bytes: int = 0
    memory_limit_bytes: int = 0
    processes: int = 0
    oom_kills: int = 0
