# The input's half of the pre-activations, a = x W^T + bias: one product for all steps, and all that a linear layer does.

cdef struct Projection:
    Py_ssize_t rows
    const real *x                  # (rows, I)
    const int64_t *tokens          # (rows,), if there is no x
    real *a                        # (rows, N)
    InputWeights weights
    Sharing sharing
    Watch *watch

cdef enum:
    FORWARD_BLOCK = 1 << 18        # bytes of `a` that are projected at a time
    PROJECTED_ROWS = 64            # rows in a task, at least


cdef inline double projection_work(const Projection *p) noexcept nogil:
    return <double>p.rows * p.weights.N * (p.weights.I if p.x != NULL else 1)


cdef inline Py_ssize_t rows_in_block(const Projection *p) noexcept nogil:
    return max(1, FORWARD_BLOCK // (p.weights.N * <Py_ssize_t>sizeof(real)))


cdef void project_all(Projection *p) noexcept nogil:
    share(&p.sharing, projection_work(p), p.rows, PROJECTED_ROWS)
    parallel(project_part, p, p.sharing.tasks, p.sharing.workers, p.watch)


cdef void project_part(void *context, int task, int worker) noexcept nogil:
    cdef const Projection *p = <Projection *>context
    cdef Py_ssize_t row = p.rows * task // p.sharing.tasks, end = p.rows * (task + 1) // p.sharing.tasks, step = rows_in_block(p)
    while row < end and not interrupted(p.watch, worker, <double>step * p.weights.N * (p.weights.I + CELL_WORK)):
        project(p, row, 1, 0, min(step, end - row))
        row += step


cdef void project(const Projection *p, Py_ssize_t first, Py_ssize_t steps, Py_ssize_t B, Py_ssize_t b) noexcept nogil:
    """b neighbouring rows of each of ``steps`` steps, which are B rows apart; tiles run along the longer of the two."""
    cdef Py_ssize_t t, row, n, N = p.weights.N, I = p.weights.I
    cdef const real *x = p.x + first * I if p.x != NULL else NULL
    cdef const real *w
    cdef real *a = p.a + first * N
    if p.x != NULL and b < B and steps > b:
        product(b, steps, N, I, rows(x, I, B * I), 1, p.weights.w, rows(p.weights.bias, 0, 0), rows(a, N, B * N))
    elif p.x != NULL:
        product(steps, b, N, I, rows(x, B * I, I), 1, p.weights.w, rows(p.weights.bias, 0, 0), rows(a, B * N, N))
    else:
        for t in range(steps):
            for row in range(first + t * B, first + t * B + b):
                w = p.weights.token_weight + p.tokens[row] * p.weights.token_row
                a = p.a + row * N
                if p.weights.token_gate == 1:
                    for n in range(N):
                        a[n] = p.weights.bias[n] + w[n]
                else:
                    for n in range(N):
                        a[n] = p.weights.bias[n] + w[n * p.weights.token_gate]
