# Gradients through a = s W^T + b, which a recurrent layer and a linear one share: dW += dA^T S, db += sum of dA, and dS = dA W.
#
# Cut by columns of the result, never along the sum. Rows are summed in their order, a chunk at a time, and the chunk's sum is added:
# so rounding grows with the length of a chunk and the number of chunks, and not with the product of the two. Chunks are counted from
# the last row, as blocks of time are.

cdef enum:
    GRADIENT_K = 256               # rows in a chunk
    GRADIENT_ROWS = 64             # columns of dA packed at a time: with GRADIENT_K rows, 128 KB of the second-level cache
    GRADIENT_PANELS = 16           # panels of S that make up for packing all of dA
    FEW_PANELS = 4                 # with fewer, parts have fewer of dA's columns instead,
    FEW_PARTS = 2 * SHARES         # but where they are those of two threads
    GRADIENT_COLUMNS = 512         # columns of S packed at a time
    GRADIENT_STRIDE = 1 << 12      # bytes from row to row of dA where it need not be packed
    GRADIENT_SCRATCH = GRADIENT_K * (GRADIENT_ROWS + GRADIENT_COLUMNS) + 1024 * 16   # elements, panel padding included


cdef inline Py_ssize_t next_chunk(Py_ssize_t K) noexcept nogil:
    """Of the last K rows, how many to take now: GRADIENT_K, but first what is left over."""
    return (K - 1) % GRADIENT_K + 1


cdef struct Sequence:              # the rows that those of dA meet
    Rows rows                      # row k is its row (k // inner, k % inner)
    Py_ssize_t inner
    const Time *time               # or, where it is not NULL, row k is the k-th of those that rows b0..b1 have at step t and after it:
    Py_ssize_t t, b0, b1
    bint states                    # in a history of states, those before each step


cdef inline Sequence sequence(Rows source, Py_ssize_t inner) noexcept nogil:
    cdef Sequence S
    memset(&S, 0, sizeof(Sequence))
    S.rows, S.inner = source, inner
    return S


cdef inline Sequence ragged_sequence(const real *at, Py_ssize_t width, const Time *time, Py_ssize_t t, Py_ssize_t b0, Py_ssize_t b1,
                                     bint states) noexcept nogil:
    cdef Sequence S = sequence(rows(at, 0, width), 1)
    S.time, S.t, S.b0, S.b1, S.states = time, t, b0, b1, states
    return S


cdef void pack_sequence(const Sequence *S, Py_ssize_t n, Py_ssize_t k, Py_ssize_t K, Py_ssize_t N, Panels packed) noexcept nogil:
    """Rows k..k+K of columns n..n+N."""
    cdef Rows source = rows(S.rows.at + n, S.rows.outer, S.rows.inner)
    cdef Py_ssize_t t = S.t, done = 0, held, first
    if S.time == NULL:
        pack_rows(source, S.inner, k, K, N, LANES, packed.at, packed.panel)
        return
    while done < K:
        held = min(K - done, rows_at(S.time, t, S.b0, S.b1) - k)     # of step t, from its k-th row on
        if held > 0:
            first = (slot(S.time, t) if S.states else first_row(S.time, t)) + S.b0
            pack_rows(rows(source.at + first * source.inner, 0, source.inner), PY_SSIZE_T_MAX, k, held, N, LANES,
                      packed.at + done * packed.row, packed.panel)
            done += held
            k += held
        k -= rows_at(S.time, t, S.b0, S.b1)
        t += 1


cdef void add_weight_gradient(const real *dA, Py_ssize_t M, Py_ssize_t K, Sequence S, Py_ssize_t N, Py_ssize_t m0, Py_ssize_t m1,
                              Py_ssize_t panel0, Py_ssize_t panel1, real *dW, real *scratch, Watch *watch, int worker) noexcept nogil:
    """dW (M, N) += dA^T (K, M) S (K, N), for rows m0..m1 and the columns of panels panel0..panel1. Both operands are packed, chunk by
    chunk; but for dA where a tile has all of these columns, and dA's rows are near each other: there packing would cost more than it saves.
    """
    cdef Py_ssize_t n = panel0 * LANES, n_end = min(N, panel1 * LANES), k, m, columns, chunk, strip
    cdef bint narrow = n_end - n <= tile_vectors(TILE_ROWS) * LANES and M * <Py_ssize_t>sizeof(real) <= GRADIENT_STRIDE
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
            pack_sequence(&S, n, k, chunk, columns, B)
            m = m0
            while m < m1:
                strip = min(m1 - m, <Py_ssize_t>GRADIENT_ROWS)
                if narrow:
                    product(1, strip, columns, chunk, rows(dA + k * M + m, 0, 1), M, B, rows(NULL, 0, 0), rows(dW + m * N + n, 0, N))
                else:
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
        while m + 4 * LANES <= m1:
            add_sums_of_four(dA + k * M + m, M, chunk, db + m)
            m += 4 * LANES
        while m + LANES <= m1:
            store(db + m, load(db + m) + column_sum(1, dA + k * M + m, M, chunk, LANES))
            m += LANES
        if m < m1:
            store_part(db + m, load_part(db + m, m1 - m) + column_sum(0, dA + k * M + m, M, chunk, m1 - m), m1 - m)
        k += chunk


cdef inlined add_sums_of_four(const real *a, Py_ssize_t row, Py_ssize_t K, real *db) noexcept nogil:
    """Four vectors of columns at a time: a sum by itself would wait for each of its additions."""
    cdef vec s0 = broadcast(0), s1 = s0, s2 = s0, s3 = s0
    cdef Py_ssize_t k
    for k in range(K):
        s0 = s0 + load(a + k * row)
        s1 = s1 + load(a + k * row + LANES)
        s2 = s2 + load(a + k * row + 2 * LANES)
        s3 = s3 + load(a + k * row + 3 * LANES)
    store(db, load(db) + s0)
    store(db + LANES, load(db + LANES) + s1)
    store(db + 2 * LANES, load(db + 2 * LANES) + s2)
    store(db + 3 * LANES, load(db + 3 * LANES) + s3)


cdef inline vec column_sum(const bint whole, const real *a, Py_ssize_t row, Py_ssize_t K, Py_ssize_t n) noexcept nogil:
    cdef vec total = broadcast(0)
    cdef Py_ssize_t k
    for k in range(K):
        total = total + (load(a + k * row) if whole else load_part(a + k * row, n))
    return total


cdef void add_input_gradient(const real *dA, Py_ssize_t N, Py_ssize_t outer, Py_ssize_t inner, Py_ssize_t i0, Py_ssize_t i1, Panels W,
                             Py_ssize_t I, const real *zeros, Rows dS, Watch *watch, int worker, bint adds=False) noexcept nogil:
    """dS (K, I) = dA (K, N) W, or dS += that, for rows i0..i1 of each ``inner``, GRADIENT_K rows at a time."""
    cdef Py_ssize_t o = 0, i, step = max(1, GRADIENT_K // inner), blocks, held
    while o < outer:
        i = i0
        while i < i1:
            blocks, held = min(step, outer - o), min(i1 - i, <Py_ssize_t>GRADIENT_K)
            if interrupted(watch, worker, <double>blocks * held * N * I):
                return
            product(blocks, held, I, N, rows(dA + (o * inner + i) * N, inner * N, N), 1, W,
                    rows(NULL if adds else zeros, 0, 0), rows(dS.at + o * dS.outer + i * dS.inner, dS.outer, dS.inner))
            i += GRADIENT_K
        o += step


cdef void add_token_gradient(const real *dA, Py_ssize_t N, Py_ssize_t K, const int64_t *tokens, Py_ssize_t outer, Py_ssize_t inner,
                             Py_ssize_t n0, Py_ssize_t n1, real *dW) noexcept nogil:
    """dW^T[token of row k] += da_k, for columns n0..n1: the product with one-hot rows, which are nowhere built."""
    cdef Py_ssize_t k, n
    cdef real *dw
    for k in range(K):
        dw = dW + tokens[k // inner * outer + k % inner] * N
        for n in range(n0, n1):
            dw[n] += dA[k * N + n]


cdef inline void share_gradients(Sharing *sharing, Py_ssize_t K, Py_ssize_t N, Py_ssize_t I, Py_ssize_t P, bint vectors,
                                 bint to_inputs) noexcept nogil:
    """Cut the sums over K rows into tasks, by their columns: those of I inputs and P states."""
    cdef Py_ssize_t columns = P + (I if vectors else 1) + (I if to_inputs else 0)
    share(sharing, <double>K * N * columns, gradient_parts(I, P), GRADIENT_PANELS)


cdef inline int parts_down(int parts, Py_ssize_t panels) noexcept nogil:
    """Into how many of so many parts the rows of a dW of so many panels are cut; all others, its columns."""
    cdef int down = 1
    while parts > FEW_PARTS and parts % (2 * down) == 0 and panels * down < FEW_PANELS * parts:
        down *= 2
    return down


cdef inline Py_ssize_t gradient_parts(Py_ssize_t I, Py_ssize_t P) noexcept nogil:
    return ceil_div(max(I, P), LANES)


cdef inline Py_ssize_t gradient_scratch(int threads, Py_ssize_t parts) noexcept nogil:
    return tasks_for(threads, INFINITY, parts) * <Py_ssize_t>GRADIENT_SCRATCH
