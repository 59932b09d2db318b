# Taking from each of k tangents, rows of N numbers, what it shares with those before it: by elimination after every step of `tangents.pxi`,
# and by orthogonalisation now and then.
#
# Elimination divides each tangent by its largest element, the pivot, and takes it away from the tangents after it so that nothing is left
# of them there. With the pivots p_i, that is v = C q, where C is lower triangular with the p_i on its diagonal: like a QR decomposition
# with rows in place of columns, but that the rows of q are far from parallel instead of orthogonal. It is a fraction of the work, and
# needs no second pass to form q.
#
# Both go by panels. What a panel, or a single tangent, shares with the tangents of a panel that is done, it loses by one product,
# v += factors q. Elimination finds the factors from what v has at the pivots and the inverse of the triangular matrix that the panel has
# there; orthogonalisation, which is Gram and Schmidt's, from v q^T.

cdef enum:
    PANEL = 16                     # tangents
    NO_PIVOT = -1

cdef double EPSILON = DBL_EPSILON if sizeof(real) == sizeof(double) else FLT_EPSILON
cdef double ROUNDING = 2 * EPSILON  # times N + 8 and the magnitudes of a sum's terms: what may be left where nothing should be

cdef struct Done:                  # what there is to know of the tangents that are done, panel by panel
    Py_ssize_t k, N
    Stack q                        # (PANEL, N) each
    Stack q_t                      # (N, PANEL): of orthogonalisation
    # of elimination
    Py_ssize_t *pivot              # (k,): the columns of the pivots; NO_PIVOT of a tangent that is 0
    real *doubt                    # (k,): how much of a tangent, of 1, may be rounding
    Stack inverse                  # (PANEL, PANEL): of what a panel has at its pivots
    # scratch
    real *there                    # (PANEL, PANEL)
    real *factors                  # (panels, PANEL, PANEL): by which each tangent of a panel loses those of each panel that is done

# The sum of the magnitudes of the terms that element n of a panel's tangent i is the sum of.
ctypedef double (*Terms)(const void *context, Py_ssize_t i, Py_ssize_t n) noexcept nogil


cdef inline Py_ssize_t panels_of(Py_ssize_t k) noexcept nogil:
    return ceil_div(k, PANEL)


cdef inline Py_ssize_t held_by(Py_ssize_t k, Py_ssize_t panel) noexcept nogil:
    """The number of tangents in a panel."""
    return min(k - panel * PANEL, <Py_ssize_t>PANEL)


cdef inline void subtract(const Done *done, Py_ssize_t panel, Py_ssize_t count, const real *factors, real *v,
                          Py_ssize_t held) noexcept nogil:
    """v (held, N) += factors q, of the first ``count`` tangents of a panel."""
    product(1, held, done.N, count, rows(factors, 0, PANEL), 1, nth(done.q, panel), rows(v, 0, done.N), rows(v, 0, done.N))


# --- Elimination ------------------------------------------------------------------------------------------------------

cdef void eliminate_panel(const Done *done, Py_ssize_t panel, real *v, double *logs, Terms terms, const void *context) noexcept nogil:
    """The tangents v (PANEL, N) become those of q; the logarithms of their pivots' magnitudes are added to ``logs``.

    All panels before are done. ``terms`` tells what v is made of; NULL, if its elements are no sums.
    """
    cdef Py_ssize_t held = held_by(done.k, panel), other, i
    for other in range(panel):
        clear_pivots(done, other, PANEL, done.factors + other * PANEL * PANEL, v, held)
    for i in range(held):
        clear_pivots(done, panel, i, done.factors + (panel * PANEL + i) * PANEL, v + i * done.N, 1)
        take_pivot(done, panel, i, v + i * done.N, logs + i, terms, context)


cdef void clear_pivots(const Done *done, Py_ssize_t panel, Py_ssize_t count, real *factors, real *v, Py_ssize_t held) noexcept nogil:
    """Of the tangents v (held, N), leave nothing at the first ``count`` pivots of a panel; by the factors that are put down."""
    cdef const Py_ssize_t *pivot = done.pivot + panel * PANEL
    cdef Py_ssize_t i, j
    if count == 0:
        return
    for i in range(held):
        for j in range(count):
            done.there[i * PANEL + j] = -v[i * done.N + pivot[j]] if pivot[j] != NO_PIVOT else 0
    memset(factors, 0, held * PANEL * sizeof(real))
    product(1, held, count, count, rows(done.there, 0, PANEL), 1, nth(done.inverse, panel),
            rows(factors, 0, PANEL), rows(factors, 0, PANEL))
    subtract(done, panel, count, factors, v, held)
    for i in range(held):
        for j in range(count):
            if pivot[j] != NO_PIVOT:
                v[i * done.N + pivot[j]] = 0


cdef void take_pivot(const Done *done, Py_ssize_t panel, Py_ssize_t i, real *v, double *logarithm, Terms terms,
                     const void *context) noexcept nogil:
    """Divide the panel's tangent i by its largest element; it is done. If that may be nothing but rounding, the tangent is lost: 0."""
    cdef Py_ssize_t at = largest_at(v, done.N), number = panel * PANEL + i, j
    cdef real pivot = v[at]
    cdef double inherited = 0, total = sum_of_subtracted(done, panel, i, at, &inherited)
    if terms != NULL:
        total += terms(context, i, at)
    cdef double rounding = ROUNDING * (done.N + 8) * total
    cdef bint lost = abs(pivot) <= sqrt(rounding ** 2 + inherited) < INFINITY
    done.pivot[number] = NO_PIVOT if lost else at
    done.doubt[number] = 0 if lost else <real>(rounding / abs(pivot))
    logarithm[0] += -INFINITY if lost else log(abs(pivot))
    if lost:
        memset(v, 0, done.N * sizeof(real))
    else:
        for j in range(done.N):
            v[j] = v[j] / pivot
    pack_row(v, done.N, nth(done.q, panel), i)
    extend_inverse(nth(done.inverse, panel), i, nth(done.q, panel), at)


cdef double sum_of_subtracted(const Done *done, Py_ssize_t panel, Py_ssize_t i, Py_ssize_t at, double *inherited) noexcept nogil:
    """The magnitudes of all that element ``at`` of the panel's tangent i has lost to the tangents before; and the square of what rounding
    came with these. Not with those before them in turn, or it would seem to double from tangent to tangent."""
    cdef double total = 0, term
    cdef Py_ssize_t other, j
    cdef const real *factors
    cdef Panels q
    for other in range(panel + 1):
        factors = done.factors + (other * PANEL + i) * PANEL
        q = nth(done.q, other)
        for j in range(i if other == panel else PANEL):
            term = abs(factors[j] * element(q, j, at)[0])
            total += term
            inherited[0] += (term * done.doubt[other * PANEL + j]) ** 2
    return total


cdef Py_ssize_t largest_at(const real *row, Py_ssize_t N) noexcept nogil:
    """Where the largest magnitude stands; or else the last NaN."""
    cdef real largest
    cdef Py_ssize_t at = 0, i
    if not all_finite(row, N):
        for i in range(N):
            if abs(row[i]) > abs(row[at]) or row[i] != row[i]:
                at = i
        return at
    largest = largest_of(row, N)
    while abs(row[at]) != largest:
        at += 1
    return at


cdef real largest_of(const real *row, Py_ssize_t N) noexcept nogil:
    """The largest magnitude; what NaNs come to is left open."""
    cdef real largest[16]
    cdef Py_ssize_t i = 0
    cdef int j
    for j in range(16):
        largest[j] = 0
    while i + 16 <= N:
        for j in range(16):
            largest[j] = abs(row[i + j]) if abs(row[i + j]) > largest[j] else largest[j]
        i += 16
    for j in range(<int>(N - i)):
        largest[j] = abs(row[i + j]) if abs(row[i + j]) > largest[j] else largest[j]
    for j in range(1, 16):
        largest[0] = max(largest[0], largest[j])
    return largest[0]


cdef inline void pack_row(const real *row, Py_ssize_t N, Panels into, Py_ssize_t i) noexcept nogil:
    pack_rows(rows(row, 0, 0), 1, 0, 1, N, LANES, into.at + i * into.row, into.panel)


cdef inline void pack_column(const real *column, Py_ssize_t K, Panels into, Py_ssize_t i) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(K):
        element(into, k, i)[0] = column[k]


cdef void extend_inverse(Panels inverse, Py_ssize_t i, Panels q, Py_ssize_t at) noexcept nogil:
    """By a row and a column: those of tangent i, whose pivot is at ``at``."""
    cdef Py_ssize_t j, l
    cdef real sum
    for j in range(i):
        sum = 0
        for l in range(j, i):
            sum -= element(inverse, j, l)[0] * element(q, l, at)[0]
        element(inverse, j, i)[0] = sum
        element(inverse, i, j)[0] = 0
    element(inverse, i, i)[0] = 1


# --- Frames of a batch ------------------------------------------------------------------------------------------------

cdef struct Frames:
    Py_ssize_t B, k, N
    real *v                        # (B, k, N)
    double *logs                   # (B, k)
    int workers
    Done done[MAX_THREADS]
    Watch watch


cdef void lay_out_done(Done *done, Space *space, Py_ssize_t k, Py_ssize_t N) noexcept nogil:
    cdef Py_ssize_t panels = panels_of(k)
    done.k, done.N = k, N
    done.pivot = take_indices(space, panels * PANEL)
    done.doubt = take(space, panels * PANEL)
    done.q = take_stack(space, panels, N, PANEL)
    done.inverse = take_stack(space, panels, PANEL, PANEL)
    done.there = take(space, PANEL * PANEL)
    done.factors = take(space, panels * PANEL * PANEL)


def eliminate(real[:, :, ::1] v, double[:, ::1] logs):
    """v (B, k, N) = C q becomes q; the logarithms of the magnitudes on the diagonal of C are added to logs (B, k)."""
    in_each_row(eliminate_row, v, logs)


cdef int in_each_row(Task task, real[:, :, ::1] v, double[:, ::1] logs) except -1:
    """Do the task, whose context are `Frames`, for every row of the batch."""
    cdef Frames run
    memset(&run, 0, sizeof(Frames))
    run.B, run.k, run.N, run.v, run.logs = v.shape[0], v.shape[1], v.shape[2], &v[0, 0, 0], &logs[0, 0]
    run.workers = tasks_for(thread_limit(), <double>run.B * run.k * run.k * run.N, run.B)
    cdef Block room = make_room(lay_out_frames, &run)
    with nogil:
        parallel(task, &run, <int>run.B, run.workers, &run.watch)
    return raise_if_interrupted(&run.watch)


cdef void lay_out_frames(void *call, Space *space) noexcept nogil:
    cdef Frames *run = <Frames *>call
    cdef int i
    for i in range(run.workers):
        lay_out_done(&run.done[i], space, run.k, run.N)
        run.done[i].q_t = take_stack(space, panels_of(run.k), PANEL, run.N)


cdef void eliminate_row(void *context, int b, int worker) noexcept nogil:
    """The tangents of a row of the batch."""
    cdef Frames *run = <Frames *>context
    cdef const Done *done = &run.done[worker]
    cdef Py_ssize_t panel, first
    for panel in range(panels_of(done.k)):
        first = b * done.k + panel * PANEL
        eliminate_panel(done, panel, run.v + first * done.N, run.logs + first, NULL, NULL)
        if interrupted(&run.watch, worker, <double>PANEL * (panel + 1) * PANEL * done.N):
            return


# --- Orthogonalisation ------------------------------------------------------------------------------------------------

cdef double GOLDEN = 0.6180339887498949


def orthonormalise(real[:, :, ::1] v, double[:, ::1] logs):
    """v (B, k, N) becomes orthonormal rows, each of the span of those before it; logs (B, k): by how much each stuck out of that span.

    Meant for what elimination leaves: of rows that are nearly parallel, orthogonality suffers. A row of zeros gets some other direction;
    its logarithm is -inf.
    """
    in_each_row(orthonormalise_row, v, logs)


cdef void orthonormalise_row(void *context, int b, int worker) noexcept nogil:
    """The tangents of a row of the batch."""
    cdef Frames *run = <Frames *>context
    cdef const Done *done = &run.done[worker]
    cdef real *v = run.v + b * done.k * done.N
    cdef Py_ssize_t panel, other, i, held
    cdef double norm
    for panel in range(panels_of(done.k)):
        held = held_by(done.k, panel)
        for other in range(panel):
            project_out(done, other, PANEL, v, held)
        for i in range(held):
            project_out(done, panel, i, v, 1)
            norm = divide_by_norm(v, done.N)
            run.logs[b * done.k + panel * PANEL + i] = log(norm) if norm != 0 else -INFINITY
            if norm == 0:
                choose_direction(done, panel, i, v)
            pack_row(v, done.N, nth(done.q, panel), i)
            pack_column(v, done.N, nth(done.q_t, panel), i)
            v += done.N
        if interrupted(&run.watch, worker, <double>2 * PANEL * (panel + 1) * PANEL * done.N):
            return


cdef void project_out(const Done *done, Py_ssize_t panel, Py_ssize_t count, real *v, Py_ssize_t held) noexcept nogil:
    """Of the tangents v (held, N), leave nothing in the directions of the first ``count`` of a panel."""
    cdef Py_ssize_t i
    memset(done.factors, 0, held * PANEL * sizeof(real))
    product(1, held, count, done.N, rows(v, 0, done.N), 1, nth(done.q_t, panel), rows(done.factors, 0, PANEL), rows(done.factors, 0, PANEL))
    for i in range(held * PANEL):
        done.factors[i] = -done.factors[i]
    subtract(done, panel, count, done.factors, v, held)


cdef double divide_by_norm(real *v, Py_ssize_t N) noexcept nogil:
    """The norm, too; 0 is left as it is."""
    cdef double norm = sqrt(add_up(square, v, N))
    cdef Py_ssize_t j
    if norm != 0:
        for j in range(N):
            v[j] = <real>(v[j] / norm)
    return norm


cdef void choose_direction(const Done *done, Py_ssize_t panel, Py_ssize_t i, real *v) noexcept nogil:
    """Some direction at right angles to all tangents that are done: what projection leaves of numbers that look random.

    Twice, as little may be left the first time.
    """
    cdef Py_ssize_t j, other, time
    cdef double turns
    for j in range(done.N):
        turns = (1 + j) * (1 + panel * PANEL + i) * GOLDEN
        v[j] = <real>(turns - floor(turns) - 0.5)
    for time in range(2):
        for other in range(panel):
            project_out(done, other, PANEL, v, 1)
        project_out(done, panel, i, v, 1)
        divide_by_norm(v, done.N)
