/* LANES rows of numbers, side by side in the lanes of vectors, and back: a transposition. So the weights are packed (`product.pxi`), whose
 * panels are rows of W side by side, and so small nets come into the lanes (`small_nets.pxi`). */
#ifndef FASTBPTT_INTERLEAVE_H
#define FASTBPTT_INTERLEAVE_H

#include "simd.h"

/* The lanes of two vectors in turn: a0 b0 a1 b1 ... The first half of them, and the second. */
#ifdef FASTBPTT_SCALAR
#define ZIP_FIRST(a, b) (a)
#define ZIP_SECOND(a, b) (b)
#else
#if defined(__clang__)
#define SHUFFLED(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLED(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif
#ifdef FASTBPTT_FLOAT32
#define REAL_BYTES 4
#else
#define REAL_BYTES 8
#endif
#if VECTOR_BYTES / REAL_BYTES == 16
#define ZIP_FIRST(a, b) SHUFFLED(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define ZIP_SECOND(a, b) SHUFFLED(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#elif VECTOR_BYTES / REAL_BYTES == 8
#define ZIP_FIRST(a, b) SHUFFLED(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define ZIP_SECOND(a, b) SHUFFLED(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#elif VECTOR_BYTES / REAL_BYTES == 4
#define ZIP_FIRST(a, b) SHUFFLED(a, b, 0, 4, 1, 5)
#define ZIP_SECOND(a, b) SHUFFLED(a, b, 2, 6, 3, 7)
#else
#define ZIP_FIRST(a, b) SHUFFLED(a, b, 0, 2)
#define ZIP_SECOND(a, b) SHUFFLED(a, b, 1, 3)
#endif
#endif

#if defined(__GNUC__) && !defined(__clang__)
#define UNROLLED_WHOLE _Pragma("GCC unroll 16")
#else
#define UNROLLED_WHOLE
#endif

/* A square of LANES vectors: each round turns the number of an element, (row, column) in binary, left by a digit. */
static inlined transpose_lanes(vec v[LANES])
{
    vec zipped[LANES];
    UNROLLED_WHOLE
    for (int round = 1; round < LANES; round *= 2) {
        UNROLLED_WHOLE
        for (int i = 0; i < LANES / 2; i++) {
            zipped[2 * i] = ZIP_FIRST(v[i], v[i + LANES / 2]);
            zipped[2 * i + 1] = ZIP_SECOND(v[i], v[i + LANES / 2]);
        }
        UNROLLED_WHOLE
        for (int i = 0; i < LANES; i++) v[i] = zipped[i];
    }
}

/* lanes (n, LANES): n numbers of each row, side by side; 0 for a row that is not there, NULL. */
static void interleave(const real *const *rows, Py_ssize_t n, real *lanes)
{
    vec v[LANES];
    for (Py_ssize_t i = 0; i < n; i += LANES) {
        Py_ssize_t part = LEAST(LANES, n - i);
        for (int l = 0; l < LANES; l++) v[l] = !rows[l] ? broadcast(0) : part == LANES ? load(rows[l] + i) : load_part(rows[l] + i, part);
        transpose_lanes(v);
        for (int l = 0; l < part; l++) store(lanes + (i + l) * LANES, v[l]);
    }
}

/* And back; a row that is not there gets nothing. */
static void deinterleave(const real *lanes, Py_ssize_t n, real *const *rows)
{
    vec v[LANES];
    for (Py_ssize_t i = 0; i < n; i += LANES) {
        Py_ssize_t part = LEAST(LANES, n - i);
        for (int l = 0; l < LANES; l++) v[l] = l < part ? load(lanes + (i + l) * LANES) : broadcast(0);
        transpose_lanes(v);
        for (int l = 0; l < LANES; l++) {
            if (!rows[l]) continue;
            if (part == LANES)
                store(rows[l] + i, v[l]);
            else
                store_part(rows[l] + i, v[l], part);
        }
    }
}

#endif
