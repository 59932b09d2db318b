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


cdef inline bint is_small(const Problem *net) noexcept nogil:
    """Whether nets go side by side. By themselves those of 8, 15, 16, 20, 24 and 32 units took 2.2 to 5.1, 1.2 to 2.9, 1.0 to 2.5, 1.5 to
    2.2, 1.2 to 1.7 and 0.9 to 1.1 times as long, in batches of 1 to 32 (48 nets, float32, vectors of 16, one thread).
    """
    return LANES > 1 and net.w_hr == NULL and net.H < SMALL_VECTORS * LANES and net.H % LANES != 0


# --- A group ----------------------------------------------------------------------------------------------------------

cdef void size_group(Group *group, const Fleet *fleet, Py_ssize_t task) noexcept nogil:
    cdef Problem *problem = &group.problem
    cdef const Problem *net = &fleet.net
    memset(group, 0, sizeof(Group))
    group.fleet, group.first = fleet, task * LANES
    group.nets = min(<Py_ssize_t>LANES, fleet.K - group.first)
    group.block = max(1, min(<Py_ssize_t>SMALL_BLOCK, SMALL_BLOCK_DA // net.N) // net.time.B)
    problem[0] = net[0]
    problem.N, problem.I, problem.P, problem.H = net.N * LANES, net.I * LANES, net.P * LANES, net.H * LANES
    move_kept(problem, task)


cdef void lay_out_group(Group *group, Space *space) noexcept nogil:
    cdef const Problem *net = &group.fleet.net
    cdef Py_ssize_t B = net.time.B
    group.w_ih = take(space, net.N * net.I * LANES)
    group.w_hh = take(space, net.N * net.P * LANES)
    group.leak = take(space, net.H * LANES if net.leak != NULL else 0)
    group.x = take(space, group.block * B * net.I * LANES if net.x != NULL else 0)
    if group.fleet.lengths != NULL:
        lay_out_order(&group.order, net.time.T, B, False, space)
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
        sort_rows_of_net(&group.order, lengths, NULL, group.problem.time.T, B)
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
