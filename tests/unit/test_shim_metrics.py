"""The guest's counters as metrics of both cgroup versions."""

from hypercore.proto import cgroup1_stats_pb, cgroup_stats_pb
from hypercore.proto.agent_pb import StatsResponse
from hypercore.shim import metrics

STATS = StatsResponse(
    cpu_usage_us=3_000,
    cpu_user_us=2_000,
    cpu_system_us=1_000,
    memory_current_bytes=50,
    memory_anon_bytes=20,
    memory_file_bytes=30,
    pids_current=4,
    pids_limit=9,
    oom_kills=2,
    throttled_us=7,
    nr_periods=11,
    nr_throttled=5,
)


def test_version_1() -> None:
    given = metrics.render(STATS, 1)
    assert given.type_url == "io.containerd.cgroups.v1.Metrics"
    found = cgroup1_stats_pb.Metrics.decode(given.value)
    usage, throttling = found.cpu.usage, found.cpu.throttling
    assert (usage.total, usage.user, usage.kernel) == (3_000_000, 2_000_000, 1_000_000)
    assert (throttling.periods, throttling.throttled_periods) == (11, 5)
    assert throttling.throttled_time == 7_000
    assert (found.memory.usage.usage, found.memory.rss, found.memory.cache) == (50, 20, 30)
    assert found.memory.usage.limit == metrics.NO_LIMIT_V1
    assert (found.pids.current, found.pids.limit) == (4, 9)
    assert found.memory_oom_control.oom_kill == 2


def test_version_2() -> None:
    given = metrics.render(STATS, 2)
    assert given.type_url == "io.containerd.cgroups.v2.Metrics"
    found = cgroup_stats_pb.Metrics.decode(given.value)
    assert (found.cpu.usage_usec, found.cpu.nr_throttled) == (3_000, 5)
    assert (found.memory.usage, found.memory.usage_limit) == (50, 0)
    assert found.memory_events.oom_kill == 2


def test_the_hosts_version_is_found() -> None:
    assert metrics.host_version() in (1, 2)
