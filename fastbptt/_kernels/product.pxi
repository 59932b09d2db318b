# Matrix products: C = init + A B, all of them, by one register tile (`tile.h`).
#
# A and C are addressed row by row, B column by column:
#   A      any strides; every element is broadcast
#   B      panels of LANES columns, each loaded as vectors: element (k, n) stands at panel n // LANES, row k, lane n % LANES
#   init   what the accumulators start from: C itself, or other rows; with a row stride of 0, one row (a bias) for all.
#          NULL: they start from 0, and are added to C at the end. Where C collects many products, rounding then grows with their
#          number and length, not with the product of the two.
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

cdef struct Stack:         # many of one size
    Panels first
    Py_ssize_t size


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


cdef inline Panels nth(Stack stack, Py_ssize_t i) noexcept nogil:
    stack.first.at += i * stack.size
    return stack.first


cdef inline real *element(Panels B, Py_ssize_t k, Py_ssize_t n) noexcept nogil:
    return B.at + n // LANES * B.panel + k * B.row + n % LANES


cdef inline Py_ssize_t ceil_div(Py_ssize_t n, Py_ssize_t d) noexcept nogil:
    return (n + d - 1) // d


cdef enum:
    CACHE_LINE = 64        # bytes
    LONG_SUM = 64          # terms that take longer than fetching what comes next
    MOST_LANES = 16        # at any level


cdef inline Py_ssize_t panel_stride(Py_ssize_t K) noexcept nogil:
    """One cache line more than K rows, lest neighbouring panels meet in the same sets of the cache."""
    return ceil_div(K * LANES * sizeof(real), CACHE_LINE) * CACHE_LINE // sizeof(real) + CACHE_LINE // sizeof(real)


cdef inline Py_ssize_t packed_size(Py_ssize_t N, Py_ssize_t K) noexcept nogil:
    return ceil_div(N, LANES) * panel_stride(K)


cdef inline bint is_stream(const real *init, const real *c, Py_ssize_t K) noexcept nogil:
    """Whether a product makes new rows, from rows that may have to come from memory, and has time to call them in ahead."""
    return init != NULL and init != c and K >= LONG_SUM


cdef inline void prefetch_rows(const real *a, Py_ssize_t row, Py_ssize_t R, Py_ssize_t K) noexcept nogil:
    """Ask for them, in time for what comes next: rows are too short for the processor to see the next one coming."""
    cdef Py_ssize_t i, k
    for i in range(R):
        k = 0
        while k < K:
            prefetch(a + i * row + k)
            k += <Py_ssize_t>(CACHE_LINE // sizeof(real))


# --- The product ------------------------------------------------------------------------------------------------------

cdef inlined product(Py_ssize_t outer, Py_ssize_t inner, Py_ssize_t N, Py_ssize_t K,
                     Rows A, Py_ssize_t a_k, Panels B, Rows init, Rows C) noexcept nogil:
    """C = init + A B for outer * inner rows, N columns and a sum over K.

    Taken apart here: a structure that is passed by value is copied in larger pieces than it has been written in, and waited for.
    """
    all_tiles(outer, inner, N, K, A.at, A.outer, A.inner, a_k, B.at, B.row, B.panel, init.at, init.outer, init.inner,
              C.at, C.outer, C.inner, 0)


cdef inlined product_of_step(Py_ssize_t t, Py_ssize_t outer, Py_ssize_t inner, Py_ssize_t N, Py_ssize_t K,
                             Rows A, Panels B, Rows init, Rows C) noexcept nogil:
    """The same with the panels of a loop over t: every other step goes through them from the last to the first, and so begins with those
    that the step before has left in the cache.
    """
    all_tiles(outer, inner, N, K, A.at, A.outer, A.inner, 1, B.at, B.row, B.panel, init.at, init.outer, init.inner,
              C.at, C.outer, C.inner, t & 1)


cdef void all_tiles(Py_ssize_t outer, Py_ssize_t inner, Py_ssize_t N, Py_ssize_t K, const real *a, Py_ssize_t a_outer, Py_ssize_t a_inner,
                    Py_ssize_t a_k, const real *b, Py_ssize_t b_row, Py_ssize_t b_panel, const real *init, Py_ssize_t init_outer,
                    Py_ssize_t init_inner, real *c, Py_ssize_t c_outer, Py_ssize_t c_inner, bint back) noexcept nogil:
    """The product. A group of panels stays in the cache while all rows pass by. Rows and panels are dealt out evenly, so that no tile is
    left with one row or one vector where its neighbours have four: 9 rows are 3 + 3 + 3.
    """
    cdef Py_ssize_t o, i, i_end, j, j_end, tiles, groups, n, g, m
    cdef bint stream = is_stream(init, c, K)
    cdef Py_ssize_t vectors = ceil_div(N, LANES)
    cdef const real *start = NULL
    cdef int last
    if outer == 0 or inner == 0 or N == 0:
        return
    if a_outer == inner * a_inner and init_outer == inner * init_inner and c_outer == inner * c_inner:
        inner *= outer
        outer = 1
    if outer == 1 and inner <= TILE_ROWS and not stream and vectors <= tile_vectors(<int>inner):  # one tile: no more to deal out
        any_tile(<int>inner, <int>vectors, K, a, a_inner, a_k, b, b_row, b_panel, init, init_inner, c, c_inner,
                 <int>(N - (vectors - 1) * LANES), False)
        return
    tiles = ceil_div(inner, TILE_ROWS)
    groups = ceil_div(vectors, tile_vectors(<int>ceil_div(inner, tiles)))
    for n in range(groups):
        g = groups - 1 - n if back else n
        j = vectors * g // groups
        j_end = vectors * (g + 1) // groups
        last = <int>min(LANES, N - (j_end - 1) * LANES)    # columns of the last vector
        for o in range(outer):
            i = 0
            for m in range(tiles):
                i_end = inner * (m + 1) // tiles
                if n == 0 and stream:
                    prefetch_rows(a + o * a_outer + i_end * a_inner, a_inner, min(inner, i_end + TILE_ROWS) - i_end, K)
                if init != NULL:
                    start = init + o * init_outer + i * init_inner + j * LANES
                any_tile(<int>(i_end - i), <int>(j_end - j), K, a + o * a_outer + i * a_inner, a_inner, a_k, b + j * b_panel,
                         b_row, b_panel, start, init_inner, c + o * c_outer + i * c_inner + j * LANES, c_inner, last, stream)
                i = i_end


# --- Packing ----------------------------------------------------------------------------------------------------------

cdef void pack_rows(Rows source, Py_ssize_t inner, Py_ssize_t k0, Py_ssize_t K, Py_ssize_t N, Py_ssize_t width,
                    real *packed, Py_ssize_t panel) noexcept nogil:
    """Panels of ``width`` columns, LANES or TILE_ROWS, from K rows of N elements, beginning with row k0; missing columns are 0.

    Row k is row (k // inner, k % inner) of the source.
    """
    if width == LANES:
        pack_rows_by(LANES, source, inner, k0, K, N, packed, panel)
    else:
        pack_rows_by(TILE_ROWS, source, inner, k0, K, N, packed, panel)


cdef inlined pack_rows_by(const int width, Rows source, Py_ssize_t inner, Py_ssize_t k0, Py_ssize_t K, Py_ssize_t N,
                          real *packed, Py_ssize_t panel) noexcept nogil:
    cdef Py_ssize_t o = k0 // inner, i = k0 % inner, p, k, full = N // width, rest = N % width
    cdef int j
    cdef const real *row
    cdef real *to
    for k in range(K):
        row = source.at + o * source.outer + i * source.inner
        to = packed + k * width
        for p in range(full):
            for j in range(width):
                to[j] = row[j]
            row += width
            to += panel
        if rest:
            for j in range(width):
                to[j] = row[j] if j < rest else 0
        i += 1
        if i == inner:
            i = 0
            o += 1


cdef void pack_transposed(const real *source, Py_ssize_t ld, Py_ssize_t K, Py_ssize_t N, real *packed, Py_ssize_t panel) noexcept nogil:
    """Panels of LANES columns of the transpose of an (N, K) matrix with rows ``ld`` apart; missing columns are 0."""
    cdef const real *columns[MOST_LANES]
    cdef Py_ssize_t p, n
    for p in range(ceil_div(N, LANES)):
        for n in range(p * LANES, (p + 1) * LANES):
            columns[n - p * LANES] = source + n * ld if n < N else NULL
        interleave(columns, K, packed + p * panel)
