"""What the processor can do. Compiled for the oldest one of its kind, so that asking is safe on any."""

cdef extern from *:
    """
    /* The processor is asked here, by its own instruction: __builtin_cpu_supports asks a library that comes with the linker, and one of
     * those has an answer of 0 for everything. A feature counts only if the operating system saves its registers too; macOS begins to with
     * the first instruction that needs it. Bits: Intel's manual, volume 2A, CPUID. */
    #if defined(__x86_64__)
    #include <cpuid.h>
    #define BIT(n) (1u << (n))
    #define FMA_MOVBE_OSXSAVE_AVX_F16C (BIT(12) | BIT(22) | BIT(27) | BIT(28) | BIT(29))
    #define LZCNT BIT(5) /* of leaf 0x80000001: where it is not known, it counts from the other end, without a fault */
    #define BMI1_AVX2_BMI2 (BIT(3) | BIT(5) | BIT(8))
    #define AVX512_F_DQ_CD_BW_VL (BIT(16) | BIT(17) | BIT(28) | BIT(30) | BIT(31))
    #define YMM (BIT(1) | BIT(2))
    #define ZMM (YMM | BIT(5) | BIT(6) | BIT(7))

    /* Whether all of these features of leaf 7 are there, with the rest of what -march=x86-64-v3 lets a compiler use, and all of these
     * registers are saved. */
    static int cpu_has(unsigned features, unsigned registers)
    {
        unsigned eax, ebx, ecx, edx, saved, upper_half;
        if (!__get_cpuid(0x80000001, &eax, &ebx, &ecx, &edx) || !(ecx & LZCNT)) return 0;
        if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || (ecx & FMA_MOVBE_OSXSAVE_AVX_F16C) != FMA_MOVBE_OSXSAVE_AVX_F16C) return 0;
        __asm__("xgetbv" : "=a"(saved), "=d"(upper_half) : "c"(0));
        if ((saved & registers) != registers) return 0;
        return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (ebx & features) == features;
    }
    static int cpu_has_v3(void) { return cpu_has(BMI1_AVX2_BMI2, YMM); }
    #if defined(__APPLE__)
    static int cpu_has_v4(void) { return cpu_has(BMI1_AVX2_BMI2 | AVX512_F_DQ_CD_BW_VL, YMM); }
    #else
    static int cpu_has_v4(void) { return cpu_has(BMI1_AVX2_BMI2 | AVX512_F_DQ_CD_BW_VL, ZMM); }
    #endif
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
