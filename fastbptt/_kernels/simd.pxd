"""What the kernels use of ``simd.h``, ``tile.h``, ``interleave.h`` and ``lanes.h``; there, the types are explained.

``real`` and ``vec`` are nominal here: C knows their true widths, and writes ``+``, ``*`` and ``/`` on a ``vec`` lane by lane.
"""

cdef extern from "simd.h" nogil:
    ctypedef double real
    ctypedef double vec
    ctypedef void inlined

    const int LANES
    const int TILE_ROWS

    vec load(const real *p)
    vec load_part(const real *p, Py_ssize_t n)
    void store(real *p, vec v)
    void store_part(real *p, vec v, Py_ssize_t n)
    vec broadcast(real s)
    void prefetch(const real *p)
    void prefetch_to_write(const real *p)

    vec at_least(vec v, real limit)
    vec zero_where_not_positive(vec test, vec v)
    vec vector_exp(vec x)
    vec vector_tanh(vec x)
    vec vector_sigmoid(vec x)


cdef extern from "tile.h" nogil:
    int tile_vectors(int r)        # at most, in a tile of r rows
    void any_tile(int r, int v, Py_ssize_t K, const real *a, Py_ssize_t a_row, Py_ssize_t a_k, const real *b, Py_ssize_t b_row,
                  Py_ssize_t b_panel, const real *init, Py_ssize_t init_row, real *c, Py_ssize_t c_row, int last, bint stream)


cdef extern from "interleave.h" nogil:
    void interleave(const real **rows, Py_ssize_t n, real *lanes)
    void deinterleave(const real *lanes, Py_ssize_t n, real **rows)


cdef extern from "lanes.h" nogil:
    vec where_above(vec numbers, real limit, vec yes, vec no)
    void lane_product(Py_ssize_t M, Py_ssize_t N, Py_ssize_t K, const real *a, Py_ssize_t a_row, Py_ssize_t a_k, const real *b,
                      Py_ssize_t b_k, Py_ssize_t b_column, const real *init, Py_ssize_t init_row, Py_ssize_t init_column, real *c,
                      Py_ssize_t c_row, Py_ssize_t c_column)
