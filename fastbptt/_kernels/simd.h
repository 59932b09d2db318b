/* A vector of numbers, and what the kernels do with it.
 *
 * Two macros choose what is compiled: FASTBPTT_FLOAT32 (else float64), and FASTBPTT_SCALAR (else the widest
 * vector that the compiler's -march allows, or NEON's). Every function below is written once for all of them, because
 * C's operators work on GCC's and Clang's vector types and on plain numbers alike.
 *
 *   real   the element type                 bits   the signed integer of its size
 *   vec    LANES elements                   ivec   LANES integers
 */
#ifndef FASTBPTT_SIMD_H
#define FASTBPTT_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef FASTBPTT_FLOAT32
typedef float real;
typedef int32_t bits;
#else
typedef double real;
typedef int64_t bits;
#endif

/* clang-cl, which stands in for Microsoft's compiler, does not say that it is like GCC. */
#if defined(__GNUC__) || defined(__clang__)
#define LIKE_GCC 1
#else
#define LIKE_GCC 0
#endif
#if !LIKE_GCC && !defined(FASTBPTT_SCALAR)
#error "fastbptt needs a compiler with vector types: GCC or Clang, on Windows clang-cl"
#endif

#if LIKE_GCC
/* As the return type of a Cython function: a kernel that must be pasted into its caller, so that the sizes it
 * is called with are constants there and its accumulators live in registers. */
#define inlined inline __attribute__((always_inline)) void
#else
#define inlined inline void
#endif

/* What the compiler's -march gives: bytes in a vector, registers, and whether parts of vectors can be masked. */
#ifdef FASTBPTT_SCALAR
#define VECTOR_BYTES ((int)sizeof(real))
#define REGISTERS 16
#define VECTOR_MASKS 0
#elif defined(__aarch64__)
#define VECTOR_BYTES 16
#define REGISTERS 32
#define VECTOR_MASKS 0
#define NEON
#elif defined(__AVX512F__)
#define VECTOR_BYTES 64
#define REGISTERS 32
#define VECTOR_MASKS 512
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#define REGISTERS 16
#define VECTOR_MASKS 256
#else
#define VECTOR_BYTES 16
#define REGISTERS 16
#define VECTOR_MASKS 0
#endif
#define LANES ((int)(VECTOR_BYTES / sizeof(real)))
#define LEAST(a, b) ((a) < (b) ? (a) : (b))

#if VECTOR_MASKS
#include <immintrin.h>
#elif defined(NEON)
#include <arm_neon.h>
#endif
#if defined(NEON) && defined(FASTBPTT_FLOAT32)
#define PER_TYPE(intrinsic) intrinsic##_f32
#elif defined(NEON)
#define PER_TYPE(intrinsic) intrinsic##_f64
#elif defined(FASTBPTT_FLOAT32)
#define PER_TYPE(intrinsic) intrinsic##_ps
#define ONES -1, -1, -1, -1, -1, -1, -1, -1
#else
#define PER_TYPE(intrinsic) intrinsic##_pd
#define ONES -1, -1, -1, -1
#endif

#ifdef FASTBPTT_SCALAR
typedef real vec;
typedef bits ivec;
#define MASK(condition) (-(ivec)(condition))
#else
typedef real vec __attribute__((vector_size(VECTOR_BYTES)));
typedef bits ivec __attribute__((vector_size(VECTOR_BYTES)));
#define MASK(condition) ((ivec)(condition))
#endif

/* A tile of the matrix product keeps this many accumulators in flight, in at most TILE_ROWS rows: 16 registers
 * hold 12, three vectors of weights and one broadcast. NEON multiplies by an element of a register, but has no operand
 * in memory: with 24 accumulators GCC spills one to four registers at every k, with 21 none. Four rows of five vectors
 * take the fewest instructions and loads for a multiply-add, 1.8 and 0.45 (8 x 3: 2.2 and 0.6); seen in the machine code, not timed. */
#ifdef NEON
#define TILE_ROWS 4
#define ACCUMULATORS 21
#else
#define TILE_ROWS (REGISTERS / 4)
#define ACCUMULATORS (REGISTERS * 3 / 4)
#endif
_Static_assert(64 % TILE_ROWS == 0, "add_weight_gradient packs GRADIENT_ROWS columns, in whole slivers of TILE_ROWS");

static inline vec load(const real *p)
{
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* Hints: to the second-level cache, and to the first, to be written. */
#if LIKE_GCC
#define prefetch(p) __builtin_prefetch(p, 0, 2)
#define prefetch_to_write(p) __builtin_prefetch(p, 1, 3)
#else
#define prefetch(p) ((void)0)
#define prefetch_to_write(p) ((void)0)
#endif

static inline void store(real *p, vec v) { memcpy(p, &v, sizeof v); }

#ifdef FASTBPTT_SCALAR
static inline vec broadcast(real s) { return s; }
#else
static inline vec broadcast(real s) { return s - (vec){0}; } /* keeps -0; 0 + s would not */
#endif

/* The first n <= LANES elements; the others read as 0 and are not written, nor is their memory touched. */
#if VECTOR_MASKS == 512
#define FIRST(n) ((1u << (n)) - 1)
static inline vec load_part(const real *p, Py_ssize_t n) { return (vec)PER_TYPE(_mm512_maskz_loadu)(FIRST(n), p); }
static inline void store_part(real *p, vec v, Py_ssize_t n) { PER_TYPE(_mm512_mask_storeu)(p, FIRST(n), v); }
#elif VECTOR_MASKS == 256
static inline __m256i first(Py_ssize_t n)
{
    static const bits ones_then_zeros[2 * LANES] = {ONES};
    __m256i mask;
    memcpy(&mask, ones_then_zeros + LANES - n, sizeof mask);
    return mask;
}
static inline vec load_part(const real *p, Py_ssize_t n) { return (vec)PER_TYPE(_mm256_maskload)(p, first(n)); }
static inline void store_part(real *p, vec v, Py_ssize_t n) { PER_TYPE(_mm256_maskstore)(p, first(n), v); }
#elif defined(NEON)
/* Lane by lane in registers: a vector that is read back from memory right after its elements were written there waits for all of them. */
static inline vec load_part(const real *p, Py_ssize_t n)
{
    vec v = broadcast(0);
    for (int i = 0; i < LANES; i++)
        if (i < n) v[i] = p[i];
    return v;
}

static inline void store_part(real *p, vec v, Py_ssize_t n)
{
    for (int i = 0; i < LANES; i++)
        if (i < n) p[i] = v[i];
}
#else
static inline vec load_part(const real *p, Py_ssize_t n)
{
    real part[LANES];
    for (int i = 0; i < LANES; i++) part[i] = i < n ? p[i] : 0;
    return load(part);
}

static inline void store_part(real *p, vec v, Py_ssize_t n)
{
    real part[LANES];
    store(part, v);
    for (int i = 0; i < LANES; i++)
        if (i < n) p[i] = part[i];
}
#endif

static inline ivec as_bits(vec v)
{
    ivec i;
    memcpy(&i, &v, sizeof i);
    return i;
}

static inline vec from_bits(ivec i)
{
    vec v;
    memcpy(&v, &i, sizeof v);
    return v;
}

static inline vec choose(ivec mask, vec yes, vec no)
{
    return from_bits((mask & as_bits(yes)) | (~mask & as_bits(no)));
}

/* A NaN in v, or in the test, goes through: of the instructions' two operands, the second. */
#if VECTOR_MASKS == 512
static inline vec at_most(vec v, real limit) { return (vec)PER_TYPE(_mm512_min)(broadcast(limit), v); }
static inline vec at_least(vec v, real limit) { return (vec)PER_TYPE(_mm512_max)(broadcast(limit), v); }
#elif VECTOR_MASKS == 256
static inline vec at_most(vec v, real limit) { return (vec)PER_TYPE(_mm256_min)(broadcast(limit), v); }
static inline vec at_least(vec v, real limit) { return (vec)PER_TYPE(_mm256_max)(broadcast(limit), v); }
#elif defined(NEON)
/* NEON's let a NaN through in either place, but take -0 to be less than 0, which is kept elsewhere. */
static inline vec at_most(vec v, real limit) { return (vec)PER_TYPE(vminq)(broadcast(limit), v); }
static inline vec at_least(vec v, real limit)
{
    return limit == 0 ? choose(MASK(v < 0), broadcast(0), v) : (vec)PER_TYPE(vmaxq)(broadcast(limit), v);
}
#else
static inline vec at_most(vec v, real limit) { return choose(MASK(v > limit), broadcast(limit), v); }
static inline vec at_least(vec v, real limit) { return choose(MASK(v < limit), broadcast(limit), v); }
#endif

static inline vec zero_where_not_positive(vec test, vec v) { return choose(MASK(test <= 0), broadcast(0), v); }

static inline ivec sign_bit(vec v) { return as_bits(v) & as_bits(broadcast((real)-0.0)); }
static inline vec magnitude(vec v) { return from_bits(as_bits(v) ^ sign_bit(v)); }

/* exp, tanh and sigmoid all rest on x = n ln 2 + r with |r| <= ln(2)/2, n whole (Cody and Waite 1980), and on
 * exp(r) - 1 = r + r^2 (Q2 + Q3 r + Q4 r^2 + ...). The Q are mpmath's: chebyfit of (exp(r) - 1 - r) / r^2, with 11 coefficients in float64
 * and 6 in float32. They cost 2.4e-19 and 2.4e-10 of exp(r) at most, a few thousandths of a rounding error. */
#ifdef FASTBPTT_FLOAT32
#define MANTISSA 23
#define EXPONENT_BIAS 127
#define ROUNDER 12582912.0f /* 1.5 * 2^23: adding it rounds to whole numbers */
#define LN2_HIGH 0.693359375f /* nine bits, so that n * LN2_HIGH is exact */
#define LN2_LOW -2.12194440e-4f
#define EXP_OVERFLOWS 89.0f
#define EXP_VANISHES -104.0f
#define TANH_IS_ONE 10.0f
#define Q2 0.5f
#define Q3 0.166666667f
#define Q4 0.0416664642f
#define Q5 0.00833331084f
#define Q6 0.00139337307f
#define Q7 0.000198910805f
#else
#define MANTISSA 52
#define EXPONENT_BIAS 1023
#define ROUNDER 6755399441055744.0 /* 1.5 * 2^52 */
#define LN2_HIGH 0.693147180369123816490 /* 32 bits, so that n * LN2_HIGH is exact */
#define LN2_LOW 1.90821492927058770002e-10
#define EXP_OVERFLOWS 710.0
#define EXP_VANISHES -746.0
#define TANH_IS_ONE 20.0
#define Q2 0.5
#define Q3 0.1666666666666667103
#define Q4 0.041666666666666669783
#define Q5 0.0083333333333260831202
#define Q6 0.0013888888888883711167
#define Q7 0.00019841269875002278793
#define Q8 2.48015873256774619e-5
#define Q9 2.7557255170000887438e-6
#define Q10 2.7557274718478580474e-7
#define Q11 2.5105312729622101775e-8
#define Q12 2.0914755325893202191e-9
#endif
#define LOG2_E ((real)1.44269504088896340736)

/* 2^(n + shift), where rounded = n + ROUNDER: n stands in the low bits of that sum. */
static inline vec power_of_two(vec rounded, int shift)
{
    return from_bits((as_bits(rounded) + (EXPONENT_BIAS + shift)) << MANTISSA);
}

/* exp(r) - 1 - r */
static inline vec exp_beyond_linear(vec r)
{
    vec s = r * r;
#ifdef FASTBPTT_FLOAT32
    vec even = Q4 + s * Q6, odd = Q5 + s * Q7;
#else
    vec even = Q10 + s * Q12, odd = Q9 + s * Q11;
    even = Q8 + s * even;
    odd = Q7 + s * odd;
    even = Q6 + s * even;
    odd = Q5 + s * odd;
    even = Q4 + s * even;
#endif
    odd = Q3 + s * odd;
    even = Q2 + s * even;
    return s * (even + r * odd);
}

/* v 2^n for whole n, rounded once, subnormal results and those near overflow included: by two halves where no instruction does it. */
static inline vec scaled(vec v, vec n)
{
#if VECTOR_MASKS == 512
    return (vec)PER_TYPE(_mm512_scalef)(v, n);
#else
    vec half = n * (real)0.5 + ROUNDER, rest = (n - (half - ROUNDER)) + ROUNDER;
    return v * power_of_two(half, 0) * power_of_two(rest, 0);
#endif
}

/* For x below overflow. */
static inline vec exp_of_bounded(vec x)
{
    x = at_least(x, EXP_VANISHES);
    vec n = (x * LOG2_E + ROUNDER) - ROUNDER, r = (x - n * LN2_HIGH) - n * LN2_LOW;
    return scaled((r + exp_beyond_linear(r)) + 1, n);
}

static inline vec vector_exp(vec x) { return exp_of_bounded(at_most(x, EXP_OVERFLOWS)); }

/* tanh|x| = e / (e + 1) with e = (exp(2|x|) - 1) / 2. What r = high - low has lost in rounding would be too much of a small e: only what
 * is beyond linear is computed from it. What e + 1 has lost counts where e < 1, and the divisor is taken as 1 there: then it may be put
 * right by twice too much, which is no more than it was. */
static inline vec vector_tanh(vec x)
{
    vec y = 2 * at_most(magnitude(x), TANH_IS_ONE);
    vec rounded = y * LOG2_E + ROUNDER, n = rounded - ROUNDER, half_power = power_of_two(rounded, -1);
    vec high = y - n * LN2_HIGH, low = n * LN2_LOW;
    vec e = half_power * (exp_beyond_linear(high - low) - low) + (half_power * high + (half_power - (real)0.5));
    vec divisor = e + 1, t = e / divisor, lost = choose(MASK(e < 1), e - (divisor - 1), broadcast(0));
    t = t - t * lost;
    return from_bits(as_bits(t) | sign_bit(x));
}

/* 1 / (1 + exp(-x)), for negative x as exp(x) / (1 + exp(x)), which keeps its accuracy down to the smallest. What 1 + exp has lost is put
 * right as in tanh. */
static inline vec vector_sigmoid(vec x)
{
    vec e = exp_of_bounded(from_bits(as_bits(x) | as_bits(broadcast((real)-0.0)))), divisor = e + 1, lost = e - (divisor - 1);
    vec s = choose(MASK(x < 0), e, broadcast(1)) / divisor;
    return s - s * lost;
}

#endif
