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

ctypedef void (*Step)(const Run *run, Py_ssize_t t, Py_ssize_t b0, Py_ssize_t b1) noexcept nogil

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
    const real *zeros              # (B, H), or I elements if those are more
    real *dh
    real *da                       # (block, B, N)
    real *dx                       # (T, B, I) or NULL
    real *dw_ih                    # (N, I); of tokens: (I, N)
    real *dw_hh                    # (N, H)
    real *db                       # (N,)
    real *scratch                  # GRADIENT_SCRATCH for each task

cdef enum:
    FORWARD_BLOCK = 1 << 18        # bytes of `a` that a task projects before it recurs through them
    BACKWARD_ROWS = 512            # (step, row) pairs in a block of the backward pass, at least


# --- Forward ----------------------------------------------------------------------------------------------------------

cdef void run_forward(Run *run) noexcept nogil:
    """Fill a and h[1:] from h[0]."""
    cdef double projection = <double>run.T * run.B * run.N * (run.I if run.x != NULL else 1)
    cdef double recurrence = <double>run.T * run.B * run.N * (run.H + CELL_WORK)
    run.tasks = tasks_for(projection + recurrence, run.B)
    run.block = max(1, min(run.T, FORWARD_BLOCK * run.tasks // (run.B * run.N * <Py_ssize_t>sizeof(real))))
    if run.tasks > 1:
        parallel(project_and_recur, run, run.tasks, &run.watch)
        return
    # too few rows for the threads there are: these can still share the projection
    run.tasks = tasks_for(projection, run.T)
    parallel(project_steps, run, run.tasks, &run.watch)
    recur(run, 0, run.T, 0, run.B, 0)


cdef void project_and_recur(void *context, int task, int worker) noexcept nogil:
    """A task's rows, for all time."""
    cdef Run *run = <Run *>context
    cdef Py_ssize_t b0 = run.B * task // run.tasks, b1 = run.B * (task + 1) // run.tasks, t, t_end
    t = 0
    while t < run.T and not run.watch.stop:
        t_end = min(run.T, t + run.block)
        project(run, t, t_end, b0, b1)
        recur(run, t, t_end, b0, b1, worker)
        t = t_end


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


cdef void recur(Run *run, Py_ssize_t t0, Py_ssize_t t1, Py_ssize_t b0, Py_ssize_t b1, int worker) noexcept nogil:
    """a_t += h_{t-1} W_hh^T, then the cell, for t = t0..t1-1."""
    cdef Py_ssize_t t
    cdef real *a
    for t in range(t0, t1):
        a = run.a + (t * run.B + b0) * run.N
        product(1, b1 - b0, run.N, run.H, rows(run.h + (t * run.B + b0) * run.H, 0, run.H), 1, run.w_hh,
                rows(a, 0, run.N), rows(a, 0, run.N))
        run.step(run, t, b0, b1)
        if interrupted(&run.watch, worker, <double>(b1 - b0) * run.N * (run.H + run.I + CELL_WORK)):
            return


# --- Backward ---------------------------------------------------------------------------------------------------------

cdef void run_backward(Run *run) noexcept nogil:
    """All gradients, from d_out and dh = d_out_T + d_state; block by block, the last first."""
    cdef Py_ssize_t inputs = run.I if run.x != NULL else 1
    run.t1 = run.T
    while run.t1 > 0 and not run.watch.stop:
        run.t0 = max(0, run.t1 - run.block)
        run.tasks = tasks_for(<double>(run.t1 - run.t0) * run.B * run.N * (run.H + CELL_WORK), run.B)
        parallel(recur_back, run, run.tasks, &run.watch)
        run.tasks = tasks_for(<double>(run.t1 - run.t0) * run.B * run.N * (run.H + inputs + (run.I if run.dx != NULL else 0)), run.H)
        if not run.watch.stop:
            parallel(collect_gradients, run, run.tasks, &run.watch)
        run.t1 = run.t0


cdef void recur_back(void *context, int task, int worker) noexcept nogil:
    """A task's rows, through the block: dh_t -> da_t -> dh_{t-1}."""
    cdef Run *run = <Run *>context
    cdef Py_ssize_t b0 = run.B * task // run.tasks, b1 = run.B * (task + 1) // run.tasks, t
    cdef Rows dh = rows(run.dh + b0 * run.H, 0, run.H)
    for t in range(run.t1 - 1, run.t0 - 1, -1):
        run.step(run, t, b0, b1)
        # reverse of: a_t += h_{t-1} W_hh^T
        product(1, b1 - b0, run.H, run.N, rows(run.da + ((t - run.t0) * run.B + b0) * run.N, 0, run.N), 1, run.w_hh, dh, dh)
        if interrupted(&run.watch, worker, <double>(b1 - b0) * run.N * (run.H + CELL_WORK)):
            return


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
