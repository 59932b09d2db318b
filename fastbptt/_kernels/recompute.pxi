# The forward pass once more, where all its states h are known: what else is on the tape, a, m and c, from h, x and the first c.
#
# No step waits for another's product then, and those of all steps are one. Only c runs through time, element by element. Every number is
# summed up in the same order as in the forward pass, and has the same bits.

cdef enum:
    RECOMPUTED_BLOCKS = 4          # FORWARD_BLOCKs of `a` between one product and the cell's steps


cdef void recompute_all(Forward *run) noexcept nogil:
    """Fill a, m and c. The cell makes h once more, or what is projected, and it is not wanted."""
    cdef const Problem *problem = &run.problem
    cdef Watch *watch = &run.watch
    cdef Py_ssize_t T = problem.time.T, held = RECOMPUTED_BLOCKS * rows_in_block(&run.projection), rows_here
    cdef double work
    while run.t1 < T and not watch.stop:
        run.t0 = run.t1
        run.t1 = run.t0 + 1
        while run.t1 < T and first_row(&problem.time, run.t1 + 1) - first_row(&problem.time, run.t0) <= held:
            run.t1 += 1
        rows_here = first_row(&problem.time, run.t1) - first_row(&problem.time, run.t0)
        work = recurrent_work(problem, run.t0, run.t1)
        share(&run.sharing, work + <double>rows_here * problem.N * problem.I, rows_here, PROJECTED_ROWS)
        parallel(recompute_products, run, run.sharing.tasks, run.sharing.workers, watch)
        if watch.stop:
            return
        share(&run.sharing, work / problem.P, active(&problem.time, run.t0), 1)
        run.by_units = run.sharing.tasks == 1   # rows are few: the cell's steps, too, can be shared by units
        if run.by_units:
            share(&run.sharing, work / problem.P, problem.H // LANES, 1)
        parallel_by_rows(problem, recompute_steps, run, run.sharing.tasks, run.sharing.workers, watch)


cdef void recompute_products(void *context, int task, int worker) noexcept nogil:
    """a = x W_ih^T + bias + h W_hh^T, and m, for a task's share of the rows of these steps."""
    cdef Forward *run = <Forward *>context
    cdef const Problem *problem = &run.problem
    cdef const Time *time = &problem.time
    cdef Py_ssize_t first = first_row(time, run.t0), count = first_row(time, run.t1) - first, t = run.t0, n, before
    cdef Py_ssize_t row = first + count * task // run.sharing.tasks, end = first + count * (task + 1) // run.sharing.tasks
    cdef Py_ssize_t step = max(1, rows_in_block(&run.projection) // 4)
    while row < end:
        n = min(step, end - row)
        if time.first != NULL:         # the states before a step stand elsewhere than its rows, at another distance at each step
            while first_row(time, t + 1) <= row:
                t += 1
            n = min(n, first_row(time, t + 1) - row)
        else:
            t = row // time.B
        project(&run.projection, row, 1, 0, n)
        before = slot(time, t) + row - first_row(time, t)
        add_recurrent(run.weights, 0, 1, n, 0, problem.H, rows(problem.h + before * problem.P, 0, problem.P),
                      rows(problem.a + row * problem.N, 0, problem.N), rows(run.weights.m_bias, 0, 0),
                      rows(problem.m + row * problem.H if problem.m != NULL else NULL, 0, problem.H))
        row += n
        if interrupted(&run.watch, worker, <double>n * problem.N * (problem.I + problem.P)):
            return


cdef void recompute_steps(void *context, int task, int worker) noexcept nogil:
    """The cell, for a task's share of these steps."""
    cdef Forward *run = <Forward *>context
    cdef const Problem *problem = &run.problem
    cdef int tasks = run.sharing.tasks
    cdef Patch patch = units_of_part(problem, task, tasks) if run.by_units else rows_of_task(problem, run.t0, task, tasks)
    cdef Py_ssize_t t
    for t in range(run.t0, run.t1):
        step_forward(run, t, &patch, rows_at(&problem.time, t, patch.b0, patch.b1))
        if interrupted(&run.watch, worker, patch_work(problem, &patch) / problem.P):
            return
