"""Rate of this CPU's time-stamp counter. No policy: tsc.py says who needs it."""

from libc.errno cimport EINTR

cdef extern from *:
    """
    #include <stdint.h>
    #include <time.h>
    #if defined(__x86_64__)
    #include <x86intrin.h>
    #define HC_HAS_TSC 1
    static inline uint64_t hc_tsc(void) {
        _mm_lfence();
        uint64_t t = __rdtsc();
        _mm_lfence();
        return t;
    }
    #else
    #define HC_HAS_TSC 0
    static inline uint64_t hc_tsc(void) { return 0; }
    #endif

    static inline int64_t hc_raw_ns(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC_RAW, &t);
        return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    }

    /* One reading of both clocks. The pair whose two counter reads lie closest together was not
       interrupted between them. */
    static void hc_read_pair(uint64_t *tsc, int64_t *ns) {
        uint64_t best = UINT64_MAX;
        for (int i = 0; i < 32; i++) {
            uint64_t before = hc_tsc();
            int64_t now = hc_raw_ns();
            uint64_t after = hc_tsc();
            if (after - before < best) {
                best = after - before;
                *tsc = before + best / 2;
                *ns = now;
            }
        }
    }
    """
    ctypedef unsigned long long uint64_t
    ctypedef long long int64_t
    int HC_HAS_TSC
    void hc_read_pair(uint64_t *tsc, int64_t *ns) noexcept nogil

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int CLOCK_MONOTONIC
    int clock_nanosleep(int clock, int flags, const timespec *request, timespec *left)


def measure_khz(int sample_ms):
    """Ticks per millisecond of the TSC against CLOCK_MONOTONIC_RAW over `sample_ms`.

    Blocks for that long with the GIL released. 0 on a CPU that has no such counter.
    """
    if sample_ms < 1 or sample_ms > 10_000:
        raise ValueError(f"sample_ms = {sample_ms}: must be 1 to 10000")
    if not HC_HAS_TSC:
        return 0
    cdef uint64_t tsc0 = 0, tsc1 = 0
    cdef int64_t ns0 = 0, ns1 = 0
    cdef timespec request
    cdef timespec left
    request.tv_sec = sample_ms // 1000
    request.tv_nsec = (sample_ms % 1000) * 1_000_000
    with nogil:
        hc_read_pair(&tsc0, &ns0)
        while clock_nanosleep(CLOCK_MONOTONIC, 0, &request, &left) == EINTR:
            request = left
        hc_read_pair(&tsc1, &ns1)
    return (tsc1 - tsc0) * 1_000_000 // <uint64_t>(ns1 - ns0)
