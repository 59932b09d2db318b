# A linear layer is the time loop's projection, and the gradients it collects, without the recurrence: a Run with H = 0.

def linear_forward(const real[:, ::1] x, const real[:, ::1] w, const real[::1] b, real[:, ::1] out):
    """out (M, N) = x (M, I) w^T + b"""
    cdef Run run = linear_run(x, w)
    cdef Workspace space = Workspace(forward_space(&run), 4)
    run.a = &out[0, 0]
    with nogil:
        prepare_forward(&run, space, &w[0, 0], NULL, &b[0] if b is not None else NULL, NULL)
        share(&run, <double>run.T * run.N * run.I, run.T, PROJECTED_ROWS)
        run.projected = max(1, FORWARD_BLOCK // (run.N * <Py_ssize_t>sizeof(real)))
        parallel(project_steps, &run, run.tasks, run.workers, &run.watch)
    raise_if_interrupted(&run.watch)


def linear_backward(const real[:, ::1] x, const real[:, ::1] w, const real[:, ::1] d_out, real[:, ::1] dx, real[:, ::1] dw, real[::1] db):
    """dx (M, I) = d_out w unless it is None; dw (N, I) += d_out^T x; db (N,) += the sum of d_out over its rows"""
    cdef Run run = linear_run(x, w)
    run.dx = &dx[0, 0] if dx is not None else NULL
    run.sums.dw_ih = &dw[0, 0]
    run.sums.db_ih = &db[0]
    run.groups = 1
    cdef Workspace space = Workspace(backward_space(&run), 7)
    with nogil:
        prepare_backward(&run, space, &w[0, 0], NULL)
        run.block = last_block(&run, 0, 1, <real *>&d_out[0, 0], <real *>&d_out[0, 0])
        run.block.t0 = run.block.low = 0
        share_gradients(&run, run.T)
        parallel(collect_part, &run, run.tasks, run.workers, &run.watch)
    raise_if_interrupted(&run.watch)


cdef Run linear_run(const real[:, ::1] x, const real[:, ::1] w):
    cdef Run run
    memset(&run, 0, sizeof(Run))
    run.threads = thread_limit()
    run.T = x.shape[0]
    run.B = 1
    run.I = w.shape[1]
    run.N = w.shape[0]
    run.x = &x[0, 0]
    return run
