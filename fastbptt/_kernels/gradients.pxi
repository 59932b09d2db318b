# All gradients of a recurrent layer: back through the blocks of time, and of each block's da the sums over it, dW and db, and dx.
#
# Where weights are few, groups of rows go back through time by themselves, each with sums of its own, which are added up at the end.
#
# A pass can be taken in several calls, the last steps first (`Reached` in `passes.pxi`): each goes through the blocks that lie behind its
# first step, and the sums go on from call to call. Blocks are the same however the pass is cut, and so are the bits.

cdef enum:
    GROUPED_WEIGHTS = 1 << 16      # weights, at most, where groups of rows have sums of their own,
    GROUP_ROWS = 4                 # rows, at least, in a group,
    GROUP_STEPS = 128              # (step, row) pairs, at least, of a group,
    MAX_GROUPS = 16                # and groups, at most

cdef struct Sums:                  # over steps and rows
    real *dw_ih                    # (N, I); of tokens: (I, N)
    real *dw_hh                    # (N, P)
    real *db_ih                    # (N,), or NULL, of a linear layer
    real *db_hh                    # (N,), or NULL: the same as db_ih
    real *dw_hr                    # (P, H), of a projected LSTM

cdef struct Gradients:
    Backward back
    Panels w_ih                    # N rows, I columns
    real *dx                       # (R, I) or NULL
    bint adds                      # to what is in dx
    Py_ssize_t handed              # the step from which on another pass has it
    Sums sums                      # the results; but a sum over tokens is collected elsewhere, a token a row,
    real *dw_ih                    # and this is where it belongs
    int groups                     # of rows, each with sums of its own; 1: none
    real *group_sums
    bint begins, in_one_call       # whether this call begins the pass; and whether it is the only one
    Py_ssize_t start, cleared      # the first step of this call; and where dx of groups that were through before it has been cleared from
    bint quiet                     # whether what stands before them is known to be finite, and to have no loss
    Py_ssize_t[MAX_GROUPS] reached  # of each group, the first step that is done; 0: the group is through
    Py_ssize_t held_rows           # (step, row) pairs in a block, at most
    TimeBlock[MAX_GROUPS] blocks   # room for one; if rows are grouped, for one of each worker
    real *scratch                  # GRADIENT_SCRATCH for each worker


cdef void go_back(void *call) noexcept nogil:
    """The whole pass, once there is room for it."""
    cdef Gradients *run = <Gradients *>call
    cdef const Problem *problem = &run.back.problem
    run.handed = problem.time.T
    prepare_backward(run)
    run_backward(run)
    if run.back.own != NULL:
        tell(run.back.own, problem.time.T)
    if problem.tokens != NULL and is_over(run):
        transpose(run.sums.dw_ih, problem.I, problem.N, run.dw_ih)


cdef void run_backward(Gradients *run) noexcept nogil:
    """From d_out and dh = d_state; block by block, the last first."""
    cdef Watch *watch = &run.back.watch
    cdef Sharing *sharing = &run.back.sharing
    if run.groups > 1:
        sharing.workers = tasks_for(sharing.threads, 2 * recurrent_work(&run.back.problem, 0, run.back.problem.time.T), run.groups)
        parallel_by_rows(&run.back.problem, back_through_group, run, run.groups, sharing.workers, watch)
        if not is_over(run):
            return
        share(sharing, <double>run.groups * sums_size(&run.back.problem), run.back.problem.N, run.back.problem.N)
        parallel(add_up_groups, run, sharing.tasks, sharing.workers, watch)
    else:
        back_by_blocks(run)


cdef inline bint is_over(const Gradients *run) noexcept nogil:
    """Whether all groups are through."""
    cdef int group
    for group in range(run.groups):
        if run.reached[group] > 0:
            return False
    return True


cdef void back_by_blocks(Gradients *run) noexcept nogil:
    """Block by block, for all rows, so that threads can share each block as it suits it: rows or units, then the sums."""
    cdef Backward *back = &run.back
    cdef const Time *time = &back.problem.time
    back.block = next_blocks(run, 0, 0)
    while step_back(time, &back.block, run.held_rows, run.start) and not back.watch.stop:
        back_through_block(back)
        share_gradients(&run.back.sharing, rows_of_block(time, &back.block), back.problem.N, back.problem.I, back.problem.P,
                        back.problem.x != NULL, run.dx != NULL)
        if not back.watch.stop:
            parallel(collect_part, run, run.back.sharing.tasks, run.back.sharing.workers, &back.watch)
        end_early(run, &back.block)
    run.reached[0] = back.block.t0


cdef inline TimeBlock next_blocks(const Gradients *run, int group, int worker) noexcept nogil:
    """What lies behind the next block of a group of rows, in the room that this worker has for blocks."""
    cdef TimeBlock block = run.blocks[worker]
    go_to_end(&run.back.problem.time, &block, first_of_group(run, group), first_of_group(run, group + 1))
    if not run.begins:
        block.t0 = run.reached[group]
    return block


cdef inline Py_ssize_t first_of_group(const Gradients *run, int group) noexcept nogil:
    """Its first row."""
    return run.back.problem.time.B * group // run.groups


cdef void collect_part(void *context, int task, int worker) noexcept nogil:
    cdef Gradients *run = <Gradients *>context
    collect(run, &run.back.block, run.sums, task, run.back.sharing.tasks, worker)


cdef void hand_down(Gradients *run, const TimeBlock *block, Py_ssize_t t) noexcept nogil:
    """The dx from step t on, as far as it is not there yet, to the pass that waits for it; of all rows, in rectangular time."""
    cdef const Time *time = &run.back.problem.time
    cdef Py_ssize_t N = run.back.problem.N, I = run.back.problem.I, first = first_row(time, t), held = first_row(time, run.handed) - first
    add_input_gradient(block.da + da_row(time, block, t, 0) * N, N, 1, held, 0, held, run.w_ih, I, run.back.zeros,
                       rows(run.dx + first * I, 0, I), &run.back.watch, 0)
    run.handed = t
    tell(run.back.own, time.T - t)


cdef inline void end_early(Gradients *run, TimeBlock *block) noexcept nogil:
    """If nothing is left before the block."""
    if run.quiet and nothing_left(&run.back, block, run.start, run.dx != NULL):
        clear_dx(run, block)
        block.t0 = 0


cdef inline void clear_dx(const Gradients *run, const TimeBlock *block) noexcept nogil:
    """dx = 0, or 0 added, which makes 0 of -0, before the step at which the pass ended, as far as this call has dx."""
    cdef const Problem *problem = &run.back.problem
    cdef const Time *time = &problem.time
    cdef Py_ssize_t t, b, row, held, I = problem.I
    if run.dx != NULL:
        for t in range(run.start, block.t0):
            row, held = first_row(time, t) + block.b0, rows_at(time, t, block.b0, block.b1)
            if in_place(time) and not run.adds:
                memset(run.dx + row * I, 0, held * I * sizeof(real))
                continue
            for b in range(held):
                if run.adds:
                    add(run.back.zeros, I, run.dx + place_of(time, row + b) * I)
                else:
                    memset(run.dx + place_of(time, row + b) * I, 0, I * sizeof(real))


# --- Groups of rows ---------------------------------------------------------------------------------------------------

cdef inline int row_groups(const Problem *problem) noexcept nogil:
    """How many groups of rows go back through time by themselves; 1 if all go together.

    A question of sizes alone, never of threads: sums in another order have other bits.
    """
    cdef int groups = 1
    cdef const Time *time = &problem.time
    if problem.N * (problem.I + problem.P) <= GROUPED_WEIGHTS:
        while groups < MAX_GROUPS and time.B >= 2 * groups * GROUP_ROWS:
            groups *= 2
    return groups if first_row(time, time.T) >= GROUP_STEPS * groups else 1


cdef void back_through_group(void *context, int group, int worker) noexcept nogil:
    """A group of rows, through all time, with sums of its own."""
    cdef Gradients *run = <Gradients *>context
    cdef const Problem *problem = &run.back.problem
    cdef TimeBlock block = next_blocks(run, group, worker)
    cdef Patch patch = whole_rows(problem, block.b0, block.b1)
    cdef Sums sums = sums_of_group(run, group)
    if run.begins:
        memset(sums.dw_ih, 0, sums_size(problem) * sizeof(real))
    elif block.t0 == 0:            # another call has found nothing left
        block.t0 = run.cleared
        clear_dx(run, &block)
        block.t0 = 0
    while step_back(&problem.time, &block, run.held_rows, run.start) and not run.back.watch.stop:
        recur_back(&run.back, &block, &patch, worker)
        if not run.back.watch.stop:
            collect(run, &block, sums, 0, 1, worker)
        end_early(run, &block)
    run.reached[group] = block.t0


cdef void add_up_groups(void *context, int task, int worker) noexcept nogil:
    """A task's share of the sums of all groups, the first group first."""
    cdef Gradients *run = <Gradients *>context
    cdef const Problem *problem = &run.back.problem
    cdef int tasks = run.back.sharing.tasks, group
    cdef Sums sums
    for group in range(run.groups):
        sums = sums_of_group(run, group)
        add_share(sums.dw_ih, problem.N * problem.I, run.sums.dw_ih, task, tasks)
        add_share(sums.dw_hh, problem.N * problem.P, run.sums.dw_hh, task, tasks)
        add_share(sums.db_ih, problem.N, run.sums.db_ih, task, tasks)
        if run.sums.db_hh != NULL:
            add_share(sums.db_hh, problem.N, run.sums.db_hh, task, tasks)
        if run.sums.dw_hr != NULL:
            add_share(sums.dw_hr, projection_size(problem), run.sums.dw_hr, task, tasks)


cdef inline void add_share(const real *source, Py_ssize_t n, real *target, int task, int tasks) noexcept nogil:
    cdef Py_ssize_t first = n * task // tasks
    add(source + first, n * (task + 1) // tasks - first, target + first)


cdef inline void add(const real *source, Py_ssize_t n, real *target) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        target[i] += source[i]


cdef inline Py_ssize_t sums_size(const Problem *problem) noexcept nogil:
    return problem.N * (problem.I + problem.P + 1 + problem.reset_after) + projection_size(problem)


cdef inline Sums sums_of_group(const Gradients *run, int group) noexcept nogil:
    cdef const Problem *problem = &run.back.problem
    cdef Sums sums
    sums.dw_ih = run.group_sums + group * sums_size(problem)
    sums.dw_hh = sums.dw_ih + problem.N * problem.I
    sums.db_ih = sums.dw_hh + problem.N * problem.P
    sums.db_hh = sums.db_ih + problem.N if problem.reset_after else NULL
    sums.dw_hr = sums.db_ih + problem.N * (1 + problem.reset_after)
    return sums


# --- The sums over a block --------------------------------------------------------------------------------------------

cdef void collect(Gradients *run, const TimeBlock *block, Sums sums, int part, int parts, int worker) noexcept nogil:
    """A part of the block's dx (by rows), dW and db (by columns; where parts are many, dW by rows, too)."""
    cdef Watch *watch = &run.back.watch
    cdef const Problem *problem = &run.back.problem
    cdef const Time *time = &problem.time
    cdef Py_ssize_t N = problem.N, I = problem.I, P = problem.P, B = time.B, K = rows_of_block(time, block), held = block.b1 - block.b0
    cdef Py_ssize_t inner = held if held < B else K        # rows that lie end to end in x
    cdef Py_ssize_t n0 = N * part // parts, n1 = N * (part + 1) // parts, first = first_row(time, block.t0) + block.b0
    cdef Py_ssize_t x_panels = ceil_div(I, LANES) if problem.x != NULL else 0, h_panels = ceil_div(P, LANES)
    cdef int down = parts_down(parts, x_panels + h_panels), across = parts // down, i = part % across, j = part // across
    cdef Py_ssize_t p0 = (x_panels + h_panels) * i // across, p1 = (x_panels + h_panels) * (i + 1) // across
    cdef Py_ssize_t m0 = N * j // down, m1 = N * (j + 1) // down
    cdef real *scratch = run.scratch + worker * <Py_ssize_t>GRADIENT_SCRATCH
    cdef Sequence x, h = sequence(rows(problem.h + (slot(time, block.t0) + block.b0) * P, B * P, P), inner)
    cdef bint scattered = time.first != NULL and held < B  # the block's rows do not lie end to end in x, as those of da do
    if time.first != NULL:
        h = ragged_sequence(problem.h, P, time, block.t0, block.b0, block.b1, True)
    # reverse of: a = x W_ih^T + h W_hh^T + bias. The gradient da_t meets h_{t-1}, which stands in slot t of h.
    if run.dx != NULL and (scattered or not in_place(time)):
        collect_inputs(run, block, part, parts, worker)
    elif run.dx != NULL and run.back.own == NULL:
        add_input_gradient(block.da, N, K // inner, inner, inner * part // parts, inner * (part + 1) // parts, run.w_ih, I, run.back.zeros,
                           rows(run.dx + first * I, B * I, I), watch, worker, run.adds)
    if problem.x != NULL:
        x = sequence(rows(problem.x + first * I, B * I, I), inner)
        if scattered:
            x = ragged_sequence(problem.x, I, time, block.t0, block.b0, block.b1, False)
        add_weight_gradient(block.da, N, K, x, I, m0, m1, min(p0, x_panels), min(p1, x_panels), sums.dw_ih, scratch, watch, worker)
    elif scattered:
        collect_tokens(run, block, sums, n0, n1)
    else:
        add_token_gradient(block.da, N, K, problem.tokens + first, B, inner, n0, n1, sums.dw_ih)
    add_weight_gradient(block.da_h, N, K, h, P, m0, m1, max(0, p0 - x_panels), max(0, p1 - x_panels), sums.dw_hh, scratch, watch, worker)
    if sums.db_ih != NULL:
        add_column_sums(block.da, N, K, n0, n1, sums.db_ih)
    if sums.db_hh != NULL:
        add_column_sums(block.da_h, N, K, n0, n1, sums.db_hh)
    if problem.w_hr != NULL:
        add_projection_gradient(problem, block, K, part, parts, sums.dw_hr, scratch, watch, worker)


cdef void collect_inputs(Gradients *run, const TimeBlock *block, int part, int parts, int worker) noexcept nogil:
    """A part of a block's dx whose rows are apart: products for many at once, and each row from there to where it belongs. A row alone,
    which may be wider than the scratch memory, goes there directly.
    """
    cdef const Problem *problem = &run.back.problem
    cdef const Time *time = &problem.time
    cdef Py_ssize_t N = problem.N, I = problem.I, K = rows_of_block(time, block), k = K * part // parts, end = K * (part + 1) // parts
    cdef Py_ssize_t most = max(1, min(<Py_ssize_t>GRADIENT_K, <Py_ssize_t>GRADIENT_SCRATCH // I)), held, i, t = block.t0
    cdef real *scratch = run.scratch + worker * <Py_ssize_t>GRADIENT_SCRATCH
    cdef real *row
    while k < end and not run.back.watch.stop:
        held = min(most, end - k)
        row = run.dx + place_of(time, row_of_da(time, block, k, &t)) * I
        add_input_gradient(block.da + k * N, N, 1, held, 0, held, run.w_ih, I, run.back.zeros, rows(row if held == 1 else scratch, 0, I),
                           &run.back.watch, worker, run.adds and held == 1)
        for i in range(held * (held > 1)):
            row = run.dx + place_of(time, row_of_da(time, block, k + i, &t)) * I
            if run.adds:
                add(scratch + i * I, I, row)
            else:
                memcpy(row, scratch + i * I, I * sizeof(real))
        k += held


cdef inline Py_ssize_t row_of_da(const Time *time, const TimeBlock *block, Py_ssize_t k, Py_ssize_t *t) noexcept nogil:
    """Of all rows, which one has the k-th da of the block; in ragged time, its step is t or one behind it, and becomes t."""
    if time.first == NULL:
        return first_row(time, block.t0 + k // (block.b1 - block.b0)) + block.b0 + k % (block.b1 - block.b0)
    while block.starts[t[0] + 1 - block.t0] <= k:
        t[0] += 1
    return first_row(time, t[0]) + block.b0 + k - block.starts[t[0] - block.t0]


cdef void collect_tokens(const Gradients *run, const TimeBlock *block, Sums sums, Py_ssize_t n0, Py_ssize_t n1) noexcept nogil:
    """What tokens make of da, step by step: of a group of rows in ragged time."""
    cdef const Problem *problem = &run.back.problem
    cdef const Time *time = &problem.time
    cdef Py_ssize_t t
    for t in range(block.t0, block.t1):
        add_token_gradient(block.da + da_row(time, block, t, block.b0) * problem.N, problem.N, rows_at(time, t, block.b0, block.b1),
                           problem.tokens + first_row(time, t) + block.b0, 0, problem.time.B, n0, n1, sums.dw_ih)


# --- Memory and weights -----------------------------------------------------------------------------------------------

cdef inline void plan_backward(Gradients *run) noexcept nogil:
    """Groups of rows, and blocks."""
    cdef const Time *time = &run.back.problem.time
    run.groups = row_groups(&run.back.problem)
    run.held_rows = rows_held(time, ceil_div(time.B, run.groups))


cdef void lay_out_backward(void *call, Space *space) noexcept nogil:
    cdef Gradients *run = <Gradients *>call
    cdef const Problem *problem = &run.back.problem
    cdef Py_ssize_t N = problem.N, I = problem.I, P = problem.P, held = run.held_rows
    cdef TimeBlock *block
    cdef int i
    lay_out_weights(&run.back, space)
    if run.dx != NULL:
        run.w_ih = take_panels(space, I, N)
    if run.in_one_call:
        lay_out_sums(call, space)
    for i in range(min(run.back.sharing.threads, run.groups)):
        block = &run.blocks[i]
        block.da = take(space, held * N)
        block.da_h = take(space, held * N) if problem.reset_after else block.da
        if problem.w_hr != NULL:
            block.dh = take(space, held * P)
            block.shown = take(space, held * problem.H)
        if problem.time.first != NULL:
            block.starts = take_indices(space, held + 1)
    run.scratch = take(space, gradient_scratch(run.back.sharing.threads, run.groups if run.groups > 1 else gradient_parts(I, P)))


cdef void lay_out_sums(void *call, Space *space) noexcept nogil:
    """Those that are not collected in the results."""
    cdef Gradients *run = <Gradients *>call
    cdef const Problem *problem = &run.back.problem
    if problem.tokens != NULL:
        run.sums.dw_ih = take(space, problem.I * problem.N)
    run.group_sums = take(space, run.groups * sums_size(problem) if run.groups > 1 else 0)


cdef void prepare_backward(Gradients *run) noexcept nogil:
    """Pack the weights, and start sums from zeros."""
    cdef const Problem *problem = &run.back.problem
    prepare_weights(&run.back)
    if run.dx != NULL:
        pack_backward(run.w_ih, problem.w_ih, problem.N, problem.I, run.back.sharing.threads, &run.back.watch)
    if run.begins:
        clear_sums(run)


cdef void clear_sums(Gradients *run) noexcept nogil:
    """By the threads that will collect them: what a thread has written is in its cache."""
    cdef Sharing *sharing = &run.back.sharing
    share(sharing, <double>sums_size(&run.back.problem), run.back.problem.N, run.back.problem.N)
    parallel(clear_part, run, sharing.tasks, sharing.workers, &run.back.watch)


cdef void clear_part(void *context, int task, int worker) noexcept nogil:
    cdef Gradients *run = <Gradients *>context
    cdef const Problem *problem = &run.back.problem
    cdef int tasks = run.back.sharing.tasks
    clear_share(problem.N * problem.I, run.sums.dw_ih, task, tasks)
    clear_share(problem.N * problem.P, run.sums.dw_hh, task, tasks)
    clear_share(problem.N, run.sums.db_ih, task, tasks)
    clear_share(problem.N, run.sums.db_hh, task, tasks)
    clear_share(projection_size(problem), run.sums.dw_hr, task, tasks)


cdef inline void clear_share(Py_ssize_t n, real *target, int task, int tasks) noexcept nogil:
    """Of an array that may not be there."""
    cdef Py_ssize_t first = n * task // tasks
    if target != NULL:
        memset(target + first, 0, (n * (task + 1) // tasks - first) * sizeof(real))
