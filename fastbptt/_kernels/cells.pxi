# The cells: for each, what the time loop must know of it, and the element-wise half of a step: forward, backward, and of a tangent.
#
# A step is given one row of a patch at a time, as a `Span`: pointers to the patch's first unit, and `n` units. The arithmetic stands in the
# functions named `..._units`, written for one vector of units; those named `..._row` run along the row, and end it with the part of a
# vector that is left (`k` < LANES units, `whole` = 0).
#
# Derivatives are taken from the activated values: with h = tanh(a), tanh'(a) = 1 - h^2, and no second tape is needed.

cdef enum:
    TANH = 0
    RELU = 1
    SIGMOID = 2
    IDENTITY = 3
    LEAKY = 4                      # added to one of these

cdef enum:
    WHOLE = 0
    PROJECTED = 1                  # of an LSTM: what is shown is not h yet (`projected.pxi`)

cdef enum:
    RNN_CELL = 0
    GRU_CELL = 1
    LSTM_CELL = 2
    MAX_GATES = 4                  # of any cell

cdef double CELL_WORK = 16         # an element's tanh costs about as much as this many multiply-adds


cdef bint choose_steps(Problem *problem, int cell, bint projected) noexcept nogil:
    """The cell's element-wise half of a step, in all passes; False if there is no such cell."""
    if cell == RNN_CELL:
        problem.forward, problem.backward, problem.tangent = rnn_forward_row, rnn_backward_row, rnn_tangent_row
    elif cell == GRU_CELL:
        problem.forward, problem.backward, problem.tangent = gru_forward_row, gru_backward_row, gru_tangent_row
    elif cell == LSTM_CELL and projected:
        problem.forward, problem.backward, problem.tangent = lstm_forward_row, projected_backward_row, projected_tangent_row
    elif cell == LSTM_CELL:
        problem.forward, problem.backward, problem.tangent = lstm_forward_row, lstm_backward_row, lstm_tangent_row
    return problem.forward != NULL


cdef inline int gates_of(int cell) noexcept nogil:
    """How many gates a cell has."""
    return 4 if cell == LSTM_CELL else 3 if cell == GRU_CELL else 1


cdef inline vec get(const bint whole, const real *p, Py_ssize_t k) noexcept nogil:
    return load(p) if whole else load_part(p, k)


cdef inlined put(const bint whole, real *p, Py_ssize_t k, vec v) noexcept nogil:
    if whole:
        store(p, v)
    else:
        store_part(p, v, k)


ctypedef void (*Units)(const int kind, const bint whole, const Span *s, Py_ssize_t i, Py_ssize_t k) noexcept nogil


cdef inlined along_row(Units units, const int kind, const Span *s) noexcept nogil:
    """Which units, and of which kind if the cell has several, is known where this is called, and so pasted in."""
    cdef Py_ssize_t i = 0
    while i + LANES <= s.n:
        units(kind, 1, s, i, LANES)
        i += LANES
    if i < s.n:
        units(kind, 0, s, i, s.n - i)


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


cdef inlined rnn_forward_units(const int kind, const bint whole, const Span *s, Py_ssize_t i, Py_ssize_t k) noexcept nogil:
    cdef vec value = activate(kind % LEAKY, get(whole, s.a + i, k)), leak
    put(whole, s.a + i, k, value)
    if kind >= LEAKY:
        leak = get(whole, s.leak + i, k)
        put(whole, s.h + i, k, (1 - leak) * get(whole, s.h_prev + i, k) + leak * value)


cdef inlined rnn_backward_units(const int kind, const bint whole, const Span *s, Py_ssize_t i, Py_ssize_t k) noexcept nogil:
    cdef vec value = get(whole, s.a + i, k), dh = get(whole, s.dh + i, k), d_prev = get(whole, s.d_prev + i, k), leak
    if kind >= LEAKY:
        # reverse of: h_t = (1 - leak) h_{t-1} + leak f
        leak = get(whole, s.leak + i, k)
        d_prev = d_prev + (1 - leak) * dh
        dh = leak * dh
    # reverse of: f = f(a)
    put(whole, s.da + i, k, through_activation(kind % LEAKY, value, dh))
    put(whole, s.dh + i, k, d_prev)


cdef inlined rnn_tangent_units(const int kind, const bint whole, const Span *s, Py_ssize_t i, Py_ssize_t k) noexcept nogil:
    cdef vec h_dot = through_activation(kind % LEAKY, get(whole, s.a + i, k), get(whole, s.a_dot + i, k)), leak
    if kind >= LEAKY:
        leak = get(whole, s.leak + i, k)
        h_dot = (1 - leak) * get(whole, s.h_dot_prev + i, k) + leak * h_dot
    put(whole, s.h_dot + i, k, h_dot)


cdef inlined rnn_row(Units units, const Span *s) noexcept nogil:
    cdef int kind = s.activation if s.leak == NULL else LEAKY + s.activation
    if kind == TANH: along_row(units, TANH, s)
    elif kind == RELU: along_row(units, RELU, s)
    elif kind == SIGMOID: along_row(units, SIGMOID, s)
    elif kind == IDENTITY: along_row(units, IDENTITY, s)
    elif kind == LEAKY + TANH: along_row(units, LEAKY + TANH, s)
    elif kind == LEAKY + RELU: along_row(units, LEAKY + RELU, s)
    elif kind == LEAKY + SIGMOID: along_row(units, LEAKY + SIGMOID, s)
    else: along_row(units, LEAKY + IDENTITY, s)


cdef void rnn_forward_row(const Span *s) noexcept nogil:
    rnn_row(<Units>rnn_forward_units, s)


cdef void rnn_backward_row(const Span *s) noexcept nogil:
    rnn_row(<Units>rnn_backward_units, s)


cdef void rnn_tangent_row(const Span *s) noexcept nogil:
    rnn_row(<Units>rnn_tangent_units, s)


# --- GRU: r z n, with m = W_hn h_{t-1} + b_hn kept apart: n = tanh(a_n + r m), h_t = (1 - z) n + z h_{t-1} --------------

cdef inlined gru_forward_units(const int kind, const bint whole, const Span *s, Py_ssize_t i, Py_ssize_t k) noexcept nogil:
    cdef real *a = s.a + i
    cdef vec reset = vector_sigmoid(get(whole, a, k))
    cdef vec z = vector_sigmoid(get(whole, a + s.H, k))
    cdef vec n = vector_tanh(get(whole, a + 2 * s.H, k) + reset * get(whole, s.m + i, k))
    put(whole, a, k, reset)
    put(whole, a + s.H, k, z)
    put(whole, a + 2 * s.H, k, n)
    put(whole, s.h + i, k, (1 - z) * n + z * get(whole, s.h_prev + i, k))


cdef inlined gru_backward_units(const int kind, const bint whole, const Span *s, Py_ssize_t i, Py_ssize_t k) noexcept nogil:
    cdef const real *a = s.a + i
    cdef vec reset = get(whole, a, k), z = get(whole, a + s.H, k), n = get(whole, a + 2 * s.H, k)
    cdef vec dh = get(whole, s.dh + i, k), m = get(whole, s.m + i, k)
    # reverse of: h_t = (1 - z) n + z h_{t-1}
    cdef vec da_z = through_sigmoid(z, dh * (get(whole, s.h_prev + i, k) - n))
    cdef vec da_n = through_tanh(n, dh * (1 - z))
    put(whole, s.dh + i, k, dh * z + get(whole, s.d_prev + i, k))
    # reverse of: n = tanh(a_n + r m)
    cdef vec da_r = through_sigmoid(reset, da_n * m)
    put(whole, s.da + i, k, da_r)
    put(whole, s.da + i + s.H, k, da_z)
    put(whole, s.da + i + 2 * s.H, k, da_n)
    put(whole, s.da_h + i, k, da_r)
    put(whole, s.da_h + i + s.H, k, da_z)
    put(whole, s.da_h + i + 2 * s.H, k, da_n * reset)


cdef inlined gru_tangent_units(const int kind, const bint whole, const Span *s, Py_ssize_t i, Py_ssize_t k) noexcept nogil:
    cdef const real *a = s.a + i
    cdef const real *a_dot = s.a_dot + i
    cdef vec reset = get(whole, a, k), z = get(whole, a + s.H, k), n = get(whole, a + 2 * s.H, k), m = get(whole, s.m + i, k)
    cdef vec r_dot = through_sigmoid(reset, get(whole, a_dot, k)), z_dot = through_sigmoid(z, get(whole, a_dot + s.H, k))
    # n = tanh(a_n + r m)
    cdef vec n_dot = through_tanh(n, get(whole, a_dot + 2 * s.H, k) + (r_dot * m + reset * get(whole, s.m_dot + i, k)))
    # h_t = (1 - z) n + z h_{t-1}
    cdef vec past = z * get(whole, s.h_dot_prev + i, k) + z_dot * (get(whole, s.h_prev + i, k) - n)
    put(whole, s.h_dot + i, k, (1 - z) * n_dot + past)


cdef void gru_forward_row(const Span *s) noexcept nogil:
    along_row(<Units>gru_forward_units, 0, s)


cdef void gru_backward_row(const Span *s) noexcept nogil:
    along_row(<Units>gru_backward_units, 0, s)


cdef void gru_tangent_row(const Span *s) noexcept nogil:
    along_row(<Units>gru_tangent_units, 0, s)


# --- LSTM: i f g o; c_t = f c_{t-1} + i g, h_t = o tanh(c_t) -----------------------------------------------------------

cdef inlined lstm_forward_units(const int kind, const bint whole, const Span *s, Py_ssize_t j, Py_ssize_t k) noexcept nogil:
    cdef real *a = s.a + j
    cdef vec i = vector_sigmoid(get(whole, a, k)), f = vector_sigmoid(get(whole, a + s.H, k))
    cdef vec g = vector_tanh(get(whole, a + 2 * s.H, k)), o = vector_sigmoid(get(whole, a + 3 * s.H, k))
    cdef vec c = f * get(whole, s.c_prev + j, k) + i * g
    put(whole, a, k, i)
    put(whole, a + s.H, k, f)
    put(whole, a + 2 * s.H, k, g)
    put(whole, a + 3 * s.H, k, o)
    put(whole, s.c + j, k, c)
    put(whole, s.h + j, k, o * vector_tanh(c))


cdef inlined lstm_backward_units(const int kind, const bint whole, const Span *s, Py_ssize_t j, Py_ssize_t k) noexcept nogil:
    cdef const real *a = s.a + j
    cdef real *da = s.da + j
    cdef vec i = get(whole, a, k), f = get(whole, a + s.H, k), g = get(whole, a + 2 * s.H, k), o = get(whole, a + 3 * s.H, k)
    cdef vec tanh_c = vector_tanh(get(whole, s.c + j, k)), dh = get(whole, s.dh + j, k)
    # reverse of: h_t = o tanh(c_t)
    cdef vec dc = get(whole, s.dc + j, k) + through_tanh(tanh_c, dh * o)
    put(whole, da + 3 * s.H, k, through_sigmoid(o, dh * tanh_c))
    # reverse of: c_t = f c_{t-1} + i g
    put(whole, da, k, through_sigmoid(i, dc * g))
    put(whole, da + s.H, k, through_sigmoid(f, dc * get(whole, s.c_prev + j, k)))
    put(whole, da + 2 * s.H, k, through_tanh(g, dc * i))
    put(whole, s.dc + j, k, dc * f)
    put(whole, s.dh + j, k, get(whole, s.d_prev + j, k) if kind == WHOLE else o * tanh_c)


cdef inlined lstm_tangent_units(const int kind, const bint whole, const Span *s, Py_ssize_t j, Py_ssize_t k) noexcept nogil:
    cdef const real *a = s.a + j
    cdef const real *a_dot = s.a_dot + j
    cdef vec i = get(whole, a, k), f = get(whole, a + s.H, k), g = get(whole, a + 2 * s.H, k), o = get(whole, a + 3 * s.H, k)
    cdef vec i_dot = through_sigmoid(i, get(whole, a_dot, k)), f_dot = through_sigmoid(f, get(whole, a_dot + s.H, k))
    cdef vec g_dot = through_tanh(g, get(whole, a_dot + 2 * s.H, k)), o_dot = through_sigmoid(o, get(whole, a_dot + 3 * s.H, k))
    cdef vec tanh_c = vector_tanh(get(whole, s.c + j, k))
    # c_t = f c_{t-1} + i g
    cdef vec c_dot = f * get(whole, s.c_dot + j, k) + f_dot * get(whole, s.c_prev + j, k) + (i * g_dot + i_dot * g)
    put(whole, s.c_dot + j, k, c_dot)
    # h_t = o tanh(c_t)
    put(whole, s.h_dot + j, k, o_dot * tanh_c + through_tanh(tanh_c, o * c_dot))
    if kind == PROJECTED:
        put(whole, s.h + j, k, o * tanh_c)


cdef void lstm_forward_row(const Span *s) noexcept nogil:
    along_row(<Units>lstm_forward_units, WHOLE, s)


cdef void lstm_backward_row(const Span *s) noexcept nogil:
    along_row(<Units>lstm_backward_units, WHOLE, s)


cdef void projected_backward_row(const Span *s) noexcept nogil:
    along_row(<Units>lstm_backward_units, PROJECTED, s)


cdef void lstm_tangent_row(const Span *s) noexcept nogil:
    along_row(<Units>lstm_tangent_units, WHOLE, s)


cdef void projected_tangent_row(const Span *s) noexcept nogil:
    along_row(<Units>lstm_tangent_units, PROJECTED, s)
