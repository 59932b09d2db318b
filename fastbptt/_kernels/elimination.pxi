# Gaussian elimination of tangents: what `fastbptt.lyapunov` does at every step instead of a QR decomposition.
#
# Each tangent, a row of v (k, N), is divided by its largest element, the pivot, and taken away from the tangents after it so that nothing
# is left of them there. With the pivots p_i, that is v = C q, where C is lower triangular with the p_i on its diagonal: like a QR
# decomposition with rows in place of columns, but that the rows of q are far from parallel instead of orthogonal. It is a third of the
# work, nearly all of it in products, and needs no second pass to form q.
#
# By panels: PANEL tangents among themselves, then all that follow by one product.

cdef enum:
    PANEL = 16
    NO_PIVOT = -1

cdef double EPSILON = DBL_EPSILON if sizeof(real) == sizeof(double) else FLT_EPSILON


def eliminate(real[:, :, ::1] v, double[:, ::1] logs):
    """v (B, k, N) becomes q, and logs (B, k) the logarithms of the pivots' magnitudes.

    A tangent of which nothing but rounding is left becomes 0, its logarithm -inf.
    """
    cdef Py_ssize_t B = v.shape[0], k = v.shape[1], N = v.shape[2], b
    cdef Elimination work
    cdef Workspace space = Workspace(PANEL * N + packed_size(N, PANEL) + k * PANEL + N, 4)
    memset(&work, 0, sizeof(Elimination))
    work.threads = thread_limit()
    work.k = k
    work.N = N
    work.panel = space.take(PANEL * N)
    work.packed.at = space.take(packed_size(N, PANEL))
    work.packed.row = LANES
    work.packed.panel = panel_stride(PANEL)
    work.factors = space.take(k * PANEL)
    work.size = space.take(N)
    with nogil:
        for b in range(B):
            work.v = &v[b, 0, 0]
            work.logs = &logs[b, 0]
            eliminate_all(&work)
    raise_if_interrupted(&work.watch)


cdef struct Elimination:
    Py_ssize_t k, N
    real *v                        # (k, N)
    double *logs                   # (k,)
    real *size                     # (N,): the largest magnitude in each column, at the start
    Py_ssize_t first, stop         # the panel at hand: tangents first..stop
    Py_ssize_t pivot[PANEL]        # the columns of its pivots; NO_PIVOT of a tangent that is 0
    real *panel                    # (PANEL, N): its tangents, combined so that each is alone at its pivot
    Panels packed                  # ... and packed
    real *factors                  # (k, PANEL): how often each of them is added to each later tangent
    int threads, tasks
    Watch watch


cdef void eliminate_all(Elimination *work) noexcept nogil:
    cdef Py_ssize_t i, j
    measure_columns(work)
    work.stop = 0
    while work.stop < work.k and not work.watch.stop:
        work.first = work.stop
        work.stop = min(work.k, work.first + PANEL)
        for i in range(work.first, work.stop):
            work.pivot[i - work.first] = take_pivot(work, i)
            for j in range(i + 1, work.stop):
                take_away(work.v + i * work.N, work.pivot[i - work.first], work.v + j * work.N, work.N)
        if work.stop < work.k:
            combine_panel(work)
            work.tasks = tasks_for(work.threads, <double>(work.k - work.stop) * PANEL * work.N, work.k - work.stop)
            parallel(eliminate_below, work, work.tasks, work.threads, &work.watch)


cdef void measure_columns(Elimination *work) noexcept nogil:
    cdef Py_ssize_t i, j
    cdef const real *row
    memset(work.size, 0, work.N * sizeof(real))
    for i in range(work.k):
        row = work.v + i * work.N
        for j in range(work.N):
            work.size[j] = abs(row[j]) if abs(row[j]) > work.size[j] else work.size[j]


cdef Py_ssize_t take_pivot(Elimination *work, Py_ssize_t i) noexcept nogil:
    """Divide tangent i by its largest element; return where that is."""
    cdef real *row = work.v + i * work.N
    cdef Py_ssize_t j, at = 0
    cdef real pivot
    for j in range(work.N):
        if abs(row[j]) > abs(row[at]) or row[j] != row[j]:
            at = j
    pivot = row[at]
    if abs(pivot) <= work.N * EPSILON * work.size[at]:
        memset(row, 0, work.N * sizeof(real))
        work.logs[i] = -INFINITY
        return NO_PIVOT
    for j in range(work.N):
        row[j] = row[j] / pivot
    work.logs[i] = log(abs(pivot))
    return at


cdef inline void take_away(const real *row, Py_ssize_t pivot, real *other, Py_ssize_t N) noexcept nogil:
    """Of the other tangent, leave nothing at this one's pivot."""
    cdef Py_ssize_t n
    cdef real factor
    if pivot == NO_PIVOT:
        return
    factor = other[pivot]
    for n in range(N):
        other[n] -= factor * row[n]
    other[pivot] = 0


cdef void combine_panel(Elimination *work) noexcept nogil:
    """A copy of the panel in which each tangent is alone at its pivot, too: what later tangents lose is read off there."""
    cdef Py_ssize_t i, j, held = work.stop - work.first
    memcpy(work.panel, work.v + work.first * work.N, held * work.N * sizeof(real))
    for i in range(held):
        for j in range(i):
            take_away(work.panel + i * work.N, work.pivot[i], work.panel + j * work.N, work.N)
    pack_rows(rows(work.panel, 0, work.N), held, 0, held, work.N, LANES, work.packed.at, work.packed.panel)


cdef void eliminate_below(void *context, int task, int worker) noexcept nogil:
    """Of a task's share of the later tangents, leave nothing at the panel's pivots."""
    cdef Elimination *work = <Elimination *>context
    cdef Py_ssize_t left = work.k - work.stop, held = work.stop - work.first, j, l
    cdef Py_ssize_t l0 = work.stop + left * task // work.tasks, l1 = work.stop + left * (task + 1) // work.tasks
    cdef Rows later = rows(work.v + l0 * work.N, 0, work.N)
    for l in range(l0, l1):
        for j in range(held):
            work.factors[l * PANEL + j] = -work.v[l * work.N + work.pivot[j]] if work.pivot[j] != NO_PIVOT else 0
    product(1, l1 - l0, work.N, held, rows(work.factors + l0 * PANEL, 0, PANEL), 1, work.packed, later, later)
    for l in range(l0, l1):
        for j in range(held):
            if work.pivot[j] != NO_PIVOT:
                work.v[l * work.N + work.pivot[j]] = 0
    interrupted(&work.watch, worker, <double>(l1 - l0) * held * work.N)
