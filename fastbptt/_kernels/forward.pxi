# The time loop, forward. Time is taken in blocks, so that the recurrence finds in the cache what the projection has written.

cdef enum:
    PROJECTED_FIRST = 1 << 20      # bytes of `a`, at most, that are projected before all steps of a ragged batch, step by step otherwise

cdef struct Forward:
    Problem problem
    const ForwardWeights *weights
    ForwardWeights *unpacked       # the same, if the pass begins with packing them; or NULL
    const real *b_ih               # for that
    const real *b_hh
    real *shown                    # (B, H): where the cell puts a step's h, if not behind slot 0; or NULL
    real *out                      # where h goes besides, while it is in the cache; or NULL
    Py_ssize_t out_gap             # between its rows
    Projection projection
    bint projected                 # whether it is done, for all steps
    Sharing sharing
    Patches patches                # of a step
    Watch watch
    Progress *below                # of the pass whose outputs are x, and not all there yet; or NULL
    Progress *own                  # for another pass that goes after this one, or NULL
    bint back                      # through the weights, of a step alone
    # of a pass that is run once more (`recompute.pxi`)
    Py_ssize_t t0, t1              # the steps at hand
    bint again, by_units


cdef void prepare_forward(Forward *run, const ForwardWeights *weights) noexcept nogil:
    """Once the problem is bound, and it is known how many threads there are."""
    cdef const Problem *problem = &run.problem
    run.weights = weights
    run.projection.rows = first_row(&problem.time, problem.time.T)
    run.projection.x, run.projection.tokens, run.projection.a = problem.x, problem.tokens, problem.a
    run.projection.time = &problem.time
    run.projection.weights = weights.input
    run.projection.sharing = run.sharing
    run.projection.watch = &run.watch


cdef void lay_out_shown(void *call, Space *space) noexcept nogil:
    cdef Forward *run = <Forward *>call
    run.shown = take(space, run.problem.time.B * run.problem.H)


cdef void run_forward(Forward *run) noexcept nogil:
    """Fill a, h behind slot 0 and what else the cell has, from the initial state."""
    cdef const Problem *problem = &run.problem
    cdef Py_ssize_t T = problem.time.T
    cdef Patch patch
    run.sharing.tasks = 1
    if run.below != NULL or run.own != NULL or (run.sharing.threads == 1 and has_short_steps(problem)):
        patch = whole_rows(problem, 0, problem.time.B)
        recur_rows(run, &patch, 0)     # with nothing to share: of an LSTM's step of 8 units, asking how took a tenth
        return
    run.patches = patches_of_steps(problem, run.sharing.threads, 0, T)
    if run.patches.by_units == 1:
        share_rows(&run.sharing, problem, 0, projection_work(&run.projection) + recurrent_work(problem, 0, T))
    if run.sharing.tasks > 1:
        if problem.time.first != NULL and first_row(&problem.time, T) * problem.N * <Py_ssize_t>sizeof(real) <= PROJECTED_FIRST:
            project_all(&run.projection)
            run.projected = True
        parallel_by_rows(problem, project_and_recur, run, run.sharing.tasks, run.sharing.workers, &run.watch)
    else:
        project_all(&run.projection)   # rows are few, but threads can still share the projection
        parallel_steps(recur_patch, run, T * stages(problem), run.patches.by_rows, run.patches.by_units, &run.watch)


cdef void project_and_recur(void *context, int task, int worker) noexcept nogil:
    """A task's rows, for all time."""
    cdef Forward *run = <Forward *>context
    cdef Patch patch = rows_of_task(&run.problem, 0, task, run.sharing.tasks)
    recur_rows(run, &patch, worker)


cdef void recur_rows(Forward *run, const Patch *patch, int worker) noexcept nogil:
    """The patch's rows, for all time."""
    cdef const Problem *problem = &run.problem
    cdef Py_ssize_t t = 0, t_end, held = patch.b1 - patch.b0, block = 1
    cdef int stage
    if problem.time.T > 1:
        block = max(1, rows_in_block(&run.projection) // held)
    if run.below != NULL or run.own != NULL:
        block = min(block, <Py_ssize_t>STEPS_BEHIND)
    while t < problem.time.T:
        t_end = min(problem.time.T, t + block)
        if run.below != NULL:
            wait_for(run.below, t_end, &run.watch)
        if not run.projected:
            project_steps(run, t, t_end, patch)
        while t < t_end:
            for stage in range(stages(problem)):
                forward_stage(run, t, stage, patch)
            t += 1
            if interrupted(&run.watch, worker, patch_work(problem, patch) + <double>held * problem.N * problem.I):
                return
        if run.own != NULL:
            tell(run.own, t)


cdef void project_steps(const Forward *run, Py_ssize_t t, Py_ssize_t t_end, const Patch *patch) noexcept nogil:
    cdef const Time *time = &run.problem.time
    if patch.b0 == 0 and patch.b1 == time.B:               # rows of neighbouring steps lie end to end
        project(&run.projection, first_row(time, t), 1, 0, first_row(time, t_end) - first_row(time, t))
        return
    if time.first == NULL:
        project(&run.projection, first_row(time, t) + patch.b0, t_end - t, time.B, patch.b1 - patch.b0)
        return
    while t < t_end:
        project(&run.projection, first_row(time, t) + patch.b0, 1, 0, rows_at(time, t, patch.b0, patch.b1))
        t += 1


cdef void recur_patch(void *context, Py_ssize_t i, int part, int worker) noexcept nogil:
    """A patch of the i-th stage."""
    cdef Forward *run = <Forward *>context
    cdef Patch patch = one_of_patches(&run.problem, &run.patches, part, 0)
    cdef int each = stages(&run.problem)
    forward_stage(run, i // each, i % each, &patch)
    interrupted(&run.watch, worker, patch_work(&run.problem, &patch))


cdef inlined forward_stage(const Forward *run, Py_ssize_t t, int stage, const Patch *patch) noexcept nogil:
    if stage == 0:
        recur(run, t, patch)
    else:
        project_shown(&run.problem, &run.weights.w_hr, run.shown, t, patch, run.problem.h)
    if run.out != NULL and stage == stages(&run.problem) - 1:
        put_outputs(run, t, patch)


cdef void put_outputs(const Forward *run, Py_ssize_t t, const Patch *patch) noexcept nogil:
    cdef const Time *time = &run.problem.time
    cdef Py_ssize_t P = run.problem.P, columns = patch.p1 - patch.p0, held = rows_at(time, t, patch.b0, patch.b1), b
    cdef Py_ssize_t row = first_row(time, t) + patch.b0
    cdef const real *h = run.problem.h + (slot(time, t + 1) + patch.b0) * P + patch.p0
    if in_place(time) and columns == P and run.out_gap == 0:   # rows lie end to end in both
        memcpy(run.out + row * P, h, held * P * sizeof(real))
        return
    for b in range(held):
        memcpy(run.out + place_of(time, row + b) * (P + run.out_gap) + patch.p0, h + b * P, columns * sizeof(real))


cdef inlined recur(const Forward *run, Py_ssize_t t, const Patch *patch) noexcept nogil:
    """a_t += h_{t-1} W_hh^T, or m_t where the reset comes after it; then the cell."""
    cdef const Problem *problem = &run.problem
    cdef Py_ssize_t held = rows_at(&problem.time, t, patch.b0, patch.b1)
    cdef Py_ssize_t row = first_row(&problem.time, t) + patch.b0
    cdef Rows h_prev = rows(problem.h + (slot(&problem.time, t) + patch.b0) * problem.P, 0, problem.P)
    cdef Rows m = rows(problem.m + row * problem.H if problem.m != NULL else NULL, 0, problem.H)
    fetch_others(problem, patch, h_prev.at, held * problem.P)
    add_recurrent(run.weights, t, 1, held, patch.u0, patch.u1, h_prev, rows(problem.a + row * problem.N, 0, problem.N),
                  rows(run.weights.m_bias, 0, 0), m)
    step_forward(run, t, patch, held)


cdef inlined add_recurrent(const ForwardWeights *weights, Py_ssize_t t, Py_ssize_t outer, Py_ssize_t inner, Py_ssize_t u0, Py_ssize_t u1,
                           Rows h, Rows a, Rows m_init, Rows m) noexcept nogil:
    """a += h W_hh^T, for units u0..u1 of each gate; where the reset comes after it, m = m_init + h W_hh^T. Gates whose panels touch are
    one product. Step t begins with the gate that step t - 1 has ended with, as `product_of_step` does with panels.
    """
    cdef Py_ssize_t H = weights.H, units = u1 - u0, gates = weights.input.N // H, summed = gates - weights.reset_after
    cdef Py_ssize_t together = summed if gates_touch(H) or units == ceil_div(H, LANES) * LANES else 1
    cdef Py_ssize_t products = summed // together + weights.reset_after, n, gate
    for n in range(products):
        gate = together * (products - 1 - n if t & 1 else n)
        add_to_gate(weights, t, outer, inner, gate, u0, together * units if gate < summed else units, h, a, m_init, m)


cdef inlined add_to_gate(const ForwardWeights *weights, Py_ssize_t t, Py_ssize_t outer, Py_ssize_t inner, Py_ssize_t gate, Py_ssize_t u0,
                         Py_ssize_t units, Rows h, Rows a, Rows m_init, Rows m) noexcept nogil:
    """The same for so many units, from unit u0 of one gate on."""
    cdef Py_ssize_t H = weights.H, P = weights.P, gates = weights.input.N // H
    cdef Panels w = panels_from(weights.w_hh, panel_of_gate(weights, gate) + u0 // LANES)
    cdef Rows of_gate = rows(a.at + gate * H + u0, a.outer, a.inner)
    if gate < gates - weights.reset_after:
        product_of_step(t, outer, inner, units, P, h, w, of_gate, of_gate)
    else:
        product_of_step(t, outer, inner, units, P, h, w, rows(m_init.at + u0, m_init.outer, m_init.inner),
                        rows(m.at + u0, m.outer, m.inner))


cdef void step_forward(const Forward *run, Py_ssize_t t, const Patch *patch, Py_ssize_t held) noexcept nogil:
    """The cell's step t, for the first rows of the patch, ``held`` of them."""
    cdef const Problem *problem = &run.problem
    cdef Span span = any_span(problem, patch, &held)
    cdef Py_ssize_t width = problem.P, b
    cdef real *h = problem.h + slot(&problem.time, t + 1) * width
    if run.shown != NULL:
        h, width = run.shown, problem.H
    for b in range(patch.b0, patch.b0 + held):
        put_span(&span, problem, t, b, patch.u0)
        span.h = h + b * width + patch.u0
        problem.forward(&span)


# --- A step alone -----------------------------------------------------------------------------------------------------
#
# With few rows it is reading the weights once. A step that begins with what the one before has read last finds that in the cache; so units
# are taken one group after the other, with all that W_ih and W_hh have for them, and every other step goes from the last to the first.

cdef inline bint is_mostly_reading(const Problem *problem) noexcept nogil:
    """Whether a step goes faster so: of few rows, and of weights that are more than the cache holds; a gate's first unit begins a panel."""
    return (problem.x != NULL and problem.w_hr == NULL and problem.time.B < FEW_ROWS and problem.H % LANES == 0
            and problem.N * (problem.I + problem.P) * <Py_ssize_t>sizeof(real) > SECOND_LEVEL_CACHE)


cdef void run_step(Forward *run, bint back) noexcept nogil:
    """The one step of a problem of which `is_mostly_reading` is true, through the weights from the first to the last, or back."""
    cdef int parts
    run.patches = patches_of_steps(&run.problem, run.sharing.threads, 0, 1)
    run.back = back
    parts = run.patches.by_rows * run.patches.by_units
    parallel(step_patch, run, parts, parts, &run.watch)


cdef void step_patch(void *context, int task, int worker) noexcept nogil:
    cdef Forward *run = <Forward *>context
    cdef const Problem *problem = &run.problem
    cdef const ForwardWeights *weights = run.weights
    cdef Patch patch = one_of_patches(problem, &run.patches, task, 0)
    cdef Py_ssize_t N = problem.N, H = problem.H, held = patch.b1 - patch.b0, units = tile_vectors(<int>held) * LANES
    cdef Py_ssize_t groups = ceil_div(patch.u1 - patch.u0, units) * problem.gates, i, gate, u0, n
    cdef Rows x = rows(problem.x + patch.b0 * problem.I, 0, problem.I), h = rows(problem.h + patch.b0 * problem.P, 0, problem.P)
    cdef Rows a = rows(problem.a + patch.b0 * N, 0, N), m = rows(problem.m + patch.b0 * H if problem.m != NULL else NULL, 0, H)
    for i in range(groups):
        n = groups - 1 - i if run.back else i
        gate, u0 = n % problem.gates, patch.u0 + n // problem.gates * units
        n = min(units, patch.u1 - u0)
        product_of_step(run.back, 1, held, n, problem.I, x, panels_from(weights.input.w, (gate * H + u0) // LANES),
                        rows(weights.input.bias + gate * H + u0, 0, 0), rows(a.at + gate * H + u0, 0, N))
        add_to_gate(weights, run.back, 1, held, gate, u0, n, h, a, rows(weights.m_bias, 0, 0), m)
        if interrupted(&run.watch, worker, <double>held * n * (problem.I + problem.P)):
            return
    step_forward(run, 0, &patch, held)
