"""What the guest says of its container's cgroup, as the metrics that containerd's clients know.

Guests have cgroup v2; clients expect what their host has.
"""

from pathlib import Path

from hypercore import cgroup
from hypercore.proto import cgroup1_stats_pb as v1
from hypercore.proto import cgroup_stats_pb as v2
from hypercore.proto.agent_pb import StatsResponse
from hypercore.proto.types_pb import Any

NO_LIMIT_V1 = (1 << 63) - 4096
"""How cgroup v1 writes that there is no limit of memory."""


def host_version() -> int:
    """The version of the host's memory controller."""
    trees = cgroup.hierarchies(Path("/proc/self/mountinfo").read_text())
    return 1 if any(tree.version == 1 and "memory" in tree.controllers for tree in trees) else 2


def render(s: StatsResponse, version: int) -> Any:
    """The statistics as cgroup `version` has them."""
    value = _v1(s).encode() if version == 1 else _v2(s).encode()
    return Any(type_url=f"io.containerd.cgroups.v{version}.Metrics", value=value)


def _v1(s: StatsResponse) -> v1.Metrics:
    limit = s.memory_limit_bytes or NO_LIMIT_V1
    return v1.Metrics(
        pids=v1.PidsStat(current=s.pids_current, limit=s.pids_limit),
        cpu=v1.CPUStat(
            usage=v1.CPUUsage(
                total=s.cpu_usage_us * 1000,
                kernel=s.cpu_system_us * 1000,
                user=s.cpu_user_us * 1000,
            ),
            throttling=v1.Throttle(
                periods=s.nr_periods,
                throttled_periods=s.nr_throttled,
                throttled_time=s.throttled_us * 1000,
            ),
        ),
        memory=v1.MemoryStat(
            cache=s.memory_file_bytes,
            rss=s.memory_anon_bytes,
            hierarchical_memory_limit=limit,
            total_cache=s.memory_file_bytes,
            total_rss=s.memory_anon_bytes,
            usage=v1.MemoryEntry(limit=limit, usage=s.memory_current_bytes),
        ),
        memory_oom_control=v1.MemoryOomControl(oom_kill=s.oom_kills),
    )


def _v2(s: StatsResponse) -> v2.Metrics:
    return v2.Metrics(
        pids=v2.PidsStat(current=s.pids_current, limit=s.pids_limit),
        cpu=v2.CPUStat(
            usage_usec=s.cpu_usage_us,
            user_usec=s.cpu_user_us,
            system_usec=s.cpu_system_us,
            nr_periods=s.nr_periods,
            nr_throttled=s.nr_throttled,
            throttled_usec=s.throttled_us,
        ),
        memory=v2.MemoryStat(
            anon=s.memory_anon_bytes,
            file=s.memory_file_bytes,
            usage=s.memory_current_bytes,
            usage_limit=s.memory_limit_bytes,
        ),
        memory_events=v2.MemoryEvents(oom_kill=s.oom_kills),
    )
