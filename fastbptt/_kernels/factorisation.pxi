# Gaussian elimination with complete pivoting, of matrices whose rows have scales beyond any floating-point number: what
# `log_singular_values` keeps a product of Jacobians by.
#
# Row by row, the largest that is left, scale and all, is divided by its largest element and taken away from the others, so that these have
# nothing there. Small rows, and what is small in large ones, so keep their digits.

cdef struct Factorisation:
    Py_ssize_t B, N
    real *v                        # (B, N, N)
    double *logs                   # (B, N)
    Py_ssize_t *order              # (B, N)
    real *c                        # (B, N, N)
    double *growth                 # (B, N)
    int workers
    real *terms                    # (N, N) for each worker: the magnitudes of all that each element has lost
    Watch watch


def factorise(real[:, :, ::1] v, double[:, ::1] logs, Py_ssize_t[:, ::1] order, real[:, :, ::1] c, double[:, ::1] growth):
    """v = c q, up to the order of the rows, for v (B, N, N) whose rows are to be scaled by exp(logs): v becomes q, its rows in the order in
    which they were done.

    order (B, N): which rows of v these were; logs (B, N) come into that order, too. c (B, N, N), zeros on entry, becomes lower triangular;
    growth (B, N): the logarithms of the magnitudes on its diagonal. A row of which nothing but rounding is left becomes 0, its logarithm
    -inf.
    """
    cdef Factorisation run
    memset(&run, 0, sizeof(Factorisation))
    run.B, run.N = v.shape[0], v.shape[1]
    run.v, run.logs, run.order, run.c, run.growth = &v[0, 0, 0], &logs[0, 0], &order[0, 0], &c[0, 0, 0], &growth[0, 0]
    run.workers = tasks_for(thread_limit(), <double>run.B * run.N * run.N * run.N, run.B)
    cdef Block room = make_room(lay_out_factorisation, &run)
    with nogil:
        parallel(factorise_matrix, &run, <int>run.B, run.workers, &run.watch)
    raise_if_interrupted(&run.watch)


cdef void lay_out_factorisation(void *call, Space *space) noexcept nogil:
    cdef Factorisation *run = <Factorisation *>call
    run.terms = take(space, run.workers * run.N * run.N)


cdef void factorise_matrix(void *context, int b, int worker) noexcept nogil:
    cdef Factorisation *run = <Factorisation *>context
    cdef Py_ssize_t N = run.N, s, i, at
    cdef real *v = run.v + b * N * N
    cdef real *c = run.c + b * N * N
    cdef real *terms = run.terms + worker * N * N
    cdef double *logs = run.logs + b * N
    cdef double *growth = run.growth + b * N
    cdef Py_ssize_t *order = run.order + b * N
    cdef real pivot
    cdef bint lost
    memset(terms, 0, N * N * sizeof(real))
    for i in range(N):
        order[i] = i
        growth[i] = size_of_row(v + i * N, N, logs[i])  # until the row is done
    for s in range(N):
        i = s
        for at in range(s + 1, N):
            if growth[at] > growth[i]:
                i = at
        swap_rows(v + s * N, v + i * N, N)
        swap_rows(c + s * N, c + i * N, N)
        swap_rows(terms + s * N, terms + i * N, N)
        logs[s], logs[i] = logs[i], logs[s]
        order[s], order[i] = order[i], order[s]
        growth[i] = growth[s]
        at = largest_at(v + s * N, N)
        pivot = v[s * N + at]
        lost = abs(pivot) <= ROUNDING * (N + 8) * terms[s * N + at] < INFINITY
        growth[s] = -INFINITY if lost else log(abs(pivot))
        if lost or pivot == 0:
            memset(v + s * N, 0, N * sizeof(real))
            continue
        c[s * N + s] = pivot
        for i in range(N):
            v[s * N + i] = v[s * N + i] / pivot
        for i in range(s + 1, N):
            c[i * N + s] = v[i * N + at]
            lose_share(v + i * N, terms + i * N, v[i * N + at], v + s * N, N)
            v[i * N + at] = 0
            growth[i] = size_of_row(v + i * N, N, logs[i])
        if interrupted(&run.watch, worker, 4 * <double>(N - s) * N):
            return


cdef inline double size_of_row(const real *row, Py_ssize_t N, double scale) noexcept nogil:
    """The logarithm of the largest element, scale and all."""
    cdef real largest = largest_of(row, N)
    return log(largest) + scale if largest > 0 else -INFINITY


cdef inline void swap_rows(real *a, real *b, Py_ssize_t N) noexcept nogil:
    cdef Py_ssize_t n
    for n in range(N if a != b else 0):
        a[n], b[n] = b[n], a[n]


cdef inline void lose_share(real *row, real *terms, real share, const real *q, Py_ssize_t N) noexcept nogil:
    cdef Py_ssize_t n
    cdef real term
    for n in range(N):
        term = share * q[n]
        row[n] = row[n] - term
        terms[n] = terms[n] + abs(term)
