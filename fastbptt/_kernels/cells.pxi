# The cells: for each, what the time loop must know of it, and the element-wise half of a step, forward and backward.
#
# A step is given one row of a patch at a time, as a `Row`: pointers to the patch's first unit, and `n` units. The arithmetic stands in the
# functions named `..._units`, written for one vector of units; those named `..._row` run along the row, and end it with the part of a
# vector that is left (`k` < LANES units, `whole` = 0).
#
# Derivatives are taken from the activated values: with h = tanh(a), tanh'(a) = 1 - h^2, and no second tape is needed.

cdef enum:
    TANH = 0
    RELU = 1
    SIGMOID = 2
    IDENTITY = 3

cdef enum:
    RNN_CELL = 0
    GRU_CELL = 1
    LSTM_CELL = 2
    MAX_GATES = 4                  # of any cell

cdef double CELL_WORK = 16         # an element's tanh costs about as much as this many multiply-adds


cdef Step step_of(int cell, bint backward) noexcept nogil:
    """The cell's element-wise half of a step."""
    if cell == RNN_CELL:
        return rnn_backward_row if backward else rnn_forward_row
    if cell == GRU_CELL:
        return gru_backward_row if backward else gru_forward_row
    return lstm_backward_row if backward else lstm_forward_row


cdef inline vec get(const bint whole, const real *p, Py_ssize_t k) noexcept nogil:
    return load(p) if whole else load_part(p, k)


cdef inlined put(const bint whole, real *p, Py_ssize_t k, vec v) noexcept nogil:
    if whole:
        store(p, v)
    else:
        store_part(p, v, k)


ctypedef void (*Units)(const bint whole, const Row *r, Py_ssize_t i, Py_ssize_t k) noexcept nogil


cdef inlined along_row(Units units, const Row *r) noexcept nogil:
    """Which units is known where this is called, and so pasted in."""
    cdef Py_ssize_t i = 0
    while i + LANES <= r.n:
        units(1, r, i, LANES)
        i += LANES
    if i < r.n:
        units(0, r, i, r.n - i)


cdef inline vec through_sigmoid(vec s, vec ds) noexcept nogil:
    """s = sigmoid(a): ds s (1 - s) is da"""
    return ds * (s * (1 - s))


cdef inline vec through_tanh(vec h, vec dh) noexcept nogil:
    """h = tanh(a): dh (1 - h^2) is da"""
    return dh * (1 - h * h)


# --- Vanilla RNN: f = f(a), h_t = f; leaky: h_t = (1 - leak) h_{t-1} + leak f ------------------------------------------

cdef inline vec activate(const int f, vec a) noexcept nogil:
    if f == TANH:
        return vector_tanh(a)
    if f == RELU:
        return at_least(a, 0)
    if f == SIGMOID:
        return vector_sigmoid(a)
    return a


cdef inline vec through_activation(const int f, vec h, vec dh) noexcept nogil:
    if f == TANH:
        return through_tanh(h, dh)
    if f == RELU:
        return zero_where_not_positive(h, dh)
    if f == SIGMOID:
        return through_sigmoid(h, dh)
    return dh


cdef inlined rnn_forward_units(const int f, const bint leaky, const bint whole, const Row *r, Py_ssize_t i, Py_ssize_t k) noexcept nogil:
    cdef vec value = activate(f, get(whole, r.a + i, k)), leak
    put(whole, r.a + i, k, value)
    if leaky:
        leak = get(whole, r.leak + i, k)
        put(whole, r.h + i, k, (1 - leak) * get(whole, r.h_prev + i, k) + leak * value)


cdef inlined rnn_backward_units(const int f, const bint leaky, const bint whole, const Row *r, Py_ssize_t i, Py_ssize_t k) noexcept nogil:
    cdef vec value = get(whole, r.a + i, k), dh = get(whole, r.dh + i, k), d_prev = get(whole, r.d_prev + i, k), leak
    if leaky:
        # reverse of: h_t = (1 - leak) h_{t-1} + leak f
        leak = get(whole, r.leak + i, k)
        d_prev = d_prev + (1 - leak) * dh
        dh = leak * dh
    # reverse of: f = f(a)
    put(whole, r.da + i, k, through_activation(f, value, dh))
    put(whole, r.dh + i, k, d_prev)


cdef inlined rnn_row(const int f, const bint leaky, const bint backward, const Row *r) noexcept nogil:
    cdef Py_ssize_t i = 0
    while i + LANES <= r.n:
        if backward:
            rnn_backward_units(f, leaky, 1, r, i, LANES)
        else:
            rnn_forward_units(f, leaky, 1, r, i, LANES)
        i += LANES
    if i < r.n:
        if backward:
            rnn_backward_units(f, leaky, 0, r, i, r.n - i)
        else:
            rnn_forward_units(f, leaky, 0, r, i, r.n - i)


cdef inlined rnn_row_of(const bint leaky, const bint backward, int f, const Row *r) noexcept nogil:
    if f == TANH: rnn_row(TANH, leaky, backward, r)
    elif f == RELU: rnn_row(RELU, leaky, backward, r)
    elif f == SIGMOID: rnn_row(SIGMOID, leaky, backward, r)
    else: rnn_row(IDENTITY, leaky, backward, r)


cdef void rnn_forward_row(const Row *r) noexcept nogil:
    if r.leak == NULL: rnn_row_of(0, 0, r.activation, r)
    else: rnn_row_of(1, 0, r.activation, r)


cdef void rnn_backward_row(const Row *r) noexcept nogil:
    if r.leak == NULL: rnn_row_of(0, 1, r.activation, r)
    else: rnn_row_of(1, 1, r.activation, r)


# --- GRU: r z n, with m = W_hn h_{t-1} + b_hn kept apart: n = tanh(a_n + r m), h_t = (1 - z) n + z h_{t-1} --------------

cdef inlined gru_forward_units(const bint whole, const Row *r, Py_ssize_t i, Py_ssize_t k) noexcept nogil:
    cdef real *a = r.a + i
    cdef vec reset = vector_sigmoid(get(whole, a, k))
    cdef vec z = vector_sigmoid(get(whole, a + r.H, k))
    cdef vec n = vector_tanh(get(whole, a + 2 * r.H, k) + reset * get(whole, r.m + i, k))
    put(whole, a, k, reset)
    put(whole, a + r.H, k, z)
    put(whole, a + 2 * r.H, k, n)
    put(whole, r.h + i, k, (1 - z) * n + z * get(whole, r.h_prev + i, k))


cdef inlined gru_backward_units(const bint whole, const Row *r, Py_ssize_t i, Py_ssize_t k) noexcept nogil:
    cdef const real *a = r.a + i
    cdef vec reset = get(whole, a, k), z = get(whole, a + r.H, k), n = get(whole, a + 2 * r.H, k)
    cdef vec dh = get(whole, r.dh + i, k), m = get(whole, r.m + i, k)
    # reverse of: h_t = (1 - z) n + z h_{t-1}
    cdef vec da_z = through_sigmoid(z, dh * (get(whole, r.h_prev + i, k) - n))
    cdef vec da_n = through_tanh(n, dh * (1 - z))
    put(whole, r.dh + i, k, dh * z + get(whole, r.d_prev + i, k))
    # reverse of: n = tanh(a_n + r m)
    cdef vec da_r = through_sigmoid(reset, da_n * m)
    put(whole, r.da + i, k, da_r)
    put(whole, r.da + i + r.H, k, da_z)
    put(whole, r.da + i + 2 * r.H, k, da_n)
    put(whole, r.da_h + i, k, da_r)
    put(whole, r.da_h + i + r.H, k, da_z)
    put(whole, r.da_h + i + 2 * r.H, k, da_n * reset)


cdef void gru_forward_row(const Row *r) noexcept nogil:
    along_row(<Units>gru_forward_units, r)


cdef void gru_backward_row(const Row *r) noexcept nogil:
    along_row(<Units>gru_backward_units, r)


# --- LSTM: i f g o; c_t = f c_{t-1} + i g, h_t = o tanh(c_t) -----------------------------------------------------------

cdef inlined lstm_forward_units(const bint whole, const Row *r, Py_ssize_t j, Py_ssize_t k) noexcept nogil:
    cdef real *a = r.a + j
    cdef vec i = vector_sigmoid(get(whole, a, k)), f = vector_sigmoid(get(whole, a + r.H, k))
    cdef vec g = vector_tanh(get(whole, a + 2 * r.H, k)), o = vector_sigmoid(get(whole, a + 3 * r.H, k))
    cdef vec c = f * get(whole, r.c_prev + j, k) + i * g
    put(whole, a, k, i)
    put(whole, a + r.H, k, f)
    put(whole, a + 2 * r.H, k, g)
    put(whole, a + 3 * r.H, k, o)
    put(whole, r.c + j, k, c)
    put(whole, r.h + j, k, o * vector_tanh(c))


cdef inlined lstm_backward_units(const bint whole, const Row *r, Py_ssize_t j, Py_ssize_t k) noexcept nogil:
    cdef const real *a = r.a + j
    cdef real *da = r.da + j
    cdef vec i = get(whole, a, k), f = get(whole, a + r.H, k), g = get(whole, a + 2 * r.H, k), o = get(whole, a + 3 * r.H, k)
    cdef vec tanh_c = vector_tanh(get(whole, r.c + j, k)), dh = get(whole, r.dh + j, k)
    # reverse of: h_t = o tanh(c_t)
    cdef vec dc = get(whole, r.dc + j, k) + through_tanh(tanh_c, dh * o)
    put(whole, da + 3 * r.H, k, through_sigmoid(o, dh * tanh_c))
    # reverse of: c_t = f c_{t-1} + i g
    put(whole, da, k, through_sigmoid(i, dc * g))
    put(whole, da + r.H, k, through_sigmoid(f, dc * get(whole, r.c_prev + j, k)))
    put(whole, da + 2 * r.H, k, through_tanh(g, dc * i))
    put(whole, r.dc + j, k, dc * f)
    put(whole, r.dh + j, k, get(whole, r.d_prev + j, k))


cdef void lstm_forward_row(const Row *r) noexcept nogil:
    along_row(<Units>lstm_forward_units, r)


cdef void lstm_backward_row(const Row *r) noexcept nogil:
    along_row(<Units>lstm_backward_units, r)
