"""Generated from cgroup_stats.proto by scripts/protogen.py; do not edit."""

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


class CPUStat(Message):
    __slots__ = (
        "usage_usec",
        "user_usec",
        "system_usec",
        "nr_periods",
        "nr_throttled",
        "throttled_usec",
    )
    FIELDS = (
        Field(1, "usage_usec", UINT),
        Field(2, "user_usec", UINT),
        Field(3, "system_usec", UINT),
        Field(4, "nr_periods", UINT),
        Field(5, "nr_throttled", UINT),
        Field(6, "throttled_usec", UINT),
    )


class MemoryEvents(Message):
    __slots__ = (
        "low",
        "high",
        "max",
        "oom",
        "oom_kill",
    )
    FIELDS = (
        Field(1, "low", UINT),
        Field(2, "high", UINT),
        Field(3, "max", UINT),
        Field(4, "oom", UINT),
        Field(5, "oom_kill", UINT),
    )


class MemoryStat(Message):
    __slots__ = (
        "anon",
        "file",
        "usage",
        "usage_limit",
    )
    FIELDS = (
        Field(1, "anon", UINT),
        Field(2, "file", UINT),
        Field(32, "usage", UINT),
        Field(33, "usage_limit", UINT),
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
        "memory_events",
    )
    FIELDS = (
        Field(1, "pids", MESSAGE, OPTIONAL, PidsStat),
        Field(2, "cpu", MESSAGE, OPTIONAL, CPUStat),
        Field(4, "memory", MESSAGE, OPTIONAL, MemoryStat),
        Field(8, "memory_events", MESSAGE, OPTIONAL, MemoryEvents),
    )
