# The time loop, backward: the gradient of the state, taken back from step to step.
#
#   da, da_h      the gradients of the two halves of a, x W_ih^T + b_ih and h W_hh^T + b_hh: one array, unless a reset follows the product
#   dh (B, P)     the gradient of the state, carried back; for an LSTM also dc (B, H). On the way through a projection (`projected.pxi`)
#                 it is the block's, which dW_hr is a sum over
#
# Time is taken in blocks, the last first: da exists for one of them, and its sums find in the cache what the recurrence has written.

cdef struct TimeBlock:             # steps t0..t1 of rows b0..b1, with their da
    Py_ssize_t t0, t1, b0, b1
    Py_ssize_t loss                # a step with a loss, if there is any before the block; T: not looked for
    real *da                       # (rows of these steps, N)
    real *da_h
    real *dh                       # of a projected LSTM: (rows, P)
    real *shown                    # and (rows, H): the gradient of what is shown, which the cell replaces by what is shown
    Py_ssize_t *starts             # where each step begins in da, in ragged time

cdef struct Backward:
    Problem problem
    Panels w_hh                    # N rows, P columns
    Panels w_hr                    # P rows, H columns
    const real *zeros              # as many as there are in a step's states, or in any other row
    const real *d_out              # as out, or NULL
    Py_ssize_t d_out_gap           # between its rows
    real *dh
    real *dc
    real *all_dh                   # as h: where dL/dh_t is to be kept, or NULL
    real *all_dc
    const real *carry              # (R,), a factor for each row of each step, on what the step hands to the state before it; or NULL: 1
    StepClip clip
    Sharing sharing
    Patches patches                # of a step
    TimeBlock block                # the one at hand, if all rows go together
    Progress *above                # of the pass whose dx is d_out, and not all there yet; or NULL
    Progress *own                  # for another pass that goes after this one, or NULL
    Watch watch

cdef enum:
    BACKWARD_ROWS = 512            # (step, row) pairs in a block, at least


# --- Memory and weights -----------------------------------------------------------------------------------------------

cdef void lay_out_weights(Backward *run, Space *space) noexcept nogil:
    cdef const Problem *problem = &run.problem
    run.w_hh = take_panels(space, problem.P, problem.N)
    run.zeros = take(space, zeros_needed(problem))
    if problem.w_hr != NULL:
        run.w_hr = take_panels(space, problem.H, problem.P)


cdef void prepare_weights(Backward *run) noexcept nogil:
    cdef const Problem *problem = &run.problem
    pack_backward(run.w_hh, problem.w_hh, problem.N, problem.P, run.sharing.threads, &run.watch)
    memset(<void *>run.zeros, 0, zeros_needed(problem) * sizeof(real))
    if problem.w_hr != NULL:
        pack_backward(run.w_hr, problem.w_hr, problem.P, problem.H, run.sharing.threads, &run.watch)


cdef inline Py_ssize_t zeros_needed(const Problem *problem) noexcept nogil:
    return max(max(problem.time.B * problem.P, problem.I), problem.H)


# --- Blocks of time ---------------------------------------------------------------------------------------------------

cdef inline Py_ssize_t rows_held(const Time *time, Py_ssize_t B) noexcept nogil:
    """(step, row) pairs in a block of B rows, at most."""
    return B * min(time.T, ceil_div(BACKWARD_ROWS, B))


cdef inline void go_to_end(const Time *time, TimeBlock *block, Py_ssize_t b0, Py_ssize_t b1) noexcept nogil:
    """Behind the last step of these rows, where the block has no steps yet."""
    block.t0 = block.t1 = steps_of(time, b0)
    block.loss = time.T
    block.b0, block.b1 = b0, b1


cdef inline bint step_back(const Time *time, TimeBlock *block, Py_ssize_t held, Py_ssize_t start) noexcept nogil:
    """On to the block before, of ``held`` (step, row) pairs at most; False if there is none, or if it begins before step ``start``."""
    cdef Py_ssize_t t1 = block.t0, t0 = t1 - 1, t, pairs
    if t1 == 0:
        return False
    if time.first == NULL:
        t0 = max(0, t1 - held // (block.b1 - block.b0))
    else:
        pairs = rows_at(time, t0, block.b0, block.b1)
        while t0 > 0 and pairs + rows_at(time, t0 - 1, block.b0, block.b1) <= held:
            t0 -= 1
            pairs += rows_at(time, t0, block.b0, block.b1)
    if t0 < start:
        return False
    if time.first != NULL:
        block.starts[0] = 0
        for t in range(t0, t1):
            block.starts[t - t0 + 1] = block.starts[t - t0] + rows_at(time, t, block.b0, block.b1)
    block.t0, block.t1 = t0, t1
    return True


cdef inline Py_ssize_t rows_of_block(const Time *time, const TimeBlock *block) noexcept nogil:
    """(step, row) pairs."""
    return da_row(time, block, block.t1, block.b0)


cdef inline Py_ssize_t da_row(const Time *time, const TimeBlock *block, Py_ssize_t t, Py_ssize_t b) noexcept nogil:
    """Where in the block's da row b of step t stands."""
    if time.first == NULL:
        return (t - block.t0) * (block.b1 - block.b0) + b - block.b0
    return block.starts[t - block.t0] + b - block.b0


# --- Through a block --------------------------------------------------------------------------------------------------

cdef void back_through_block(Backward *run) noexcept nogil:
    """Fill the da of the block at hand, for all rows."""
    cdef TimeBlock *block = &run.block
    run.patches = patches_of_steps(&run.problem, 1 if needs_whole_rows(&run.clip) else run.sharing.threads, block.t0, block.t1)
    if run.patches.by_units > 1:
        parallel_steps(back_patch, run, (block.t1 - block.t0) * stages(&run.problem) + 1, run.patches.by_rows, run.patches.by_units,
                       &run.watch)
    else:
        share_rows(&run.sharing, &run.problem, block.t0, recurrent_work(&run.problem, block.t0, block.t1))
        parallel_by_rows(&run.problem, back_rows, run, run.sharing.tasks, run.sharing.workers, &run.watch)


cdef void back_rows(void *context, int task, int worker) noexcept nogil:
    cdef Backward *run = <Backward *>context
    cdef Patch patch = rows_of_task(&run.problem, run.block.t0, task, run.sharing.tasks)
    recur_back(run, &run.block, &patch, worker)


cdef void recur_back(Backward *run, const TimeBlock *block, const Patch *patch, int worker) noexcept nogil:
    """The patch's rows, through the block: fill their da."""
    cdef Py_ssize_t t
    cdef int stage
    for t in range(block.t1 - 1, block.t0 - 1, -1):
        if run.above != NULL:
            wait_for(run.above, min(run.problem.time.T, run.problem.time.T - t + 1), &run.watch)
        for stage in range(stages(&run.problem)):
            back_stage(run, block, t, stage, patch)
        if run.own != NULL and ((block.t1 - t) % STEPS_BEHIND == 0 or t == block.t0):
            hand_down(<Gradients *>run, block, t)
        if interrupted(&run.watch, worker, patch_work(&run.problem, patch)):
            return
    leave_block(run, block, patch)


cdef void back_patch(void *context, Py_ssize_t i, int part, int worker) noexcept nogil:
    """A patch of the block's i-th stage back."""
    cdef Backward *run = <Backward *>context
    cdef const TimeBlock *block = &run.block
    cdef Patch patch = one_of_patches(&run.problem, &run.patches, part, block.t0)
    cdef int each = stages(&run.problem)
    cdef Py_ssize_t t = block.t1 - 1 - i // each
    if t < block.t0:
        leave_block(run, block, &patch)
    else:
        back_stage(run, block, t, i % each, &patch)
    interrupted(&run.watch, worker, patch_work(&run.problem, &patch))


cdef inlined back_stage(Backward *run, const TimeBlock *block, Py_ssize_t t, int stage, const Patch *patch) noexcept nogil:
    """Through step t; where there is a projection, first up to it, then through it."""
    if stage > 0:
        step_backward_projected(run, block, t, patch)
        return
    back_to_state(run, block, t, patch)
    clip_state(run, t, patch)
    if run.problem.w_hr == NULL:
        step_backward(run, block, t, patch)
    else:
        put_state_gradient_aside(run, block, t, patch)


cdef inline void back_to_state(Backward *run, const TimeBlock *block, Py_ssize_t t, const Patch *patch) noexcept nogil:
    """dh becomes the gradient of the state after step t."""
    if t < block.t1 - 1:
        through_product(run, block, t, patch)
        scale_carried(run, t, patch)
    add_last_outputs(run, t, patch)
    if run.all_dh != NULL:
        keep_state_gradient(run, t + 1, patch, rows_at(&run.problem.time, t, patch.b0, patch.b1))


cdef inline void leave_block(Backward *run, const TimeBlock *block, const Patch *patch) noexcept nogil:
    """Take the gradient of the block's first step to the state before it."""
    through_product(run, block, block.t0 - 1, patch)
    scale_carried(run, block.t0 - 1, patch)
    if run.all_dh != NULL and block.t0 == 0:
        keep_state_gradient(run, 0, patch, patch.b1 - patch.b0)


cdef void through_product(const Backward *run, const TimeBlock *block, Py_ssize_t t, const Patch *patch) noexcept nogil:
    """da_{t+1} -> dh_t"""
    cdef Py_ssize_t N = run.problem.N, P = run.problem.P, held = rows_at(&run.problem.time, t + 1, patch.b0, patch.b1)
    cdef Rows dh = rows(run.dh + patch.b0 * P + patch.p0, 0, P)
    cdef Rows da = rows(block.da_h + da_row(&run.problem.time, block, t + 1, patch.b0) * N, 0, N)
    fetch_others(&run.problem, patch, da.at, held * N)
    # reverse of: a_{t+1} += h_t W_hh^T
    product_of_step(t, 1, held, patch.p1 - patch.p0, N, da, panels_from(run.w_hh, patch.p0 // LANES), dh, dh)


cdef void scale_carried(const Backward *run, Py_ssize_t t, const Patch *patch) noexcept nogil:
    """(dh_t, dc_t) *= carry_{t+1}, of the rows of step t + 1; then dh_t += d_out_t, which the cell has left out. 0 lets no NaN by."""
    cdef const Time *time = &run.problem.time
    cdef Py_ssize_t b, P = run.problem.P, H = run.problem.H, columns = patch.p1 - patch.p0
    cdef real factor
    if run.carry == NULL:
        return
    for b in range(patch.b0, patch.b0 + rows_at(time, t + 1, patch.b0, patch.b1)):
        factor = run.carry[first_row(time, t + 1) + b]
        scale_row(factor, run.dh + b * P + patch.p0, columns)
        if run.dc != NULL:
            scale_row(factor, run.dc + b * H + patch.u0, patch.u1 - patch.u0)
        if t >= 0 and run.d_out != NULL:
            add(outputs_at(run, t, b) + patch.p0, columns, run.dh + b * P + patch.p0)


cdef inline void scale_row(real factor, real *v, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        v[i] = 0 if factor == 0 else factor * v[i]


cdef void add_last_outputs(Backward *run, Py_ssize_t t, const Patch *patch) noexcept nogil:
    """dh += d_out_t for the rows that end with step t. All others have had it from the step after it."""
    cdef const Time *time = &run.problem.time
    cdef Py_ssize_t P = run.problem.P, b = patch.b0
    if run.d_out == NULL:
        return
    if t + 1 < time.T:
        b = max(b, active(time, t + 1))
    while b < min(patch.b1, active(time, t)):
        add(outputs_at(run, t, b) + patch.p0, patch.p1 - patch.p0, run.dh + b * P + patch.p0)
        b += 1


cdef inline void clip_state(const Backward *run, Py_ssize_t t, const Patch *patch) noexcept nogil:
    """The gradient of the state after step t, as it goes into the step, of every row of the patch."""
    cdef const Problem *problem = &run.problem
    cdef Py_ssize_t b, columns = patch.p1 - patch.p0
    if run.clip.kind == UNCLIPPED:
        return
    for b in range(patch.b0, patch.b0 + rows_at(&problem.time, t, patch.b0, patch.b1)):
        if run.dc != NULL:
            clip_row(&run.clip, run.dh + b * problem.P + patch.p0, columns, run.dc + b * problem.H + patch.u0, patch.u1 - patch.u0)
        else:
            clip_row(&run.clip, run.dh + b * problem.P + patch.p0, columns, NULL, 0)


cdef inline const real *outputs_at(const Backward *run, Py_ssize_t t, Py_ssize_t b) noexcept nogil:
    """d_out of row b of step t."""
    return run.d_out + place_of(&run.problem.time, first_row(&run.problem.time, t) + b) * (run.problem.P + run.d_out_gap)


cdef inline bint outputs_touch(const Backward *run) noexcept nogil:
    """Whether d_out's rows of a step lie end to end."""
    return in_place(&run.problem.time) and run.d_out_gap == 0


cdef inline const real *outputs_before(const Backward *run, Py_ssize_t t, Py_ssize_t b) noexcept nogil:
    """d_out_{t-1} of row b, or zeros where there is none, or where it is added later, since what is carried is scaled first."""
    if t == 0 or run.d_out == NULL or run.carry != NULL:
        return run.zeros + b * run.problem.P
    return outputs_at(run, t - 1, b)


cdef void step_backward(const Backward *run, const TimeBlock *block, Py_ssize_t t, const Patch *patch) noexcept nogil:
    """The cell's step t, for every row of the patch."""
    cdef const Problem *problem = &run.problem
    cdef Py_ssize_t N = problem.N, P = problem.P, held = rows_at(&problem.time, t, patch.b0, patch.b1), b, at
    cdef Span span = any_span(problem, patch, &held, not outputs_touch(run))
    for b in range(patch.b0, patch.b0 + held):
        put_span(&span, problem, t, b, patch.u0)
        at = da_row(&problem.time, block, t, b) * N + patch.u0
        span.d_prev = outputs_before(run, t, b) + patch.u0
        span.dh = run.dh + b * P + patch.u0
        span.dc = run.dc + b * problem.H + patch.u0 if run.dc != NULL else NULL
        span.da = block.da + at
        span.da_h = block.da_h + at
        problem.backward(&span)


cdef void keep_state_gradient(const Backward *run, Py_ssize_t t, const Patch *patch, Py_ssize_t held) noexcept nogil:
    """dL/dh_t, and dL/dc_t, of the first rows of the patch."""
    cdef Py_ssize_t b, row = slot(&run.problem.time, t), P = run.problem.P, H = run.problem.H
    for b in range(patch.b0, patch.b0 + held):
        memcpy(run.all_dh + (row + b) * P + patch.p0, run.dh + b * P + patch.p0, (patch.p1 - patch.p0) * sizeof(real))
        if run.dc != NULL:
            memcpy(run.all_dc + (row + b) * H + patch.u0, run.dc + b * H + patch.u0, (patch.u1 - patch.u0) * sizeof(real))
