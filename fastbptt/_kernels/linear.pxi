# A linear layer: the projection of a recurrent one, and the gradients through it. It is a recurrent layer without a state.

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
        pack_input(&p.weights, &w[0, 0], vector(b), p.sharing.threads, &watch)
        project_all(&p)
    raise_if_interrupted(&watch)


def linear_backward(const real[:, ::1] x, const real[:, ::1] w, const real[:, ::1] d_out, real[:, ::1] dx, real[:, ::1] dw, real[::1] db):
    """dx (M, I) = d_out w, or None, as w may then be; dw (N, I) = d_out^T x; db (N,) = the sum of d_out over its rows, or None."""
    cdef Gradients run
    cdef Problem *problem = &run.back.problem
    cdef Sharing *sharing = &run.back.sharing
    memset(&run, 0, sizeof(Gradients))
    problem.time.T, problem.time.B, problem.N, problem.I = 1, x.shape[0], dw.shape[0], dw.shape[1]
    problem.x = &x[0, 0]
    run.back.block.t1, run.back.block.b1, run.back.block.da = 1, x.shape[0], <real *>&d_out[0, 0]
    if dx is not None:
        run.dx, problem.w_ih = &dx[0, 0], &w[0, 0]
    run.sums.dw_ih, run.sums.db_ih = &dw[0, 0], &db[0] if db is not None else NULL
    run.begins, sharing.threads = True, thread_limit()
    cdef Block room = make_room(lay_out_backward, &run)
    with nogil:
        prepare_backward(&run)
        share_gradients(sharing, problem.time.B, problem.N, problem.I, 0, True, run.dx != NULL)
        parallel(collect_part, &run, sharing.tasks, sharing.workers, &run.back.watch)
    raise_if_interrupted(&run.back.watch)
