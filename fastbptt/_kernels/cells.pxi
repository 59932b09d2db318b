# The element-wise half of each cell: one step forward, one step backward.
#
# Derivatives are taken from the activated values: h = f(a), so that tanh'(a) = 1 - h^2 needs no second tape.

cdef enum:
    TANH = 0
    RELU = 1
    SIGMOID = 2
    IDENTITY = 3

cdef double CELL_WORK = 16         # an element's tanh costs about as much as this many multiply-adds


# --- Vanilla RNN: h_t = f(a_t); a and h are one array -----------------------------------------------------------------

cdef inline vec activate(const int f, vec a) noexcept nogil:
    if f == TANH:
        return vector_tanh(a)
    if f == RELU:
        return at_least(a, 0)
    if f == SIGMOID:
        return vector_sigmoid(a)
    return a


cdef inline vec through_activation(const int f, vec h, vec dh) noexcept nogil:
    """dh f'(a)."""
    if f == TANH:
        return dh * (1 - h * h)
    if f == RELU:
        return zero_where_not_positive(h, dh)
    if f == SIGMOID:
        return dh * (h * (1 - h))
    return dh


cdef inlined activate_all(const int f, real *h, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i = 0
    while i + LANES <= n:
        store(h + i, activate(f, load(h + i)))
        i += LANES
    if i < n:
        store_part(h + i, activate(f, load_part(h + i, n - i)), n - i)


cdef inlined activate_all_back(const int f, const real *h, const real *d_prev, real *dh, real *da, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i = 0
    while i + LANES <= n:
        store(da + i, through_activation(f, load(h + i), load(dh + i)))
        store(dh + i, load(d_prev + i))
        i += LANES
    if i < n:
        store_part(da + i, through_activation(f, load_part(h + i, n - i), load_part(dh + i, n - i)), n - i)
        store_part(dh + i, load_part(d_prev + i, n - i), n - i)


# Rows of h that are taken whole lie end to end: a patch of them is one long stretch.

cdef inline Py_ssize_t stretch(const Run *run, Patch p) noexcept nogil:
    return (p.b1 - p.b0) * run.H if p.u1 - p.u0 == run.H else p.u1 - p.u0


cdef inline Py_ssize_t stretches_end(const Run *run, Patch p) noexcept nogil:
    return min(p.b1, p.b0 + 1) if p.u1 - p.u0 == run.H else p.b1


cdef void rnn_forward_step(const Run *run, Py_ssize_t t, Patch p) noexcept nogil:
    """h_t = f(a_t)"""
    cdef real *h
    cdef Py_ssize_t b, b1 = stretches_end(run, p), n = stretch(run, p)
    for b in range(p.b0, b1):
        h = run.h + ((t + 1) * run.B + b) * run.H + p.u0
        if run.activation == TANH: activate_all(TANH, h, n)
        elif run.activation == RELU: activate_all(RELU, h, n)
        elif run.activation == SIGMOID: activate_all(SIGMOID, h, n)


cdef void rnn_backward_step(const Run *run, Py_ssize_t t, Patch p) noexcept nogil:
    # reverse of: h_t = f(a_t)
    cdef const real *h
    cdef const real *d_prev
    cdef real *dh
    cdef real *da
    cdef Py_ssize_t b, b1 = stretches_end(run, p), n = stretch(run, p)
    for b in range(p.b0, b1):
        h = run.h + ((t + 1) * run.B + b) * run.H + p.u0
        d_prev = d_out_before(run, t, b) + p.u0
        dh = run.dh + b * run.H + p.u0
        da = run.da + ((t - run.t0) * run.B + b) * run.N + p.u0
        if run.activation == TANH: activate_all_back(TANH, h, d_prev, dh, da, n)
        elif run.activation == RELU: activate_all_back(RELU, h, d_prev, dh, da, n)
        elif run.activation == SIGMOID: activate_all_back(SIGMOID, h, d_prev, dh, da, n)
        else: activate_all_back(IDENTITY, h, d_prev, dh, da, n)


cdef inline const real *d_out_before(const Run *run, Py_ssize_t t, Py_ssize_t b) noexcept nogil:
    """The loss's own gradient at row b of h_{t-1}; none at the initial state."""
    return (run.zeros if t == 0 or run.d_out == NULL else run.d_out + (t - 1) * run.B * run.H) + b * run.H
