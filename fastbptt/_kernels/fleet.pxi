# Fleets: K nets of one shape, each with arrays of its own, in one call. The arrays of all nets lie one behind the other.
#
# A task is a net (`whole_nets.pxi`) or, of nets of few units, a group that goes side by side in the lanes of vectors (`small_nets.pxi`).
# What a pass leaves for the other is in one place for each task, whatever that is.

cdef double SHARED_NET = 1e7       # multiply-adds forward of a net that all threads had better share, if there are fewer nets than threads

cdef struct Fleet:
    Py_ssize_t K
    Problem net                    # a net's sizes, and the arrays of the first
    bint one_x, one_lengths        # for all nets
    bint has_c                     # an LSTM's
    const int64_t *lengths         # (B,) or (K, B), or NULL
    const unsigned char *resets    # (T, B) or NULL: of one net, not of many
    Py_ssize_t places              # rows of a batch or, where there are resets, the pieces that it is cut into
    const ForwardWeights *packed   # of one net, if they were packed before; or NULL
    const real *b_ih               # (K, N) or NULL
    const real *b_hh
    const real *h0                 # (K, B, P) or NULL
    const real *c0
    real *out                      # (K, T, B, P), 0 to begin with where there are lengths; NULL: not wanted, or the states are it
    real *h_n
    real *c_n
    const real *d_out
    real *dh                       # gradients of the last states, which become those of the initial ones
    real *dc
    real *dx                       # (K, T, B, I), 0 to begin with where there are lengths; or NULL
    Sums sums                      # (K, ...)
    StepClip clip
    int tasks, workers
    int threads                    # for each net
    size_t room                    # of the first worker's scratch
    size_t room_each
    Watch watch


def nets_in_group(Py_ssize_t H, bint projected):
    """How many nets of H units are taken side by side, and have one place together for what is kept: 1 or, if they are small, `lanes`.

    A question of the net's shape alone, since sums in another order have other bits.
    """
    cdef Problem net
    cdef real any_weight
    net.H, net.w_hr = H, &any_weight if projected else NULL
    return LANES if is_small(&net) else 1


def fleet_forward(int cell, int activation, bint reset_after, x, tokens, w_ih, w_hh, b_ih, b_hh, w_hr, leak, lengths, h0, c0, h, c, a, m,
                  out, h_n, c_n):
    """Fill h_n, c_n, what there is of h, c, a and m, and of out, if it is not a view of h; these are (tasks, ...).

    An x of one dimension less, and lengths likewise, are for all nets. One of h, c, a and m that is None is not kept.
    """
    cdef Fleet fleet
    cdef NetForward net
    cdef GroupForward group
    cdef Block room
    cdef Views views
    views.count = 0
    memset(&fleet, 0, sizeof(Fleet))
    try:
        bind_fleet(&fleet, &views, cell, activation, reset_after, x, tokens, w_ih, w_hh, w_hr, leak, lengths, h, c, a, m, WRITE)
        fleet.b_ih, fleet.b_hh = view_or_null(&views, "b_ih", b_ih, 2, READ), view_or_null(&views, "b_hh", b_hh, 2, READ)
        fleet.h0, fleet.c0 = view_or_null(&views, "h0", h0, 3, READ), view_or_null(&views, "c0", c0, 3, READ)
        fleet.out = view_or_null(&views, "out", out, 4, WRITE)
        fleet.h_n, fleet.c_n = view_or_null(&views, "h_n", h_n, 3, WRITE), view_or_null(&views, "c_n", c_n, 3, WRITE)
        if is_small(&fleet.net):
            size_group_forward(&group, &fleet, 0)
            fleet.room_each = bytes_of(lay_out_group_forward, &group)
            room = run_fleet(&fleet, forward_of_group)
        else:
            size_net_forward(&net, &fleet, 0)
            fleet.room_each = bytes_of(lay_out_net_forward, &net)
            room = run_fleet(&fleet, forward_of_net)
        raise_if_interrupted(&fleet.watch)
    finally:
        release(&views)


def fleet_backward(int cell, int activation, bint reset_after, x, tokens, w_ih, w_hh, w_hr, leak, lengths, h, c, a, m, d_out, dh, dc, dx,
                   dw_ih, dw_hh, db_ih, db_hh, dw_hr, int clip_kind, double clip_limit):
    """Fill all sums, and dx unless it is None. dh and dc are as for `backward`."""
    cdef Fleet fleet
    cdef GroupBackward group
    cdef Block room
    cdef Views views
    views.count = 0
    memset(&fleet, 0, sizeof(Fleet))
    try:
        bind_fleet(&fleet, &views, cell, activation, reset_after, x, tokens, w_ih, w_hh, w_hr, leak, lengths, h, c, a, m, READ)
        fleet.d_out = view_or_null(&views, "d_out", d_out, 4, READ)
        fleet.dh, fleet.dc = view_or_null(&views, "dh", dh, 3, WRITE), view_or_null(&views, "dc", dc, 3, WRITE)
        fleet.dx = view_or_null(&views, "dx", dx, 4, WRITE)
        fleet.sums.dw_ih, fleet.sums.dw_hh = view_or_null(&views, "dw_ih", dw_ih, 3, WRITE), view_or_null(&views, "dw_hh", dw_hh, 3, WRITE)
        fleet.sums.db_ih, fleet.sums.db_hh = view_or_null(&views, "db_ih", db_ih, 2, WRITE), view_or_null(&views, "db_hh", db_hh, 2, WRITE)
        fleet.sums.dw_hr = view_or_null(&views, "dw_hr", dw_hr, 3, WRITE)
        fleet.clip.kind, fleet.clip.limit = clip_kind, clip_limit
        if is_small(&fleet.net):
            size_group_backward(&group, &fleet, 0)
            fleet.room_each = bytes_of(lay_out_group_backward, &group)
            room = run_fleet(&fleet, backward_of_group)
        else:
            fleet.room_each = room_for_net_backward(&fleet)
            room = run_fleet(&fleet, backward_of_net)
        raise_if_interrupted(&fleet.watch)
    finally:
        release(&views)


cdef void plan_fleet(Fleet *fleet) noexcept:
    """Tasks, and threads to take them side by side; where tasks are few and long, one, and it has all threads for each."""
    cdef int limit = thread_limit()
    cdef double work = work_of_net(&fleet.net)
    fleet.tasks = <int>(ceil_div(fleet.K, LANES) if is_small(&fleet.net) else fleet.K)
    fleet.workers, fleet.threads = 1, limit
    if not (fleet.tasks == fleet.K < limit and work >= SHARED_NET):
        fleet.workers, fleet.threads = tasks_for(limit, fleet.K * work, fleet.tasks), 1


cdef Block run_fleet(Fleet *fleet, Task run):
    """Once ``room_each`` is known."""
    cdef Block block = Block(fleet.workers * fleet.room_each)
    cdef int task
    fleet.room = <size_t>block.at
    with nogil:
        if fleet.threads == 1:
            parallel(run, fleet, fleet.tasks, fleet.workers, &fleet.watch)
        else:
            for task in range(fleet.tasks):
                run(fleet, task, 0)
    return block


cdef int bind_fleet(Fleet *fleet, Views *views, int cell, int activation, bint reset_after, x, tokens, w_ih, w_hh, w_hr, leak, lengths,
                    h, c, a, m, int access) except -1:
    cdef Problem *net = &fleet.net
    cdef const Py_buffer *given
    cdef bint projected = w_hr is not None
    if not choose_steps(net, cell, projected):
        raise ValueError(f"cell: there is none with number {cell} in these kernels; after a change to their source they must be built anew")
    net.activation, net.reset_after, fleet.has_c = activation, reset_after, cell == LSTM_CELL
    given = view(views, "w_ih", w_ih, 3, READ)
    net.w_ih = <const real *>given.buf
    fleet.K, net.N, net.I = given.shape[0], given.shape[1], given.shape[2]
    given = view(views, "w_hh", w_hh, 3, READ)
    net.w_hh = <const real *>given.buf
    net.P = net.H = given.shape[2]
    if projected:
        given = view(views, "w_hr", w_hr, 3, READ)
        net.w_hr = <const real *>given.buf
        net.H = given.shape[2]
    net.gates = <int>(net.N // net.H)
    if x is not None:
        fleet.one_x = x.ndim == 3
        given = view(views, "x", x, 3 if fleet.one_x else 4, READ)
        net.x = <const real *>given.buf
    else:
        fleet.one_x = tokens.ndim == 2
        given = view(views, "tokens", tokens, 2 if fleet.one_x else 3, READ, INTEGER_FORMATS)
        net.tokens = <const int64_t *>given.buf
    net.time.T, net.time.B = given.shape[0 if fleet.one_x else 1], given.shape[1 if fleet.one_x else 2]
    fleet.places = net.time.B
    net.leak = view_or_null(views, "leak", leak, 2, READ)
    if lengths is not None:
        fleet.one_lengths = lengths.ndim == 1
        fleet.lengths = <const int64_t *>view(views, "lengths", lengths, 1 if fleet.one_lengths else 2, READ, INTEGER_FORMATS).buf
    net.h, net.c = view_or_null(views, "h", h, 4, access), view_or_null(views, "c", c, 4, access)
    net.a, net.m = view_or_null(views, "a", a, 4, access), view_or_null(views, "m", m, 4, access)
    plan_fleet(fleet)
    return 0
