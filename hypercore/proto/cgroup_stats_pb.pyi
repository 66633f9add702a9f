# Generated from cgroup_stats.proto by scripts/protogen.py; do not edit.
from typing import ClassVar

from hypercore.wire.codec import Message

class CPUStat(Message):
    usage_usec: int
    user_usec: int
    system_usec: int
    nr_periods: int
    nr_throttled: int
    throttled_usec: int
    def __init__(
        self,
        *,
        usage_usec: int = ...,
        user_usec: int = ...,
        system_usec: int = ...,
        nr_periods: int = ...,
        nr_throttled: int = ...,
        throttled_usec: int = ...,
    ) -> None: ...

class MemoryEvents(Message):
    low: int
    high: int
    max: int
    oom: int
    oom_kill: int
    def __init__(
        self,
        *,
        low: int = ...,
        high: int = ...,
        max: int = ...,
        oom: int = ...,
        oom_kill: int = ...,
    ) -> None: ...

class MemoryStat(Message):
    anon: int
    file: int
    usage: int
    usage_limit: int
    def __init__(
        self,
        *,
        anon: int = ...,
        file: int = ...,
        usage: int = ...,
        usage_limit: int = ...,
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
    memory_events: MemoryEvents | None
    def __init__(
        self,
        *,
        pids: PidsStat | None = ...,
        cpu: CPUStat | None = ...,
        memory: MemoryStat | None = ...,
        memory_events: MemoryEvents | None = ...,
    ) -> None: ...
