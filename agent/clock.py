"""The guest's wall clock: none of the VMMs gives a guest a battery-backed one it could trust."""

import time


def set_wall_clock(unix_ns):
    """Set CLOCK_REALTIME; 0 leaves it alone."""
    if unix_ns > 0:
        time.clock_settime_ns(time.CLOCK_REALTIME, unix_ns)


def since_boot_us():
    """CLOCK_BOOTTIME."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


def on_cpu_us():
    """CPU time of this process, and of what it was before it became the agent."""
    return time.clock_gettime_ns(time.CLOCK_PROCESS_CPUTIME_ID) // 1000
