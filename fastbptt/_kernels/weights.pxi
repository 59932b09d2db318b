# Weights, packed as the products read them. They do not change within a call, so this is done once for all steps; and a caller that takes
# one step at a time can have them packed once for all calls.

cdef enum InputKind:
    VECTORS = 0
    TOKENS = 1                     # W_ih is turned round: a token's weights are one row
    FEW_TOKENS = 2                 # which costs more than picking them out of its columns

cdef struct InputWeights:          # of a projection
    InputKind kind
    Panels w                       # of vectors: W^T, I rows and N columns
    const real *token_weight       # of tokens: weight n of token i is token_weight[i * token_row + n * token_gate]
    Py_ssize_t token_row, token_gate
    real *bias                     # (N,)

cdef struct ForwardWeights:
    Py_ssize_t N, I, H, P
    int reset_after
    InputWeights input
    Panels w_hh                    # W_hh^T, P rows; packed gate by gate, so that a gate's first unit starts a panel
    real *m_bias                   # (H,): the recurrent bias of a gate whose reset comes after the product


cdef void lay_out_input(InputWeights *input, Py_ssize_t N, Py_ssize_t I, Space *space) noexcept nogil:
    input.bias = take(space, N)
    if input.kind == VECTORS:
        input.w = take_panels(space, N, I)
    elif input.kind == TOKENS:
        input.token_weight = take(space, I * N)


cdef void pack_input(InputWeights *input, const real *w, Py_ssize_t N, Py_ssize_t I) noexcept nogil:
    """All but the bias."""
    if input.kind == VECTORS:
        pack_transposed(w, I, I, N, input.w.at, input.w.panel)
    elif input.kind == TOKENS:
        transpose(w, N, I, <real *>input.token_weight)
        input.token_row, input.token_gate = N, 1
    else:
        input.token_weight = w
        input.token_row, input.token_gate = 1, I


cdef void lay_out_forward(void *call, Space *space) noexcept nogil:
    cdef ForwardWeights *packed = <ForwardWeights *>call
    lay_out_input(&packed.input, packed.N, packed.I, space)
    packed.w_hh = take_panels(space, packed.N // packed.H * ceil_div(packed.H, LANES) * LANES, packed.P)
    packed.m_bias = take(space, packed.reset_after * packed.H)


cdef void pack_forward(ForwardWeights *packed, const real *w_ih, const real *w_hh, const real *b_ih, const real *b_hh) noexcept nogil:
    """The transposed weights, and both biases added up, but for a gate whose reset comes after the product."""
    cdef Py_ssize_t N = packed.N, H = packed.H, n, gate, summed = N - packed.reset_after * H
    cdef real *bias = packed.input.bias
    memset(bias, 0, N * sizeof(real))
    memset(packed.m_bias, 0, packed.reset_after * H * sizeof(real))
    if b_ih != NULL:
        memcpy(bias, b_ih, N * sizeof(real))
    if b_hh != NULL:
        for n in range(summed):
            bias[n] = bias[n] + b_hh[n] if b_ih != NULL else b_hh[n]
        memcpy(packed.m_bias, b_hh + summed, packed.reset_after * H * sizeof(real))
    for gate in range(N // H):
        pack_transposed(w_hh + gate * H * packed.P, packed.P, packed.P, H,
                        panels_from(packed.w_hh, gate * ceil_div(H, LANES)).at, packed.w_hh.panel)
    pack_input(&packed.input, w_ih, N, packed.I)


cdef inline InputKind kind_of_tokens(Py_ssize_t rows, Py_ssize_t I) noexcept nogil:
    return TOKENS if rows >= I // 4 else FEW_TOKENS


cdef class PackedWeights:
    """A layer's weights and biases, packed for the forward pass; `pack` makes them."""
    cdef ForwardWeights at
    cdef Block block

    cdef int pack(self, const real *w_ih, const real *w_hh, const real *b_ih, const real *b_hh) except -1:
        """The sizes are known."""
        self.block = make_room(lay_out_forward, &self.at)
        with nogil:
            pack_forward(&self.at, w_ih, w_hh, b_ih, b_hh)
        return 0

    cdef bint fit(self, const Problem *problem) noexcept:
        cdef const ForwardWeights *at = &self.at
        return (at.N == problem.N and at.I == problem.I and at.H == problem.H and at.P == problem.P
                and at.reset_after == problem.reset_after and (at.input.kind == VECTORS) == (problem.x != NULL))


cdef PackedWeights packed_for(const Problem *problem, const real *b_ih, const real *b_hh):
    """The weights of one call."""
    cdef PackedWeights weights = PackedWeights.__new__(PackedWeights)
    cdef ForwardWeights *at = &weights.at
    at.N, at.I, at.H, at.P, at.reset_after = problem.N, problem.I, problem.H, problem.P, problem.reset_after
    at.input.kind = VECTORS if problem.x != NULL else kind_of_tokens(first_row(&problem.time, problem.time.T), problem.I)
    weights.pack(problem.w_ih, problem.w_hh, b_ih, b_hh)
    return weights


cdef void pack_backward(Panels packed, const real *w, Py_ssize_t N, Py_ssize_t I) noexcept nogil:
    """W (N, I) as it is, which takes gradients of N pre-activations to those of I inputs."""
    pack_rows(rows(w, 0, I), N, 0, N, I, LANES, packed.at, packed.panel)


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
