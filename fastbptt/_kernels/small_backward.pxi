# Small nets side by side (`small_nets.pxi`), backward: a task is a group.

cdef struct GroupBackward:
    Group group
    Backward run
    real *d_out                    # of a block, as x
    real *dx
    real *d_last                   # (B, P, LANES), and (B, H, LANES)
    real *c_last
    real *row                      # one net's (dh, dc), to be clipped
    real *ones                     # a vector, and one of zeros
    real *zero
    Sums sums                      # of the pass, and of a block: of one net's sizes, with lanes
    Sums block_sums


cdef void size_group_backward(GroupBackward *task, const Fleet *fleet, Py_ssize_t number) noexcept nogil:
    memset(task, 0, sizeof(GroupBackward))
    size_group(&task.group, fleet, number)
    task.run.clip = fleet.clip


cdef void lay_out_group_backward(void *call, Space *space) noexcept nogil:
    cdef GroupBackward *task = <GroupBackward *>call
    cdef const Fleet *fleet = task.group.fleet
    cdef const Problem *problem = &task.group.problem
    cdef Py_ssize_t B = problem.time.B, held = task.group.block * B
    lay_out_group(&task.group, space)
    task.run.dh = take(space, B * problem.P)
    task.d_last = take(space, B * problem.P if fleet.lengths != NULL else 0)
    if fleet.dc != NULL:
        task.run.dc = take(space, B * problem.H)
        task.c_last = take(space, B * problem.H if fleet.lengths != NULL else 0)
    task.run.zeros = take(space, B * problem.P)
    task.row = take(space, fleet.net.P + fleet.net.H)
    task.ones, task.zero = take(space, LANES), take(space, LANES)
    task.d_out = take(space, held * problem.P if fleet.d_out != NULL else 0)
    task.dx = take(space, held * problem.I if fleet.dx != NULL else 0)
    task.run.block.da = task.run.block.da_h = take(space, held * problem.N)
    if problem.reset_after:
        task.run.block.da_h = take(space, held * problem.N)
    lay_out_sums_of_nets(&task.sums, &fleet.net, space)
    lay_out_sums_of_nets(&task.block_sums, &fleet.net, space)


cdef void lay_out_sums_of_nets(Sums *sums, const Problem *net, Space *space) noexcept nogil:
    sums.dw_ih = take(space, sums_size(net) * LANES)
    sums.dw_hh = sums.dw_ih + net.N * net.I * LANES
    sums.db_ih = sums.dw_hh + net.N * net.P * LANES
    sums.db_hh = sums.db_ih + net.N * LANES if net.reset_after else NULL


cdef void backward_of_group(void *context, int number, int worker) noexcept nogil:
    cdef Fleet *fleet = <Fleet *>context
    cdef GroupBackward task
    cdef Group *group = &task.group
    cdef const Problem *net = &fleet.net
    cdef Problem *problem = &group.problem
    cdef TimeBlock *block = &task.run.block
    cdef Py_ssize_t B = net.time.B, t
    cdef Space space
    if fleet.watch.stop:
        return
    size_group_backward(&task, fleet, number)
    space.free = fleet.room + worker * fleet.room_each
    lay_out_group_backward(&task, &space)
    prepare_group(group)
    if not has_gates(problem):
        problem.a = problem.h + B * problem.P
    task.run.problem = problem[0]
    memset(<void *>task.run.zeros, 0, B * problem.P * sizeof(real))
    memset(task.sums.dw_ih, 0, sums_size(net) * LANES * sizeof(real))
    store(task.ones, broadcast(1))
    store(task.zero, broadcast(0))
    interleave_rows(group, fleet.dh, net.P, task.run.dh)
    if fleet.dc != NULL:
        interleave_rows(group, fleet.dc, net.H, task.run.dc)
    if fleet.lengths != NULL:
        memcpy(task.d_last, task.run.dh, B * problem.P * sizeof(real))
        if fleet.dc != NULL:
            memcpy(task.c_last, task.run.dc, B * problem.H * sizeof(real))
    block.b1, block.t1 = B, net.time.T
    while block.t1 > 0:
        block.t0 = (block.t1 - 1) // group.block * group.block
        if held_at(group, block.t0) > 0:
            begin_block(group, block.t0)
            if fleet.d_out != NULL:
                interleave_steps(group, fleet.d_out, net.P, False, block.t0, block.t1, task.d_out)
            t = block.t1 - 1
            while t >= block.t0:
                step_back_in_group(&task, t)
                t -= 1
                if interrupted(&fleet.watch, worker, 3.0 * B * problem.N * (net.I + net.P + CELL_WORK)):
                    return
            collect_in_group(&task)
        block.t1 = block.t0
    deinterleave_rows(group, task.run.dh, net.P, fleet.dh)
    if fleet.dc != NULL:
        deinterleave_rows(group, task.run.dc, net.H, fleet.dc)
    if net.reset_after:            # of the other gates, both biases' gradients are one
        memcpy(task.sums.db_hh, task.sums.db_ih, (net.N - net.H) * LANES * sizeof(real))
        deinterleave_nets(group, task.sums.db_hh, net.N, fleet.sums.db_hh)
    deinterleave_nets(group, task.sums.dw_ih, net.N * net.I, fleet.sums.dw_ih)
    deinterleave_nets(group, task.sums.dw_hh, net.N * net.P, fleet.sums.dw_hh)
    deinterleave_nets(group, task.sums.db_ih, net.N, fleet.sums.db_ih)


cdef void step_back_in_group(GroupBackward *task, Py_ssize_t t) noexcept nogil:
    """Step t of the block at hand: its da; dh and dc become the gradients of the states before it, without d_out's share."""
    cdef const Group *group = &task.group
    cdef const Problem *problem = &group.problem
    cdef const Problem *net = &group.fleet.net
    cdef Backward *run = &task.run
    cdef Py_ssize_t B = net.time.B, N = problem.N, P = problem.P, H = problem.H, held = held_at(group, t), row = (t - run.block.t0) * B
    cdef real *da = run.block.da + row * N
    cdef real *da_h = run.block.da_h + row * N
    cdef Patch patch = whole_rows(problem, 0, held)
    if held == 0:
        return
    if group.fleet.d_out != NULL:
        add(task.d_out + row * P, held * P, run.dh)
    clip_lanes(task, t, held)
    step_backward(run, &run.block, t, &patch)
    select(group, t, run.block.t0, held, da, N, NULL)
    if da_h != da:
        select(group, t, run.block.t0, held, da_h, N, NULL)
    # reverse of: a_t += h_{t-1} W_hh^T
    lane_product(held, net.P, net.N, da_h, N, LANES, group.w_hh, P, LANES, run.dh, P, LANES, run.dh, P, LANES)
    select(group, t, run.block.t0, held, run.dh, P, task.d_last)
    if run.dc != NULL:
        select(group, t, run.block.t0, held, run.dc, H, task.c_last)


cdef void clip_lanes(GroupBackward *task, Py_ssize_t t, Py_ssize_t held) noexcept nogil:
    """As `clip_state`, net by net."""
    cdef const Group *group = &task.group
    cdef Backward *run = &task.run
    cdef Py_ssize_t P = group.fleet.net.P, H = group.fleet.net.H if run.dc != NULL else 0, b, l, i
    if run.clip.kind == UNCLIPPED:
        return
    for b in range(held):
        for l in range(LANES):
            if is_there(group, l, t, b):
                for i in range(P):
                    task.row[i] = run.dh[(b * P + i) * LANES + l]
                for i in range(H):
                    task.row[P + i] = run.dc[(b * H + i) * LANES + l]
                clip_row(&run.clip, task.row, P, task.row + P, H)
                for i in range(P):
                    run.dh[(b * P + i) * LANES + l] = task.row[i]
                for i in range(H):
                    run.dc[(b * H + i) * LANES + l] = task.row[P + i]


cdef void collect_in_group(GroupBackward *task) noexcept nogil:
    """dx of the block, and its sums."""
    cdef const Group *group = &task.group
    cdef const Fleet *fleet = group.fleet
    cdef const TimeBlock *block = &task.run.block
    cdef Py_ssize_t B = fleet.net.time.B, t, held, size = sums_size(&fleet.net) * LANES
    if fleet.net.x != NULL:
        interleave_steps(group, fleet.net.x, fleet.net.I, fleet.one_x, block.t0, block.t1, group.x)
    memset(task.block_sums.dw_ih, 0, size * sizeof(real))
    if group.row == NULL:
        collect_steps(task, block.t0, (block.t1 - block.t0) * B)
    else:
        for t in range(block.t0, block.t1):
            held = held_at(group, t)
            if held > 0:
                collect_steps(task, t, held)
    add(task.block_sums.dw_ih, size, task.sums.dw_ih)
    if fleet.dx != NULL:
        deinterleave_steps(group, task.dx, fleet.net.I, block.t0, block.t1, fleet.dx)


cdef void collect_steps(GroupBackward *task, Py_ssize_t t, Py_ssize_t rows) noexcept nogil:
    """So many rows from step t on, one behind the other."""
    cdef const Group *group = &task.group
    cdef const Problem *problem = &group.problem
    cdef const Problem *net = &group.fleet.net
    cdef const Sums *sums = &task.block_sums
    cdef Py_ssize_t B = net.time.B, N = problem.N, I = problem.I, P = problem.P, row = (t - task.run.block.t0) * B
    cdef Py_ssize_t summed = net.N - net.H
    cdef real *da = task.run.block.da + row * N
    cdef real *da_h = task.run.block.da_h + row * N
    cdef real *x = group.x + row * I
    # reverse of: a = x W_ih^T + h W_hh^T + bias
    if group.fleet.dx != NULL:
        lane_product(rows, net.I, net.N, da, N, LANES, group.w_ih, I, LANES, task.zero, 0, 0, task.dx + row * I, I, LANES)
    if net.x != NULL:
        lane_product(net.N, net.I, rows, da, LANES, N, x, I, LANES, sums.dw_ih, I, LANES, sums.dw_ih, I, LANES)
    else:
        add_token_gradients(task, t, rows)
    lane_product(net.N, net.P, rows, da_h, LANES, N, problem.h + t * B * P, P, LANES, sums.dw_hh, P, LANES, sums.dw_hh, P, LANES)
    lane_product(net.N, 1, rows, da, LANES, N, task.ones, 0, 0, sums.db_ih, LANES, 0, sums.db_ih, LANES, 0)
    if net.reset_after:
        lane_product(net.H, 1, rows, da_h + summed * LANES, LANES, N, task.ones, 0, 0, sums.db_hh + summed * LANES, LANES, 0,
                     sums.db_hh + summed * LANES, LANES, 0)


cdef void add_token_gradients(GroupBackward *task, Py_ssize_t t, Py_ssize_t rows) noexcept nogil:
    """dW_ih[:, token of a row] += da"""
    cdef const Group *group = &task.group
    cdef const Problem *net = &group.fleet.net
    cdef Py_ssize_t B = net.time.B, N = net.N, I = net.I, r, l, n, token
    cdef const real *da = task.run.block.da + (t - task.run.block.t0) * B * N * LANES
    cdef real *dw = task.block_sums.dw_ih
    for r in range(rows):
        for l in range(LANES):
            if is_there(group, l, t + r // B, r % B):
                token = token_of(group, l, t + r // B, r % B)
                for n in range(N):
                    dw[(n * I + token) * LANES + l] += da[(r * N + n) * LANES + l]
