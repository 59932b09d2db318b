# Where no loss is left before a step, and the gradient of the state has become exactly 0, all that remains of a backward pass is 0: it ends
# there, with the same bits (but that a sum of nothing else than -0 may be +0 in the longer pass). This is decided between blocks of time;
# the arrays are looked at only when the gradient of the state is 0, so a pass in which it never is pays nothing.
#
# Of a pass in several calls, a call looks at its own steps, from ``start`` on; its caller must know of those before.

cdef bint nothing_left(Backward *run, TimeBlock *block, Py_ssize_t start, bint to_inputs) noexcept nogil:
    """Whether the steps before the block have gradients of 0 alone; ``to_inputs`` tells if dx is among them."""
    cdef const Problem *problem = &run.problem
    cdef Py_ssize_t P = problem.P, H = problem.H, held = block.b1 - block.b0
    if block.t0 == 0 or not all_zero_bits(run.dh + block.b0 * P, held * P):
        return False
    if run.dc != NULL and not all_zero_bits(run.dc + block.b0 * H, held * H):
        return False
    if block.loss >= block.t0:     # the last one that was found has been passed
        if run.above != NULL:
            wait_for(run.above, problem.time.T, &run.watch)
        block.loss = last_loss(run, block, start)
        if block.loss < start and not remains_finite(problem, block, start, to_inputs):
            block.loss = start     # a gradient of 0 becomes NaN on the way: go on as if there were a loss at the first step
    return block.loss < start


cdef Py_ssize_t last_loss(const Backward *run, const TimeBlock *block, Py_ssize_t start) noexcept nogil:
    """The last step before the block with a d_out other than 0; one before ``start`` if there is none."""
    cdef Py_ssize_t t = block.t0 - 1
    while t >= start and not has_loss(run, block, t):
        t -= 1
    return t


cdef bint has_loss(const Backward *run, const TimeBlock *block, Py_ssize_t t) noexcept nogil:
    cdef const Time *time = &run.problem.time
    cdef Py_ssize_t P = run.problem.P, held = rows_at(time, t, block.b0, block.b1), b
    if run.d_out == NULL or held == 0:
        return False
    if outputs_touch(run):
        return not all_zero_bits(outputs_at(run, t, block.b0), held * P)
    for b in range(block.b0, block.b0 + held):
        if not all_zero_bits(outputs_at(run, t, b), P):
            return True
    return False


cdef bint remains_finite(const Problem *problem, const TimeBlock *block, Py_ssize_t start, bint to_inputs) noexcept nogil:
    """Whether all that a gradient of 0 meets before the block is finite: 0 times inf or NaN is NaN."""
    cdef const Time *time = &problem.time
    cdef Py_ssize_t t, row, held
    for t in range(start, block.t0 + 1):   # the states before a step, and at its end
        row, held = slot(time, t) + block.b0, rows_at(time, t - 1, block.b0, block.b1) if t > 0 else block.b1 - block.b0
        if not finite_rows(problem.h, row, held, problem.P) or not finite_rows(problem.c, row, held, problem.H):
            return False
    for t in range(start, block.t0):
        row, held = first_row(time, t) + block.b0, rows_at(time, t, block.b0, block.b1)
        if not finite_rows(problem.x, row, held, problem.I) or not finite_rows(problem.m, row, held, problem.H):
            return False
    if problem.w_hr != NULL and not all_finite(problem.w_hr, problem.P * problem.H):
        return False
    return all_finite(problem.w_hh, problem.N * problem.P) and not (to_inputs and not all_finite(problem.w_ih, problem.N * problem.I))


cdef inline bint finite_rows(const real *array, Py_ssize_t row, Py_ssize_t held, Py_ssize_t width) noexcept nogil:
    """Of an array that may not be there."""
    return array == NULL or all_finite(array + row * width, held * width)
