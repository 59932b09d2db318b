# Weights, packed as the products read them. They do not change within a call, so this is done once for all steps; and a caller that takes
# one step at a time can have them packed once for all calls.

cdef enum InputKind:
    VECTORS = 0
    TOKENS = 1                     # W_ih is turned round: a token's weights are one row
    FEW_TOKENS = 2                 # which costs more than picking them out of its columns

cdef struct InputWeights:          # of a projection: W (N, I) and a bias
    Py_ssize_t N, I
    InputKind kind
    Panels w                       # of vectors: W^T, I rows and N columns
    const real *token_weight       # of tokens: weight n of token i is token_weight[i * token_row + n * token_gate]
    Py_ssize_t token_row, token_gate
    real *bias                     # (N,)

cdef struct ForwardWeights:
    InputWeights input
    Py_ssize_t H, P
    int reset_after
    Panels w_hh                    # W_hh^T, P rows; packed gate by gate, so that a gate's first unit starts a panel, unless `gates_touch`
    InputWeights w_hr              # of a projected LSTM (`projected.pxi`); else of no rows
    real *m_bias                   # (H,): the recurrent bias of a gate whose reset comes after the product


cdef struct Packing:               # of a matrix, by threads
    const real *source
    Py_ssize_t K, N                # rows and columns, as they are packed
    Panels into
    int tasks
    bint transposed                # the source is (N, K)

cdef double PACK_WORK = 4          # an element's packing costs about as much as this many multiply-adds


cdef void pack_by_threads(const real *source, Py_ssize_t K, Py_ssize_t N, bint transposed, Panels into, int threads,
                          Watch *watch) noexcept nogil:
    """Panels of LANES columns of a matrix (K, N), or of the transpose of one (N, K), by so many threads if it is large."""
    cdef Packing packing
    packing.source, packing.K, packing.N, packing.transposed, packing.into = source, K, N, transposed, into
    packing.tasks = tasks_for(threads, PACK_WORK * K * N, ceil_div(N, LANES))
    parallel(pack_part, &packing, packing.tasks, packing.tasks, watch)


cdef void pack_part(void *context, int task, int worker) noexcept nogil:
    cdef const Packing *packing = <const Packing *>context
    cdef Py_ssize_t first, end
    cdef Panels into
    cut_panels(packing.N, task, packing.tasks, &first, &end)
    into = panels_from(packing.into, first // LANES)
    if packing.transposed:
        pack_transposed(packing.source + first * packing.K, packing.K, packing.K, end - first, into.at, into.panel)
    else:
        pack_rows(rows(packing.source + first, 0, packing.N), packing.K, 0, packing.K, end - first, LANES, into.at, into.panel)


cdef inline void set_sizes(ForwardWeights *packed, const Problem *problem, InputKind kind) noexcept nogil:
    """What weights and biases of this problem need room for; ``packed`` is 0 on entry."""
    packed.input.N, packed.input.I, packed.input.kind = problem.N, problem.I, kind
    packed.H, packed.P, packed.reset_after = problem.H, problem.P, problem.reset_after
    if problem.w_hr != NULL:
        packed.w_hr.N, packed.w_hr.I, packed.w_hr.kind = problem.P, problem.H, VECTORS


cdef void lay_out_input(void *call, Space *space) noexcept nogil:
    cdef InputWeights *input = <InputWeights *>call
    input.bias = take(space, input.N)
    if input.kind == VECTORS:
        input.w = take_panels(space, input.N, input.I)
    elif input.kind == TOKENS:
        input.token_weight = take(space, input.I * input.N)


cdef void pack_input(InputWeights *input, const real *w, const real *bias, int threads, Watch *watch) noexcept nogil:
    if bias != NULL:
        memcpy(input.bias, bias, input.N * sizeof(real))
    else:
        memset(input.bias, 0, input.N * sizeof(real))
    if input.kind == VECTORS:
        pack_by_threads(w, input.I, input.N, 1, input.w, threads, watch)
    elif input.kind == TOKENS:
        transpose(w, input.N, input.I, <real *>input.token_weight)
        input.token_row, input.token_gate = input.N, 1
    else:
        input.token_weight = w
        input.token_row, input.token_gate = 1, input.I


cdef inline bint gates_touch(Py_ssize_t H) noexcept nogil:
    """Whether those gates that are one product are packed without gaps, as no thread is to have a part of their few units."""
    return H < LANES


cdef inline Py_ssize_t panel_of_gate(const ForwardWeights *packed, Py_ssize_t gate) noexcept nogil:
    """Where it begins, if it begins a panel."""
    cdef Py_ssize_t H = packed.H
    return ceil_div(gate * H, LANES) if gates_touch(H) else gate * ceil_div(H, LANES)


cdef void lay_out_forward(void *call, Space *space) noexcept nogil:
    cdef ForwardWeights *packed = <ForwardWeights *>call
    cdef Py_ssize_t gates = packed.input.N // packed.H
    cdef Py_ssize_t panels = panel_of_gate(packed, gates - packed.reset_after) + packed.reset_after * ceil_div(packed.H, LANES)
    lay_out_input(&packed.input, space)
    packed.w_hh = take_panels(space, panels * LANES, packed.P)
    packed.m_bias = take(space, packed.reset_after * packed.H)
    if packed.w_hr.N:
        lay_out_input(&packed.w_hr, space)


cdef void pack_forward(ForwardWeights *packed, const real *w_ih, const real *w_hh, const real *w_hr, const real *b_ih,
                       const real *b_hh, int threads, Watch *watch) noexcept nogil:
    """The transposed weights, and both biases added up, but for a gate whose reset comes after the product. A NULL bias is 0."""
    cdef Py_ssize_t H = packed.H, P = packed.P, gate = 0, n, summed = packed.input.N - packed.reset_after * H
    cdef Py_ssize_t together = 1   # gates without a gap between them
    cdef real *bias = packed.input.bias
    if gates_touch(H):
        together = summed // H     # and then that whose reset comes after the product, by itself
    elif H % LANES == 0:
        together = packed.input.N // H
    pack_input(&packed.input, w_ih, b_ih, threads, watch)
    memset(packed.m_bias, 0, packed.reset_after * H * sizeof(real))
    if b_hh != NULL:
        for n in range(summed):
            bias[n] = bias[n] + b_hh[n] if b_ih != NULL else b_hh[n]
        memcpy(packed.m_bias, b_hh + summed, packed.reset_after * H * sizeof(real))
    while gate * H < packed.input.N:
        pack_by_threads(w_hh + gate * H * P, P, min(together * H, packed.input.N - gate * H), 1,
                        panels_from(packed.w_hh, panel_of_gate(packed, gate)), threads, watch)
        gate += together
    if packed.w_hr.N:
        pack_input(&packed.w_hr, w_hr, NULL, threads, watch)


cdef inline InputKind kind_of_input(const Problem *problem) noexcept nogil:
    if problem.x != NULL:
        return VECTORS
    return TOKENS if first_row(&problem.time, problem.time.T) >= problem.I // 4 else FEW_TOKENS


cdef bint weights_fit(const ForwardWeights *packed, const Problem *problem) noexcept nogil:
    """Whether they are those of such a problem."""
    return (packed.input.N == problem.N and packed.input.I == problem.I and packed.H == problem.H and packed.P == problem.P
            and (packed.w_hr.N > 0) == (problem.w_hr != NULL) and packed.reset_after == problem.reset_after
            and (packed.input.kind == VECTORS) == (problem.x != NULL))


cdef class PackedWeights:
    """A layer's weights and biases, packed for the forward pass; `pack` makes them."""
    cdef ForwardWeights at
    cdef Block block

    cdef bint fit(self, const Problem *problem) noexcept:
        return weights_fit(&self.at, problem)


cdef PackedWeights room_for_weights(const Problem *problem, InputKind kind):
    """For those of a problem, of which sizes alone must be known."""
    cdef PackedWeights weights = PackedWeights.__new__(PackedWeights)
    set_sizes(&weights.at, problem, kind)
    weights.block = make_room(lay_out_forward, &weights.at)
    return weights


cdef PackedWeights packed(const Problem *problem, InputKind kind, const real *b_ih, const real *b_hh):
    """The weights of a problem, of which sizes and weights alone must be known."""
    cdef PackedWeights weights = room_for_weights(problem, kind)
    cdef Watch watch
    memset(&watch, 0, sizeof(Watch))
    watch.deaf = True              # it is soon over
    with nogil:
        pack_forward(&weights.at, problem.w_ih, problem.w_hh, problem.w_hr, b_ih, b_hh, thread_limit(), &watch)
    return weights


cdef void pack_backward(Panels packed, const real *w, Py_ssize_t N, Py_ssize_t I, int threads, Watch *watch) noexcept nogil:
    """W (N, I) as it is, which takes gradients of N pre-activations to those of I inputs."""
    pack_by_threads(w, N, I, 0, packed, threads, watch)


cdef inline const real *vector(const real[::1] v) noexcept nogil:
    return &v[0] if v is not None else NULL


cdef void transpose(const real *source, Py_ssize_t M, Py_ssize_t N, real *target) noexcept nogil:
    """target (N, M) = source (M, N)^T, in squares that fit the cache."""
    cdef Py_ssize_t m0, n0, m, n
    for m0 in range(0, M, 16):
        for n0 in range(0, N, 16):
            for n in range(n0, min(N, n0 + 16)):
                for m in range(m0, min(M, m0 + 16)):
                    target[n * M + m] = source[m * N + n]
