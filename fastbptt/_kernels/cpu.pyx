"""What the processor can do. Compiled for the oldest one of its kind, so that asking is safe on any."""

cdef extern from *:
    """
    /* GCC's and Clang's answer counts a feature only if the operating system saves its registers too. */
    #if defined(__x86_64__)
    static int cpu_has_v3(void)
    {
        __builtin_cpu_init();
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi")
            && __builtin_cpu_supports("bmi2");
    }
    static int cpu_has_v4(void)
    {
        return cpu_has_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
            && __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    }
    #else
    static int cpu_has_v3(void) { return 0; }
    static int cpu_has_v4(void) { return 0; }
    #endif

    #if defined(__x86_64__)
    enum { X86_64 = 1, AARCH64 = 0 };
    #elif defined(__aarch64__)
    enum { X86_64 = 0, AARCH64 = 1 };
    #else
    enum { X86_64 = 0, AARCH64 = 0 };
    #endif
    """
    bint cpu_has_v3()
    bint cpu_has_v4()
    const bint X86_64
    const bint AARCH64

# The levels of this kind of processor, best first, as setup.py builds them; NEON belongs to every 64-bit ARM.
LEVELS = ("v4", "v3", "baseline", "scalar") if X86_64 else ("neon", "scalar") if AARCH64 else ("baseline", "scalar")


def runs(str level not None):
    """Whether this processor, and the operating system on it, can run code compiled for ``level``."""
    if level == "v4":
        return cpu_has_v4()
    if level == "v3":
        return cpu_has_v3()
    return level in LEVELS
