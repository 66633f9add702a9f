"""What the daemon counts, and its text for Prometheus.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

SPAWN_BUCKETS_S = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
CALL_BUCKETS_S = (0.001, 0.003, 0.01, 0.03, 0.1, 1.0, 10.0)


class Histogram:
    """Counts of values by upper bound."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self, name: str, labels: Mapping[str, str]) -> Iterator[str]:
        below = 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            below += count
            limit = "+Inf" if bound == float("inf") else f"{bound:g}"
            yield f"{name}_bucket{_labels({**labels, 'le': limit})} {below}"
        yield f"{name}_sum{_labels(labels)} {self.total:.6f}"
        yield f"{name}_count{_labels(labels)} {below}"


class Figures:
    """Counters of one daemon; only its event loop changes them."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, str, str]] = Counter()
        """by method, transport and kind of error ("" for none)"""
        self.call_s: defaultdict[str, Histogram] = defaultdict(lambda: Histogram(CALL_BUCKETS_S))
        self.phase_s: defaultdict[tuple[str, str], Histogram] = defaultdict(
            lambda: Histogram(SPAWN_BUCKETS_S)
        )
        """by room (engine, shim) and phase"""
        self.stream_bytes: Counter[str] = Counter()
        """passed between callers and processes, by direction (in, out)"""
        self.reclaimed: Counter[str] = Counter()
        self.denied: Counter[str] = Counter()

    def spawned(self, timings_ms: Mapping[str, Mapping[str, float]]) -> None:
        for room, phases in timings_ms.items():
            for phase, value in phases.items():
                self.phase_s[room, phase].add(value / 1000)

    def text(self, states: Mapping[tuple[str, str], int], *, synced: bool, rss_bytes: int) -> str:
        """All figures.

        Args:
            states: how many microVMs there are by state and provider.
            synced: whether containerd's events are followed.
        """
        lines = [
            *_head("hypercore_microvms", "gauge", "MicroVMs by state and provider."),
            *(
                f"hypercore_microvms{_labels({'state': state, 'provider': provider})} {count}"
                for (state, provider), count in sorted(states.items())
            ),
            *_head("hypercore_containerd_followed", "gauge", "1 while containerd's events come."),
            f"hypercore_containerd_followed {int(synced)}",
            *_head("hypercore_resident_bytes", "gauge", "Memory of this daemon."),
            f"hypercore_resident_bytes {rss_bytes}",
            *_head("hypercore_calls_total", "counter", "Calls by method, transport and error."),
            *(
                f"hypercore_calls_total"
                f"{_labels({'method': method, 'transport': transport, 'error': error})} {count}"
                for (method, transport, error), count in sorted(self.calls.items())
            ),
            *_head("hypercore_denied_total", "counter", "Callers refused, by reason."),
            *_counter("hypercore_denied_total", "reason", self.denied),
            *_head("hypercore_stream_bytes_total", "counter", "Bytes of exec, attach and logs."),
            *_counter("hypercore_stream_bytes_total", "direction", self.stream_bytes),
            *_head("hypercore_reclaimed_total", "counter", "Things removed or taken back."),
            *_counter("hypercore_reclaimed_total", "kind", self.reclaimed),
            *_head("hypercore_call_seconds", "histogram", "How long unary calls took."),
        ]
        for method, histogram in sorted(self.call_s.items()):
            lines += histogram.lines("hypercore_call_seconds", {"method": method})
        lines += _head("hypercore_spawn_phase_seconds", "histogram", "How long phases took.")
        for (room, phase), histogram in sorted(self.phase_s.items()):
            labels = {"room": room, "phase": phase}
            lines += histogram.lines("hypercore_spawn_phase_seconds", labels)
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, words: str) -> tuple[str, str]:
    return f"# HELP {name} {words}", f"# TYPE {name} {kind}"


def _counter(name: str, label: str, counts: Mapping[str, int]) -> Iterator[str]:
    for key, count in sorted(counts.items()):
        yield f"{name}{_labels({label: key})} {count}"


def _labels(values: Mapping[str, str]) -> str:
    if not values:
        return ""
    escaped = (
        f'{key}="' + value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") + '"'
        for key, value in values.items()
    )
    return "{" + ",".join(escaped) + "}"
