# Generated from cgroup1_stats.proto by scripts/protogen.py; do not edit.
from typing import ClassVar

from hypercore.wire.codec import Message

class CPUUsage(Message):
    total: int
    kernel: int
    user: int
    def __init__(
        self,
        *,
        total: int = ...,
        kernel: int = ...,
        user: int = ...,
    ) -> None: ...

class Throttle(Message):
    periods: int
    throttled_periods: int
    throttled_time: int
    def __init__(
        self,
        *,
        periods: int = ...,
        throttled_periods: int = ...,
        throttled_time: int = ...,
    ) -> None: ...

class CPUStat(Message):
    usage: CPUUsage | None
    throttling: Throttle | None
    def __init__(
        self,
        *,
        usage: CPUUsage | None = ...,
        throttling: Throttle | None = ...,
    ) -> None: ...

class MemoryOomControl(Message):
    oom_kill: int
    def __init__(
        self,
        *,
        oom_kill: int = ...,
    ) -> None: ...

class MemoryEntry(Message):
    limit: int
    usage: int
    def __init__(
        self,
        *,
        limit: int = ...,
        usage: int = ...,
    ) -> None: ...

class MemoryStat(Message):
    cache: int
    rss: int
    hierarchical_memory_limit: int
    total_cache: int
    total_rss: int
    usage: MemoryEntry | None
    def __init__(
        self,
        *,
        cache: int = ...,
        rss: int = ...,
        hierarchical_memory_limit: int = ...,
        total_cache: int = ...,
        total_rss: int = ...,
        usage: MemoryEntry | None = ...,
    ) -> None: ...

class PidsStat(Message):
    current: int
    limit: int
    def __init__(
        self,
        *,
        current: int = ...,
        limit: int = ...,
    ) -> None: ...

class Metrics(Message):
    pids: PidsStat | None
    cpu: CPUStat | None
    memory: MemoryStat | None
    memory_oom_control: MemoryOomControl | None
    def __init__(
        self,
        *,
        pids: PidsStat | None = ...,
        cpu: CPUStat | None = ...,
        memory: MemoryStat | None = ...,
        memory_oom_control: MemoryOomControl | None = ...,
    ) -> None: ...
