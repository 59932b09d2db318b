# Sums over the rows of a block: dW += dA^T S and db += sum of dA, which a recurrent layer and a linear one share.
#
# Cut by columns of the result, never along the sum. Rows are summed in their order, a chunk at a time, and the chunk's sum is added:
# so rounding grows with the length of a chunk and the number of chunks, and not with the product of the two. Chunks are counted from
# the last row: if the first ones hold nothing but zeros and are left out, the bits stay the same.

cdef enum:
    GRADIENT_K = 256               # rows in a chunk
    GRADIENT_ROWS = 64             # columns of dA packed at a time: with GRADIENT_K rows, 128 KB of the second-level cache
    GRADIENT_PANELS = 16           # panels of S that make up for packing all of dA
    GRADIENT_COLUMNS = 512         # columns of S packed at a time
    GRADIENT_SCRATCH = GRADIENT_K * (GRADIENT_ROWS + GRADIENT_COLUMNS) + 1024 * 16   # elements, panel padding included


cdef inline Py_ssize_t next_chunk(Py_ssize_t K) noexcept nogil:
    """Of the last K rows, how many to take now: GRADIENT_K, but first what is left over."""
    return (K - 1) % GRADIENT_K + 1


cdef void add_weight_gradient(const real *dA, Py_ssize_t M, Py_ssize_t K, Rows S, Py_ssize_t inner, Py_ssize_t N, Py_ssize_t panel0,
                              Py_ssize_t panel1, real *dW, real *scratch, Watch *watch, int worker) noexcept nogil:
    """dW (M, N) += dA^T (K, M) S (K, N), for the columns of panels panel0..panel1. Both operands are packed, chunk by chunk.

    Row k of S is its row (k // inner, k % inner).
    """
    cdef Py_ssize_t n = panel0 * LANES, n_end = min(N, panel1 * LANES), k, m, columns, chunk, strip
    cdef real *slivers = scratch
    cdef Panels B
    B.at = scratch + GRADIENT_K * GRADIENT_ROWS
    B.row = LANES
    while n < n_end:
        columns = min(n_end - n, <Py_ssize_t>GRADIENT_COLUMNS)
        k = 0
        while k < K:
            chunk = next_chunk(K - k)
            B.panel = panel_stride(chunk)
            pack_rows(rows(S.at + n, S.outer, S.inner), inner, k, chunk, columns, LANES, B.at, B.panel)
            m = 0
            while m < M:
                strip = min(M - m, <Py_ssize_t>GRADIENT_ROWS)
                pack_rows(rows(dA + m, 0, M), K, k, chunk, strip, TILE_ROWS, slivers, chunk * TILE_ROWS)
                add_strip(strip, columns, chunk, slivers, B, dW + m * N + n, N)
                if interrupted(watch, worker, <double>chunk * strip * columns):
                    return
                m += strip
            k += chunk
        n += columns


cdef void add_strip(Py_ssize_t M, Py_ssize_t N, Py_ssize_t K, const real *slivers, Panels B, real *dW, Py_ssize_t ld) noexcept nogil:
    """dW (M, N) += A^T B, with A in slivers of TILE_ROWS columns; the last sliver may be narrower."""
    cdef Py_ssize_t full = M // TILE_ROWS, rest = M % TILE_ROWS
    cdef Rows none = rows(NULL, 0, 0)
    product(full, TILE_ROWS, N, K, rows(slivers, K * TILE_ROWS, 1), TILE_ROWS, B, none, rows(dW, TILE_ROWS * ld, ld))
    product(1, rest, N, K, rows(slivers + full * K * TILE_ROWS, 0, 1), TILE_ROWS, B, none, rows(dW + full * TILE_ROWS * ld, 0, ld))


cdef void add_column_sums(const real *dA, Py_ssize_t M, Py_ssize_t K, Py_ssize_t m0, Py_ssize_t m1, real *db) noexcept nogil:
    """db (M,) += dA (K, M) summed over its rows, for columns m0..m1."""
    cdef Py_ssize_t k = 0, m, chunk
    while k < K:
        chunk = next_chunk(K - k)
        m = m0
        while m + LANES <= m1:
            store(db + m, load(db + m) + column_sum(1, dA + k * M + m, M, chunk, LANES))
            m += LANES
        if m < m1:
            store_part(db + m, load_part(db + m, m1 - m) + column_sum(0, dA + k * M + m, M, chunk, m1 - m), m1 - m)
        k += chunk


cdef inline vec column_sum(const bint whole, const real *a, Py_ssize_t row, Py_ssize_t K, Py_ssize_t n) noexcept nogil:
    cdef vec total = broadcast(0)
    cdef Py_ssize_t k
    for k in range(K):
        total = total + (load(a + k * row) if whole else load_part(a + k * row, n))
    return total
