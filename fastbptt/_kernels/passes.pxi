# The entry points of the recurrent layers: arrays in, a problem bound to them, the time loop called without the GIL.
#
# Weights, and their gradients, are looked at here: contiguous, and of shapes that agree. Of all other arrays, their callers know how many
# steps and rows they have (`functional.py`), and that is at least one. One that a cell has no use for is None.
# With ``first`` (`time.pxi`), arrays with a row for each step and active row are (R, 1, ...), and histories of states (B + R, 1, ...).

@cython.no_gc
cdef class ForwardPass(Pass):
    cdef Forward at

    cdef void go_behind(self, Progress *ahead) noexcept:
        self.at.below = ahead

    cdef void show(self, Progress *own) noexcept:
        self.at.own = own


@cython.no_gc
cdef class BackwardPass(Pass):
    cdef Gradients at
    cdef Reached reached

    cdef void note(self) noexcept:
        if self.reached is not None:
            self.reached.note(&self.at)

    cdef void go_behind(self, Progress *ahead) noexcept:
        self.at.back.above = ahead

    cdef void show(self, Progress *own) noexcept:
        self.at.back.own = own


def forward(int cell, int activation, x, tokens, w_ih, w_hh, b_ih, b_hh, leak, h, c, a, m, first=None, PackedWeights weights=None,
            w_hr=None, bint again=False, place=None, given=None, out=None, bint turned=False):
    """The pass that fills c and h behind slot 0, a and m, from slot 0 and x or tokens; `problem.pxi` says what they are. Unless they are
    None, x is first filled from the rows of ``given``, and those of ``out`` with the outputs, where ``place`` and ``turned`` say
    (`time.pxi`). There may be gaps between the rows of ``out``.

    ``weights``, if given, are w_ih, w_hh, b_ih, b_hh and w_hr, packed before. ``again``: all of h is there already, and is only read.
    """
    cdef ForwardPass one = ForwardPass.__new__(ForwardPass)
    cdef Forward *run = &one.at
    cdef Views *views = &one.views
    one.go, one.call, one.watch, one.sharing = go_forward, run, &run.watch, &run.sharing
    bind(&run.problem, views, cell, activation, x, tokens, w_ih, w_hh, w_hr, leak, h, c, a, m, first, WRITE, READ if again else WRITE)
    if weights is None:
        weights = room_for_weights(&run.problem, kind_of_input(&run.problem))
        run.unpacked = &weights.at
        run.b_ih, run.b_hh = sized(views, "b_ih", b_ih, READ, run.problem.N), sized(views, "b_hh", b_hh, READ, run.problem.N)
    elif not weights.fit(&run.problem):
        raise ValueError("weights: packed for another layer, or for other inputs")
    one.weights, run.weights, run.again = weights, &weights.at, again
    bind_place(&run.problem, views, place, turned)
    if given is not None:
        if in_place(&run.problem.time):
            raise ValueError("given: expected None where rows have no other place")
        view(views, "x", x, 3, WRITE)  # once more, as it is filled
    run.projection.given = view_or_null(views, "given", given, 3, READ)
    run.out = rows_or_null(views, "out", out, WRITE, run.problem.P, &run.out_gap)
    run.sharing.threads = thread_limit()
    if run.problem.w_hr != NULL or again:
        one.room = make_room(lay_out_shown, run)
    return one


cdef void go_forward(void *call) noexcept nogil:
    cdef Forward *run = <Forward *>call
    cdef const Problem *problem = &run.problem
    if run.unpacked != NULL:
        pack_forward(run.unpacked, problem.w_ih, problem.w_hh, problem.w_hr, run.b_ih, run.b_hh, run.sharing.threads, &run.watch)
    prepare_forward(run, run.weights)
    if run.again:
        recompute_all(run)
    else:
        run_forward(run)


def backward(int cell, int activation, x, tokens, w_ih, w_hh, leak, h, c, a, m, d_out, dh, dc, dx, dw_ih, dw_hh, db_ih, db_hh, first=None,
             int clip_kind=UNCLIPPED, double clip_limit=0, carry=None, w_hr=None, dw_hr=None, Reached reached=None,
             place=None, bint turned=False, bint adds=False):
    """The pass that fills dw_ih, dw_hh, db_ih, db_hh where it is another, and dx and dw_hr unless they are None.

    On entry, dh and dc are the gradients of the last state, without d_out's share; on return, those of the initial state.
    ``clip_kind`` and ``clip_limit`` are `clip_step.pxi`'s, ``carry`` `backward.pxi`'s. ``reached`` makes this one of several calls.
    ``place`` and ``turned`` (`time.pxi`) say which rows of d_out it looks at, and which of dx it fills, or ``adds`` to; not in several
    calls. There may be gaps between the rows of d_out.
    """
    cdef BackwardPass one = BackwardPass.__new__(BackwardPass)
    cdef Gradients *run = &one.at
    cdef Problem *problem = &run.back.problem
    cdef Views *views = &one.views
    cdef Py_ssize_t N
    one.go, one.call, one.watch, one.sharing, one.reached = go_back, run, &run.back.watch, &run.back.sharing, reached
    bind(problem, views, cell, activation, x, tokens, w_ih, w_hh, w_hr, leak, h, c, a, m, first, READ)
    bind_place(problem, views, place, turned)
    N = problem.N
    bind_cotangents(&run.back, views, d_out, dh, dc)
    run.begins = run.in_one_call = run.quiet = reached is None
    run.back.clip.kind, run.back.clip.limit = clip_kind, clip_limit
    run.back.carry = view_or_null(views, "carry", carry, 2, READ)
    run.dx, run.adds = rows_of_width(views, "dx", dx, WRITE, problem.I), adds
    run.sums.dw_ih, run.sums.dw_hh = sized(views, "dw_ih", dw_ih, WRITE, N, problem.I), sized(views, "dw_hh", dw_hh, WRITE, N, problem.P)
    run.sums.db_ih, run.sums.db_hh = sized(views, "db_ih", db_ih, WRITE, N), sized(views, "db_hh", db_hh, WRITE, N)
    run.sums.dw_hr = sized(views, "dw_hr", dw_hr, WRITE, problem.P, problem.H)
    run.dw_ih = run.sums.dw_ih
    if reached is not None:
        reached.go_on(run)
    plan_backward(run)
    if reached is not None:
        reached.give_sums(run)
    one.room = make_room(lay_out_backward, run)
    return one


cdef class Reached:
    """A backward pass that is taken in several calls, the last steps first: how far it has come, and its sums.

    Before each call, `start` is set to its first step; the last call's is 0. A call goes through the blocks of time that lie behind that
    step, and afterwards `step` is where the steps begin that are done; with several groups of rows, where they are for all groups.
    So a call's arrays hold the steps from its `start` to the `step` of the call before, behind which nothing is looked at: x or tokens, h,
    c, a, m, carry and dx. d_out has one step more at its beginning, unless `start` is 0. Of ragged batches, the first slot of h and c has
    the rows of the step before, and dx is 0 to begin with. dh, dc and the sums go from call to call.

    `quiet` is set to whether all before `start` is known to be finite, and to have no loss: then the pass may end early, with a `step` of
    0. What no call has seen of dx is 0, and for the caller to fill.
    """
    cdef Time time
    cdef public Py_ssize_t start
    cdef public bint quiet
    cdef readonly Py_ssize_t step
    cdef Py_ssize_t start_before
    cdef bint begun
    cdef Py_ssize_t[MAX_GROUPS] reached
    cdef Block sums

    def __cinit__(self, Py_ssize_t T, Py_ssize_t B):
        self.time.T, self.time.B, self.step = T, B, T

    cdef void go_on(self, Gradients *run) noexcept:
        """The arrays of a call, as if they held all steps."""
        cdef Problem *problem = &run.back.problem
        cdef Time *time = &problem.time
        cdef Py_ssize_t row, state
        cdef bint h_is_a = problem.a == problem.h + time.B * problem.P
        time.T, time.B = self.time.T, self.time.B
        row, state = first_row(time, self.start), slot(time, self.start)
        problem.h -= state * problem.P
        problem.a = problem.h + time.B * problem.P if h_is_a else problem.a - row * problem.N
        problem.c -= state * problem.H if problem.c != NULL else 0
        problem.m -= row * problem.H if problem.m != NULL else 0
        problem.x -= row * problem.I if problem.x != NULL else 0
        problem.tokens -= row if problem.tokens != NULL else 0
        run.dx -= row * problem.I if run.dx != NULL else 0
        run.back.carry -= row if run.back.carry != NULL else 0
        if run.back.d_out != NULL:
            run.back.d_out -= first_row(time, max(self.start - 1, <Py_ssize_t>0)) * (problem.P + run.back.d_out_gap)
        run.begins, run.quiet, run.start, run.cleared = not self.begun, self.quiet, self.start, min(self.start_before, self.step)
        memcpy(run.reached, self.reached, sizeof(self.reached))

    cdef int give_sums(self, Gradients *run) except -1:
        cdef Space space
        if not self.begun:
            self.sums = make_room(lay_out_sums, run)
        else:
            space.free = <size_t>self.sums.at
            lay_out_sums(run, &space)
        return 0

    cdef void note(self, const Gradients *run) noexcept:
        """How far the call has come."""
        cdef int group
        memcpy(self.reached, run.reached, sizeof(self.reached))
        self.begun, self.start_before, self.step = True, self.start, 0
        for group in range(run.groups):
            self.step = max(self.step, self.reached[group])


def jvp(int cell, int activation, x, tokens, w_ih, w_hh, leak, h, c, a, m, x_dot, w_ih_dot, w_hh_dot, b_ih_dot, b_hh_dot, h_dot, c_dot,
        first=None, w_hr=None, w_hr_dot=None):
    """Fill h_dot, as h, behind slot 0 with the tangents of the states; c_dot becomes that of the last c, from that of the first.

    Tangents of inputs and weights that are 0 may be None; that of x must be, where there are tokens.
    """
    cdef Jvp run
    cdef Block room
    cdef const real *b_ih
    cdef const real *b_hh
    cdef Views views
    views.count = 0
    memset(&run, 0, sizeof(Jvp))
    try:
        bind(&run.problem, &views, cell, activation, x, tokens, w_ih, w_hh, w_hr, leak, h, c, a, m, first, READ)
        run.x_dot = view_or_null(&views, "x_dot", x_dot, 3, READ)
        run.w_ih_dot = view_or_null(&views, "w_ih_dot", w_ih_dot, 2, READ)
        run.w_hh_dot = view_or_null(&views, "w_hh_dot", w_hh_dot, 2, READ)
        run.w_hr_dot = view_or_null(&views, "w_hr_dot", w_hr_dot, 2, READ)
        run.h_dot = <real *>view(&views, "h_dot", h_dot, 3, WRITE).buf
        run.c_dot = view_or_null(&views, "c_dot", c_dot, 2, WRITE)
        b_ih, b_hh = view_or_null(&views, "b_ih_dot", b_ih_dot, 1, READ), view_or_null(&views, "b_hh_dot", b_hh_dot, 1, READ)
        run.sharing.threads = thread_limit()
        plan_jvp(&run)
        room = make_room(lay_out_jvp, &run)
        with nogil:
            pack_forward(&run.weights, run.problem.w_ih, run.problem.w_hh, run.problem.w_hr, NULL, NULL, run.sharing.threads, &run.watch)
            pack_forward(&run.changes, run.w_ih_dot, run.w_hh_dot, run.w_hr_dot, b_ih, b_hh, run.sharing.threads, &run.watch)
            run_jvp(&run)
        raise_if_interrupted(&run.watch)
    finally:
        release(&views)


def pack(const real[:, ::1] w_ih, const real[:, ::1] w_hh, const real[::1] b_ih, const real[::1] b_hh, Py_ssize_t H, int reset_after,
         bint tokens, const real[:, ::1] w_hr=None):
    """`PackedWeights` for any number of forward passes, of tokens or of vectors."""
    cdef Problem sizes
    memset(&sizes, 0, sizeof(Problem))
    sizes.N, sizes.I, sizes.H, sizes.P, sizes.reset_after = w_ih.shape[0], w_ih.shape[1], H, w_hh.shape[1], reset_after
    if not 0 < H or (w_hr is None and H > sizes.P) or sizes.N % H or w_hh.shape[0] != sizes.N:
        raise ValueError(f"w_hh: expected {sizes.N} rows, as w_ih has, {H} for each gate, got {w_hh.shape[0]}")
    if (b_ih is not None and b_ih.shape[0] != sizes.N) or (b_hh is not None and b_hh.shape[0] != sizes.N):
        raise ValueError(f"b_ih, b_hh: expected {sizes.N} numbers each")
    if w_hr is not None and (w_hr.shape[0] != sizes.P or w_hr.shape[1] != H or sizes.P >= H):
        raise ValueError(f"w_hr: expected shape ({sizes.P}, {H}), the first below the second, got ({w_hr.shape[0]}, {w_hr.shape[1]})")
    sizes.w_ih, sizes.w_hh = &w_ih[0, 0], &w_hh[0, 0]
    if w_hr is not None:
        sizes.w_hr = &w_hr[0, 0]
    return packed(&sizes, TOKENS if tokens else VECTORS, vector(b_ih), vector(b_hh))


def state_gradients(int cell, int activation, w_ih, w_hh, leak, h, c, a, m, d_out, dh, dc, all_dh, all_dc, da_h, w_hr=None):
    """The backward pass without sums: fill all_dh (T+1, B, P), all_dc and da_h (T, B, N) with what `backward.pxi` says."""
    cdef Backward run
    cdef Block room
    cdef Views views
    views.count = 0
    memset(&run, 0, sizeof(Backward))
    try:
        bind(&run.problem, &views, cell, activation, None, None, w_ih, w_hh, w_hr, leak, h, c, a, m, None, READ)
        bind_cotangents(&run, &views, d_out, dh, dc)
        run.all_dh, run.all_dc = view_or_null(&views, "all_dh", all_dh, 3, WRITE), view_or_null(&views, "all_dc", all_dc, 3, WRITE)
        run.block.da = run.block.da_h = <real *>view(&views, "da_h", da_h, 3, WRITE).buf
        room = make_room(lay_out_state_gradients, &run)
        with nogil:
            prepare_weights(&run)
            go_to_end(&run.problem.time, &run.block, 0, run.problem.time.B)
            step_back(&run.problem.time, &run.block, run.problem.time.T * run.problem.time.B, 0)
            back_through_block(&run)
        raise_if_interrupted(&run.watch)
    finally:
        release(&views)


def plan_segments(Py_ssize_t N, Py_ssize_t I, Py_ssize_t H, Py_ssize_t P, int reset_after, Py_ssize_t T, Py_ssize_t B,
                  const int64_t[::1] first, bint tokens):
    """What a caller must know to take a pass in several calls.

    First the bytes of scratch that weights, blocks and sums of both passes take, with as many threads as there may be now; then for each
    group of rows where its blocks of time begin, the last first. Of a rectangle's groups, those of another size.
    """
    cdef Gradients run
    cdef Problem *problem = &run.back.problem
    cdef ForwardWeights weights
    cdef TimeBlock block
    cdef real any_real
    cdef int64_t any_token
    cdef int group
    cdef dict blocks = {}
    memset(&run, 0, sizeof(Gradients))
    memset(&weights, 0, sizeof(ForwardWeights))
    problem.N, problem.I, problem.P, problem.H, problem.reset_after = N, I, P, H, reset_after
    problem.w_hr = &any_real if P < H else NULL
    problem.tokens = &any_token if tokens else NULL
    problem.time.T, problem.time.B, problem.time.first = T, B, <const Py_ssize_t *>&first[0] if first is not None else NULL
    run.dx = &any_real if not tokens else NULL
    run.back.sharing.threads, run.begins, run.in_one_call = thread_limit(), True, True
    plan_backward(&run)
    set_sizes(&weights, problem, TOKENS if tokens else VECTORS)
    cdef Block starts = Block((run.held_rows + 1) * sizeof(Py_ssize_t))
    run.blocks[0].starts = <Py_ssize_t *>starts.at
    for group in range(run.groups):
        block = next_blocks(&run, group, 0)
        key = group if first is not None else block.b1 - block.b0
        if key not in blocks:
            blocks[key] = [block.t0]
            while step_back(&problem.time, &block, run.held_rows, 0):
                blocks[key].append(block.t0)
    return bytes_of(lay_out_backward, &run) + bytes_of(lay_out_forward, &weights), list(blocks.values())


def patches(Py_ssize_t N, Py_ssize_t H, Py_ssize_t T, Py_ssize_t B, int threads):
    """Into how many parts so many threads would cut rows, and units, of each step; (1, 1) where they share rows alone or nothing."""
    cdef Problem problem
    cdef Patches cut
    memset(&problem, 0, sizeof(Problem))
    problem.N, problem.P, problem.H, problem.gates, problem.time.T, problem.time.B = N, H, H, <int>(N // H), T, B
    cut = patches_of_steps(&problem, threads, 0, T)
    return cut.by_rows, cut.by_units


cdef void lay_out_state_gradients(void *call, Space *space) noexcept nogil:
    cdef Backward *run = <Backward *>call
    cdef const Problem *problem = &run.problem
    cdef Py_ssize_t held = problem.time.T * problem.time.B
    lay_out_weights(run, space)
    if problem.w_hr != NULL:
        run.block.dh = take(space, held * problem.P)
        run.block.shown = take(space, held * problem.H)
    if problem.reset_after:
        run.block.da = take(space, held * problem.N)


cdef int bind(Problem *problem, Views *views, int cell, int activation, x, tokens, w_ih, w_hh, w_hr, leak, h, c, a, m, first,
              int access, int access_to_h=-1) except -1:
    """The problem that these arrays pose; it is 0 on entry. ``access`` is that to h, c, a and m, unless another is given for h."""
    cdef const Py_buffer *given
    cdef bint projected = w_hr is not None
    if not choose_steps(problem, cell, projected):
        raise ValueError(f"cell: there is none with number {cell} in these kernels; after a change to their source they must be built anew")
    problem.activation = activation
    given = view(views, "h", h, 3, access if access_to_h < 0 else access_to_h)
    problem.h = <real *>given.buf
    problem.P = problem.H = given.shape[2]
    problem.time.T, problem.time.B = given.shape[0] - 1, given.shape[1]
    if first is not None:
        problem.time.B = given.shape[0]
        given = view(views, "first", first, 1, READ, INTEGER_FORMATS)
        problem.time.first = <const Py_ssize_t *>given.buf
        problem.time.T = given.shape[0] - 1
        problem.time.B -= problem.time.first[problem.time.T]
    if c is not None:
        given = view(views, "c", c, 3, access)
        problem.c = <real *>given.buf
        problem.H = given.shape[2]
    if problem.P < problem.H and not projected:
        raise ValueError(f"h: expected at least {problem.H} numbers, as there are units, got {problem.P}")
    given = view(views, "w_ih", w_ih, 2, READ)
    problem.w_ih = <const real *>given.buf
    problem.N, problem.I = given.shape[0], given.shape[1]
    if problem.H == 0 or problem.N % problem.H:
        raise ValueError(f"w_ih: expected {problem.H} rows for each gate, got {problem.N}")
    problem.gates = <int>(problem.N // problem.H)
    problem.w_hh = sized(views, "w_hh", w_hh, READ, problem.N, problem.P)
    problem.w_hr = sized(views, "w_hr", w_hr, READ, problem.P, problem.H)
    problem.leak = sized(views, "leak", leak, READ, problem.H)
    problem.x = rows_of_width(views, "x", x, READ, problem.I)
    if tokens is not None:
        problem.tokens = <const int64_t *>view(views, "tokens", tokens, 2, READ, INTEGER_FORMATS).buf
    problem.m = rows_of_width(views, "m", m, access, problem.H)
    problem.reset_after = m is not None
    problem.a = rows_of_width(views, "a", a, access, problem.N)
    if problem.a == NULL:
        problem.a = problem.h + problem.time.B * problem.P
    return 0


cdef int bind_place(Problem *problem, Views *views, place, bint turned) except -1:
    if turned and (problem.time.first != NULL or place is not None):
        raise ValueError("turned: expected False of a ragged batch, of which place says it")
    problem.time.turned = turned
    if place is not None:
        problem.time.place = <const int64_t *>view(views, "place", place, 1, READ, INTEGER_FORMATS).buf
    return 0


cdef int bind_cotangents(Backward *run, Views *views, d_out, dh, dc) except -1:
    run.d_out = rows_or_null(views, "d_out", d_out, READ, run.problem.P, &run.d_out_gap)
    run.dh = sized(views, "dh", dh, WRITE, ANY, run.problem.P)
    run.dc = sized(views, "dc", dc, WRITE, ANY, run.problem.H)
    run.sharing.threads = thread_limit()
    return 0
