# The entry points of the recurrent layers: arrays in, a Run filled in, the time loop called without the GIL.
#
# Arrays come checked (`functional.py`): contiguous, of agreeing shapes, none of them empty. One that a cell has no use for is None.

def forward(int cell, int activation, const real[:, :, ::1] x, const int64_t[:, ::1] tokens, const real[:, ::1] w_ih,
            const real[:, ::1] w_hh, const real[::1] b_ih, const real[::1] b_hh, const real[::1] leak, real[:, :, ::1] h,
            real[:, :, ::1] c, real[:, :, ::1] a, real[:, :, ::1] m):
    """Fill h[1:], c[1:], a and m from h[0], c[0] and x or tokens; `recurrence.pxi` says what they are."""
    cdef Run run
    bind(&run, cell, 0, activation, x, tokens, w_ih, h, c, a, m, leak)
    cdef Workspace space = Workspace(forward_space(&run), 5)
    with nogil:
        prepare_forward(&run, space, &w_ih[0, 0], &w_hh[0, 0], vector(b_ih), vector(b_hh))
        run_forward(&run)
    raise_if_interrupted(&run.watch)


def backward(int cell, int activation, const real[:, :, ::1] x, const int64_t[:, ::1] tokens, const real[:, ::1] w_ih,
             const real[:, ::1] w_hh, const real[::1] leak, const real[:, :, ::1] h, const real[:, :, ::1] c, const real[:, :, ::1] a,
             const real[:, :, ::1] m, const real[:, :, ::1] d_out, real[:, ::1] dh, real[:, ::1] dc, real[:, :, ::1] dx,
             real[:, ::1] dw_ih, real[:, ::1] dw_hh, real[::1] db_ih, real[::1] db_hh):
    """Fill dx unless it is None; add to dw_ih, dw_hh, db_ih and, where it is another, db_hh.

    On entry, dh and dc are the gradients of the last state, without d_out's share; on return, those of the initial state.
    """
    cdef Run run
    bind(&run, cell, 1, activation, x, tokens, w_ih, h, c, a, m, leak)
    run.d_out = &d_out[0, 0, 0] if d_out is not None else NULL
    run.dh = &dh[0, 0]
    run.dc = &dc[0, 0] if dc is not None else NULL
    run.dx = &dx[0, 0, 0] if dx is not None else NULL
    run.sums.dw_ih = &dw_ih[0, 0]
    run.sums.dw_hh = &dw_hh[0, 0]
    run.sums.db_ih = &db_ih[0]
    run.sums.db_hh = &db_hh[0] if db_hh is not None else NULL
    run.groups = row_groups(&run)
    run.held_rows = held_rows(&run)
    cdef Workspace space = Workspace(backward_space(&run), 9)
    with nogil:
        prepare_backward(&run, space, &w_ih[0, 0], &w_hh[0, 0])
        run_backward(&run)
        finish_backward(&run, &dw_ih[0, 0])
    raise_if_interrupted(&run.watch)


def state_gradients(int cell, int activation, const real[:, ::1] w_ih, const real[:, ::1] w_hh, const real[::1] leak,
                    const real[:, :, ::1] h, const real[:, :, ::1] c, const real[:, :, ::1] a, const real[:, :, ::1] m,
                    const real[:, :, ::1] d_out, real[:, ::1] dh, real[:, ::1] dc, real[:, :, ::1] all_dh, real[:, :, ::1] all_dc,
                    real[:, :, ::1] da_h):
    """The backward pass without sums: fill all_dh (T+1, B, H), all_dc and da_h (T, B, N) with what `recurrence.pxi` says."""
    cdef Run run
    bind(&run, cell, 1, activation, None, None, w_ih, h, c, a, m, leak)
    run.d_out = &d_out[0, 0, 0] if d_out is not None else NULL
    run.dh = &dh[0, 0]
    run.dc = &dc[0, 0] if dc is not None else NULL
    run.all_dh = &all_dh[0, 0, 0]
    run.all_dc = &all_dc[0, 0, 0] if all_dc is not None else NULL
    run.groups = 1
    run.held_rows = run.apart * run.T * run.B  # of da, where that is not da_h
    cdef Workspace space = Workspace(backward_space(&run), 9)
    with nogil:
        prepare_backward(&run, space, NULL, &w_hh[0, 0])
        run.block = last_block(&run, 0, run.B, run.da if run.apart else &da_h[0, 0, 0], &da_h[0, 0, 0])
        step_back(&run.block, run.T)
        share_recurrence(&run)
    raise_if_interrupted(&run.watch)


cdef inline const real *vector(const real[::1] v) noexcept nogil:
    return &v[0] if v is not None else NULL


cdef inline real *history(const real[:, :, ::1] v) noexcept nogil:
    return <real *>&v[0, 0, 0] if v is not None else NULL


cdef void bind(Run *run, int cell, bint backward, int activation, const real[:, :, ::1] x, const int64_t[:, ::1] tokens,
               const real[:, ::1] w_ih, const real[:, :, ::1] h, const real[:, :, ::1] c, const real[:, :, ::1] a,
               const real[:, :, ::1] m, const real[::1] leak):
    memset(run, 0, sizeof(Run))
    run.step = step_of(cell, backward)
    run.threads = thread_limit()
    run.activation = activation
    run.T = h.shape[0] - 1
    run.B = h.shape[1]
    run.H = h.shape[2]
    run.N = w_ih.shape[0]
    run.I = w_ih.shape[1]
    run.gates = <int>(run.N // run.H)
    run.apart = m is not None
    run.x = history(x)
    run.tokens = &tokens[0, 0] if tokens is not None else NULL
    run.leak = vector(leak)
    run.h = history(h)
    run.c = history(c)
    run.a = history(a) if a is not None else run.h + run.B * run.H
    run.m = history(m)


cdef bint many_tokens(const Run *run) noexcept nogil:
    """Whether turning W_ih round, so that a token's weights are one row, costs less than picking them out of its columns."""
    return run.T * run.B >= run.I // 4


cdef inline Py_ssize_t gate_panels(const Run *run) noexcept nogil:
    """Panels of W_hh^T, packed gate by gate."""
    return run.gates * ceil_div(run.H, LANES)


cdef Py_ssize_t forward_space(const Run *run) noexcept nogil:
    cdef Py_ssize_t input_weight = packed_size(run.N, run.I) if run.x != NULL else run.I * run.N if many_tokens(run) else 0
    return input_weight + gate_panels(run) * panel_stride(run.H) + run.N + run.H


cdef void prepare_forward(Run *run, Workspace space, const real *w_ih, const real *w_hh, const real *b_ih, const real *b_hh) noexcept nogil:
    """Pack the transposed weights, and add up the biases."""
    cdef Py_ssize_t n, gate, summed = run.N - run.apart * run.H
    cdef real *turned
    cdef real *bias = space.take_zeros(run.N)
    cdef real *m_bias = space.take_zeros(run.apart * run.H)
    if b_ih != NULL:
        memcpy(bias, b_ih, run.N * sizeof(real))
    if b_hh != NULL:
        for n in range(summed):
            bias[n] = bias[n] + b_hh[n] if b_ih != NULL else b_hh[n]
        memcpy(m_bias, b_hh + summed, run.apart * run.H * sizeof(real))
    run.bias = bias
    run.m_bias = m_bias
    run.w_hh = space.take_panels(gate_panels(run) * LANES, run.H)
    for gate in range(run.gates):
        pack_transposed(w_hh + gate * run.H * run.H, run.H, run.H, run.H,
                        panels_from(run.w_hh, gate * ceil_div(run.H, LANES)).at, run.w_hh.panel)
    if run.x != NULL:
        run.w_ih = space.take_panels(run.N, run.I)
        pack_transposed(w_ih, run.I, run.I, run.N, run.w_ih.at, run.w_ih.panel)
    elif many_tokens(run):
        turned = space.take(run.I * run.N)
        transpose(w_ih, run.N, run.I, turned)
        run.token_weight = turned
        run.token_row = run.N
        run.token_gate = 1
    else:
        run.token_weight = w_ih
        run.token_row = 1
        run.token_gate = run.I


cdef Py_ssize_t gradient_scratch(const Run *run) noexcept nogil:
    cdef Py_ssize_t shares = run.groups if run.groups > 1 else ceil_div(max(run.H, run.I), LANES)
    return tasks_for(run.threads, 1e300, shares) * <Py_ssize_t>GRADIENT_SCRATCH


cdef Py_ssize_t backward_space(const Run *run) noexcept nogil:
    cdef Py_ssize_t dx_weight = packed_size(run.I, run.N) if run.dx != NULL else 0
    cdef Py_ssize_t token_gradient = run.I * run.N if run.tokens != NULL else 0
    return (packed_size(run.H, run.N) + dx_weight + token_gradient + max(run.B * run.H, run.I)
            + (1 + run.apart) * da_blocks(run) * run.held_rows * run.N + (run.groups * sums_size(run) if run.groups > 1 else 0)
            + gradient_scratch(run))


cdef inline int da_blocks(const Run *run) noexcept nogil:
    """How many blocks' da are held at a time."""
    return min(run.threads, run.groups)


cdef void prepare_backward(Run *run, Workspace space, const real *w_ih, const real *w_hh) noexcept nogil:
    """Pack the weights, and add the last output's gradient to the state's."""
    cdef Py_ssize_t i
    cdef const real *d_last
    run.plain_w_ih = w_ih
    run.plain_w_hh = w_hh
    run.w_hh = space.take_panels(run.H, run.N)
    pack_rows(rows(w_hh, 0, run.H), run.N, 0, run.N, run.H, LANES, run.w_hh.at, run.w_hh.panel)
    if run.dx != NULL:
        run.w_ih = space.take_panels(run.I, run.N)
        pack_rows(rows(w_ih, 0, run.I), run.N, 0, run.N, run.I, LANES, run.w_ih.at, run.w_ih.panel)
    if run.tokens != NULL:
        run.sums.dw_ih = space.take_zeros(run.I * run.N)
    run.zeros = space.take_zeros(max(run.B * run.H, run.I))
    run.da = space.take((1 + run.apart) * da_blocks(run) * run.held_rows * run.N)
    run.da_h = run.da + run.apart * run.held_rows * run.N
    run.group_sums = space.take(run.groups * sums_size(run)) if run.groups > 1 else NULL
    run.scratch = space.take(gradient_scratch(run))
    if run.d_out != NULL:
        d_last = run.d_out + (run.T - 1) * run.B * run.H
        for i in range(run.B * run.H):
            run.dh[i] += d_last[i]


cdef void finish_backward(const Run *run, real *dw_ih) noexcept nogil:
    """The gradient of token weights was collected a token a row; turn it back."""
    if run.tokens != NULL:
        transpose(run.sums.dw_ih, run.I, run.N, dw_ih)


cdef void transpose(const real *source, Py_ssize_t M, Py_ssize_t N, real *target) noexcept nogil:
    """target (N, M) = source (M, N)^T, in squares that fit the cache."""
    cdef Py_ssize_t m0, n0, m, n
    for m0 in range(0, M, 16):
        for n0 in range(0, N, 16):
            for n in range(n0, min(N, n0 + 16)):
                for m in range(m0, min(M, m0 + 16)):
                    target[n * M + m] = source[m * N + n]
