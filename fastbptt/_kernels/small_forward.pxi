# Small nets side by side (`small_nets.pxi`), forward: a task is a group.

cdef struct GroupForward:
    Group group
    Forward run
    real *bias                     # (N, LANES)
    real *m_bias
    real *last                     # (B, P or H, LANES)


cdef void size_group_forward(GroupForward *task, const Fleet *fleet, Py_ssize_t number) noexcept nogil:
    memset(task, 0, sizeof(GroupForward))
    size_group(&task.group, fleet, number)


cdef void lay_out_group_forward(void *call, Space *space) noexcept nogil:
    cdef GroupForward *task = <GroupForward *>call
    cdef Problem *problem = &task.group.problem
    lay_out_group(&task.group, space)
    task.bias, task.m_bias = take(space, problem.N), take(space, problem.H)
    task.last = take(space, problem.time.B * problem.H)
    lay_out_unkept(problem, task.group.fleet.has_c, problem.time.B, space)


cdef void forward_of_group(void *context, int number, int worker) noexcept nogil:
    cdef Fleet *fleet = <Fleet *>context
    cdef GroupForward task
    cdef Group *group = &task.group
    cdef Problem *problem = &group.problem
    cdef Py_ssize_t T = fleet.net.time.T, B = fleet.net.time.B, t0 = 0, t1, t, held = B
    cdef Patch patch
    cdef Space space
    if fleet.watch.stop:
        return
    size_group_forward(&task, fleet, number)
    space.free = fleet.room + worker * fleet.room_each
    lay_out_group_forward(&task, &space)
    prepare_group(group)
    if not has_gates(problem):
        problem.a = problem.h + B * problem.P
    put_biases(&task)
    begin_states(group, fleet.h0, fleet.net.P, problem.h)
    if problem.c != NULL:
        begin_states(group, fleet.c0, fleet.net.H, problem.c)
    task.run.problem = problem[0]
    patch = whole_rows(problem, 0, B)
    while t0 < T and held > 0:
        t1 = min(T, t0 + group.block)
        begin_block(group, t0)
        if problem.x != NULL:
            interleave_steps(group, problem.x, fleet.net.I, fleet.one_x, t0, t1, group.x)
        for t in range(t0, t1):
            held = held_at(group, t)
            if held == 0:
                break
            products_of_step(&task, t, t0, held)
            step_forward(&task.run, t, &patch, held)
            select(group, t, t0, held, problem.h + (t + 1) * B * problem.P, problem.P, NULL)
            if problem.c != NULL:
                select(group, t, t0, held, problem.c + (t + 1) * B * problem.H, problem.H, NULL)
            if interrupted(&fleet.watch, worker, <double>held * problem.N * (fleet.net.I + fleet.net.P + CELL_WORK)):
                return
        if fleet.out != NULL:
            deinterleave_steps(group, problem.h + (t0 + 1) * B * problem.P, fleet.net.P, t0, t1, fleet.out)
        t0 = t1
    end_states(&task, problem.h, fleet.net.P, fleet.h_n)
    if problem.c != NULL:
        end_states(&task, problem.c, fleet.net.H, fleet.c_n)


cdef void put_biases(GroupForward *task) noexcept nogil:
    """Both added up, but for a gate whose reset comes after the product."""
    cdef const Group *group = &task.group
    cdef const Fleet *fleet = group.fleet
    cdef Py_ssize_t N = fleet.net.N, H = fleet.net.H, summed = N - fleet.net.reset_after * H, l, n, k
    memset(task.bias, 0, N * LANES * sizeof(real))
    memset(task.m_bias, 0, H * LANES * sizeof(real))
    for l in range(group.nets):
        k = group.first + l
        for n in range(N):
            if fleet.b_ih != NULL:
                task.bias[n * LANES + l] = fleet.b_ih[k * N + n]
            if fleet.b_hh != NULL and n < summed:
                task.bias[n * LANES + l] += fleet.b_hh[k * N + n]
            elif fleet.b_hh != NULL:
                task.m_bias[(n - summed) * LANES + l] = fleet.b_hh[k * N + n]


cdef void begin_states(const Group *group, const real *state, Py_ssize_t width, real *history) noexcept nogil:
    if state == NULL:
        memset(history, 0, group.problem.time.B * width * LANES * sizeof(real))
    else:
        interleave_rows(group, state, width, history)


cdef void end_states(GroupForward *task, const real *history, Py_ssize_t width, real *last) noexcept nogil:
    """Each row's last state."""
    cdef const Group *group = &task.group
    cdef Py_ssize_t B = group.problem.time.B, l, b, i
    cdef const real *source
    if group.row == NULL:
        deinterleave_rows(group, history + group.problem.time.T * B * width * LANES, width, last)
        return
    for b in range(B):
        for l in range(group.nets):
            source = history + (group.steps[l * B + b] * B + b) * width * LANES + l
            for i in range(width):
                task.last[(b * width + i) * LANES + l] = source[i * LANES]
    deinterleave_rows(group, task.last, width, last)


cdef void products_of_step(const GroupForward *task, Py_ssize_t t, Py_ssize_t t0, Py_ssize_t held) noexcept nogil:
    """a_t = bias + x_t W_ih^T + h_{t-1} W_hh^T; where the reset comes after it, the last is m_t."""
    cdef const Group *group = &task.group
    cdef const Problem *problem = &group.problem
    cdef const Problem *net = &group.fleet.net
    cdef Py_ssize_t B = net.time.B, N = problem.N, I = problem.I, P = problem.P, H = problem.H, summed = net.N - net.reset_after * net.H
    cdef real *a = problem.a + t * B * N
    cdef real *m
    cdef const real *h_prev = problem.h + t * B * P
    if net.x != NULL:
        lane_product(held, net.N, net.I, group.x + (t - t0) * B * I, I, LANES, group.w_ih, LANES, I, task.bias, 0, LANES, a, N, LANES)
    else:
        add_tokens(task, t, held, a)
    lane_product(held, summed, net.P, h_prev, P, LANES, group.w_hh, LANES, P, a, N, LANES, a, N, LANES)
    if net.reset_after:
        m = problem.m + t * B * H
        lane_product(held, net.H, net.P, h_prev, P, LANES, group.w_hh + summed * P, LANES, P, task.m_bias, 0, LANES, m, H, LANES)


cdef void add_tokens(const GroupForward *task, Py_ssize_t t, Py_ssize_t held, real *a) noexcept nogil:
    """a = bias + each token's weights"""
    cdef const Group *group = &task.group
    cdef const Problem *net = &group.fleet.net
    cdef Py_ssize_t B = net.time.B, N = net.N, I = net.I, b, n, l, token
    for b in range(held):
        memcpy(a + b * N * LANES, task.bias, N * LANES * sizeof(real))
        if group.fleet.one_x and group.row == NULL:
            for n in range(N):
                store(a + (b * N + n) * LANES, load(task.bias + n * LANES) + load(group.w_ih + (n * I + net.tokens[t * B + b]) * LANES))
            continue
        for l in range(LANES):
            if is_there(group, l, t, b):
                token = token_of(group, l, t, b)
                for n in range(N):
                    a[(b * N + n) * LANES + l] += group.w_ih[(n * I + token) * LANES + l]


cdef inline Py_ssize_t token_of(const Group *group, Py_ssize_t l, Py_ssize_t t, Py_ssize_t b) noexcept nogil:
    cdef const Problem *net = &group.fleet.net
    cdef Py_ssize_t B = net.time.B
    return net.tokens[((0 if group.fleet.one_x else (group.first + l) * net.time.T) + t) * B + row_of(group, l, b)]
