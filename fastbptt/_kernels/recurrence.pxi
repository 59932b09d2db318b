# The time loop: once forward, once backward, for every cell.
#
#   T B I H   steps, rows of the batch, inputs, hidden units        G, N   gates, and G * H
#   x (T, B, I) or tokens (T, B);  h (T+1, B, H) and, for an LSTM, c: slot 0 is the initial state
#   a (T, B, N)   the pre-activations x W_ih^T + b + h W_hh^T, which the cell turns into activated gates; without gates, a is h[1:]
#   m (T, B, H)   of a gate that is kept apart (the GRU's n), the recurrent half, h W_hh^T + b_hh
#   da, da_h      the gradients of the two halves of a; the same array unless a gate is kept apart. They exist for one block of steps
#   dh, dc (B, H) the gradients of the state, carried back
#
# Between the products the loop calls the cell's element-wise step (`cells.pxi`), row by row:
#   forward   a_t -> h_t                 backward   dh_t -> da_t, and dh := d_out_{t-1} + what reaches h_{t-1} past the product
#
# Time is taken in blocks, so that what one pass writes the next finds in the cache, and so that da needs no T.
#
# Threads share the rows of the batch, each for the whole sequence. Where rows are few, they share the units instead, step by step: then
# each keeps its part of W_hh in its own cache.

cdef struct Patch:                 # the part of a step that a task does: rows b0..b1, units u0..u1 (a multiple of LANES, or H)
    Py_ssize_t b0, b1, u0, u1

cdef struct Row:                   # what a cell sees: one row of a patch, from its first unit on
    Py_ssize_t n, H                # units in the row; the distance from gate to gate
    int activation
    const real *leak
    real *a
    real *m
    const real *h_prev
    real *h
    const real *c_prev
    real *c
    # backward
    const real *d_prev             # d_out_{t-1}
    real *dh
    real *dc
    real *da
    real *da_h

cdef struct TimeBlock:             # of the backward pass: steps t0..t1 of rows b0..b1, with their da
    Py_ssize_t t0, t1, b0, b1
    Py_ssize_t low                 # the step down to which da is anything but 0
    real *da                       # (t1 - t0, b1 - b0, N)
    real *da_h

cdef struct Sums:                  # over steps and rows
    real *dw_ih                    # (N, I); of tokens: (I, N)
    real *dw_hh                    # (N, H)
    real *db_ih                    # (N,)
    real *db_hh                    # (N,), or NULL: the same as db_ih

ctypedef void (*Step)(const Row *row) noexcept nogil

cdef struct Run:
    Py_ssize_t T, B, I, H, N
    int gates, apart               # G, and how many of them, the last, are kept apart: 0 or 1
    Step step                      # the cell's forward or backward half
    int activation                 # of the vanilla RNN
    const real *leak               # (H,), of the leaky RNN, or NULL
    int threads                    # how many this call may use
    int workers                    # how many of them the phase at hand is worth
    int tasks                      # how many it is cut into
    Watch watch
    const real *x
    const int64_t *tokens
    real *h
    real *c
    real *a
    real *m
    # forward
    Py_ssize_t projected           # steps that are projected before they are recurred through
    Panels w_ih, w_hh              # transposed: I or H rows, N columns; w_hh gate by gate, so that a gate's first unit starts a panel
    const real *bias               # (N,): both biases added up, but for a gate that is kept apart
    const real *m_bias             # (H,): the recurrent bias of that gate
    const real *token_weight       # W_ih for tokens: gate n of token i is token_weight[i * token_row + n * token_gate]
    Py_ssize_t token_row, token_gate
    # backward; w_ih and w_hh have N rows then
    const real *plain_w_ih         # as they came, before packing
    const real *plain_w_hh
    Py_ssize_t first_loss          # before this step there is no loss, and nothing that is not finite
    const real *d_out              # (T, B, H) or NULL
    const real *zeros              # B*H or I elements, whichever are more
    real *dh
    real *dc
    real *dx                       # (T, B, I) or NULL
    Sums sums                      # the results
    int groups                     # of rows, each with sums of its own; 1: none
    real *group_sums
    Py_ssize_t held_rows           # (step, row) pairs in a block, at most
    real *da                       # a block's; if rows are grouped, one for each worker
    real *da_h
    real *scratch                  # GRADIENT_SCRATCH for each worker
    real *all_dh                   # (T+1, B, H): where dL/dh_t is to be kept, or NULL
    real *all_dc
    # ... of rows that are not grouped
    TimeBlock block                # the one at hand
    Py_ssize_t low_of[MAX_THREADS]  # block.low, of each task's share of it
    Py_ssize_t zero_at[MAX_PARTS]  # the last step at which a part's units of dh were all 0

cdef double LONG_STEP = 5e8        # multiply-adds of a step that are not to be done without a look at signals
cdef double STEP_WORK = 8192       # multiply-adds of a step worth sharing; benchmarks/bench_threads.py

cdef enum:
    SECOND_LEVEL_CACHE = 1 << 19   # bytes, with room for more than W_hh
    FEW_ROWS = 4                   # with fewer rows for each thread, the product is limited by how fast W_hh can be read
    MANY_ROWS = 64                 # ... and with fewer than these, if W_hh does not fit the cache
    FORWARD_BLOCK = 1 << 18        # bytes of `a` that a task projects before it recurs through them
    BACKWARD_ROWS = 512            # (step, row) pairs in a block of the backward pass, at least
    SHARES = 4                     # tasks for each thread, at most
    PROJECTED_ROWS = 64            # (step, row) pairs in a task of nothing but projection, at least
    GROUPED_WEIGHTS = 1 << 16      # weights, at most, where groups of rows have sums of their own,
    GROUP_ROWS = 4                 # rows, at least, in a group or a task,
    GROUP_STEPS = 128              # (step, row) pairs, at least, of a group,
    MAX_GROUPS = 16                # and groups, at most
    NEVER = -9                     # no step, nor the one after one


# --- Who does what ----------------------------------------------------------------------------------------------------

cdef inline double recurrent_work(const Run *run, Py_ssize_t steps) noexcept nogil:
    return <double>steps * run.B * run.N * (run.H + CELL_WORK)


cdef inline int tasks_by_units(const Run *run, Py_ssize_t steps) noexcept nogil:
    """How many threads should share the units of each step: 1 where they had better share rows, or nothing."""
    cdef int tasks = tasks_for(run.threads, recurrent_work(run, steps), min(run.H // LANES, <Py_ssize_t>MAX_PARTS))
    cdef Py_ssize_t few = FEW_ROWS if run.N * run.H * <Py_ssize_t>sizeof(real) <= SECOND_LEVEL_CACHE else MANY_ROWS
    return tasks if run.B < few * tasks and <double>run.B * run.N * run.H >= STEP_WORK else 1


cdef inline void share(Run *run, double work, Py_ssize_t parts, Py_ssize_t least) noexcept nogil:
    """Cut ``parts`` into tasks of at least ``least``: several for each thread, so that one whose core is slow does fewer of them."""
    run.workers = tasks_for(run.threads, work, parts)
    run.tasks = run.workers * <int>max(1, min(<Py_ssize_t>SHARES, parts // (least * run.workers))) if run.workers > 1 else 1
    run.tasks = min(run.tasks, <int>MAX_THREADS)


cdef inline void share_rows(Run *run, double work) noexcept nogil:
    """Cut the batch into tasks; into more of them if one step of one task would keep Ctrl-C waiting."""
    cdef double longest = <double>run.B * run.N * run.H / LONG_STEP
    share(run, work, run.B, GROUP_ROWS)
    run.tasks = max(run.tasks, <int>min(longest, <double>min(run.B, <Py_ssize_t>MAX_THREADS)))


cdef inline int row_groups(const Run *run) noexcept nogil:
    """How many groups of rows go back through time by themselves; 1 if all go together.

    A question of sizes alone, never of threads: sums in another order have other bits.
    """
    cdef int groups = 1
    if run.N * (run.I + run.H) <= GROUPED_WEIGHTS:
        while groups < MAX_GROUPS and run.B >= 2 * groups * GROUP_ROWS:
            groups *= 2
    return groups if run.T * run.B >= GROUP_STEPS * groups else 1


cdef inline Py_ssize_t held_rows(const Run *run) noexcept nogil:
    """(step, row) pairs in a block of the backward pass, at most."""
    cdef Py_ssize_t in_step = ceil_div(run.B, run.groups)
    return in_step * min(run.T, ceil_div(BACKWARD_ROWS, in_step))


cdef inline Patch rows_of_task(const Run *run, int task) noexcept nogil:
    cdef Patch patch
    patch.b0 = run.B * task // run.tasks
    patch.b1 = run.B * (task + 1) // run.tasks
    patch.u0 = 0
    patch.u1 = run.H
    return patch


cdef inline Patch whole_block(const Run *run, const TimeBlock *block) noexcept nogil:
    cdef Patch patch
    patch.b0, patch.b1 = block.b0, block.b1
    patch.u0, patch.u1 = 0, run.H
    return patch


cdef inline Patch units_of_part(const Run *run, int part) noexcept nogil:
    cdef Patch patch
    cdef Py_ssize_t panels = ceil_div(run.H, LANES)
    patch.b0 = 0
    patch.b1 = run.B
    patch.u0 = panels * part // run.tasks * LANES
    patch.u1 = min(run.H, panels * (part + 1) // run.tasks * LANES)
    return patch


cdef inline double patch_work(const Run *run, Patch p) noexcept nogil:
    return <double>(p.b1 - p.b0) * (p.u1 - p.u0) * run.gates * (run.H + CELL_WORK)


cdef void step_rows(const Run *run, Py_ssize_t t, Patch p, const TimeBlock *block) noexcept nogil:
    """The cell's step t, for every row of the patch; forward, if there is no block."""
    cdef Row r
    cdef Py_ssize_t b, at
    r.n = p.u1 - p.u0
    r.H = run.H
    r.activation = run.activation
    r.leak = run.leak + p.u0 if run.leak != NULL else NULL
    cdef bint plain = run.gates == 1 and run.leak == NULL and r.n == run.H
    if plain:
        r.n *= p.b1 - p.b0  # whole rows of h lie end to end: one long row
    for b in range(p.b0, min(p.b1, p.b0 + 1) if plain else p.b1):
        at = b * run.H + p.u0
        r.h_prev = run.h + t * run.B * run.H + at
        r.h = run.h + (t + 1) * run.B * run.H + at
        r.a = run.a + (t * run.B + b) * run.N + p.u0
        if run.m != NULL:
            r.m = run.m + t * run.B * run.H + at
        if run.c != NULL:
            r.c_prev = run.c + t * run.B * run.H + at
            r.c = run.c + (t + 1) * run.B * run.H + at
        if block != NULL:
            r.d_prev = (run.zeros if t == 0 or run.d_out == NULL else run.d_out + (t - 1) * run.B * run.H) + at
            r.dh = run.dh + at
            r.dc = run.dc + at if run.dc != NULL else NULL
            r.da = block.da + da_row(block, t, b) * run.N + p.u0
            r.da_h = block.da_h + da_row(block, t, b) * run.N + p.u0
        run.step(&r)


# --- Forward ----------------------------------------------------------------------------------------------------------

cdef void run_forward(Run *run) noexcept nogil:
    """Fill a, h[1:] and what else the cell has, from the initial state."""
    cdef double projection = <double>run.T * run.B * run.N * (run.I if run.x != NULL else 1)
    cdef int by_units = tasks_by_units(run, run.T)
    run.tasks = 1
    if by_units == 1:
        share_rows(run, projection + recurrent_work(run, run.T))
    run.projected = max(1, min(run.T, FORWARD_BLOCK * run.tasks // (run.B * run.N * <Py_ssize_t>sizeof(real))))
    if run.tasks > 1:
        parallel(project_and_recur, run, run.tasks, run.workers, &run.watch)
        return
    # rows are few, but threads can still share the projection
    share(run, projection, run.T, ceil_div(PROJECTED_ROWS, run.B))
    parallel(project_steps, run, run.tasks, run.workers, &run.watch)
    run.tasks = by_units
    parallel_steps(recur_part, run, run.T, by_units, &run.watch)


cdef void project_and_recur(void *context, int task, int worker) noexcept nogil:
    """A task's rows, for all time."""
    cdef Run *run = <Run *>context
    cdef Patch patch = rows_of_task(run, task)
    cdef Py_ssize_t t = 0, t_end
    while t < run.T:
        t_end = min(run.T, t + run.projected)
        project(run, t, t_end, patch.b0, patch.b1)
        while t < t_end:
            recur(run, t, patch)
            t += 1
            if interrupted(&run.watch, worker, patch_work(run, patch) + <double>(patch.b1 - patch.b0) * run.N * run.I):
                return


cdef void project_steps(void *context, int task, int worker) noexcept nogil:
    """A task's steps, for all rows."""
    cdef Run *run = <Run *>context
    cdef Py_ssize_t t = run.T * task // run.tasks, t1 = run.T * (task + 1) // run.tasks
    while t < t1 and not interrupted(&run.watch, worker, <double>run.projected * run.B * run.N * (run.I + CELL_WORK)):
        project(run, t, min(t1, t + run.projected), 0, run.B)
        t += run.projected


cdef void project(const Run *run, Py_ssize_t t0, Py_ssize_t t1, Py_ssize_t b0, Py_ssize_t b1) noexcept nogil:
    """a = x W_ih^T + bias, for steps t0..t1 and rows b0..b1."""
    cdef Py_ssize_t t, b, n, at
    cdef const real *w
    cdef real *a
    if run.x != NULL:
        steps_by_rows(t1 - t0, b1 - b0, run.B, run.N, run.I,
                      run.x + (t0 * run.B + b0) * run.I, run.I, run.w_ih,
                      rows(run.bias, 0, 0), run.a + (t0 * run.B + b0) * run.N, run.N)
        return
    for t in range(t0, t1):
        for b in range(b0, b1):
            at = t * run.B + b
            w = run.token_weight + run.tokens[at] * run.token_row
            a = run.a + at * run.N
            if run.token_gate == 1:
                for n in range(run.N):
                    a[n] = run.bias[n] + w[n]
            else:
                for n in range(run.N):
                    a[n] = run.bias[n] + w[n * run.token_gate]


cdef void steps_by_rows(Py_ssize_t steps, Py_ssize_t b, Py_ssize_t B, Py_ssize_t N, Py_ssize_t K, const real *a, Py_ssize_t a_row,
                        Panels W, Rows init, real *c, Py_ssize_t c_row) noexcept nogil:
    """One product over ``steps`` steps of b rows each, out of B; tiles run along the longer of the two."""
    if b < B and steps > b:
        product(b, steps, N, K, rows(a, a_row, B * a_row), 1, W, init, rows(c, c_row, B * c_row))
    else:
        product(steps, b, N, K, rows(a, B * a_row, a_row), 1, W, init, rows(c, B * c_row, c_row))


cdef void recur_part(void *context, Py_ssize_t t, int part, int worker) noexcept nogil:
    """A part's units of one step, for all rows."""
    cdef Run *run = <Run *>context
    cdef Patch patch = units_of_part(run, part)
    recur(run, t, patch)
    interrupted(&run.watch, worker, patch_work(run, patch))


cdef void recur(const Run *run, Py_ssize_t t, Patch p) noexcept nogil:
    """a_t += h_{t-1} W_hh^T, or m_t for a gate kept apart; then the cell. Neighbouring gates whose panels touch are one product."""
    cdef Rows h_prev = rows(run.h + (t * run.B + p.b0) * run.H, 0, run.H), a
    cdef Py_ssize_t gate_panels = ceil_div(run.H, LANES), gate = 0, together = run.gates - run.apart
    if p.u1 - p.u0 != gate_panels * LANES:
        together = 1
    while gate < run.gates - run.apart:
        a = rows(run.a + (t * run.B + p.b0) * run.N + gate * run.H + p.u0, 0, run.N)
        product(1, p.b1 - p.b0, together * (p.u1 - p.u0), run.H, h_prev, 1, panels_from(run.w_hh, gate * gate_panels + p.u0 // LANES), a, a)
        gate += together
    if run.apart:
        product(1, p.b1 - p.b0, p.u1 - p.u0, run.H, h_prev, 1, panels_from(run.w_hh, gate * gate_panels + p.u0 // LANES),
                rows(run.m_bias + p.u0, 0, 0), rows(run.m + (t * run.B + p.b0) * run.H + p.u0, 0, run.H))
    step_rows(run, t, p, NULL)


# --- Backward ---------------------------------------------------------------------------------------------------------

cdef void run_backward(Run *run) noexcept nogil:
    """All gradients, from d_out and dh = d_out_T + d_state; block by block, the last first.

    Where no loss is left before a step, and the gradient of the state has become exactly 0, all that remains is 0: the pass ends there,
    with the same bits (but that a sum of nothing else than -0 may be +0 in the longer pass).
    """
    run.first_loss = first_step_with_loss(run)
    if run.groups > 1:
        run.workers = tasks_for(run.threads, 2 * recurrent_work(run, run.T), run.groups)
        parallel(back_through_group, run, run.groups, run.workers, &run.watch)
        share(run, <double>run.groups * sums_size(run), run.N, run.N)
        parallel(add_up_groups, run, run.tasks, run.workers, &run.watch)
    else:
        back_by_blocks(run)


cdef inline TimeBlock last_block(const Run *run, Py_ssize_t b0, Py_ssize_t b1, real *da, real *da_h) noexcept nogil:
    """What stands behind the last step: nothing, yet."""
    cdef TimeBlock block
    block.t0 = block.t1 = block.low = run.T
    block.b0, block.b1 = b0, b1
    block.da, block.da_h = da, da_h
    return block


cdef inline bint step_back(TimeBlock *block, Py_ssize_t steps) noexcept nogil:
    """On to the block before; False if there is none, or only zeros in it."""
    if block.low == 0 or block.low > block.t0:
        return False
    block.t1 = block.t0
    block.t0 = block.low = max(0, block.t1 - steps)
    return True


cdef void back_through_group(void *context, int group, int worker) noexcept nogil:
    """A group of rows, through all time, with sums of its own."""
    cdef Run *run = <Run *>context
    cdef Py_ssize_t da_size = run.held_rows * run.N
    cdef real *da = run.da + worker * (1 + run.apart) * da_size
    cdef TimeBlock block = last_block(run, run.B * group // run.groups, run.B * (group + 1) // run.groups, da, da + run.apart * da_size)
    cdef Patch patch = whole_block(run, &block)
    cdef Sums sums = sums_of_group(run, group)
    memset(sums.dw_ih, 0, sums_size(run) * sizeof(real))
    while step_back(&block, run.held_rows // (block.b1 - block.b0)) and not run.watch.stop:
        block.low = recur_back(run, &block, patch, worker)
        if not run.watch.stop:
            collect(run, &block, sums, 0, 1, worker)
    clear_dx(run, &block)


cdef void add_up_groups(void *context, int task, int worker) noexcept nogil:
    """A task's share of the sums of all groups, the first group first."""
    cdef Run *run = <Run *>context
    cdef Py_ssize_t n0 = run.N * task // run.tasks, n1 = run.N * (task + 1) // run.tasks
    cdef Sums sums
    cdef int group
    for group in range(run.groups):
        sums = sums_of_group(run, group)
        add(sums.dw_ih + n0 * run.I, (n1 - n0) * run.I, run.sums.dw_ih + n0 * run.I)
        add(sums.dw_hh + n0 * run.H, (n1 - n0) * run.H, run.sums.dw_hh + n0 * run.H)
        add(sums.db_ih + n0, n1 - n0, run.sums.db_ih + n0)
        if run.sums.db_hh != NULL:
            add(sums.db_hh + n0, n1 - n0, run.sums.db_hh + n0)


cdef inline void add(const real *source, Py_ssize_t n, real *target) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        target[i] += source[i]


cdef inline Py_ssize_t sums_size(const Run *run) noexcept nogil:
    return run.N * (run.I + run.H + 1 + run.apart)


cdef inline Sums sums_of_group(const Run *run, int group) noexcept nogil:
    cdef Sums sums
    sums.dw_ih = run.group_sums + group * sums_size(run)
    sums.dw_hh = sums.dw_ih + run.N * run.I
    sums.db_ih = sums.dw_hh + run.N * run.H
    sums.db_hh = sums.db_ih + run.N if run.apart else NULL
    return sums


cdef void back_by_blocks(Run *run) noexcept nogil:
    """Block by block, for all rows, so that threads can share each block as it suits it: rows or units, then the sums."""
    run.block = last_block(run, 0, run.B, run.da, run.da_h)
    while step_back(&run.block, run.held_rows // run.B) and not run.watch.stop:
        share_recurrence(run)
        share_gradients(run, run.block.t1 - run.block.low)
        if not run.watch.stop:
            parallel(collect_part, run, run.tasks, run.workers, &run.watch)
    clear_dx(run, &run.block)


cdef void share_recurrence(Run *run) noexcept nogil:
    """Fill da of the block, and set its ``low``."""
    cdef TimeBlock *block = &run.block
    cdef int task, by_units = tasks_by_units(run, block.t1 - block.t0)
    if by_units > 1:
        run.tasks = by_units
    else:
        share_rows(run, recurrent_work(run, block.t1 - block.t0))
    for task in range(run.tasks):
        run.low_of[task] = block.t0
    for task in range(MAX_PARTS):
        run.zero_at[task] = NEVER
    if by_units > 1:
        parallel_steps(recur_back_part, run, block.t1 - block.t0 + 1, run.tasks, &run.watch)
    else:
        parallel(recur_back_rows, run, run.tasks, run.workers, &run.watch)
    block.low = block.t1
    for task in range(run.tasks):
        block.low = min(block.low, run.low_of[task])


cdef void recur_back_rows(void *context, int task, int worker) noexcept nogil:
    cdef Run *run = <Run *>context
    run.low_of[task] = recur_back(run, &run.block, rows_of_task(run, task), worker)


cdef Py_ssize_t recur_back(Run *run, const TimeBlock *block, Patch patch, int worker) noexcept nogil:
    """The patch's rows, through the block: fill their da, and return the step down to which there was anything to fill in."""
    cdef Py_ssize_t t = block.t1 - 1
    while t >= block.t0:
        through_product(run, block, t, patch)
        if run.all_dh != NULL:
            keep_state_gradient(run, t + 1, patch)
        if t < run.first_loss and is_zero(run, patch):
            clear_da(run, block, t, patch)
            return t + 1
        step_rows(run, t, patch, block)
        t -= 1
        if interrupted(&run.watch, worker, patch_work(run, patch)):
            return block.t0
    through_product(run, block, t, patch)
    if run.all_dh != NULL and t < 0:
        keep_state_gradient(run, 0, patch)
    return block.t0


cdef void recur_back_part(void *context, Py_ssize_t i, int part, int worker) noexcept nogil:
    """A part's units of the block's i-th step back, for all rows."""
    cdef Run *run = <Run *>context
    cdef const TimeBlock *block = &run.block
    cdef Patch patch = units_of_part(run, part)
    cdef Py_ssize_t t = block.t1 - 1 - i
    cdef int other
    if run.low_of[part] > block.t0:
        return
    for other in range(run.tasks):
        if run.zero_at[other] != t + 1:
            break
    else:
        run.low_of[part] = t + 1
        return
    through_product(run, block, t, patch)
    if run.all_dh != NULL and (t >= block.t0 or t < 0):
        keep_state_gradient(run, t + 1, patch)
    if t < block.t0:
        return
    if t < run.first_loss and is_zero(run, patch):
        run.zero_at[part] = t
    step_rows(run, t, patch, block)
    interrupted(&run.watch, worker, patch_work(run, patch))


cdef inline Py_ssize_t da_row(const TimeBlock *block, Py_ssize_t t, Py_ssize_t b) noexcept nogil:
    """Where in the block's da row b of step t stands."""
    return (t - block.t0) * (block.b1 - block.b0) + b - block.b0


cdef void through_product(const Run *run, const TimeBlock *block, Py_ssize_t t, Patch p) noexcept nogil:
    """da_{t+1} -> dh_t; the block's last step has got it from the block after it."""
    cdef Rows dh = rows(run.dh + p.b0 * run.H + p.u0, 0, run.H)
    if t < block.t1 - 1:
        # reverse of: a_{t+1} += h_t W_hh^T
        product(1, p.b1 - p.b0, p.u1 - p.u0, run.N, rows(block.da_h + da_row(block, t + 1, p.b0) * run.N, 0, run.N), 1,
                panels_from(run.w_hh, p.u0 // LANES), dh, dh)


cdef void keep_state_gradient(const Run *run, Py_ssize_t t, Patch p) noexcept nogil:
    """dL/dh_t, and dL/dc_t, of the patch."""
    cdef Py_ssize_t b, at, slot = t * run.B * run.H
    for b in range(p.b0, p.b1):
        at = b * run.H + p.u0
        memcpy(run.all_dh + slot + at, run.dh + at, (p.u1 - p.u0) * sizeof(real))
        if run.dc != NULL:
            memcpy(run.all_dc + slot + at, run.dc + at, (p.u1 - p.u0) * sizeof(real))


cdef bint is_zero(const Run *run, Patch p) noexcept nogil:
    """Whether the patch of the state's gradient is 0, and not -0."""
    cdef Py_ssize_t b, at
    for b in range(p.b0, p.b1):
        at = b * run.H + p.u0
        if not all_zero_bits(run.dh + at, p.u1 - p.u0) or (run.dc != NULL and not all_zero_bits(run.dc + at, p.u1 - p.u0)):
            return False
    return True


cdef void clear_da(const Run *run, const TimeBlock *block, Py_ssize_t t, Patch p) noexcept nogil:
    """da = 0 for the patch's rows from the block's first step to step t: other rows may still have something there."""
    cdef Py_ssize_t step, at
    for step in range(block.t0, t + 1):
        at = da_row(block, step, p.b0) * run.N
        memset(block.da + at, 0, (p.b1 - p.b0) * run.N * sizeof(real))
        memset(block.da_h + at, 0, (p.b1 - p.b0) * run.N * sizeof(real))


cdef void clear_dx(const Run *run, const TimeBlock *block) noexcept nogil:
    """dx = 0 before the step at which the pass ended."""
    cdef Py_ssize_t t
    if run.dx != NULL:
        for t in range(block.low):
            memset(run.dx + (t * run.B + block.b0) * run.I, 0, (block.b1 - block.b0) * run.I * sizeof(real))


cdef Py_ssize_t first_step_with_loss(const Run *run) noexcept nogil:
    """The first step with a non-zero d_out; 0 also if the steps before it hold inf or NaN, which even a gradient of 0 makes NaN."""
    cdef Py_ssize_t t = 0
    cdef Py_ssize_t units = run.B * run.H
    while t < run.T and (run.d_out == NULL or all_zero_bits(run.d_out + t * units, units)):
        t += 1
    if t == 0:
        return 0
    if not all_finite(run.h, (t + 1) * units):
        return 0
    if (run.x != NULL and not all_finite(run.x, t * run.B * run.I)) or (run.c != NULL and not all_finite(run.c, (t + 1) * units)):
        return 0
    if (run.m != NULL and not all_finite(run.m, t * units)) or not all_finite(run.plain_w_hh, run.N * run.H):
        return 0
    return 0 if run.dx != NULL and not all_finite(run.plain_w_ih, run.N * run.I) else t


cdef inline void share_gradients(Run *run, Py_ssize_t steps) noexcept nogil:
    cdef Py_ssize_t columns = run.H + (run.I if run.x != NULL else 1) + (run.I if run.dx != NULL else 0)
    share(run, <double>steps * run.B * run.N * columns, ceil_div(max(run.H, run.I), LANES), GRADIENT_PANELS)


cdef void collect_part(void *context, int task, int worker) noexcept nogil:
    cdef Run *run = <Run *>context
    collect(run, &run.block, run.sums, task, run.tasks, worker)


cdef void collect(Run *run, const TimeBlock *block, Sums sums, int part, int parts, int worker) noexcept nogil:
    """A part of the block's dx (by rows), dW and db (by columns), from step ``low`` on."""
    cdef Py_ssize_t held = block.b1 - block.b0, K = (block.t1 - block.low) * held, first = block.low * run.B + block.b0
    cdef Py_ssize_t inner = K if held == run.B else held   # rows that lie end to end in x and h
    cdef const real *da = block.da + da_row(block, block.low, block.b0) * run.N
    cdef const real *da_h = block.da_h + da_row(block, block.low, block.b0) * run.N
    cdef Py_ssize_t n0 = run.N * part // parts, n1 = run.N * (part + 1) // parts
    # reverse of: a = x W_ih^T + h W_hh^T + bias. The gradient da_t meets h_{t-1}, which stands in slot t of h.
    cdef Py_ssize_t x_panels = ceil_div(run.I, LANES) if run.x != NULL else 0, h_panels = ceil_div(run.H, LANES)
    cdef Py_ssize_t p0 = (x_panels + h_panels) * part // parts, p1 = (x_panels + h_panels) * (part + 1) // parts
    cdef real *scratch = run.scratch + worker * <Py_ssize_t>GRADIENT_SCRATCH
    if K == 0:
        return
    if run.dx != NULL:
        collect_dx(run, da, K // inner, inner, inner * part // parts, inner * (part + 1) // parts, run.dx + first * run.I, worker)
    if run.x != NULL:
        add_weight_gradient(da, run.N, K, rows(run.x + first * run.I, run.B * run.I, run.I), inner, run.I,
                            min(p0, x_panels), min(p1, x_panels), sums.dw_ih, scratch, &run.watch, worker)
    else:
        scatter_tokens(run, da, K, inner, first, n0, n1, sums.dw_ih)
    add_weight_gradient(da_h, run.N, K, rows(run.h + first * run.H, run.B * run.H, run.H), inner, run.H,
                        max(0, p0 - x_panels), max(0, p1 - x_panels), sums.dw_hh, scratch, &run.watch, worker)
    add_column_sums(da, run.N, K, n0, n1, sums.db_ih)
    if sums.db_hh != NULL:
        add_column_sums(da_h, run.N, K, n0, n1, sums.db_hh)


cdef void collect_dx(Run *run, const real *da, Py_ssize_t outer, Py_ssize_t inner, Py_ssize_t i0, Py_ssize_t i1, real *dx,
                     int worker) noexcept nogil:
    """dx = da W_ih for rows i0..i1 of each ``inner``, GRADIENT_K rows at a time."""
    cdef Py_ssize_t o = 0, i, step = max(1, GRADIENT_K // inner)
    while o < outer:
        i = i0
        while i < i1:
            if interrupted(&run.watch, worker, <double>GRADIENT_K * run.N * run.I):
                return
            product(min(step, outer - o), min(i1 - i, <Py_ssize_t>GRADIENT_K), run.I, run.N,
                    rows(da + (o * inner + i) * run.N, inner * run.N, run.N), 1, run.w_ih, rows(run.zeros, 0, 0),
                    rows(dx + (o * run.B + i) * run.I, run.B * run.I, run.I))
            i += GRADIENT_K
        o += step


cdef void scatter_tokens(const Run *run, const real *da, Py_ssize_t K, Py_ssize_t inner, Py_ssize_t first, Py_ssize_t n0, Py_ssize_t n1,
                         real *dw_ih) noexcept nogil:
    """dW_ih^T[token of row k] += da_k: the product with one-hot rows, which are nowhere built."""
    cdef Py_ssize_t k, n
    cdef real *dw
    for k in range(K):
        dw = dw_ih + run.tokens[first + k // inner * run.B + k % inner] * run.N
        for n in range(n0, n1):
            dw[n] += da[k * run.N + n]
