# Tangents: small changes of the state, the k rows of v (k, N), taken through the steps of a net. `lyapunov.py` asks how they grow.
#
# Each step pushes them, v := v J^T, and eliminates (`elimination.pxi`), which leaves tangent i without the elements at the pivots of all
# tangents before it: the next push has nothing to do there. Both go by panels. A panel depends on itself one step before, and on the
# panels before it at the same step. So threads share the panels, and those with the later ones follow a step behind. What a panel has
# less to push, it has more to eliminate: all cost the same, but that the later ones have to be told of those before them.
#
# The elements of h stand in an order of which the first can be left out: pivots come first. As sums in another order have other bits, that
# order knows the pivots of some panels only, a group that is the same at any thread count.
#
#   J = past + sum over gates of diag(slopes_g) W_g, in halves of H rows: two for the state (h, c) of an LSTM, one for all others.
#   The sum acts on h, the first H elements of a tangent; past, which is diagonal in each half, acts on the last H.
#
# Where J has to be taken with care (`chain.py`), tangents are measured in units, others before each factor and behind it; and the Jacobian
# of an LSTM is taken in two factors, of which the first is such a J, and the second adds show c to h.

cdef enum:
    GROUP_PANELS = 4
    FEW_TERMS = 64                 # with more of them, all elements of a tangent hardly cancel at once

cdef struct Pushing:               # a thread's means
    Py_ssize_t *order              # (groups, H): the elements of h, in the order of each group
    Py_ssize_t *start              # (panels,): from where on in this order the panel is anything but 0
    Panels jacobian                # half by half: that of the step, in the order of the group at hand, without past
    real *before                   # (PANEL, N): the panel before the factor, not in units
    real *ordered                  # (PANEL, H): its h, in order

cdef struct Factor:                # one for one row of the batch
    Py_ssize_t at                  # the number of step and row
    const real *show               # (H,), if it is one that adds show c; else NULL
    const real *before             # (N,): the units before it, and behind; or NULL
    const real *behind

cdef struct Tangents:
    Py_ssize_t T, B, H, k, N, every
    int halves, gates, groups
    Panels w                       # gate by gate, transposed
    const real *slopes             # (T, B, halves, gates, H)
    const real *past               # (T, B, N), or NULL
    int factors                    # for each step
    const real *units              # (factors * T + 1, B, N), or NULL
    const real *show               # (T, B, H), or NULL
    real *v                        # (B, k, N)
    double *logs                   # (eliminations, B, k)
    int parts                      # threads that share the groups
    int crew                       # threads with means of their own
    Py_ssize_t row                 # the row of the batch that they are at
    # one for each thread or part; the last part is as many steps behind the first as there are others
    Done done[MAX_THREADS]
    Pushing pushing[MAX_THREADS]
    Watch watch

cdef struct Made:                  # what the elements of a panel are sums of
    const Tangents *run
    const Pushing *pushing
    Factor factor
    Py_ssize_t start


def carry(const real[:, ::1] w, const real[:, :, :, :, ::1] slopes, const real[:, :, ::1] past, const real[:, :, ::1] units,
          const real[:, :, ::1] show, Py_ssize_t every, real[:, :, ::1] v, double[:, :, ::1] logs):
    """Take the tangents v (B, k, N) through T steps; after every ``every`` steps, and after the last, v = C q becomes q.

    w (G * H, H), slopes (T, B, N / H, G, H), past (T, B, N) or None. units (n + 1, B, N) before, between and behind the n factors, or None;
    show (T, B, H), if each step has two factors, or None. The logarithms of the pivots' magnitudes are added to logs (T / every, rounded
    up; B, k). A tangent of which nothing but rounding is left becomes 0, its logarithm -inf.
    """
    cdef Tangents run
    memset(&run, 0, sizeof(Tangents))
    run.T, run.B, run.halves, run.gates, run.H = slopes.shape[0], slopes.shape[1], slopes.shape[2], slopes.shape[3], slopes.shape[4]
    run.k, run.N, run.every = v.shape[1], v.shape[2], every
    run.slopes = &slopes[0, 0, 0, 0, 0]
    run.past = &past[0, 0, 0] if past is not None else NULL
    run.units = &units[0, 0, 0] if units is not None else NULL
    run.show = &show[0, 0, 0] if show is not None else NULL
    run.factors = 2 if show is not None else 1
    run.v = &v[0, 0, 0]
    run.logs = &logs[0, 0, 0]
    cdef int threads = thread_limit()
    cdef Py_ssize_t steps = run.factors * run.T
    cdef double step_work = <double>run.k * run.N * run.H
    cdef int workers = tasks_for(threads, step_work * run.T * run.B, run.B)
    run.groups = <int>ceil_div(panels_of(run.k), GROUP_PANELS)
    run.parts = tasks_for(threads, step_work, min(run.groups, <int>MAX_PARTS))
    if run.parts * steps <= workers * (steps + run.parts - 1):  # in the first and the last steps, some parts have nothing to do
        run.parts = 1
    run.crew = max(workers, run.parts)
    cdef Block room = make_room(lay_out_tangents, &run)
    cdef Py_ssize_t gate
    with nogil:
        for gate in range(run.gates):
            pack_transposed(&w[gate * run.H, 0], run.H, run.H, run.H, panels_from(run.w, gate * ceil_div(run.H, LANES)).at, run.w.panel)
        if run.parts == 1:
            parallel(carry_row, &run, <int>run.B, workers, &run.watch)
        else:
            for run.row in range(run.B):
                parallel_steps(carry_part, &run, steps + run.parts - 1, 1, run.parts, &run.watch)
    raise_if_interrupted(&run.watch)


cdef void lay_out_tangents(void *call, Space *space) noexcept nogil:
    cdef Tangents *run = <Tangents *>call
    cdef Py_ssize_t columns = ceil_div(run.H, LANES) * LANES   # of a gate or a half, padded to whole panels
    cdef int i
    cdef Pushing *p
    run.w = take_panels(space, run.gates * columns, run.H)
    for i in range(run.crew):
        p = &run.pushing[i]
        lay_out_done(&run.done[i], space, run.k, run.N)
        p.order = take_indices(space, run.groups * run.H)
        p.start = take_indices(space, panels_of(run.k))
        p.jacobian = take_panels(space, run.halves * columns, run.H)
        p.before = take(space, PANEL * run.N)
        p.ordered = take(space, PANEL * run.H)


cdef void carry_row(void *context, int row, int worker) noexcept nogil:
    """All tangents of a row of the batch, through all factors."""
    cdef Tangents *run = <Tangents *>context
    cdef Py_ssize_t number
    for number in range(run.factors * run.T):
        carry_groups(run, row, number, 0, run.groups, &run.done[worker], &run.pushing[worker], worker)
        if run.watch.stop:
            return


cdef void carry_part(void *context, Py_ssize_t step, int part, int worker) noexcept nogil:
    """A part of a row's groups, through the factor at which they are."""
    cdef Tangents *run = <Tangents *>context
    cdef Py_ssize_t number = step - part
    if 0 <= number < run.factors * run.T:
        carry_groups(run, run.row, number, run.groups * part // run.parts, run.groups * (part + 1) // run.parts,
                     &run.done[number % run.parts], &run.pushing[part], worker)


cdef void carry_groups(Tangents *run, Py_ssize_t b, Py_ssize_t number, int first, int last, const Done *done, const Pushing *pushing,
                       int worker) noexcept nogil:
    """Groups first to last of row b, through a factor."""
    cdef Py_ssize_t t = number // run.factors, panel, end
    cdef bint eliminates = (t + 1) % run.every == 0 or t + 1 == run.T
    cdef double *logs = run.logs + (t // run.every * run.B + b) * run.k
    cdef real *v = run.v + b * run.k * run.N
    cdef Terms terms = NULL
    cdef Made made
    cdef int group
    if run.H <= FEW_TERMS:
        terms = sum_of_terms
    made.run, made.pushing, made.factor = run, pushing, factor_of(run, b, number)
    for group in range(first, last):
        panel, end = first_panel(run, group), first_panel(run, group + 1)
        if number == 0:
            put_in_order(run, NULL, group, pushing)
        if made.factor.show == NULL:
            make_jacobian(run, made.factor.at, group, pushing)
        while panel < end:
            made.start = pushing.start[panel]
            push_panel(&made, group, panel, v + panel * PANEL * run.N)
            if eliminates:
                eliminate_panel(done, panel, v + panel * PANEL * run.N, logs + panel * PANEL, terms, &made)
            if interrupted(&run.watch, worker, <double>PANEL * run.N * (run.H + panel * PANEL)):
                return
            panel += 1
        put_in_order(run, done if eliminates else NULL, group, pushing)


cdef inline Factor factor_of(const Tangents *run, Py_ssize_t b, Py_ssize_t number) noexcept nogil:
    cdef Factor factor
    factor.at = number // run.factors * run.B + b
    factor.show = run.show + factor.at * run.H if number % run.factors else NULL
    factor.before = run.units + (number * run.B + b) * run.N if run.units != NULL else NULL
    factor.behind = factor.before + run.B * run.N if run.units != NULL else NULL
    return factor


cdef inline Py_ssize_t first_panel(const Tangents *run, int group) noexcept nogil:
    return ceil_div(panels_of(run.k) * group, run.groups)


cdef void put_in_order(const Tangents *run, const Done *done, int group, const Pushing *pushing) noexcept nogil:
    """The elements of h: first the pivots, panel by panel, then all others. If nothing is done, as they stand."""
    cdef real *taken = pushing.ordered
    cdef Py_ssize_t *order = pushing.order + group * run.H
    cdef Py_ssize_t panel, i, column, n = 0
    memset(taken, 0, run.H * sizeof(real))
    for panel in range(first_panel(run, group + 1)):
        if panel >= first_panel(run, group):
            pushing.start[panel] = n
        for i in range(panel * PANEL, panel * PANEL + held_by(run.k, panel) if done != NULL else 0):
            column = done.pivot[i]
            if column != NO_PIVOT and column < run.H and not taken[column]:  # of NaNs, more than one may be in one place
                taken[column] = 1
                order[n] = column
                n += 1
    for column in range(run.H):
        if not taken[column]:
            order[n] = column
            n += 1


cdef void make_jacobian(const Tangents *run, Py_ssize_t at, int group, const Pushing *pushing) noexcept nogil:
    """The sums over gates at (step, row) number ``at``, for each half, packed in the order of a group."""
    cdef const Py_ssize_t *order = pushing.order + group * run.H
    cdef Py_ssize_t gate_panels = ceil_div(run.H, LANES), panel, filled, k
    cdef const real *slopes
    cdef const real *w
    cdef real *to
    cdef vec slope[MAX_GATES]
    cdef vec total
    cdef int half, gate
    for half in range(run.halves):
        slopes = run.slopes + (at * run.halves + half) * run.gates * run.H
        for panel in range(gate_panels):
            filled = min(run.H - panel * LANES, <Py_ssize_t>LANES)
            for gate in range(run.gates):
                slope[gate] = load_part(slopes + gate * run.H + panel * LANES, filled)
            to = panels_from(pushing.jacobian, half * gate_panels + panel).at
            for k in range(run.H):
                w = panels_from(run.w, panel).at + order[k] * LANES
                total = slope[0] * load(w)
                for gate in range(1, run.gates):
                    total = total + slope[gate] * load(w + gate * gate_panels * run.w.panel)
                store(to + k * LANES, total)


cdef void push_panel(const Made *made, int group, Py_ssize_t panel, real *v) noexcept nogil:
    """The tangents v (PANEL, N) of a panel, through the factor."""
    cdef const Tangents *run = made.run
    cdef Py_ssize_t held = held_by(run.k, panel), N = run.N, i, j
    cdef const real *units = made.factor.before
    cdef real *before = made.pushing.before
    for i in range(held):
        for j in range(N):
            before[i * N + j] = v[i * N + j] / units[j] if units != NULL else v[i * N + j]
    if made.factor.show != NULL:
        add_shown(made, held, v)
    else:
        apply_jacobian(made, group, held, v)
    units = made.factor.behind
    for i in range(held if units != NULL else 0):
        for j in range(N):
            v[i * N + j] = v[i * N + j] * units[j]


cdef void add_shown(const Made *made, Py_ssize_t held, real *v) noexcept nogil:
    """dh = u + show dc, for tangents (u, dc)."""
    cdef const Tangents *run = made.run
    cdef const real *before = made.pushing.before
    cdef Py_ssize_t i, j
    for i in range(held):
        memcpy(v, before, run.N * sizeof(real))
        for j in range(run.H):
            v[j] = before[j] + made.factor.show[j] * before[run.H + j]
        v += run.N
        before += run.N


cdef void apply_jacobian(const Made *made, int group, Py_ssize_t held, real *v) noexcept nogil:
    """v = before J^T"""
    cdef const Tangents *run = made.run
    cdef Py_ssize_t at = made.factor.at, start = made.start, i, j, k
    cdef const Py_ssize_t *order = made.pushing.order + group * run.H
    cdef const real *before = made.pushing.before
    cdef real *ordered = made.pushing.ordered
    cdef Panels jacobian
    cdef Rows into
    cdef int half
    for i in range(held):
        for k in range(start, run.H):
            ordered[i * run.H + k] = before[i * run.N + order[k]]
    memset(v, 0, held * run.N * sizeof(real))
    for half in range(run.halves):
        if run.past != NULL:
            for i in range(held):
                for j in range(run.H):
                    v[i * run.N + half * run.H + j] = (run.past[at * run.N + half * run.H + j]
                                                       * before[(i + 1) * run.N - run.H + j])
        jacobian = jacobian_half(made, half)
        jacobian.at += start * jacobian.row
        into = rows(v + half * run.H, 0, run.N)
        product(1, held, run.H, run.H - start, rows(ordered + start, 0, run.H), 1, jacobian, into, into)


cdef inline Panels jacobian_half(const Made *made, Py_ssize_t half) noexcept nogil:
    return panels_from(made.pushing.jacobian, half * ceil_div(made.run.H, LANES))


cdef double sum_of_terms(const void *context, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    """What `push_panel` added up to element n of the panel's tangent i, in magnitudes."""
    cdef const Made *made = <const Made *>context
    cdef const Tangents *run = made.run
    cdef const real *before = made.pushing.before + i * run.N
    cdef Py_ssize_t half = n // run.H, j = n % run.H, k
    cdef double total = 0
    if made.factor.show != NULL:
        total = abs(before[n]) + (abs(made.factor.show[j] * before[run.H + j]) if half == 0 else 0)
    else:
        for k in range(made.start, run.H):
            total += abs(made.pushing.ordered[i * run.H + k] * element(jacobian_half(made, half), k, j)[0])
        if run.past != NULL:
            total += abs(run.past[made.factor.at * run.N + n] * before[run.N - run.H + j])
    return total * made.factor.behind[n] if made.factor.behind != NULL else total
