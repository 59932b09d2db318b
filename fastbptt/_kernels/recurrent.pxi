# The entry points of the recurrent layers: arrays in, a Run filled in, the time loop called without the GIL.
#
# Arrays come checked (`functional.py`): contiguous, of agreeing shapes, none of them empty. A missing one is None.

def rnn_forward(int activation, const real[:, :, ::1] x, const int64_t[:, ::1] tokens, const real[:, ::1] w_ih,
                const real[:, ::1] w_hh, const real[::1] b_ih, const real[::1] b_hh, real[:, :, ::1] h):
    """Fill h[1:] (T+1, B, H) from h[0] and x (T, B, I) or tokens (T, B)."""
    cdef Run run
    memset(&run, 0, sizeof(Run))
    bind_sizes(&run, x, tokens, w_ih, h)
    run.activation = activation
    run.step = rnn_forward_step
    run.a = run.h + run.B * run.H
    cdef Workspace space = Workspace(forward_space(&run), 4)
    with nogil:
        prepare_forward(&run, space, &w_ih[0, 0], &w_hh[0, 0],
                        &b_ih[0] if b_ih is not None else NULL, &b_hh[0] if b_hh is not None else NULL)
        run_forward(&run)
    raise_if_interrupted(&run.watch)


def rnn_backward(int activation, const real[:, :, ::1] x, const int64_t[:, ::1] tokens, const real[:, ::1] w_ih,
                 const real[:, ::1] w_hh, const real[:, :, ::1] h, const real[:, :, ::1] d_out, real[:, ::1] dh,
                 real[:, :, ::1] dx, real[:, ::1] dw_ih, real[:, ::1] dw_hh, real[::1] db):
    """Fill dx unless it is None; add to dw_ih, dw_hh and db; carry dh (B, H), dL/dh_T without d_out[T-1], back to dL/dh_0."""
    cdef Run run
    memset(&run, 0, sizeof(Run))
    bind_sizes(&run, x, tokens, w_ih, h)
    run.activation = activation
    run.step = rnn_backward_step
    run.d_out = &d_out[0, 0, 0] if d_out is not None else NULL
    run.dh = &dh[0, 0]
    run.dx = &dx[0, 0, 0] if dx is not None else NULL
    run.dw_ih = &dw_ih[0, 0]
    run.dw_hh = &dw_hh[0, 0]
    run.db = &db[0]
    run.block = min(run.T, ceil_div(BACKWARD_ROWS, run.B))
    cdef Workspace space = Workspace(backward_space(&run), 7)
    with nogil:
        prepare_backward(&run, space, &w_ih[0, 0], &w_hh[0, 0])
        run_backward(&run)
        finish_backward(&run, &dw_ih[0, 0])
    raise_if_interrupted(&run.watch)


cdef void bind_sizes(Run *run, const real[:, :, ::1] x, const int64_t[:, ::1] tokens, const real[:, ::1] w_ih, const real[:, :, ::1] h):
    run.T = h.shape[0] - 1
    run.B = h.shape[1]
    run.H = h.shape[2]
    run.N = w_ih.shape[0]
    run.I = w_ih.shape[1]
    run.h = <real *>&h[0, 0, 0]
    if x is not None:
        run.x = &x[0, 0, 0]
    else:
        run.tokens = &tokens[0, 0]


cdef bint many_tokens(const Run *run) noexcept nogil:
    """Whether turning W_ih round, so that a token's weights are one row, costs less than picking them out of its columns."""
    return run.T * run.B >= run.I // 4


cdef inline Py_ssize_t gate_panels(const Run *run) noexcept nogil:
    """Panels of W_hh^T, packed gate by gate, so that a gate's first unit starts a panel."""
    return run.N // run.H * ceil_div(run.H, LANES) if run.H else 0


cdef Py_ssize_t forward_space(const Run *run) noexcept nogil:
    cdef Py_ssize_t input_weight = packed_size(run.N, run.I) if run.x != NULL else run.I * run.N if many_tokens(run) else 0
    return input_weight + gate_panels(run) * panel_stride(run.H) + run.N


cdef void prepare_forward(Run *run, Workspace space, const real *w_ih, const real *w_hh, const real *b_ih, const real *b_hh) noexcept nogil:
    """Pack the transposed weights, and add up the biases."""
    cdef Py_ssize_t n, gate
    cdef real *turned
    cdef real *bias = space.take_zeros(run.N)
    for n in range(run.N):
        bias[n] = (b_ih[n] if b_ih != NULL else 0) + (b_hh[n] if b_hh != NULL else 0)
    run.bias = bias
    if run.H:
        run.w_hh = space.take_panels(gate_panels(run) * LANES, run.H)
        for gate in range(run.N // run.H):
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


cdef Py_ssize_t backward_space(const Run *run) noexcept nogil:
    cdef Py_ssize_t dx_weight = packed_size(run.I, run.N) if run.dx != NULL else 0
    cdef Py_ssize_t token_gradient = run.I * run.N if run.tokens != NULL else 0
    return (packed_size(run.H, run.N) + dx_weight + token_gradient + max(run.B * run.H, run.I) + run.block * run.B * run.N
            + tasks_for(1e300, ceil_div(max(run.H, run.I), LANES)) * <Py_ssize_t>GRADIENT_SCRATCH)


cdef void prepare_backward(Run *run, Workspace space, const real *w_ih, const real *w_hh) noexcept nogil:
    """Pack the weights, and add the last output's gradient to the state's."""
    cdef Py_ssize_t i
    cdef const real *d_last
    run.w_hh = space.take_panels(run.H, run.N)
    pack_rows(w_hh, run.H, run.N, run.H, LANES, run.w_hh.at, run.w_hh.panel)
    if run.dx != NULL:
        run.w_ih = space.take_panels(run.I, run.N)
        pack_rows(w_ih, run.I, run.N, run.I, LANES, run.w_ih.at, run.w_ih.panel)
    if run.tokens != NULL:
        run.dw_ih = space.take_zeros(run.I * run.N)
    run.zeros = space.take_zeros(max(run.B * run.H, run.I))
    run.da = space.take(run.block * run.B * run.N)
    run.scratch = space.take(tasks_for(1e300, ceil_div(max(run.H, run.I), LANES)) * <Py_ssize_t>GRADIENT_SCRATCH)
    if run.d_out != NULL:
        d_last = run.d_out + (run.T - 1) * run.B * run.H
        for i in range(run.B * run.H):
            run.dh[i] += d_last[i]


cdef void finish_backward(const Run *run, real *dw_ih) noexcept nogil:
    """The gradient of token weights was collected a token a row; turn it back."""
    if run.tokens != NULL:
        transpose(run.dw_ih, run.I, run.N, dw_ih)


cdef void transpose(const real *source, Py_ssize_t M, Py_ssize_t N, real *target) noexcept nogil:
    """target (N, M) = source (M, N)^T, in squares that fit the cache."""
    cdef Py_ssize_t m0, n0, m, n
    for m0 in range(0, M, 16):
        for n0 in range(0, N, 16):
            for n in range(n0, min(N, n0 + 16)):
                for m in range(m0, min(M, m0 + 16)):
                    target[n * M + m] = source[m * N + n]
