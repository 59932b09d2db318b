# The forward pass once more, where all its states h are known: what else is on the tape, a, m and c, from h, x and the first c.
#
# No step waits for another's product then, and those of all steps are one. Only c runs through time, element by element. Every number is
# summed up in the same order as in the forward pass, and has the same bits.

cdef struct Recompute:
    Forward run
    Py_ssize_t t0, t1              # the steps at hand
    real *h_again                  # (B, H): the cell makes h once more, or what is projected, and it is not wanted

cdef enum:
    RECOMPUTED_BLOCKS = 4          # FORWARD_BLOCKs of `a` between one product and the cell's steps


cdef void lay_out_recompute(void *call, Space *space) noexcept nogil:
    cdef Recompute *again = <Recompute *>call
    again.h_again = take(space, again.run.problem.time.B * again.run.problem.H)


cdef void recompute_all(Recompute *again) noexcept nogil:
    cdef Forward *run = &again.run
    cdef const Problem *problem = &run.problem
    cdef Watch *watch = &run.watch
    cdef Py_ssize_t T = problem.time.T, held = RECOMPUTED_BLOCKS * rows_in_block(&run.projection), rows_here
    cdef double work
    while again.t1 < T and not watch.stop:
        again.t0 = again.t1
        again.t1 = again.t0 + 1
        while again.t1 < T and first_row(&problem.time, again.t1 + 1) - first_row(&problem.time, again.t0) <= held:
            again.t1 += 1
        rows_here = first_row(&problem.time, again.t1) - first_row(&problem.time, again.t0)
        work = recurrent_work(problem, again.t0, again.t1)
        share(&run.sharing, work + <double>rows_here * problem.N * problem.I, rows_here, PROJECTED_ROWS)
        parallel(recompute_products, again, run.sharing.tasks, run.sharing.workers, watch)
        if watch.stop:
            return
        share(&run.sharing, work / problem.P, problem.time.B, 1)
        if run.sharing.tasks == 1:     # rows are few: the cell's steps, too, can be shared by units
            share(&run.sharing, work / problem.P, problem.H // LANES, 1)
            parallel(recompute_units, again, run.sharing.tasks, run.sharing.workers, watch)
        else:
            parallel(recompute_rows, again, run.sharing.tasks, run.sharing.workers, watch)


cdef void recompute_products(void *context, int task, int worker) noexcept nogil:
    """a = x W_ih^T + bias + h W_hh^T, and m, for a task's share of the rows of these steps."""
    cdef Recompute *again = <Recompute *>context
    cdef Forward *run = &again.run
    cdef const Problem *problem = &run.problem
    cdef const Time *time = &problem.time
    cdef Py_ssize_t first = first_row(time, again.t0), count = first_row(time, again.t1) - first, t = again.t0, n, before
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
        add_recurrent(run.weights, 1, n, 0, problem.H, rows(problem.h + before * problem.P, 0, problem.P),
                      rows(problem.a + row * problem.N, 0, problem.N), rows(run.weights.m_bias, 0, 0),
                      rows(problem.m + row * problem.H if problem.m != NULL else NULL, 0, problem.H))
        row += n
        if interrupted(&run.watch, worker, <double>n * problem.N * (problem.I + problem.P)):
            return


cdef void recompute_rows(void *context, int task, int worker) noexcept nogil:
    cdef Recompute *again = <Recompute *>context
    cdef Patch patch = rows_of_task(&again.run.problem, task, again.run.sharing.tasks)
    recompute_steps(again, &patch, worker)


cdef void recompute_units(void *context, int task, int worker) noexcept nogil:
    cdef Recompute *again = <Recompute *>context
    cdef Patch patch = units_of_part(&again.run.problem, task, again.run.sharing.tasks)
    recompute_steps(again, &patch, worker)


cdef void recompute_steps(Recompute *again, const Patch *patch, int worker) noexcept nogil:
    """The cell, for the patch's share of these steps."""
    cdef const Problem *problem = &again.run.problem
    cdef Span span = any_span(problem, patch)
    cdef Py_ssize_t t, b
    for t in range(again.t0, again.t1):
        for b in range(patch.b0, patch.b0 + rows_at(&problem.time, t, patch.b0, patch.b1)):
            put_span(&span, problem, t, b, patch.u0)
            span.h = again.h_again + b * problem.H + patch.u0
            problem.forward(&span)
        if interrupted(&again.run.watch, worker, patch_work(problem, patch) / problem.P):
            return
