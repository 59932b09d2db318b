# Forward mode: a small change of inputs, weights and initial state, taken forward through time to the changes of all states.
#
#   a_dot_t = x_t dW_ih^T + b_dot + x_dot_t W_ih^T + h_{t-1} dW_hh^T + h_dot_{t-1} W_hh^T                         (dW: w_ih_dot, w_hh_dot)
#
# and of a gate whose reset comes after the product, m_dot_t likewise. All terms but the last are known before the time loop. They are
# summed up for a block of time, whose a_dot then is still in the cache, and the loop adds the last. Where rows are many, threads share
# them, each with blocks of its own; where they are few, threads share the steps of a block first, and the units of each step then.
#
# In a block, row b of step t is row (t - t0) * width + b - b0, whatever the layout of time.

cdef struct Jvp:
    Problem problem
    const real *x_dot              # as x, or NULL, as all that is 0
    const real *w_ih_dot
    const real *w_hh_dot
    const real *w_hr_dot
    real *h_dot                    # as h
    real *c_dot                    # (B, H), carried
    ForwardWeights weights         # W_ih, if x_dot needs it, and W_hh
    ForwardWeights changes         # w_ih_dot and w_hh_dot, if there are any, and the biases' tangents
    Sharing sharing
    bint by_rows
    Patches patches                # of a step, if not by rows
    Py_ssize_t width               # rows of a task, at most
    Py_ssize_t steps               # of a block, at most
    Py_ssize_t t0, t1              # the block at hand, if not by rows
    real *a_dot                    # a block's; if by rows, one for each worker
    real *m_dot
    real *shown                    # of a projected LSTM, (B, H): one step's, and its tangent
    real *shown_dot
    Watch watch

cdef enum:
    JVP_BLOCK = 1 << 17            # bytes of a_dot in a block by rows, and in a piece of one by units
    JVP_ROWS = 512                 # (step, row) pairs in a block by units, at least


cdef inline double known_work(const Jvp *run, Py_ssize_t count) noexcept nogil:
    """Multiply-adds of ``count`` rows' terms that are known before the time loop."""
    cdef Py_ssize_t columns = (run.problem.I if run.x_dot != NULL else 0) + (run.problem.P if run.w_hh_dot != NULL else 0)
    if run.w_ih_dot != NULL:
        columns += run.problem.I if run.problem.x != NULL else 1
    return <double>count * run.problem.N * columns


cdef void plan_jvp(Jvp *run) noexcept nogil:
    """Who does what, in blocks of how many steps, and which weights are needed: where a tangent is 0, none, which are of no inputs."""
    cdef const Problem *problem = &run.problem
    cdef Py_ssize_t T = problem.time.T, piece = JVP_BLOCK // (problem.N * <Py_ssize_t>sizeof(real))
    run.patches = patches_of_steps(problem, run.sharing.threads, 0, T)
    if run.patches.by_units == 1:
        share_rows(&run.sharing, problem, 0, known_work(run, first_row(&problem.time, T)) + recurrent_work(problem, 0, T))
        run.by_rows = run.sharing.tasks > 1 or run.sharing.threads == 1
    run.width = ceil_div(problem.time.B, run.sharing.tasks) if run.by_rows else problem.time.B
    run.steps = min(T, max(1, (piece if run.by_rows else <Py_ssize_t>JVP_ROWS) // run.width))
    set_sizes(&run.weights, problem, VECTORS)
    set_sizes(&run.changes, problem, kind_of_input(problem) if run.w_ih_dot != NULL else VECTORS)
    if run.x_dot == NULL:
        run.weights.input.I = 0
    if run.w_ih_dot == NULL:
        run.changes.input.I = 0
    if run.w_hh_dot == NULL:
        run.changes.P = 0
    if run.w_hr_dot == NULL:
        run.changes.w_hr.N = 0


cdef void run_jvp(Jvp *run) noexcept nogil:
    """Fill h_dot behind slot 0, and take c_dot through all steps."""
    cdef Py_ssize_t T = run.problem.time.T, width = run.width
    if run.by_rows:
        parallel_by_rows(&run.problem, jvp_rows, run, run.sharing.tasks, run.sharing.workers, &run.watch)
        return
    while run.t1 < T and not run.watch.stop:
        run.t0, run.t1 = run.t1, min(T, run.t1 + run.steps)
        share(&run.sharing, known_work(run, (run.t1 - run.t0) * width), run.t1 - run.t0, ceil_div(PROJECTED_ROWS, width))
        parallel(known_part, run, run.sharing.tasks, run.sharing.workers, &run.watch)
        if not run.watch.stop:
            parallel_steps(jvp_patch, run, (run.t1 - run.t0) * stages(&run.problem), run.patches.by_rows, run.patches.by_units,
                           &run.watch)


cdef void jvp_rows(void *context, int task, int worker) noexcept nogil:
    """A task's rows, for all time, block by block."""
    cdef Jvp *run = <Jvp *>context
    cdef const Problem *problem = &run.problem
    cdef Patch patch = rows_of_task(problem, 0, task, run.sharing.tasks)
    cdef Py_ssize_t t = 0, t0, t1, block = worker * run.steps * run.width
    cdef int stage
    while t < problem.time.T:
        t0, t1 = t, min(problem.time.T, t + run.steps)
        add_up_known(run, t0, t1, &patch, block)
        while t < t1:
            for stage in range(stages(problem)):
                jvp_stage(run, t, stage, &patch, block + (t - t0) * run.width)
            t += 1
            if interrupted(&run.watch, worker, patch_work(problem, &patch) + known_work(run, patch.b1 - patch.b0)):
                return


cdef void known_part(void *context, int task, int worker) noexcept nogil:
    """A task's steps of the block, for all rows, a piece at a time."""
    cdef Jvp *run = <Jvp *>context
    cdef Patch patch = whole_rows(&run.problem, 0, run.problem.time.B)
    cdef Py_ssize_t steps = run.t1 - run.t0, t = run.t0 + steps * task // run.sharing.tasks, t_end, width = run.width
    cdef Py_ssize_t end = run.t0 + steps * (task + 1) // run.sharing.tasks
    cdef Py_ssize_t piece = max(1, JVP_BLOCK // (run.problem.N * <Py_ssize_t>sizeof(real) * width))
    while t < end and not interrupted(&run.watch, worker, known_work(run, piece * width)):
        t_end = min(end, t + piece)
        add_up_known(run, t, t_end, &patch, (t - run.t0) * width)
        t = t_end


cdef void jvp_patch(void *context, Py_ssize_t i, int part, int worker) noexcept nogil:
    """A patch of the block's i-th stage."""
    cdef Jvp *run = <Jvp *>context
    cdef Patch patch = one_of_patches(&run.problem, &run.patches, part, 0)
    cdef int each = stages(&run.problem)
    jvp_stage(run, run.t0 + i // each, i % each, &patch, i // each * run.width + patch.b0)
    interrupted(&run.watch, worker, patch_work(&run.problem, &patch))


cdef inlined jvp_stage(const Jvp *run, Py_ssize_t t, int stage, const Patch *patch, Py_ssize_t at) noexcept nogil:
    """Of step t, whose first row, of the patch, is row ``at`` of a_dot."""
    if stage == 0:
        recur_jvp(run, t, patch, at)
    else:
        project_tangent(run, t, patch)


# --- What is known before the time loop -------------------------------------------------------------------------------

cdef void add_up_known(const Jvp *run, Py_ssize_t t0, Py_ssize_t t1, const Patch *patch, Py_ssize_t at) noexcept nogil:
    """The known terms of steps t0..t1, into row ``at`` and those behind it. Steps of a rectangle are one product."""
    cdef const Time *time = &run.problem.time
    cdef Py_ssize_t t
    if time.first == NULL:
        add_up_steps(run, t0, t1 - t0, patch.b0, patch.b1 - patch.b0, at)
        return
    for t in range(t0, t1):
        add_up_steps(run, t, 1, patch.b0, rows_at(time, t, patch.b0, patch.b1), at + (t - t0) * run.width)


cdef void add_up_steps(const Jvp *run, Py_ssize_t t, Py_ssize_t steps, Py_ssize_t b0, Py_ssize_t held, Py_ssize_t at) noexcept nogil:
    """For ``held`` rows of each step, from row b0 on."""
    cdef const Problem *problem = &run.problem
    cdef Py_ssize_t N = problem.N, I = problem.I, H = problem.H, P = problem.P, B = problem.time.B, width = run.width
    cdef Py_ssize_t first = first_row(&problem.time, t) + b0
    cdef const real *h = problem.h + (slot(&problem.time, t) + b0) * P
    cdef Rows a = rows(run.a_dot + at * N, width * N, N), m = rows(run.m_dot + at * H, width * H, H)
    cdef Rows init = rows(run.changes.input.bias, 0, 0), m_init = rows(run.changes.m_bias, 0, 0)
    # of: a = x W_ih^T + bias
    if run.changes.input.kind != VECTORS:
        project_tokens(&run.changes.input, problem.tokens + first, steps, B, held, a)
    elif run.w_ih_dot != NULL or run.x_dot == NULL:
        project_vectors(&run.changes.input, problem.x + first * run.changes.input.I, steps, B, held, init, a)
    if run.x_dot != NULL:
        project_vectors(&run.weights.input, run.x_dot + first * I, steps, B, held, a if run.w_ih_dot != NULL else init, a)
    # of: a += h W_hh^T, and m = h W_hh^T + b_hh
    if run.w_hh_dot == NULL and not problem.reset_after:
        return
    if held < B and steps > held:
        add_recurrent(&run.changes, 0, held, steps, 0, H, rows(h, P, B * P), rows(a.at, N, width * N), m_init, rows(m.at, H, width * H))
    else:
        add_recurrent(&run.changes, 0, steps, held, 0, H, rows(h, B * P, P), a, m_init, m)


# --- The time loop ----------------------------------------------------------------------------------------------------

cdef void recur_jvp(const Jvp *run, Py_ssize_t t, const Patch *patch, Py_ssize_t at) noexcept nogil:
    """a_dot_t += h_dot_{t-1} W_hh^T, and m_dot_t; then the cell. ``at`` is where the patch's first row stands in a_dot."""
    cdef const Problem *problem = &run.problem
    cdef Py_ssize_t H = problem.H, P = problem.P, held = rows_at(&problem.time, t, patch.b0, patch.b1), b
    cdef Py_ssize_t before = slot(&problem.time, t), after = slot(&problem.time, t + 1)
    cdef Rows m = rows(run.m_dot + at * H, 0, H)
    cdef real *a_dot = run.a_dot + at * problem.N
    cdef real *h = problem.h + after * P
    cdef real *h_dot = run.h_dot + after * P
    cdef Py_ssize_t width = P
    cdef Span span
    if problem.w_hr != NULL:
        h, h_dot, width = run.shown, run.shown_dot, H
    add_recurrent(&run.weights, t, 1, held, patch.u0, patch.u1, rows(run.h_dot + (before + patch.b0) * P, 0, P), rows(a_dot, 0, problem.N),
                  m, m)
    span = any_span(problem, patch, &held)
    for b in range(patch.b0, patch.b0 + held):
        put_span(&span, problem, t, b, patch.u0)
        span.h_dot_prev = run.h_dot + (before + b) * P + patch.u0
        span.h, span.h_dot = h + b * width + patch.u0, h_dot + b * width + patch.u0
        span.c_dot = run.c_dot + b * H + patch.u0 if run.c_dot != NULL else NULL
        span.a_dot = a_dot + (b - patch.b0) * problem.N + patch.u0
        span.m_dot = m.at + (b - patch.b0) * H + patch.u0
        problem.tangent(&span)


# --- Memory and weights -----------------------------------------------------------------------------------------------

cdef void lay_out_jvp(void *call, Space *space) noexcept nogil:
    cdef Jvp *run = <Jvp *>call
    cdef const Problem *problem = &run.problem
    cdef Py_ssize_t held = (run.sharing.workers if run.by_rows else 1) * run.steps * run.width
    lay_out_forward(&run.weights, space)
    lay_out_forward(&run.changes, space)
    run.a_dot = take(space, held * problem.N)
    run.m_dot = take(space, held * problem.reset_after * problem.H)
    if problem.w_hr != NULL:
        run.shown = take(space, problem.time.B * problem.H)
        run.shown_dot = take(space, problem.time.B * problem.H)
