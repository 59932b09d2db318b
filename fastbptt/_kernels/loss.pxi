# Softmax cross-entropy, with its gradient, in one pass over each row.

cdef struct Loss:
    Py_ssize_t M, V              # rows, classes
    const real *logits           # (M, V)
    const int64_t *targets       # (M,)
    const unsigned char *counts  # (M,) or NULL: whether a row counts
    double weight                # 1 / the number of rows that count
    double *losses               # (M,), 0 where a row does not count
    real *d_logits               # (M, V)
    int tasks
    Watch watch

cdef enum:
    ROWS = 8                     # at a time, as far as they
    ROWS_BYTES = 1 << 13         # go into a quarter of a first-level cache beside what becomes of them
    EXP_WORK = 16                # an element's exp costs about as much as this many multiply-adds


def softmax_cross_entropy(const real[:, ::1] logits, const int64_t[::1] targets, const unsigned char[::1] counts, double weight,
                          double[::1] losses, real[:, ::1] d_logits):
    """losses (M,) = -log softmax(logits)[target] of each row; d_logits (M, V) = the gradient of weight * losses.sum()"""
    cdef Loss loss
    memset(&loss, 0, sizeof(Loss))
    loss.M = logits.shape[0]
    loss.V = logits.shape[1]
    loss.logits = &logits[0, 0]
    loss.targets = &targets[0]
    loss.counts = &counts[0] if counts is not None else NULL
    loss.weight = weight
    loss.losses = &losses[0]
    loss.d_logits = &d_logits[0, 0]
    with nogil:
        loss.tasks = tasks_for(thread_limit(), <double>loss.M * loss.V * EXP_WORK, loss.M)
        parallel(loss_of_rows, &loss, loss.tasks, loss.tasks, &loss.watch)
    raise_if_interrupted(&loss.watch)


cdef void loss_of_rows(void *context, int task, int worker) noexcept nogil:
    """Several rows at a time, if they are short: each of their sums waits for itself only."""
    cdef Loss *loss = <Loss *>context
    cdef Py_ssize_t m = loss.M * task // loss.tasks, end = loss.M * (task + 1) // loss.tasks
    cdef Py_ssize_t together = max(1, min(ROWS, <Py_ssize_t>(ROWS_BYTES // (loss.V * sizeof(real)))))
    cdef Py_ssize_t[ROWS] rows
    cdef int n
    while m < end:
        n = 0
        while m < end and n < together:
            if loss.counts == NULL or loss.counts[m]:
                rows[n] = m
                n += 1
            else:
                loss.losses[m] = 0
                memset(loss.d_logits + m * loss.V, 0, loss.V * sizeof(real))
            m += 1
        losses_of(loss, rows, n)
        if interrupted(&loss.watch, worker, <double>n * loss.V * EXP_WORK):
            return


cdef inline void losses_of(const Loss *loss, const Py_ssize_t *rows, int n) noexcept nogil:
    """The loss is log(sum exp z) - z[target], and its gradient softmax(z) - one_hot(target). The largest z is subtracted first."""
    cdef Py_ssize_t V = loss.V
    cdef real[ROWS] tops
    cdef double[ROWS] totals
    cdef int r
    for r in range(n):
        tops[r] = largest(loss.logits + rows[r] * V, V)
    for r in range(n):
        exp_of_row(loss.logits + rows[r] * V, tops[r], V, loss.d_logits + rows[r] * V)
    for r in range(n):
        totals[r] = sum_of(loss.d_logits + rows[r] * V, V)
    for r in range(n):
        loss.losses[rows[r]] = log(totals[r]) + (<double>tops[r] - <double>loss.logits[rows[r] * V + loss.targets[rows[r]]])
        gradient_of_row(loss.weight, totals[r], V, loss.targets[rows[r]], loss.d_logits + rows[r] * V)


cdef inline void exp_of_row(const real *z, real top, Py_ssize_t V, real *exps) noexcept nogil:
    cdef Py_ssize_t i = 0
    while i + LANES <= V:
        store(exps + i, vector_exp(load(z + i) - broadcast(top)))
        i += LANES
    if i < V:
        store_part(exps + i, vector_exp(load_part(z + i, V - i) - broadcast(top)), V - i)


cdef inline void gradient_of_row(double weight, double total, Py_ssize_t V, int64_t target, real *dz) noexcept nogil:
    cdef real factor = <real>(weight / total)
    cdef Py_ssize_t i
    for i in range(V):
        dz[i] *= factor
    dz[target] -= <real>weight


cdef inline real largest(const real *z, Py_ssize_t n) noexcept nogil:
    """The largest of all, by 16 side by side, since one alone waits for every comparison. NaN if the first is; another is passed over."""
    cdef real[16] tops
    cdef Py_ssize_t i
    cdef int j
    if n < 16:
        tops[0] = z[0]
        for i in range(1, n):
            tops[0] = max(tops[0], z[i])
        return tops[0]
    for j in range(16):
        tops[j] = z[0]
    for i in range(0, n - 15, 16):
        for j in range(16):
            tops[j] = max(tops[j], z[i + j])
    for j in range(16):                      # the last 16, some of them for the second time
        tops[j] = max(tops[j], z[n - 16 + j])
    for j in range(8):
        tops[j] = max(tops[j], tops[j + 8])
    for j in range(4):
        tops[j] = max(tops[j], tops[j + 4])
    return max(max(tops[0], tops[1]), max(tops[2], tops[3]))
