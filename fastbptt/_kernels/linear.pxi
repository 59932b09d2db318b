# A linear layer: the projection of a recurrent one, and the gradients through it.

cdef struct Linear:                # the backward pass
    Py_ssize_t M, N, I
    const real *x                  # (M, I)
    const real *d_out              # (M, N)
    Panels w
    real *dx                       # (M, I) or NULL
    real *dw
    real *db
    const real *zeros              # I elements
    real *scratch
    Sharing sharing
    Watch watch


def linear_forward(const real[:, ::1] x, const real[:, ::1] w, const real[::1] b, real[:, ::1] out):
    """out (M, N) = x (M, I) w^T + b"""
    cdef Projection p
    cdef Watch watch
    memset(&p, 0, sizeof(Projection))
    memset(&watch, 0, sizeof(Watch))
    p.rows, p.weights.N, p.weights.I = x.shape[0], w.shape[0], w.shape[1]
    p.x, p.a, p.watch = &x[0, 0], &out[0, 0], &watch
    p.sharing.threads = thread_limit()
    cdef Block room = make_room(lay_out_input, &p.weights)
    with nogil:
        pack_input(&p.weights, &w[0, 0], vector(b))
        project_all(&p)
    raise_if_interrupted(&watch)


def linear_backward(const real[:, ::1] x, const real[:, ::1] w, const real[:, ::1] d_out, real[:, ::1] dx, real[:, ::1] dw, real[::1] db):
    """dx (M, I) = d_out w, or None, as w may then be; dw (N, I) += d_out^T x; db (N,) += the sum of d_out over its rows, or None."""
    cdef Linear run
    memset(&run, 0, sizeof(Linear))
    run.M, run.N, run.I = x.shape[0], dw.shape[0], dw.shape[1]
    run.x, run.d_out, run.dx = &x[0, 0], &d_out[0, 0], &dx[0, 0] if dx is not None else NULL
    run.dw, run.db = &dw[0, 0], &db[0] if db is not None else NULL
    run.sharing.threads = thread_limit()
    cdef Block room = make_room(lay_out_linear_backward, &run)
    with nogil:
        if run.dx != NULL:
            pack_backward(run.w, &w[0, 0], run.N, run.I)
            memset(<void *>run.zeros, 0, run.I * sizeof(real))
        share_gradients(&run.sharing, run.M, run.N, run.I, 0, True, run.dx != NULL)
        parallel(collect_linear, &run, run.sharing.tasks, run.sharing.workers, &run.watch)
    raise_if_interrupted(&run.watch)


cdef void lay_out_linear_backward(void *call, Space *space) noexcept nogil:
    cdef Linear *run = <Linear *>call
    if run.dx != NULL:
        run.w = take_panels(space, run.I, run.N)
        run.zeros = take(space, run.I)
    run.scratch = take(space, gradient_scratch(run.sharing.threads, gradient_parts(run.I, 0)))


cdef void collect_linear(void *context, int part, int worker) noexcept nogil:
    """A part of dx, by rows, and of dw and db, by columns."""
    cdef Linear *run = <Linear *>context
    cdef Py_ssize_t M = run.M, N = run.N, I = run.I, panels = ceil_div(I, LANES)
    cdef int parts = run.sharing.tasks
    if run.dx != NULL:
        add_input_gradient(run.d_out, N, 1, M, M * part // parts, M * (part + 1) // parts, run.w, I, run.zeros, rows(run.dx, 0, I),
                           &run.watch, worker)
    add_weight_gradient(run.d_out, N, M, sequence(rows(run.x, 0, I), M), I, panels * part // parts, panels * (part + 1) // parts, run.dw,
                        run.scratch + worker * <Py_ssize_t>GRADIENT_SCRATCH, &run.watch, worker)
    if run.db != NULL:
        add_column_sums(run.d_out, N, M, N * part // parts, N * (part + 1) // parts, run.db)
