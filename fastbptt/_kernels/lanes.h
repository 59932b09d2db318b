/* Products of small nets side by side (`small_nets.pxi`): lane l of every vector belongs to net l.
 *
 * What is a number elsewhere is a vector here, and so no part of a vector is ever left over. That also makes strides free: W and its
 * transpose are the same memory. */
#ifndef FASTBPTT_LANES_H
#define FASTBPTT_LANES_H

#include "tile.h"

/* A tile's sums, one vector for each of its columns, and one of the rows' are all in registers. */
#if REGISTERS == 32
#define LANE_ROWS 4
#define LANE_COLUMNS 6
#else
#define LANE_ROWS 3
#define LANE_COLUMNS 3
#endif

/* C = init + A B, for R rows and V columns of vectors; R and V are constants at every call. */
static inlined lane_tile(const int R, const int V, Py_ssize_t K, const real *a, Py_ssize_t a_row, Py_ssize_t a_k, const real *b,
                         Py_ssize_t b_k, Py_ssize_t b_column, const real *init, Py_ssize_t init_row, Py_ssize_t init_column, real *c,
                         Py_ssize_t c_row, Py_ssize_t c_column)
{
    vec acc[LANE_ROWS][LANE_COLUMNS], w[LANE_COLUMNS];
    UNROLLED
    for (int i = 0; i < R; i++) {
        UNROLLED
        for (int j = 0; j < V; j++) acc[i][j] = load(init + i * init_row + j * init_column);
    }
    for (Py_ssize_t k = 0; k < K; k++) {
        HIDE(a, b);
        UNROLLED
        for (int j = 0; j < V; j++) w[j] = load(b + j * b_column);
        UNROLLED
        for (int i = 0; i < R; i++) {
            vec s = load(a + i * a_row);
            UNROLLED
            for (int j = 0; j < V; j++) acc[i][j] += s * w[j];
        }
        a += a_k;
        b += b_k;
    }
    UNROLLED
    for (int i = 0; i < R; i++) {
        UNROLLED
        for (int j = 0; j < V; j++) store(c + i * c_row + j * c_column, acc[i][j]);
    }
}

#define LANE_CASE(R, V) \
    case 8 * R + V: \
        if (R <= LANE_ROWS && V <= LANE_COLUMNS) \
            lane_tile(R <= LANE_ROWS ? R : 1, V <= LANE_COLUMNS ? V : 1, K, a + i * a_row, a_row, a_k, b + j * b_column, b_k, b_column, \
                      init + i * init_row + j * init_column, init_row, init_column, c + i * c_row + j * c_column, c_row, c_column); \
        break;
#define LANE_CASES(R) LANE_CASE(R, 1) LANE_CASE(R, 2) LANE_CASE(R, 3) LANE_CASE(R, 4) LANE_CASE(R, 5) LANE_CASE(R, 6)

/* C (M, N) = init + A (M, K) B (K, N), each net's for itself; init may be C. Summed over k in ascending order. */
static void lane_product(Py_ssize_t M, Py_ssize_t N, Py_ssize_t K, const real *a, Py_ssize_t a_row, Py_ssize_t a_k, const real *b,
                         Py_ssize_t b_k, Py_ssize_t b_column, const real *init, Py_ssize_t init_row, Py_ssize_t init_column, real *c,
                         Py_ssize_t c_row, Py_ssize_t c_column)
{
    Py_ssize_t groups = (N + LANE_COLUMNS - 1) / LANE_COLUMNS, tiles = (M + LANE_ROWS - 1) / LANE_ROWS;
    for (Py_ssize_t g = 0, j = 0; g < groups; g++) {
        Py_ssize_t j_end = N * (g + 1) / groups;
        for (Py_ssize_t t = 0, i = 0; t < tiles; t++) {
            Py_ssize_t i_end = M * (t + 1) / tiles;
            switch (8 * (i_end - i) + j_end - j) { LANE_CASES(1) LANE_CASES(2) LANE_CASES(3) LANE_CASES(4) }
            i = i_end;
        }
        j = j_end;
    }
}

/* ``yes`` in the lanes whose number is above the limit, else ``no``. */
static inline vec where_above(vec numbers, real limit, vec yes, vec no) { return choose(MASK(numbers > limit), yes, no); }

#endif
