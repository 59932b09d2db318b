# The time loop: once forward, once backward, for every cell.
#
#   T B I H   steps, rows of the batch, inputs, hidden units        N = G * H, for G gates
#   x (T, B, I) or tokens (T, B);  h (T+1, B, H), slot 0 the initial state
#   a (T, B, N), the pre-activations x W_ih^T + b + h W_hh^T, which the cell's forward step turns into activated gates
#   da, the gradient of a, exists for one block of steps at a time; dh (B, H) is the gradient of the state, carried back
#
# A cell is a pair of element-wise steps (`cells.pxi`), called between the products:
#   forward   a_t -> h_t                 backward   dh_t -> da_t, and dh := d_out_{t-1} + what reaches h_{t-1} past the product
#
# Time is taken in blocks, so that what one pass writes the next finds in the cache, and so that da needs no T.
#
# Threads share the rows of the batch, each for the whole sequence. Where rows are few, they share the units instead, step by step: then
# each keeps its part of W_hh in its own cache.

cdef struct Patch:                 # the part of a step that a task does: rows b0..b1, units u0..u1 (a multiple of LANES, or H)
    Py_ssize_t b0, b1, u0, u1

ctypedef void (*Step)(const Run *run, Py_ssize_t t, Patch patch) noexcept nogil

cdef struct Run:
    Py_ssize_t T, B, I, H, N
    Py_ssize_t block               # steps in a block
    Py_ssize_t t0, t1              # the block at hand
    Step step                      # the cell's forward or backward half
    int activation                 # of the vanilla RNN
    Watch watch
    int tasks                      # how many the phase at hand is cut into
    const real *x
    const int64_t *tokens
    real *h
    real *a
    # forward
    Panels w_ih, w_hh              # transposed: I or H rows, N columns
    const real *bias               # (N,), both biases added up
    const real *token_weight       # W_ih for tokens: gate n of token i is token_weight[i * token_row + n * token_gate]
    Py_ssize_t token_row, token_gate
    # backward; w_ih and w_hh have N rows then
    const real *d_out              # (T, B, H)
    const real *zeros              # B*H or I elements, whichever are more
    real *dh
    real *da                       # (block, B, N)
    real *dx                       # (T, B, I) or NULL
    real *dw_ih                    # (N, I); of tokens: (I, N)
    real *dw_hh                    # (N, H)
    real *db                       # (N,)
    real *scratch                  # GRADIENT_SCRATCH for each task

cdef double STEP_WORK = 8192       # multiply-adds of a step worth sharing; benchmarks/bench_threads.py

cdef enum:
    FEW_ROWS = 4                   # with fewer rows for each thread, the product is limited by how fast W_hh can be read
    FORWARD_BLOCK = 1 << 18        # bytes of `a` that a task projects before it recurs through them
    BACKWARD_ROWS = 512            # (step, row) pairs in a block of the backward pass, at least


# --- Forward ----------------------------------------------------------------------------------------------------------

cdef void run_forward(Run *run) noexcept nogil:
    """Fill a and h[1:] from h[0]."""
    cdef double projection = <double>run.T * run.B * run.N * (run.I if run.x != NULL else 1)
    cdef double recurrence = recurrent_work(run, run.T)
    cdef int by_units = tasks_by_units(run, run.T)
    run.tasks = 1 if by_units > 1 else tasks_for(projection + recurrence, run.B)
    run.block = max(1, min(run.T, FORWARD_BLOCK * run.tasks // (run.B * run.N * <Py_ssize_t>sizeof(real))))
    if run.tasks > 1:
        parallel(project_and_recur, run, run.tasks, &run.watch)
        return
    # rows are few, but threads can still share the projection
    run.tasks = tasks_for(projection, run.T)
    parallel(project_steps, run, run.tasks, &run.watch)
    run.tasks = by_units
    parallel_steps(recur_part, run, run.T, by_units, &run.watch)


cdef inline double recurrent_work(const Run *run, Py_ssize_t steps) noexcept nogil:
    return <double>steps * run.B * run.N * (run.H + CELL_WORK)


cdef inline int tasks_by_units(const Run *run, Py_ssize_t steps) noexcept nogil:
    """How many threads should share the units of each step: 1 where they had better share rows, or nothing."""
    cdef int tasks = tasks_for(recurrent_work(run, steps), run.H // LANES)
    return tasks if run.B < FEW_ROWS * tasks and <double>run.B * run.N * run.H >= STEP_WORK else 1


cdef inline Patch rows_of_task(const Run *run, int task) noexcept nogil:
    cdef Patch patch
    patch.b0 = run.B * task // run.tasks
    patch.b1 = run.B * (task + 1) // run.tasks
    patch.u0 = 0
    patch.u1 = run.H
    return patch


cdef inline Patch units_of_part(const Run *run, int part) noexcept nogil:
    cdef Patch patch
    cdef Py_ssize_t panels = ceil_div(run.H, LANES)
    patch.b0 = 0
    patch.b1 = run.B
    patch.u0 = panels * part // run.tasks * LANES
    patch.u1 = min(run.H, panels * (part + 1) // run.tasks * LANES)
    return patch


cdef void project_and_recur(void *context, int task, int worker) noexcept nogil:
    """A task's rows, for all time."""
    cdef Run *run = <Run *>context
    cdef Patch patch = rows_of_task(run, task)
    cdef Py_ssize_t t = 0, t_end
    while t < run.T:
        t_end = min(run.T, t + run.block)
        project(run, t, t_end, patch.b0, patch.b1)
        while t < t_end:
            recur(run, t, patch)
            t += 1
            if interrupted(&run.watch, worker, <double>(patch.b1 - patch.b0) * run.N * (run.H + run.I + CELL_WORK)):
                return


cdef void project_steps(void *context, int task, int worker) noexcept nogil:
    """A task's steps, for all rows."""
    cdef Run *run = <Run *>context
    cdef Py_ssize_t t = run.T * task // run.tasks, t1 = run.T * (task + 1) // run.tasks
    while t < t1 and not interrupted(&run.watch, worker, <double>run.block * run.B * run.N * run.I):
        project(run, t, min(t1, t + run.block), 0, run.B)
        t += run.block


cdef void project(const Run *run, Py_ssize_t t0, Py_ssize_t t1, Py_ssize_t b0, Py_ssize_t b1) noexcept nogil:
    """a = x W_ih^T + bias, for steps t0..t1 and rows b0..b1."""
    cdef Py_ssize_t t, b, n, at
    cdef const real *w
    if run.x != NULL:
        steps_by_rows(t1 - t0, b1 - b0, run.B, run.N, run.I,
                      run.x + (t0 * run.B + b0) * run.I, run.I, run.w_ih,
                      rows(run.bias, 0, 0), run.a + (t0 * run.B + b0) * run.N, run.N)
        return
    for t in range(t0, t1):
        for b in range(b0, b1):
            at = t * run.B + b
            w = run.token_weight + run.tokens[at] * run.token_row
            for n in range(run.N):
                run.a[at * run.N + n] = run.bias[n] + w[n * run.token_gate]


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
    recur(run, t, units_of_part(run, part))
    interrupted(&run.watch, worker, <double>run.B * run.N * (run.H + CELL_WORK))


cdef void recur(const Run *run, Py_ssize_t t, Patch p) noexcept nogil:
    """a_t += h_{t-1} W_hh^T, gate by gate; then the cell."""
    cdef Rows h_prev = rows(run.h + (t * run.B + p.b0) * run.H, 0, run.H), a
    cdef Py_ssize_t gate
    for gate in range(run.N // run.H):
        a = rows(run.a + (t * run.B + p.b0) * run.N + gate * run.H + p.u0, 0, run.N)
        product(1, p.b1 - p.b0, p.u1 - p.u0, run.H, h_prev, 1, panels_from(run.w_hh, gate * ceil_div(run.H, LANES) + p.u0 // LANES), a, a)
    run.step(run, t, p)


# --- Backward ---------------------------------------------------------------------------------------------------------

cdef void run_backward(Run *run) noexcept nogil:
    """All gradients, from d_out and dh = d_out_T + d_state; block by block, the last first."""
    run.t1 = run.T
    while run.t1 > 0 and not run.watch.stop:
        run.t0 = max(0, run.t1 - run.block)
        run.tasks = tasks_by_units(run, run.t1 - run.t0)
        if run.tasks > 1:
            parallel_steps(recur_back_part, run, run.t1 - run.t0 + 1, run.tasks, &run.watch)
        else:
            run.tasks = tasks_for(recurrent_work(run, run.t1 - run.t0), run.B)
            parallel(recur_back_rows, run, run.tasks, &run.watch)
        run.tasks = gradient_tasks(run, run.t1 - run.t0)
        if not run.watch.stop:
            parallel(collect_gradients, run, run.tasks, &run.watch)
        run.t1 = run.t0


cdef void recur_back_rows(void *context, int task, int worker) noexcept nogil:
    """A task's rows, through the block."""
    cdef Run *run = <Run *>context
    cdef Patch patch = rows_of_task(run, task)
    cdef Py_ssize_t i
    for i in range(run.t1 - run.t0 + 1):
        recur_back(run, run.t1 - 1 - i, patch)
        if interrupted(&run.watch, worker, <double>(patch.b1 - patch.b0) * run.N * (run.H + CELL_WORK)):
            return


cdef void recur_back_part(void *context, Py_ssize_t i, int part, int worker) noexcept nogil:
    """A part's units of the block's i-th step back, for all rows."""
    cdef Run *run = <Run *>context
    recur_back(run, run.t1 - 1 - i, units_of_part(run, part))
    interrupted(&run.watch, worker, <double>run.B * run.N * (run.H + CELL_WORK))


cdef void recur_back(const Run *run, Py_ssize_t t, Patch p) noexcept nogil:
    """da_{t+1} -> dh_t, unless t is the block's last step; dh_t -> da_t, unless t is before its first."""
    cdef Rows dh = rows(run.dh + p.b0 * run.H + p.u0, 0, run.H)
    if t < run.t1 - 1:
        # reverse of: a_{t+1} += h_t W_hh^T
        product(1, p.b1 - p.b0, p.u1 - p.u0, run.N, rows(run.da + ((t + 1 - run.t0) * run.B + p.b0) * run.N, 0, run.N), 1,
                panels_from(run.w_hh, p.u0 // LANES), dh, dh)
    if t >= run.t0:
        run.step(run, t, p)


cdef inline int gradient_tasks(const Run *run, Py_ssize_t steps) noexcept nogil:
    cdef Py_ssize_t columns = run.H + (run.I if run.x != NULL else 1) + (run.I if run.dx != NULL else 0)
    return tasks_for(<double>steps * run.B * run.N * columns, ceil_div(max(run.H, run.I), LANES))


cdef void collect_gradients(void *context, int task, int worker) noexcept nogil:
    """A task's share of the block's dx (by rows), dW and db (by columns)."""
    cdef Run *run = <Run *>context
    cdef Py_ssize_t K = (run.t1 - run.t0) * run.B, row0 = run.t0 * run.B, r, r1
    cdef Py_ssize_t n0 = run.N * task // run.tasks, n1 = run.N * (task + 1) // run.tasks
    # reverse of: a = x W_ih^T + h W_hh^T + bias. The gradient da_t meets h_{t-1}, which stands in slot t of h.
    cdef Py_ssize_t x_panels = ceil_div(run.I, LANES) if run.x != NULL else 0, h_panels = ceil_div(run.H, LANES)
    cdef Py_ssize_t p0 = (x_panels + h_panels) * task // run.tasks, p1 = (x_panels + h_panels) * (task + 1) // run.tasks
    cdef real *scratch = run.scratch + task * <Py_ssize_t>GRADIENT_SCRATCH
    if run.dx != NULL:
        r = K * task // run.tasks
        r1 = K * (task + 1) // run.tasks
        while r < r1 and not interrupted(&run.watch, worker, <double>GRADIENT_K * run.N * run.I):
            product(1, min(r1 - r, <Py_ssize_t>GRADIENT_K), run.I, run.N, rows(run.da + r * run.N, 0, run.N), 1, run.w_ih,
                    rows(run.zeros, 0, 0), rows(run.dx + (row0 + r) * run.I, 0, run.I))
            r += GRADIENT_K
    if run.x != NULL:
        add_weight_gradient(run.da, run.N, K, run.x + row0 * run.I, run.I, min(p0, x_panels), min(p1, x_panels), run.dw_ih, scratch,
                            &run.watch, worker)
    else:
        scatter_tokens(run, K, row0, n0, n1)
    add_weight_gradient(run.da, run.N, K, run.h + row0 * run.H, run.H, max(0, p0 - x_panels), max(0, p1 - x_panels), run.dw_hh, scratch,
                        &run.watch, worker)
    add_column_sums(run.da, run.N, K, n0, n1, run.db)


cdef void scatter_tokens(const Run *run, Py_ssize_t K, Py_ssize_t row0, Py_ssize_t n0, Py_ssize_t n1) noexcept nogil:
    """dW_ih^T[token of row k] += da_k: the product with one-hot rows, which are nowhere built."""
    cdef Py_ssize_t k, n
    cdef real *dw
    cdef const real *da
    for k in range(K):
        dw = run.dw_ih + run.tokens[row0 + k] * run.N
        da = run.da + k * run.N
        for n in range(n0, n1):
            dw[n] += da[n]
