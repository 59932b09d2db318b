# The input's half of the pre-activations, a = x W^T + bias: one product for all steps, and all that a linear layer does.

cdef struct Projection:
    Py_ssize_t rows
    const real *x                  # (rows, I)
    const real *given              # what x is filled from, before it is projected, where rows have another place; or NULL: x is there
    const Time *time
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
    """b neighbouring rows of each of ``steps`` steps, which are B rows apart; of ragged time, of one step."""
    cdef Py_ssize_t N = p.weights.N, I = p.weights.I, row, step
    if p.given != NULL:
        for step in range(steps):
            for row in range(first + step * B, first + step * B + b):
                memcpy(<real *>p.x + row * I, p.given + place_of(p.time, row) * I, I * sizeof(real))
    cdef Rows a = rows(p.a + first * N, B * N, N)
    if p.x != NULL:
        project_vectors(&p.weights, p.x + first * I, steps, B, b, rows(p.weights.bias, 0, 0), a)
    else:
        project_tokens(&p.weights, p.tokens + first, steps, B, b, a)


cdef inlined project_vectors(const InputWeights *weights, const real *x, Py_ssize_t steps, Py_ssize_t B, Py_ssize_t b,
                             Rows init, Rows a) noexcept nogil:
    """a = init + x W^T; tiles run along the longer of the two, steps or rows."""
    cdef Py_ssize_t N = weights.N, I = weights.I
    if b < B and steps > b:
        product(b, steps, N, I, rows(x, I, B * I), 1, weights.w, rows(init.at, init.inner, init.outer), rows(a.at, a.inner, a.outer))
    else:
        product(steps, b, N, I, rows(x, B * I, I), 1, weights.w, init, a)


cdef inlined project_tokens(const InputWeights *weights, const int64_t *tokens, Py_ssize_t steps, Py_ssize_t B, Py_ssize_t b,
                            Rows a) noexcept nogil:
    """a = bias + each token's weights"""
    cdef Py_ssize_t t, i, n
    cdef const real *w
    cdef real *row
    for t in range(steps):
        for i in range(b):
            w = weights.token_weight + tokens[t * B + i] * weights.token_row
            row = a.at + t * a.outer + i * a.inner
            if weights.token_gate == 1:
                for n in range(weights.N):
                    row[n] = weights.bias[n] + w[n]
            else:
                for n in range(weights.N):
                    row[n] = weights.bias[n] + w[n * weights.token_gate]
