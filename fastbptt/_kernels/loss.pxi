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
    cdef Loss *loss = <Loss *>context
    cdef Py_ssize_t m
    for m in range(loss.M * task // loss.tasks, loss.M * (task + 1) // loss.tasks):
        if loss.counts != NULL and not loss.counts[m]:
            loss.losses[m] = 0
            memset(loss.d_logits + m * loss.V, 0, loss.V * sizeof(real))
        else:
            loss_of_row(loss, loss.logits + m * loss.V, loss.targets[m], loss.losses + m, loss.d_logits + m * loss.V)
        if interrupted(&loss.watch, worker, <double>loss.V * EXP_WORK):
            return


cdef inline void loss_of_row(const Loss *loss, const real *z, int64_t target, double *out, real *dz) noexcept nogil:
    """The loss is log(sum exp z) - z[target], and its gradient softmax(z) - one_hot(target). The largest z is subtracted first."""
    cdef Py_ssize_t i = 0, V = loss.V
    cdef real top = z[0]
    cdef double total
    cdef vec scale
    for i in range(V):
        top = max(top, z[i])
    i = 0
    while i + LANES <= V:
        store(dz + i, vector_exp(load(z + i) - broadcast(top)))
        i += LANES
    if i < V:
        store_part(dz + i, vector_exp(load_part(z + i, V - i) - broadcast(top)), V - i)
    total = sum_of(dz, V)
    out[0] = log(total) + (<double>top - <double>z[target])
    for i in range(V):
        dz[i] *= <real>(loss.weight / total)
    dz[target] -= <real>loss.weight
