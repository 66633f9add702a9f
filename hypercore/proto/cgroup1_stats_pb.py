"""Generated from cgroup1_stats.proto by scripts/protogen.py; do not edit."""

from hypercore.wire.codec import (
    BOOL,
    BYTES,
    DOUBLE,
    INT,
    MAP,
    MESSAGE,
    OPTIONAL,
    REPEATED,
    SINGULAR,
    STRING,
    UINT,
    Field,
    Message,
)


class CPUUsage(Message):
    __slots__ = (
        "total",
        "kernel",
        "user",
    )
    FIELDS = (
        Field(1, "total", UINT),
        Field(2, "kernel", UINT),
        Field(3, "user", UINT),
    )


class Throttle(Message):
    __slots__ = (
        "periods",
        "throttled_periods",
        "throttled_time",
    )
    FIELDS = (
        Field(1, "periods", UINT),
        Field(2, "throttled_periods", UINT),
        Field(3, "throttled_time", UINT),
    )


class CPUStat(Message):
    __slots__ = (
        "usage",
        "throttling",
    )
    FIELDS = (
        Field(1, "usage", MESSAGE, OPTIONAL, CPUUsage),
        Field(2, "throttling", MESSAGE, OPTIONAL, Throttle),
    )


class MemoryOomControl(Message):
    __slots__ = (
        "oom_kill",
    )
    FIELDS = (
        Field(3, "oom_kill", UINT),
    )


class MemoryEntry(Message):
    __slots__ = (
        "limit",
        "usage",
    )
    FIELDS = (
        Field(1, "limit", UINT),
        Field(2, "usage", UINT),
    )


class MemoryStat(Message):
    __slots__ = (
        "cache",
        "rss",
        "hierarchical_memory_limit",
        "total_cache",
        "total_rss",
        "usage",
    )
    FIELDS = (
        Field(1, "cache", UINT),
        Field(2, "rss", UINT),
        Field(16, "hierarchical_memory_limit", UINT),
        Field(18, "total_cache", UINT),
        Field(19, "total_rss", UINT),
        Field(33, "usage", MESSAGE, OPTIONAL, MemoryEntry),
    )


class PidsStat(Message):
    __slots__ = (
        "current",
        "limit",
    )
    FIELDS = (
        Field(1, "current", UINT),
        Field(2, "limit", UINT),
    )


class Metrics(Message):
    __slots__ = (
        "pids",
        "cpu",
        "memory",
        "memory_oom_control",
    )
    FIELDS = (
        Field(2, "pids", MESSAGE, OPTIONAL, PidsStat),
        Field(3, "cpu", MESSAGE, OPTIONAL, CPUStat),
        Field(4, "memory", MESSAGE, OPTIONAL, MemoryStat),
        Field(9, "memory_oom_control", MESSAGE, OPTIONAL, MemoryOomControl),
    )
