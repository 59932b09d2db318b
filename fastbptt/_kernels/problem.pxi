# A recurrent layer's problem: sizes, and the caller's arrays.
#
#   T B I   steps, rows of the batch, inputs         H, P   units, and numbers in h        G, N   gates, and G * H
#           (P > H: what no unit writes is an input by another name, without a gradient; P < H: h is a projection, `projected.pxi`)
#   x (R, I) or tokens (R,), with R = first[T], the rows of all steps (`time.pxi`)
#   h (B + R, P) and, for an LSTM, c (B + R, H): slot 0 is the initial state
#   a (R, N)   the pre-activations x W_ih^T + b + h W_hh^T, which the cell turns into activated gates; without gates, a is h behind slot 0
#   m (R, H)   of a gate whose reset comes after the product (the GRU's n), its recurrent half, h W_hh^T + b_hh
#
# Between the products the time loop calls the cell's element-wise step (`cells.pxi`), row by row:
#   forward   a_t -> h_t                 backward   dh_t -> da_t, and dh := d_out_{t-1} + what reaches h_{t-1} past the product
#   tangent   a_dot_t -> h_dot_t

ctypedef void (*Step)(const Span *span) noexcept nogil

cdef struct Problem:
    Step forward, backward, tangent    # the cell's
    Time time
    Py_ssize_t I, P, H, N
    int gates, reset_after         # G, and for how many of them, the last, the reset comes after the product: 0 or 1
    int activation                 # of the vanilla RNN
    const real *leak               # (H,), of the leaky RNN, or NULL
    const real *x
    const int64_t *tokens
    const real *w_ih               # (N, I)
    const real *w_hh               # (N, P)
    const real *w_hr               # (P, H), of a projected LSTM, or NULL
    real *h
    real *c
    real *a
    real *m

cdef struct Span:                  # what a cell sees: neighbouring units of one row
    Py_ssize_t n, H                # units; the distance from gate to gate
    int activation
    const real *leak
    real *a
    real *m
    const real *h_prev
    real *h
    const real *c_prev
    real *c
    # backward
    const real *d_prev             # d_out_{t-1}
    real *dh
    real *dc
    real *da
    real *da_h
    # tangent
    const real *h_dot_prev
    real *h_dot
    real *c_dot                    # carried: on entry, of c_{t-1}
    const real *a_dot
    const real *m_dot


cdef Span NO_SPAN
memset(&NO_SPAN, 0, sizeof(Span))


cdef inline bint rows_touch(const Problem *problem, const Patch *patch) noexcept nogil:
    """Whether the patch's rows lie end to end in every array that a cell sees: then they are one span."""
    return problem.N == problem.H == problem.P and problem.leak == NULL and patch.u1 - patch.u0 == problem.H


cdef inline Span any_span(const Problem *problem, const Patch *patch, Py_ssize_t *held, bint apart=False) noexcept nogil:
    """What the spans of the patch's first rows have in common, ``held`` of them; where they touch, it becomes 1, unless they are ``apart``
    in another array.
    """
    cdef Span span = NO_SPAN       # copied: GCC clears a struct by "rep stos", which took 7 ns, a twentieth of an LSTM's step of 8 units
    span.n = patch.u1 - patch.u0
    span.H = problem.H
    span.activation = problem.activation
    span.leak = problem.leak + patch.u0 if problem.leak != NULL else NULL
    if rows_touch(problem, patch) and not apart:
        span.n *= held[0]
        held[0] = min(held[0], <Py_ssize_t>1)
    return span


cdef inline void put_span(Span *span, const Problem *problem, Py_ssize_t t, Py_ssize_t b, Py_ssize_t u0) noexcept nogil:
    """Row b of step t, from unit u0 on."""
    cdef Py_ssize_t before = slot(&problem.time, t) + b, after = slot(&problem.time, t + 1) + b, row = first_row(&problem.time, t) + b
    span.h_prev = problem.h + before * problem.P + u0
    span.h = problem.h + after * problem.P + u0
    span.a = problem.a + row * problem.N + u0
    if problem.m != NULL:
        span.m = problem.m + row * problem.H + u0
    if problem.c != NULL:
        span.c_prev = problem.c + before * problem.H + u0
        span.c = problem.c + after * problem.H + u0
