# Matrix products: C = init + A B, all of them, by one register tile.
#
# A and C are addressed row by row, B column by column:
#   A      any strides; every element is broadcast
#   B      panels of LANES columns, each loaded as vectors: element (k, n) stands at panel n // LANES, row k, lane n % LANES
#   init   what the accumulators start from: C itself, or other rows; with a row stride of 0, one row (a bias) for all
#
# Each element of C is summed over k in ascending order from its start, whatever the tile, the number of rows or the thread:
# that is why a row has the same bits in any batch and at any thread count.

cdef struct Rows:          # row (o, i) starts at `at + o * outer + i * inner`
    real *at
    Py_ssize_t outer
    Py_ssize_t inner

cdef struct Panels:        # element (k, n) is at[n // LANES * panel + k * row + n % LANES]
    real *at
    Py_ssize_t row
    Py_ssize_t panel


cdef inline Rows rows(const real *at, Py_ssize_t outer, Py_ssize_t inner) noexcept nogil:
    cdef Rows r
    r.at = <real *>at
    r.outer = outer
    r.inner = inner
    return r


cdef inline Panels panels_from(Panels B, Py_ssize_t first) noexcept nogil:
    """B without the panels before ``first``."""
    B.at += first * B.panel
    return B


cdef inline Py_ssize_t ceil_div(Py_ssize_t n, Py_ssize_t d) noexcept nogil:
    return (n + d - 1) // d


cdef enum:
    CACHE_LINE = 64        # bytes


cdef inline Py_ssize_t panel_stride(Py_ssize_t K) noexcept nogil:
    """One cache line more than K rows, lest neighbouring panels meet in the same sets of the cache."""
    return ceil_div(K * LANES * sizeof(real), CACHE_LINE) * CACHE_LINE // sizeof(real) + CACHE_LINE // sizeof(real)


cdef inline Py_ssize_t packed_size(Py_ssize_t N, Py_ssize_t K) noexcept nogil:
    return ceil_div(N, LANES) * panel_stride(K)


# --- The tile ---------------------------------------------------------------------------------------------------------

cdef inlined tile(const int R, const int V, Py_ssize_t K, const real *a, Py_ssize_t a_row, Py_ssize_t a_k, const real *b, Panels B,
                  const real *init, Py_ssize_t init_row, real *c, Py_ssize_t c_row, int last) noexcept nogil:
    """R rows by V vectors; the last vector has ``last`` <= LANES columns. R and V are constants at every call."""
    cdef vec acc[8][8]
    cdef vec w[8]
    cdef vec s
    cdef Py_ssize_t k
    cdef int i, j
    for i in range(R):
        for j in range(V - 1):
            acc[i][j] = load(init + i * init_row + j * LANES)
        if last == LANES:
            acc[i][V - 1] = load(init + i * init_row + (V - 1) * LANES)
        else:
            acc[i][V - 1] = load_part(init + i * init_row + (V - 1) * LANES, last)
    for k in range(K):
        for j in range(V):
            w[j] = load(b + j * B.panel)
        for i in range(R):
            s = broadcast(a[i * a_row])
            for j in range(V):
                acc[i][j] = acc[i][j] + s * w[j]
        a += a_k
        b += B.row
    for i in range(R):
        for j in range(V - 1):
            store(c + i * c_row + j * LANES, acc[i][j])
        if last == LANES:
            store(c + i * c_row + (V - 1) * LANES, acc[i][V - 1])
        else:
            store_part(c + i * c_row + (V - 1) * LANES, acc[i][V - 1], last)


cdef inlined tile_of(const int R, int v, Py_ssize_t K, const real *a, Py_ssize_t a_row, Py_ssize_t a_k, const real *b, Panels B,
                     const real *init, Py_ssize_t init_row, real *c, Py_ssize_t c_row, int last) noexcept nogil:
    """The tile of R rows by v vectors; what would not fit the registers is not compiled."""
    if v == 1: tile(R, 1, K, a, a_row, a_k, b, B, init, init_row, c, c_row, last)
    elif v == 2 and R * 2 <= ACCUMULATORS: tile(R, 2, K, a, a_row, a_k, b, B, init, init_row, c, c_row, last)
    elif v == 3 and R * 3 <= ACCUMULATORS: tile(R, 3, K, a, a_row, a_k, b, B, init, init_row, c, c_row, last)
    elif v == 4 and R * 4 <= ACCUMULATORS: tile(R, 4, K, a, a_row, a_k, b, B, init, init_row, c, c_row, last)
    elif v == 5 and R * 5 <= ACCUMULATORS: tile(R, 5, K, a, a_row, a_k, b, B, init, init_row, c, c_row, last)
    elif v == 6 and R * 6 <= ACCUMULATORS: tile(R, 6, K, a, a_row, a_k, b, B, init, init_row, c, c_row, last)
    elif v == 7 and R * 7 <= ACCUMULATORS: tile(R, 7, K, a, a_row, a_k, b, B, init, init_row, c, c_row, last)
    elif v == 8 and R * 8 <= ACCUMULATORS: tile(R, 8, K, a, a_row, a_k, b, B, init, init_row, c, c_row, last)


cdef void any_tile(int r, int v, Py_ssize_t K, const real *a, Py_ssize_t a_row, Py_ssize_t a_k, const real *b, Panels B,
                   const real *init, Py_ssize_t init_row, real *c, Py_ssize_t c_row, int last) noexcept nogil:
    if r == 1: tile_of(1, v, K, a, a_row, a_k, b, B, init, init_row, c, c_row, last)
    elif r == 2: tile_of(2, v, K, a, a_row, a_k, b, B, init, init_row, c, c_row, last)
    elif r == 3: tile_of(3, v, K, a, a_row, a_k, b, B, init, init_row, c, c_row, last)
    elif r == 4: tile_of(4, v, K, a, a_row, a_k, b, B, init, init_row, c, c_row, last)
    elif r == 5 and TILE_ROWS >= 5: tile_of(5, v, K, a, a_row, a_k, b, B, init, init_row, c, c_row, last)
    elif r == 6 and TILE_ROWS >= 6: tile_of(6, v, K, a, a_row, a_k, b, B, init, init_row, c, c_row, last)
    elif r == 7 and TILE_ROWS >= 7: tile_of(7, v, K, a, a_row, a_k, b, B, init, init_row, c, c_row, last)
    elif r == 8 and TILE_ROWS >= 8: tile_of(8, v, K, a, a_row, a_k, b, B, init, init_row, c, c_row, last)


# --- The product ------------------------------------------------------------------------------------------------------

cdef void product(Py_ssize_t outer, Py_ssize_t inner, Py_ssize_t N, Py_ssize_t K,
                  Rows A, Py_ssize_t a_k, Panels B, Rows init, Rows C) noexcept nogil:
    """C = init + A B for outer * inner rows, N columns and a sum over K.

    A group of panels stays in the cache while all rows pass by. Rows and panels are dealt out evenly, so that no tile is left with
    one row or one vector where its neighbours have four: 9 rows are 3 + 3 + 3.
    """
    cdef Py_ssize_t o, i, i_end, j, j_end, tiles, groups, g, m
    cdef Py_ssize_t vectors = ceil_div(N, LANES)
    cdef int last
    if outer == 0 or inner == 0 or N == 0:
        return
    if A.outer == inner * A.inner and init.outer == inner * init.inner and C.outer == inner * C.inner:
        inner *= outer
        outer = 1
    tiles = ceil_div(inner, TILE_ROWS)
    groups = ceil_div(vectors, min(8, ACCUMULATORS // ceil_div(inner, tiles)))
    for g in range(groups):
        j = vectors * g // groups
        j_end = vectors * (g + 1) // groups
        last = <int>min(LANES, N - (j_end - 1) * LANES)
        for o in range(outer):
            i = 0
            for m in range(tiles):
                i_end = inner * (m + 1) // tiles
                any_tile(<int>(i_end - i), <int>(j_end - j), K,
                         A.at + o * A.outer + i * A.inner, A.inner, a_k, B.at + j * B.panel, B,
                         init.at + o * init.outer + i * init.inner + j * LANES, init.inner,
                         C.at + o * C.outer + i * C.inner + j * LANES, C.inner, last)
                i = i_end


# --- Packing ----------------------------------------------------------------------------------------------------------

cdef void pack_rows(const real *source, Py_ssize_t ld, Py_ssize_t K, Py_ssize_t N, Py_ssize_t width,
                    real *packed, Py_ssize_t panel) noexcept nogil:
    """Panels of ``width`` columns, LANES or TILE_ROWS, from a (K, N) matrix with rows ``ld`` apart; missing columns are 0."""
    if width == LANES:
        pack_rows_by(LANES, source, ld, K, N, packed, panel)
    else:
        pack_rows_by(TILE_ROWS, source, ld, K, N, packed, panel)


cdef inlined pack_rows_by(const int width, const real *source, Py_ssize_t ld, Py_ssize_t K, Py_ssize_t N,
                          real *packed, Py_ssize_t panel) noexcept nogil:
    cdef Py_ssize_t p, n, k, filled
    cdef int i
    cdef real *to
    for p in range(ceil_div(N, width)):
        n = p * width
        filled = min(width, N - n)
        to = packed + p * panel
        if filled == width:
            for k in range(K):
                for i in range(width):
                    to[k * width + i] = source[k * ld + n + i]
        else:
            for k in range(K):
                for i in range(width):
                    to[k * width + i] = source[k * ld + n + i] if i < filled else 0


cdef void pack_transposed(const real *source, Py_ssize_t ld, Py_ssize_t K, Py_ssize_t N, real *packed, Py_ssize_t panel) noexcept nogil:
    """Panels of LANES columns of the transpose of an (N, K) matrix with rows ``ld`` apart; missing columns are 0."""
    cdef Py_ssize_t p, n, k, filled
    cdef int i
    cdef real *to
    for p in range(ceil_div(N, LANES)):
        n = p * LANES
        filled = min(LANES, N - n)
        to = packed + p * panel
        if filled == LANES:
            for k in range(K):
                for i in range(LANES):
                    to[k * LANES + i] = source[(n + i) * ld + k]
        else:
            for k in range(K):
                for i in range(LANES):
                    to[k * LANES + i] = source[(n + i) * ld + k] if i < filled else 0
