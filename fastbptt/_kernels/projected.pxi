# The LSTM with a projection (Sak, Senior and Beaufays 2014): h_t = W_hr s_t, of what the cell shows, s_t = o tanh(c_t).
#
#   shown (B, H)   s_t, for one step: the cell writes it in h's place, and a second product makes h_t of it
#   backward       ds_t = dh_t W_hr, (rows of a block, H); the cell leaves s_t there, which it has made again for its own derivatives:
#                  s is on no tape. For dW_hr = sum of dh_t^T s_t, a block keeps its dh_t too
#
# The second product needs all units of a step, and the way back all columns of dh_t. So a step is of two stages, 0 and 1.

cdef inline int stages(const Problem *problem) noexcept nogil:
    return 1 if problem.w_hr == NULL else 2


cdef void project_shown(const Problem *problem, const InputWeights *w_hr, const real *shown, Py_ssize_t t, const Patch *patch, real *h,
                        bint more=False) noexcept nogil:
    """h_t = s_t W_hr^T, or ``more`` of it, for the patch's columns; ``h`` is laid out as the problem's."""
    cdef Py_ssize_t P = problem.P, H = problem.H, held = rows_at(&problem.time, t, patch.b0, patch.b1)
    cdef Rows target = rows(h + (slot(&problem.time, t + 1) + patch.b0) * P + patch.p0, 0, P)
    product(1, held, patch.p1 - patch.p0, H, rows(shown + patch.b0 * H, 0, H), 1, panels_from(w_hr.w, patch.p0 // LANES),
            target if more else rows(w_hr.bias + patch.p0, 0, 0), target)


cdef void put_state_gradient_aside(const Backward *run, const TimeBlock *block, Py_ssize_t t, const Patch *patch) noexcept nogil:
    """The block's dh_t is what is carried, which becomes d_out_{t-1}."""
    cdef const Time *time = &run.problem.time
    cdef Py_ssize_t P = run.problem.P, first = da_row(time, block, t, patch.b0) - patch.b0, b
    cdef size_t size = (patch.p1 - patch.p0) * sizeof(real)
    for b in range(patch.b0, patch.b0 + rows_at(time, t, patch.b0, patch.b1)):
        memcpy(block.dh + (first + b) * P + patch.p0, run.dh + b * P + patch.p0, size)
        memcpy(run.dh + b * P + patch.p0, outputs_before(run, t, b) + patch.p0, size)


cdef void step_backward_projected(const Backward *run, const TimeBlock *block, Py_ssize_t t, const Patch *patch) noexcept nogil:
    """dh_t -> ds_t, and the cell's step, for the patch's units."""
    cdef const Problem *problem = &run.problem
    cdef Py_ssize_t P = problem.P, H = problem.H, held = rows_at(&problem.time, t, patch.b0, patch.b1), b
    cdef Py_ssize_t row = da_row(&problem.time, block, t, patch.b0)
    cdef Span span = any_span(problem, patch, &held)
    # reverse of: h_t = s_t W_hr^T
    product(1, held, patch.u1 - patch.u0, P, rows(block.dh + row * P, 0, P), 1, panels_from(run.w_hr, patch.u0 // LANES),
            rows(run.zeros, 0, 0), rows(block.shown + row * H + patch.u0, 0, H))
    for b in range(patch.b0, patch.b0 + held):
        put_span(&span, problem, t, b, patch.u0)
        span.dh = block.shown + row * H + patch.u0
        span.dc = run.dc + b * H + patch.u0
        span.da = block.da + row * problem.N + patch.u0
        problem.backward(&span)
        row += 1


cdef inline Py_ssize_t projection_size(const Problem *problem) noexcept nogil:
    """The elements of dW_hr."""
    return problem.P * problem.H if problem.w_hr != NULL else 0


cdef void add_projection_gradient(const Problem *problem, const TimeBlock *block, Py_ssize_t K, int part, int parts, real *dw_hr,
                                  real *scratch, Watch *watch, int worker) noexcept nogil:
    """A part's columns of dW_hr, summed over the K rows of the block."""
    cdef Py_ssize_t P = problem.P, H = problem.H, panels = ceil_div(H, LANES)
    add_weight_gradient(block.dh, P, K, sequence(rows(block.shown, 0, H), K), H, 0, P, panels * part // parts,
                        panels * (part + 1) // parts, dw_hr, scratch, watch, worker)


cdef void project_tangent(const Jvp *run, Py_ssize_t t, const Patch *patch) noexcept nogil:
    """h_dot_t = s_dot_t W_hr^T + s_t dW_hr^T"""
    project_shown(&run.problem, &run.weights.w_hr, run.shown_dot, t, patch, run.h_dot)
    if run.w_hr_dot != NULL:
        project_shown(&run.problem, &run.changes.w_hr, run.shown, t, patch, run.h_dot, True)
