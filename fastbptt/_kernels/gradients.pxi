# Sums over the rows of a block: dW += dA^T S and db += sum of dA, which a recurrent layer and a linear one share.
#
# Cut by columns of the result, never along the sum, and summed in the order of the rows.

cdef enum:
    GRADIENT_K = 256               # rows packed at a time
    GRADIENT_ROWS = 64             # columns of dA packed at a time: with GRADIENT_K rows, 128 KB of the second-level cache
    GRADIENT_COLUMNS = 512         # columns of S packed at a time
    GRADIENT_SCRATCH = GRADIENT_K * (GRADIENT_ROWS + GRADIENT_COLUMNS) + 1024 * 16   # elements, panel padding included


cdef void add_weight_gradient(const real *dA, Py_ssize_t M, Py_ssize_t K, const real *S, Py_ssize_t N, Py_ssize_t panel0,
                              Py_ssize_t panel1, real *dW, real *scratch, Watch *watch, int worker) noexcept nogil:
    """dW (M, N) += dA^T (K, M) S (K, N), for the columns of panels panel0..panel1. Both operands are packed, chunk by chunk."""
    cdef Py_ssize_t n = panel0 * LANES, n_end = min(N, panel1 * LANES), k, m, columns, chunk, strip
    cdef real *slivers = scratch
    cdef Panels B
    B.at = scratch + GRADIENT_K * GRADIENT_ROWS
    B.row = LANES
    while n < n_end:
        columns = min(n_end - n, <Py_ssize_t>GRADIENT_COLUMNS)
        k = 0
        while k < K:
            chunk = min(K - k, <Py_ssize_t>GRADIENT_K)
            B.panel = panel_stride(chunk)
            pack_rows(S + k * N + n, N, chunk, columns, LANES, B.at, B.panel)
            m = 0
            while m < M:
                strip = min(M - m, <Py_ssize_t>GRADIENT_ROWS)
                pack_rows(dA + k * M + m, M, chunk, strip, TILE_ROWS, slivers, chunk * TILE_ROWS)
                add_strip(strip, columns, chunk, slivers, B, dW + m * N + n, N)
                if interrupted(watch, worker, <double>chunk * strip * columns):
                    return
                m += strip
            k += chunk
        n += columns


cdef void add_strip(Py_ssize_t M, Py_ssize_t N, Py_ssize_t K, const real *slivers, Panels B, real *dW, Py_ssize_t ld) noexcept nogil:
    """dW (M, N) += A^T B, with A in slivers of TILE_ROWS columns; the last sliver may be narrower."""
    cdef Py_ssize_t full = M // TILE_ROWS, rest = M % TILE_ROWS
    cdef Rows C = rows(dW, TILE_ROWS * ld, ld)
    product(full, TILE_ROWS, N, K, rows(slivers, K * TILE_ROWS, 1), TILE_ROWS, B, C, C)
    C = rows(dW + full * TILE_ROWS * ld, 0, ld)
    product(1, rest, N, K, rows(slivers + full * K * TILE_ROWS, 0, 1), TILE_ROWS, B, C, C)


cdef void add_column_sums(const real *dA, Py_ssize_t M, Py_ssize_t K, Py_ssize_t m0, Py_ssize_t m1, real *db) noexcept nogil:
    """db (M,) += dA (K, M) summed over its rows, for columns m0..m1."""
    cdef Py_ssize_t k, m
    for k in range(K):
        for m in range(m0, m1):
            db[m] += dA[k * M + m]
