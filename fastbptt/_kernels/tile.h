/* The register tile of the matrix product (`product.pxi`): R rows by V vectors of C, summed over k with all R * V sums in registers.
 *
 * It is C, and not Cython, for what only C can tell the compiler: unroll these loops whole, so that the accumulators are registers and not
 * an array; and leave the pointers alone. GCC would otherwise make one induction variable of every row's address, more than there are
 * registers, and read them back from the stack at every k. */
#ifndef FASTBPTT_TILE_H
#define FASTBPTT_TILE_H

#include "simd.h"

/* Clang unrolls by itself; told to, it keeps the accumulators in memory. */
#if defined(__GNUC__) && !defined(__clang__)
#define UNROLLED _Pragma("GCC unroll 8")
#else
#define UNROLLED
#endif
#if LIKE_GCC
#define HIDE(p, q) __asm__("" : "+r"(p), "+r"(q))
#else
#define HIDE(p, q) ((void)0)
#endif

/* How many vectors a tile of R rows may have: with more than two rows, a k's vectors and one broadcast stay in registers too. */
#define TILE_VECTORS(R) LEAST(8, LEAST(ACCUMULATORS / (R), (R) > 2 ? (REGISTERS - 1) / ((R) + 1) : 8))

static inline int tile_vectors(int r) { return TILE_VECTORS(r); }

/* The last vector has ``last`` columns. Where parts of vectors can be masked for nothing, it is always taken to be a part. */
#define WHOLE(j) ((j) < V - 1 || (whole && VECTOR_MASKS != 512))
#define LOAD(p, j) (WHOLE(j) ? load(p) : load_part(p, last))

/* C = init + A B; without ``from_init``, C += A B with sums that start from 0. R, V, ``from_init`` and ``whole`` are constants at every call. */
static inlined tile(const int R, const int V, const int from_init, const int whole, Py_ssize_t K, const real *a, Py_ssize_t a_row,
                    Py_ssize_t a_k, const real *b, Py_ssize_t b_row, Py_ssize_t b_panel, const real *init, Py_ssize_t init_row, real *c,
                    Py_ssize_t c_row, int last, int stream)
{
    vec acc[8][8], w[8];
    if (stream || !from_init) /* what C collects stands far away: by the end of the sum it is here */
        for (int i = 0; i < R; i++)
            for (int j = 0; j < V; j++) prefetch_to_write(c + i * c_row + j * LANES);
    UNROLLED
    for (int i = 0; i < R; i++) {
        UNROLLED
        for (int j = 0; j < V; j++) acc[i][j] = from_init ? LOAD(init + i * init_row + j * LANES, j) : broadcast(0);
    }
    for (Py_ssize_t k = 0; k < K; k++) {
        HIDE(a, b);
        UNROLLED
        for (int j = 0; j < V; j++) w[j] = load(b + j * b_panel);
        UNROLLED
        for (int i = 0; i < R; i++) {
            vec s = broadcast(a[i * a_row]);
            UNROLLED
            for (int j = 0; j < V; j++) acc[i][j] += s * w[j];
        }
        a += a_k;
        b += b_row;
    }
    UNROLLED
    for (int i = 0; i < R; i++) {
        UNROLLED
        for (int j = 0; j < V; j++) {
            real *to = c + i * c_row + j * LANES;
            vec sum = from_init ? acc[i][j] : LOAD(to, j) + acc[i][j];
            if (WHOLE(j))
                store(to, sum);
            else
                store_part(to, sum, last);
        }
    }
}

#define TILE(R, V, from_init, whole) \
    tile(R, V, from_init, whole, K, a, a_row, a_k, b, b_row, b_panel, init, init_row, c, c_row, last, stream)
#define CASE(R, V) \
    case 8 * R + V: \
        if (R > TILE_ROWS || V > TILE_VECTORS(R)) break; \
        if (VECTOR_MASKS == 512 || last == LANES) { \
            if (init) TILE(R, V, 1, 1); else TILE(R, V, 0, 1); \
        } else { \
            if (init) TILE(R, V, 1, 0); else TILE(R, V, 0, 0); \
        } \
        break;
#define CASES(R) CASE(R, 1) CASE(R, 2) CASE(R, 3) CASE(R, 4) CASE(R, 5) CASE(R, 6) CASE(R, 7) CASE(R, 8)

static void any_tile(int r, int v, Py_ssize_t K, const real *a, Py_ssize_t a_row, Py_ssize_t a_k, const real *b, Py_ssize_t b_row,
                     Py_ssize_t b_panel, const real *init, Py_ssize_t init_row, real *c, Py_ssize_t c_row, int last, int stream)
{
    switch (8 * r + v) {
        CASES(1) CASES(2) CASES(3) CASES(4) CASES(5) CASES(6) CASES(7) CASES(8)
    }
}

#endif
