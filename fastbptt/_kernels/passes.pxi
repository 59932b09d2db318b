# The entry points of the recurrent layers: arrays in, a problem bound to them, the time loop called without the GIL.
#
# Arrays come checked (`functional.py`): contiguous, of agreeing shapes, none of them without rows. One that a cell has no use for is None.
# With ``first`` (`time.pxi`), arrays with a row for each step and active row are (R, 1, ...), and histories of states (B + R, 1, ...).

def forward(int cell, int activation, const real[:, :, ::1] x, const int64_t[:, ::1] tokens, const real[:, ::1] w_ih,
            const real[:, ::1] w_hh, const real[::1] b_ih, const real[::1] b_hh, const real[::1] leak, real[:, :, ::1] h,
            real[:, :, ::1] c, real[:, :, ::1] a, real[:, :, ::1] m, const Py_ssize_t[::1] first=None, PackedWeights weights=None):
    """Fill c and h behind slot 0, a and m, from slot 0 and x or tokens; `problem.pxi` says what they are.

    ``weights``, if given, are w_ih, w_hh, b_ih and b_hh, packed before.
    """
    cdef Forward run
    memset(&run, 0, sizeof(Forward))
    bind(&run.problem, cell, activation, x, tokens, w_ih, w_hh, leak, h, c, a, m, first)
    cdef const Problem *problem = &run.problem
    if weights is None:
        weights = packed(problem, kind_of_input(problem), vector(b_ih), vector(b_hh))
    elif not weights.fit(problem):
        raise ValueError("weights: packed for another layer, or for other inputs")
    run.weights = &weights.at
    run.sharing.threads = thread_limit()
    with nogil:
        run_forward(&run)
    raise_if_interrupted(&run.watch)


def backward(int cell, int activation, const real[:, :, ::1] x, const int64_t[:, ::1] tokens, const real[:, ::1] w_ih,
             const real[:, ::1] w_hh, const real[::1] leak, const real[:, :, ::1] h, const real[:, :, ::1] c, const real[:, :, ::1] a,
             const real[:, :, ::1] m, const real[:, :, ::1] d_out, real[:, ::1] dh, real[:, ::1] dc, real[:, :, ::1] dx,
             real[:, ::1] dw_ih, real[:, ::1] dw_hh, real[::1] db_ih, real[::1] db_hh, const Py_ssize_t[::1] first=None,
             int clip_kind=UNCLIPPED, double clip_limit=0, const real[:, ::1] carry=None):
    """Fill dx unless it is None, and of tokens dw_ih; add to dw_ih, dw_hh, db_ih and, where it is another, db_hh.

    On entry, dh and dc are the gradients of the last state, without d_out's share; on return, those of the initial state.
    ``clip_kind`` and ``clip_limit`` are `clip_step.pxi`'s, ``carry`` `backward.pxi`'s.
    """
    cdef Gradients run
    memset(&run, 0, sizeof(Gradients))
    bind(&run.back.problem, cell, activation, x, tokens, w_ih, w_hh, leak, h, c, a, m, first)
    bind_cotangents(&run.back, d_out, dh, dc)
    run.back.clip.kind, run.back.clip.limit = clip_kind, clip_limit
    run.back.carry = &carry[0, 0] if carry is not None else NULL
    run.dx = history(dx)
    run.sums.dw_ih, run.sums.dw_hh = &dw_ih[0, 0], &dw_hh[0, 0]
    run.sums.db_ih, run.sums.db_hh = &db_ih[0], &db_hh[0] if db_hh is not None else NULL
    run.groups = row_groups(&run.back.problem)
    run.held_rows = rows_held(&run.back.problem.time, ceil_div(run.back.problem.time.B, run.groups))
    cdef Block room = make_room(lay_out_backward, &run)
    with nogil:
        prepare_backward(&run)
        run_backward(&run)
        if tokens is not None:     # their gradient was collected a token a row
            transpose(run.sums.dw_ih, run.back.problem.I, run.back.problem.N, &dw_ih[0, 0])
    raise_if_interrupted(&run.back.watch)


def jvp(int cell, int activation, const real[:, :, ::1] x, const int64_t[:, ::1] tokens, const real[:, ::1] w_ih, const real[:, ::1] w_hh,
        const real[::1] leak, const real[:, :, ::1] h, const real[:, :, ::1] c, const real[:, :, ::1] a, const real[:, :, ::1] m,
        const real[:, :, ::1] x_dot, const real[:, ::1] w_ih_dot, const real[:, ::1] w_hh_dot, const real[::1] b_ih_dot,
        const real[::1] b_hh_dot, real[:, :, ::1] h_dot, real[:, ::1] c_dot, const Py_ssize_t[::1] first=None):
    """Fill h_dot, as h, behind slot 0 with the tangents of the states; c_dot becomes that of the last c, from that of the first.

    Tangents of inputs and weights that are 0 may be None; that of x must be, where there are tokens.
    """
    cdef Jvp run
    memset(&run, 0, sizeof(Jvp))
    bind(&run.problem, cell, activation, x, tokens, w_ih, w_hh, leak, h, c, a, m, first)
    run.x_dot = history(x_dot)
    run.w_ih_dot = &w_ih_dot[0, 0] if w_ih_dot is not None else NULL
    run.w_hh_dot = &w_hh_dot[0, 0] if w_hh_dot is not None else NULL
    run.h_dot, run.c_dot = history(h_dot), &c_dot[0, 0] if c_dot is not None else NULL
    run.sharing.threads = thread_limit()
    plan_jvp(&run)
    cdef Block room = make_room(lay_out_jvp, &run)
    with nogil:
        prepare_jvp(&run, vector(b_ih_dot), vector(b_hh_dot))
        run_jvp(&run)
    raise_if_interrupted(&run.watch)


def pack(const real[:, ::1] w_ih, const real[:, ::1] w_hh, const real[::1] b_ih, const real[::1] b_hh, Py_ssize_t H, int reset_after,
         bint tokens):
    """`PackedWeights` for any number of forward passes, of tokens or of vectors."""
    cdef Problem sizes
    sizes.N, sizes.I, sizes.H, sizes.P, sizes.reset_after = w_ih.shape[0], w_ih.shape[1], H, w_hh.shape[1], reset_after
    if not 0 < H <= sizes.P or sizes.N % H or w_hh.shape[0] != sizes.N:
        raise ValueError(f"w_hh: expected {sizes.N} rows, as w_ih has, {H} for each gate, got {w_hh.shape[0]}")
    if (b_ih is not None and b_ih.shape[0] != sizes.N) or (b_hh is not None and b_hh.shape[0] != sizes.N):
        raise ValueError(f"b_ih, b_hh: expected {sizes.N} numbers each")
    sizes.w_ih, sizes.w_hh = &w_ih[0, 0], &w_hh[0, 0]
    return packed(&sizes, TOKENS if tokens else VECTORS, vector(b_ih), vector(b_hh))


def state_gradients(int cell, int activation, const real[:, ::1] w_ih, const real[:, ::1] w_hh, const real[::1] leak,
                    const real[:, :, ::1] h, const real[:, :, ::1] c, const real[:, :, ::1] a, const real[:, :, ::1] m,
                    const real[:, :, ::1] d_out, real[:, ::1] dh, real[:, ::1] dc, real[:, :, ::1] all_dh, real[:, :, ::1] all_dc,
                    real[:, :, ::1] da_h):
    """The backward pass without sums: fill all_dh (T+1, B, P), all_dc and da_h (T, B, N) with what `backward.pxi` says."""
    cdef Backward run
    memset(&run, 0, sizeof(Backward))
    bind(&run.problem, cell, activation, None, None, w_ih, w_hh, leak, h, c, a, m, None)
    bind_cotangents(&run, d_out, dh, dc)
    run.all_dh, run.all_dc = history(all_dh), history(all_dc)
    run.block = last_block(&run.problem.time, 0, run.problem.time.B, &da_h[0, 0, 0], &da_h[0, 0, 0], NULL)
    cdef Block room = make_room(lay_out_state_gradients, &run)
    with nogil:
        pack_backward(run.w_hh, run.problem.w_hh, run.problem.N, run.problem.P)
        memset(<void *>run.zeros, 0, run.problem.time.B * run.problem.P * sizeof(real))
        step_back(&run.problem.time, &run.block, run.problem.time.T * run.problem.time.B)
        back_through_block(&run)
    raise_if_interrupted(&run.watch)


cdef void lay_out_state_gradients(void *call, Space *space) noexcept nogil:
    cdef Backward *run = <Backward *>call
    run.w_hh = take_panels(space, run.problem.P, run.problem.N)
    run.zeros = take(space, run.problem.time.B * run.problem.P)
    if run.problem.reset_after:
        run.block.da = take(space, run.problem.time.T * run.problem.time.B * run.problem.N)


cdef inline real *history(const real[:, :, ::1] v) noexcept nogil:
    return <real *>&v[0, 0, 0] if v is not None else NULL


cdef int bind(Problem *problem, int cell, int activation, const real[:, :, ::1] x, const int64_t[:, ::1] tokens, const real[:, ::1] w_ih,
              const real[:, ::1] w_hh, const real[::1] leak, const real[:, :, ::1] h, const real[:, :, ::1] c, const real[:, :, ::1] a,
              const real[:, :, ::1] m, const Py_ssize_t[::1] first) except -1:
    """The problem that these arrays pose; it is 0 on entry."""
    problem.forward, problem.backward, problem.tangent = step_of(cell, FORWARD), step_of(cell, BACKWARD), step_of(cell, TANGENT)
    if problem.forward == NULL:
        raise ValueError(f"cell: there is none with number {cell} in these kernels; after a change to their source they must be built anew")
    problem.activation = activation
    problem.time.T, problem.time.B = h.shape[0] - 1, h.shape[1]
    if first is not None:
        problem.time.T = first.shape[0] - 1
        problem.time.B = h.shape[0] - first[problem.time.T]
        problem.time.first = &first[0]
    problem.N, problem.I, problem.P = w_ih.shape[0], w_ih.shape[1], h.shape[2]
    problem.H = c.shape[2] if c is not None else problem.P
    if problem.P < problem.H:
        raise ValueError(f"h: expected at least {problem.H} numbers, as there are units, got {problem.P}")
    problem.gates = <int>(problem.N // problem.H)
    problem.reset_after = m is not None
    problem.leak = vector(leak)
    problem.x = history(x)
    problem.tokens = &tokens[0, 0] if tokens is not None else NULL
    problem.w_ih, problem.w_hh = &w_ih[0, 0], &w_hh[0, 0]
    problem.h, problem.c, problem.m = history(h), history(c), history(m)
    problem.a = history(a) if a is not None else problem.h + problem.time.B * problem.P
    return 0


cdef void bind_cotangents(Backward *run, const real[:, :, ::1] d_out, real[:, ::1] dh, real[:, ::1] dc):
    run.d_out = history(d_out)
    run.dh = &dh[0, 0]
    run.dc = &dc[0, 0] if dc is not None else NULL
    run.sharing.threads = thread_limit()
