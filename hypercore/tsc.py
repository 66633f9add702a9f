"""The host's TSC rate for guests under TCG, measured once per boot.

TCG hands the host's counter to the guest. Told its true rate (tsc_early_khz=), the guest's kernel
skips a calibration that hangs on a loaded host; told any other, its clock runs wrong by the ratio.
/proc/cpuinfo is no source: it moves with the frequency of the core.
"""

from hypercore import probe_cache

SAMPLE_MS = 50
"""Long enough that one microsecond of error in a reading is 0.002 %."""


def khz() -> int:
    """Ticks per millisecond; 0 on a CPU without such a counter.

    Blocks SAMPLE_MS the first time after a boot.
    """
    from hypercore._tsc import measure_khz

    cached = probe_cache.load("tsc", {})
    if cached is not None and isinstance(rate := cached.get("khz"), int):
        return rate
    rate = measure_khz(SAMPLE_MS)
    probe_cache.store("tsc", {}, {"khz": rate})
    return rate
