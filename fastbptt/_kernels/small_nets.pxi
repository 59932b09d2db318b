# Nets of few units, side by side: lane l of every vector belongs to net l of a group of LANES. However few units a net has, no part of a
# vector is left over; and what a lane holds depends on nothing in the others.
#
#   a number of one net is a vector here        a row of H units is H * LANES numbers, [unit][lane]; W (N, K) is [n][k][lane]
#
# To the cells (`cells.pxi`) a row is then one of H * LANES units, and so the group's `Problem` counts all of its sizes. Products alone are
# others (`lanes.h`). What the caller has is interleaved, and what it gets is taken apart, a block of time at a time.
#
# Blocks begin at multiples of their length, a question of sizes alone, and the sums over a block are added up before they are added to
# those of the pass. Where rows end early, each net's are sorted, the longest first; a step has the rows that any net has (``held``). The
# state of a lane whose row is over is 0 on the way forward; on the way back its gradient is that of the last state, until the row's end is
# reached, and its da is 0.

cdef enum:
    SMALL_VECTORS = 2              # a net with fewer vectors of units than that is small, if they are not whole vectors
    MOST_LANES = 16                # at any level
    SMALL_BLOCK = 256              # (step, row) pairs in a block, at most, unless a step has more,
    SMALL_BLOCK_DA = 2048          # and vectors of da, at most

cdef struct Group:
    const Fleet *fleet
    Py_ssize_t first, nets         # the first net, and how many there are
    Problem problem                # counts lanes
    real *w_ih                     # (N, I, LANES)
    real *w_hh
    real *leak
    Py_ssize_t block               # steps
    real *x                        # of a block: (its steps, B, I, LANES)
    Order order                    # of one net, while rows are sorted
    Py_ssize_t *row                # (LANES, B): each net's rows, the longest first
    Py_ssize_t *steps              # (LANES, B): and their lengths
    Py_ssize_t *most               # (B,): over all nets
    Py_ssize_t *least
    real *left                     # (B, LANES): steps that are left at the beginning of a block

cdef struct GroupForward:
    Group group
    Forward run
    real *bias                     # (N, LANES)
    real *m_bias
    real *last                     # (B, P or H, LANES)

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


cdef inline bint is_small(const Problem *net) noexcept nogil:
    """Whether nets go side by side. By themselves those of 8, 15, 16, 20, 24 and 32 units took 2.2 to 5.1, 1.2 to 2.9, 1.0 to 2.5, 1.5 to
    2.2, 1.2 to 1.7 and 0.9 to 1.1 times as long, in batches of 1 to 32 (48 nets, float32, vectors of 16, one thread).
    """
    return LANES > 1 and net.w_hr == NULL and net.H < SMALL_VECTORS * LANES and net.H % LANES != 0


# --- A group ----------------------------------------------------------------------------------------------------------

cdef void size_group(Group *group, const Fleet *fleet, Py_ssize_t task) noexcept nogil:
    cdef Problem *problem = &group.problem
    cdef const Problem *net = &fleet.net
    cdef Py_ssize_t B = net.time.B, T = net.time.T
    memset(group, 0, sizeof(Group))
    group.fleet, group.first = fleet, task * LANES
    group.nets = min(<Py_ssize_t>LANES, fleet.K - group.first)
    group.block = max(1, min(<Py_ssize_t>SMALL_BLOCK, SMALL_BLOCK_DA // net.N) // B)
    problem[0] = net[0]
    problem.N, problem.I, problem.P, problem.H = net.N * LANES, net.I * LANES, net.P * LANES, net.H * LANES
    problem.h += task * (T + 1) * B * problem.P if net.h != NULL else 0
    problem.c += task * (T + 1) * B * problem.H if net.c != NULL else 0
    problem.a += task * T * B * problem.N if net.a != NULL else 0
    problem.m += task * T * B * problem.H if net.m != NULL else 0


cdef void lay_out_group(Group *group, Space *space) noexcept nogil:
    cdef const Problem *net = &group.fleet.net
    cdef Py_ssize_t B = net.time.B
    group.w_ih = take(space, net.N * net.I * LANES)
    group.w_hh = take(space, net.N * net.P * LANES)
    group.leak = take(space, net.H * LANES if net.leak != NULL else 0)
    group.x = take(space, group.block * B * net.I * LANES if net.x != NULL else 0)
    if group.fleet.lengths != NULL:
        lay_out_order(&group.order, net.time.T, B, space)
        group.row, group.steps = take_indices(space, LANES * B), take_indices(space, LANES * B)
        group.most, group.least = take_indices(space, B), take_indices(space, B)
        group.left = take(space, B * LANES)


cdef void prepare_group(Group *group) noexcept nogil:
    """The weights, and the order of rows."""
    cdef const Fleet *fleet = group.fleet
    cdef const Problem *net = &fleet.net
    interleave_nets(group, net.w_ih, net.N * net.I, group.w_ih)
    interleave_nets(group, net.w_hh, net.N * net.P, group.w_hh)
    if net.leak != NULL:
        interleave_nets(group, net.leak, net.H, group.leak)
        group.problem.leak = group.leak
    if fleet.lengths != NULL:
        sort_rows(group)


cdef void sort_rows(Group *group) noexcept nogil:
    cdef Py_ssize_t B = group.problem.time.B, l, b
    cdef const int64_t *lengths
    for l in range(LANES):
        lengths = lengths_of_net(group.fleet, group.first + (l if l < group.nets else 0))
        sort_rows_of_net(&group.order, lengths, group.problem.time.T, B)
        for b in range(B):
            group.row[l * B + b] = group.order.row[b]
            group.steps[l * B + b] = lengths[group.order.row[b]]
    for b in range(B):
        group.most[b] = group.least[b] = group.steps[b]
        for l in range(1, group.nets):
            group.most[b] = max(group.most[b], group.steps[l * B + b])
            group.least[b] = min(group.least[b], group.steps[l * B + b])


cdef inline bint is_there(const Group *group, Py_ssize_t l, Py_ssize_t t, Py_ssize_t b) noexcept nogil:
    """Whether net l has a step t of its row b, in the order of rows."""
    return l < group.nets and (group.steps == NULL or t < group.steps[l * group.problem.time.B + b])


cdef inline Py_ssize_t row_of(const Group *group, Py_ssize_t l, Py_ssize_t b) noexcept nogil:
    """Where it stands in the caller's arrays."""
    return b if group.row == NULL else group.row[l * group.problem.time.B + b]


cdef inline Py_ssize_t held_at(const Group *group, Py_ssize_t t) noexcept nogil:
    """Rows of step t, in any net."""
    cdef Py_ssize_t held = group.problem.time.B
    while group.most != NULL and held > 0 and group.most[held - 1] <= t:
        held -= 1
    return held


cdef void begin_block(Group *group, Py_ssize_t t0) noexcept nogil:
    cdef Py_ssize_t B = group.problem.time.B, l, b
    if group.left != NULL:
        for b in range(B):
            for l in range(LANES):
                group.left[b * LANES + l] = <real>max(0, min(group.steps[l * B + b] - t0, group.block))


cdef inline void select(const Group *group, Py_ssize_t t, Py_ssize_t t0, Py_ssize_t held, real *rows, Py_ssize_t width,
                        const real *others) noexcept nogil:
    """Of rows (held, width) of step t, what belongs to rows that are over is replaced by the others', or by 0. ``t0`` begins the block."""
    cdef Py_ssize_t b, i
    cdef vec left, other = broadcast(0)
    if group.least == NULL:
        return
    for b in range(held):
        if group.least[b] > t:
            continue
        left = load(group.left + b * LANES)
        i = b * width
        while i < (b + 1) * width:
            if others != NULL:
                other = load(others + i)
            store(rows + i, where_above(left, <real>(t - t0), load(rows + i), other))
            i += LANES


# --- Between the caller's arrays and the group's ----------------------------------------------------------------------

cdef void interleave_nets(const Group *group, const real *source, Py_ssize_t n, real *target) noexcept nogil:
    """Of (K, n) the group's: (n, LANES)."""
    cdef const real *nets[MOST_LANES]
    cdef Py_ssize_t l
    for l in range(LANES):
        nets[l] = source + (group.first + l) * n if l < group.nets else NULL
    interleave(nets, n, target)


cdef void deinterleave_nets(const Group *group, const real *source, Py_ssize_t n, real *target) noexcept nogil:
    cdef real *nets[MOST_LANES]
    cdef Py_ssize_t l
    for l in range(LANES):
        nets[l] = target + (group.first + l) * n if l < group.nets else NULL
    deinterleave(source, n, nets)


cdef void interleave_rows(const Group *group, const real *source, Py_ssize_t width, real *target) noexcept nogil:
    """A state of (K, B, width): (B, width, LANES), in the order of rows."""
    cdef const real *nets[MOST_LANES]
    cdef Py_ssize_t B = group.problem.time.B, b, l
    if group.row == NULL:
        interleave_nets(group, source, B * width, target)
        return
    for b in range(B):
        for l in range(LANES):
            nets[l] = source + ((group.first + l) * B + row_of(group, l, b)) * width if l < group.nets else NULL
        interleave(nets, width, target + b * width * LANES)


cdef void deinterleave_rows(const Group *group, const real *source, Py_ssize_t width, real *target) noexcept nogil:
    cdef real *nets[MOST_LANES]
    cdef Py_ssize_t B = group.problem.time.B, b, l
    if group.row == NULL:
        deinterleave_nets(group, source, B * width, target)
        return
    for b in range(B):
        for l in range(LANES):
            nets[l] = target + ((group.first + l) * B + row_of(group, l, b)) * width if l < group.nets else NULL
        deinterleave(source + b * width * LANES, width, nets)


cdef void interleave_steps(const Group *group, const real *source, Py_ssize_t width, bint one_for_all, Py_ssize_t t0, Py_ssize_t t1,
                           real *target) noexcept nogil:
    """Steps t0..t1 of (K, T, B, width), or of (T, B, width): (t1 - t0, B, width, LANES), 0 where a row is over."""
    cdef const real *nets[MOST_LANES]
    cdef Py_ssize_t T = group.problem.time.T, B = group.problem.time.B, size = T * B * width, n = (t1 - t0) * B * width, t, b, l, i
    cdef Py_ssize_t first = 0 if one_for_all else group.first, step = 0 if one_for_all else size
    source += first * size
    if group.row == NULL and one_for_all:
        for i in range(n):
            store(target + i * LANES, broadcast(source[t0 * B * width + i]))
    elif group.row == NULL:
        for l in range(LANES):
            nets[l] = source + l * step + t0 * B * width if l < group.nets else NULL
        interleave(nets, n, target)
    else:
        for t in range(t0, t1):
            for b in range(held_at(group, t)):
                for l in range(LANES):
                    nets[l] = source + l * step + (t * B + row_of(group, l, b)) * width if is_there(group, l, t, b) else NULL
                interleave(nets, width, target + ((t - t0) * B + b) * width * LANES)


cdef void deinterleave_steps(const Group *group, const real *source, Py_ssize_t width, Py_ssize_t t0, Py_ssize_t t1,
                             real *target) noexcept nogil:
    """And back; what stands in the target behind a row's end stays."""
    cdef real *nets[MOST_LANES]
    cdef Py_ssize_t T = group.problem.time.T, B = group.problem.time.B, size = T * B * width, t, b, l
    target += group.first * size
    if group.row == NULL:
        for l in range(LANES):
            nets[l] = target + l * size + t0 * B * width if l < group.nets else NULL
        deinterleave(source, (t1 - t0) * B * width, nets)
        return
    for t in range(t0, t1):
        for b in range(held_at(group, t)):
            for l in range(LANES):
                nets[l] = target + l * size + (t * B + row_of(group, l, b)) * width if is_there(group, l, t, b) else NULL
            deinterleave(source + ((t - t0) * B + b) * width * LANES, width, nets)


# --- Forward ----------------------------------------------------------------------------------------------------------

cdef void size_group_forward(GroupForward *task, const Fleet *fleet, Py_ssize_t number) noexcept nogil:
    memset(task, 0, sizeof(GroupForward))
    size_group(&task.group, fleet, number)


cdef void lay_out_group_forward(void *call, Space *space) noexcept nogil:
    cdef GroupForward *task = <GroupForward *>call
    cdef const Fleet *fleet = task.group.fleet
    cdef Problem *problem = &task.group.problem
    cdef Py_ssize_t T = problem.time.T, B = problem.time.B
    lay_out_group(&task.group, space)
    task.bias, task.m_bias = take(space, problem.N), take(space, problem.H)
    task.last = take(space, B * problem.H)
    if problem.h == NULL:
        problem.h = take(space, (T + 1) * B * problem.P)
    if problem.c == NULL and fleet.c_n != NULL:
        problem.c = take(space, (T + 1) * B * problem.H)
    if problem.a == NULL and has_gates(problem):
        problem.a = take(space, T * B * problem.N)
    if problem.m == NULL and problem.reset_after:
        problem.m = take(space, T * B * problem.H)


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


# --- Backward ---------------------------------------------------------------------------------------------------------

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
