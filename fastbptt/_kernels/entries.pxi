# The C interface (`fastbptt/cython_api.pxd`): a problem is checked, bound to the caller's arrays, and run in the caller's memory, without
# Python.
#
# It is run as a fleet of one net (`whole_nets.pxi`), by the passes that Python's functions run too, and so with their bits. Signals are not
# looked at: their handlers are Python's.

cdef struct Packed:                # how memory begins into which a caller's weights are packed
    const void *here               # its own address: what has been moved is of no use
    int unit                       # bytes of an element
    ForwardWeights weights


# --- Checks -----------------------------------------------------------------------------------------------------------

cdef int bind_net(Problem *net, const interface.Problem *given) noexcept nogil:
    """Sizes, weights and inputs; on entry, all is 0. A status."""
    cdef int status = check_sizes(given)
    if status != interface.OK:
        return status
    choose_steps(net, given.cell, given.w_hr != NULL)
    net.gates, net.reset_after = gates_of(given.cell), given.cell == GRU_CELL
    net.activation, net.leak = given.activation, <const real *>given.leak
    net.time.T, net.time.B, net.I, net.P, net.H, net.N = given.T, given.B, given.I, given.P, given.H, net.gates * given.H
    net.x, net.tokens = <const real *>given.x, given.tokens
    net.w_ih, net.w_hh, net.w_hr = <const real *>given.w_ih, <const real *>given.w_hh, <const real *>given.w_hr
    return interface.OK


cdef int bind_given(Fleet *fleet, const interface.Problem *given) noexcept nogil:
    """All arrays of a forward pass. A status."""
    cdef Problem *net = &fleet.net
    cdef int status
    memset(fleet, 0, sizeof(Fleet))
    status = bind_net(net, given)
    if status != interface.OK:
        return status
    fleet.has_c = given.cell == LSTM_CELL
    net.h = <real *>given.h
    net.c = <real *>given.c if fleet.has_c else NULL
    net.a = <real *>given.gates if has_gates(net) else NULL
    net.m = <real *>given.m if net.reset_after else NULL
    fleet.K, fleet.threads, fleet.workers, fleet.tasks, fleet.one_lengths = 1, given.threads, 1, 1, True
    fleet.watch.deaf = True
    fleet.lengths, fleet.resets = given.lengths, given.resets
    fleet.places = pieces_of_net(given.lengths, given.resets, given.T, given.B)
    fleet.b_ih, fleet.b_hh = <const real *>given.b_ih, <const real *>given.b_hh
    fleet.h0, fleet.c0 = <const real *>given.h0, <const real *>given.c0
    fleet.h_n, fleet.c_n = <real *>given.h_n, <real *>given.c_n if fleet.has_c else NULL
    fleet.out = <real *>given.out
    return interface.OK


cdef int check_sizes(const interface.Problem *given) noexcept nogil:
    """Everything but arrays that a call needs, and tokens."""
    cdef Py_ssize_t b
    if given == NULL or given.size != sizeof(interface.Problem):
        return interface.WRONG_STRUCT
    if not RNN_CELL <= given.cell <= LSTM_CELL:
        return interface.UNKNOWN_CELL
    if not TANH <= given.activation <= IDENTITY:
        return interface.UNKNOWN_ACTIVATION
    if not 1 <= given.threads <= MAX_THREADS:
        return interface.WRONG_THREADS
    if given.T < 1 or given.B < 1 or given.I < 1 or given.H < 1 or given.P < 1:
        return interface.WRONG_SIZES
    if (given.P >= given.H) if given.w_hr != NULL else (given.P != given.H):
        return interface.WRONG_SIZES
    if too_large(given):
        return interface.TOO_LARGE
    if (given.leak != NULL and given.cell != RNN_CELL) or (given.w_hr != NULL and given.cell != LSTM_CELL):
        return interface.UNEXPECTED_ARRAY
    if misaligned(given):
        return interface.MISALIGNED_ARRAY
    if given.lengths != NULL:
        for b in range(given.B):
            if not 0 <= given.lengths[b] <= given.T:
                return interface.WRONG_LENGTH
    return interface.OK


cdef inline bint too_large(const interface.Problem *given) noexcept nogil:
    """For the address space: as doubles, products do not overflow. A workspace may be many times as large as the largest array, with sums
    for each of `MAX_GROUPS`, and its size is to be an integer of 64 bits still.
    """
    cdef double N = <double>given.H * MAX_GATES, R = <double>given.T * given.B, I = <double>given.I
    return max(N * max(I, N), 2 * (R + given.B) * max(I, N)) > 2.0 ** 52


cdef inline bint misaligned(const interface.Problem *given) noexcept nogil:
    """Whether any array is not."""
    cdef size_t any_real = (
        <size_t>given.x | <size_t>given.w_ih | <size_t>given.w_hh | <size_t>given.b_ih | <size_t>given.b_hh | <size_t>given.w_hr
        | <size_t>given.leak | <size_t>given.h0 | <size_t>given.c0 | <size_t>given.h_n | <size_t>given.c_n | <size_t>given.out
        | <size_t>given.h | <size_t>given.c | <size_t>given.gates | <size_t>given.m | <size_t>given.d_out | <size_t>given.d_h_n
        | <size_t>given.d_c_n | <size_t>given.dx | <size_t>given.dh0 | <size_t>given.dc0 | <size_t>given.dw_ih | <size_t>given.dw_hh
        | <size_t>given.db_ih | <size_t>given.db_hh | <size_t>given.dw_hr
    )
    return any_real % sizeof(real) != 0 or (<size_t>given.tokens | <size_t>given.lengths) % sizeof(int64_t) != 0


cdef inline int check_input(const interface.Problem *given) noexcept nogil:
    """One of the two."""
    if given.x == NULL and given.tokens == NULL:
        return interface.MISSING_ARRAY
    return interface.OK if given.x == NULL or given.tokens == NULL else interface.UNEXPECTED_ARRAY


cdef int check_tokens(const interface.Problem *given) noexcept nogil:
    """Those of steps that rows have."""
    cdef Py_ssize_t t, b
    if given.tokens != NULL:
        for t in range(given.T):
            for b in range(given.B):
                if not 0 <= given.tokens[t * given.B + b] < given.I and (given.lengths == NULL or t < given.lengths[b]):
                    return interface.WRONG_TOKEN
    return interface.OK


cdef int use_workspace(const interface.Problem *given, size_t needed, size_t *free) noexcept nogil:
    """Where it begins, if there is so much of it, and the array that must be there for that."""
    if given.workspace == NULL:
        return interface.MISSING_ARRAY
    if given.workspace_size < 0 or <size_t>given.workspace_size < needed:
        return interface.SMALL_WORKSPACE
    free[0] = aligned(<size_t>given.workspace)
    return interface.OK


cdef inline size_t aligned(size_t address) noexcept nogil:
    return (address + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE


# --- Weights that stay packed -----------------------------------------------------------------------------------------

cdef void lay_out_packed_weights(void *call, Space *space) noexcept nogil:
    """``call`` is what will stand at their beginning."""
    take_bytes(space, sizeof(Packed))
    lay_out_forward(&(<Packed *>call).weights, space)


cdef int size_packed(Packed *packed, const interface.Problem *given) noexcept nogil:
    cdef Problem net
    cdef int status
    memset(&net, 0, sizeof(Problem))
    status = bind_net(&net, given)
    if status == interface.OK:
        memset(packed, 0, sizeof(Packed))
        set_sizes(&packed.weights, &net, VECTORS if given.tokens == NULL else TOKENS)
    return status


cdef Py_ssize_t packed_bytes(const interface.Problem *given) noexcept nogil:
    cdef Packed packed
    cdef int status = size_packed(&packed, given)
    return status if status != interface.OK else <Py_ssize_t>bytes_of(lay_out_packed_weights, &packed) + CACHE_LINE


cdef int pack_given(const interface.Problem *given) noexcept nogil:
    cdef Packed packed
    cdef Space space
    cdef int status = size_packed(&packed, given)
    if status != interface.OK:
        return status
    if given.packed == NULL or given.w_ih == NULL or given.w_hh == NULL:
        return interface.MISSING_ARRAY
    if given.packed_size < <Py_ssize_t>bytes_of(lay_out_packed_weights, &packed) + CACHE_LINE:
        return interface.WRONG_PACKED
    space.free = aligned(<size_t>given.packed)
    packed.here, packed.unit = <const void *>space.free, sizeof(real)
    lay_out_packed_weights(&packed, &space)
    pack_forward(&packed.weights, <const real *>given.w_ih, <const real *>given.w_hh, <const real *>given.w_hr, <const real *>given.b_ih,
                 <const real *>given.b_hh, 1, NULL)
    memcpy(<void *>packed.here, &packed, sizeof(Packed))
    return interface.OK


cdef inline int find_packed(const interface.Problem *given, const Problem *net, const ForwardWeights **weights) noexcept nogil:
    cdef const Packed *packed = <const Packed *>aligned(<size_t>given.packed)
    if given.packed_size < <Py_ssize_t>(sizeof(Packed) + CACHE_LINE) or packed.here != packed or packed.unit != sizeof(real):
        return interface.WRONG_PACKED
    weights[0] = &packed.weights
    return interface.OK if weights_fit(&packed.weights, net) else interface.WRONG_PACKED


# --- Forward ----------------------------------------------------------------------------------------------------------

cdef int prepare_given_forward(Fleet *fleet, const interface.Problem *given, size_t *needed) noexcept nogil:
    cdef NetForward net
    cdef int status = bind_given(fleet, given)
    if status == interface.OK:
        status = check_input(given)
    if status == interface.OK and given.packed != NULL:
        status = find_packed(given, &fleet.net, &fleet.packed)
    if status == interface.OK:
        size_net_forward(&net, fleet, 0)
        needed[0] = bytes_of(lay_out_net_forward, &net) + CACHE_LINE
    return status


cdef int forward_given(const interface.Problem *given) noexcept nogil:
    cdef Fleet fleet
    cdef size_t needed
    cdef int status = prepare_given_forward(&fleet, given, &needed)
    if status == interface.OK and given.packed == NULL and (given.w_ih == NULL or given.w_hh == NULL):
        status = interface.MISSING_ARRAY
    if status == interface.OK:
        status = check_tokens(given)
    if status == interface.OK:
        status = use_workspace(given, needed, &fleet.room)
    if status != interface.OK:
        return status
    if fleet.out != NULL and may_be_ragged(&fleet):
        memset(fleet.out, 0, given.T * given.B * given.P * sizeof(real))
    forward_of_net(&fleet, 0, 0)
    return interface.OK


# --- Backward ---------------------------------------------------------------------------------------------------------

cdef struct GivenBackward:
    Fleet fleet
    const interface.Problem *given


cdef void lay_out_given_backward(void *call, Space *space) noexcept nogil:
    """Room for what must be somewhere though the caller does not want it, and for the pass."""
    cdef GivenBackward *run = <GivenBackward *>call
    cdef Fleet *fleet = &run.fleet
    cdef const Problem *net = &fleet.net
    cdef const interface.Problem *given = run.given
    fleet.dh = <real *>given.dh0 if given.dh0 != NULL else take(space, net.time.B * net.P)
    if fleet.has_c:
        fleet.dc = <real *>given.dc0 if given.dc0 != NULL else take(space, net.time.B * net.H)
    fleet.sums.db_ih = <real *>given.db_ih if given.db_ih != NULL else take(space, net.N)
    if net.reset_after:
        fleet.sums.db_hh = <real *>given.db_hh if given.db_hh != NULL else take(space, net.N)
    fleet.room = space.free
    space.free += room_for_net_backward(fleet)


cdef int prepare_given_backward(GivenBackward *run, const interface.Problem *given, size_t *needed) noexcept nogil:
    cdef Fleet *fleet = &run.fleet
    cdef int status = bind_given(fleet, given)
    run.given = given
    if status == interface.OK:
        status = check_input(given)
    if status != interface.OK:
        return status
    if given.dx != NULL and given.tokens != NULL:
        return interface.UNEXPECTED_ARRAY
    if not UNCLIPPED <= given.clip <= BY_NORM or (given.clip != UNCLIPPED and not given.clip_limit > 0):
        return interface.WRONG_CLIP
    fleet.clip.kind, fleet.clip.limit = given.clip, given.clip_limit
    fleet.d_out, fleet.dx = <const real *>given.d_out, <real *>given.dx
    fleet.sums.dw_ih, fleet.sums.dw_hh = <real *>given.dw_ih, <real *>given.dw_hh
    fleet.sums.dw_hr = <real *>given.dw_hr if given.w_hr != NULL else NULL
    needed[0] = bytes_of(lay_out_given_backward, run) + CACHE_LINE
    return interface.OK


cdef int backward_given(const interface.Problem *given) noexcept nogil:
    cdef GivenBackward run
    cdef Fleet *fleet = &run.fleet
    cdef const Problem *net = &fleet.net
    cdef Space space
    cdef size_t needed
    cdef Py_ssize_t B = given.B if given != NULL else 0
    cdef int status = prepare_given_backward(&run, given, &needed)
    if status == interface.OK and lacks_array_for_backward(fleet):
        status = interface.MISSING_ARRAY
    if status == interface.OK:
        status = check_tokens(given)
    if status == interface.OK:
        status = use_workspace(given, needed, &space.free)
    if status != interface.OK:
        return status
    lay_out_given_backward(&run, &space)
    copy_or_clear(fleet.dh, given.d_h_n, B * net.P)
    if fleet.has_c:
        copy_or_clear(fleet.dc, given.d_c_n, B * net.H)
    if fleet.dx != NULL and may_be_ragged(fleet):
        copy_or_clear(fleet.dx, NULL, net.time.T * B * net.I)
    backward_of_net(fleet, 0, 0)
    if given.db_hh != NULL and not net.reset_after:
        copy_or_clear(<real *>given.db_hh, fleet.sums.db_ih, net.N)
    return interface.OK


cdef inline bint lacks_array_for_backward(const Fleet *fleet) noexcept nogil:
    cdef const Problem *net = &fleet.net
    return (net.w_ih == NULL or net.w_hh == NULL or net.h == NULL or (fleet.has_c and net.c == NULL) or (has_gates(net) and net.a == NULL)
            or (net.reset_after and net.m == NULL) or fleet.sums.dw_ih == NULL or fleet.sums.dw_hh == NULL
            or (net.w_hr != NULL and fleet.sums.dw_hr == NULL))


cdef inline void copy_or_clear(real *target, const void *source, Py_ssize_t n) noexcept nogil:
    if source == NULL:
        memset(target, 0, n * sizeof(real))
    elif source != target:
        memcpy(target, source, n * sizeof(real))


# --- One step ---------------------------------------------------------------------------------------------------------

cdef void lay_out_step(void *call, Space *space) noexcept nogil:
    """States before and after it, and gates."""
    cdef Forward *run = <Forward *>call
    cdef Problem *net = &run.problem
    cdef Py_ssize_t B = net.time.B
    net.h = take(space, 2 * B * net.P)
    if net.gates == gates_of(LSTM_CELL):
        net.c = take(space, 2 * B * net.H)
    net.a = take(space, B * net.N) if has_gates(net) else net.h + B * net.P
    if net.reset_after:
        net.m = take(space, B * net.H)
    if net.w_hr != NULL:
        lay_out_shown(run, space)


cdef int bind_step(Forward *run, const interface.Problem *given) noexcept nogil:
    cdef int status
    memset(run, 0, sizeof(Forward))
    status = bind_net(&run.problem, given)
    if status == interface.OK:
        status = check_input(given)
    if status != interface.OK:
        return status
    if given.T != 1:
        return interface.WRONG_SIZES
    if given.lengths != NULL or given.resets != NULL:
        return interface.UNEXPECTED_ARRAY
    run.watch.deaf, run.sharing.threads = True, given.threads
    return interface.OK


cdef int step_given(const interface.Problem *given) noexcept nogil:
    """From h0 and c0 to h_n and c_n."""
    cdef Forward run
    cdef Problem *net = &run.problem
    cdef const ForwardWeights *weights = NULL
    cdef Space space
    cdef int status = bind_step(&run, given)
    if status == interface.OK and (given.packed == NULL or given.h_n == NULL or (given.cell == LSTM_CELL and given.c_n == NULL)):
        status = interface.MISSING_ARRAY
    if status == interface.OK:
        status = find_packed(given, net, &weights)
    if status == interface.OK:
        status = check_tokens(given)
    if status == interface.OK:
        status = use_workspace(given, 0, &space.free)
    if status != interface.OK:
        return status
    lay_out_step(&run, &space)     # nothing is written to it yet
    if space.free - aligned(<size_t>given.workspace) + CACHE_LINE > <size_t>given.workspace_size:
        return interface.SMALL_WORKSPACE
    copy_or_clear(net.h, given.h0, given.B * given.P)
    if net.c != NULL:
        copy_or_clear(net.c, given.c0, given.B * given.H)
    prepare_forward(&run, weights)
    run_forward(&run)
    memcpy(given.h_n, net.h + given.B * given.P, given.B * given.P * sizeof(real))
    if net.c != NULL:
        memcpy(given.c_n, net.c + given.B * given.H, given.B * given.H * sizeof(real))
    return interface.OK


# --- Memory -----------------------------------------------------------------------------------------------------------

cdef Py_ssize_t workspace_bytes(const interface.Problem *given, int call) noexcept nogil:
    cdef Fleet fleet
    cdef GivenBackward back
    cdef Forward step
    cdef size_t needed = 0
    cdef int status = interface.WRONG_CALL
    if call == interface.FORWARD:
        status = prepare_given_forward(&fleet, given, &needed)
    elif call == interface.BACKWARD:
        status = prepare_given_backward(&back, given, &needed)
    elif call == interface.STEP:
        status = bind_step(&step, given)
        needed = bytes_of(lay_out_step, &step) + CACHE_LINE if status == interface.OK else 0
    return <Py_ssize_t>needed if status == interface.OK else status


# --- Clipping ---------------------------------------------------------------------------------------------------------

cdef struct GivenArrays:
    void **at
    const Py_ssize_t *sizes
    Py_ssize_t count


cdef int fold_given(void *arrays, OverChunk over, const double *given, int count, double work, double *total,
                    double *largest) noexcept nogil:
    """By one thread, chunk by chunk as `fold_chunks` does, and so with its bits."""
    cdef const GivenArrays *all_of_them = <const GivenArrays *>arrays
    cdef Py_ssize_t i, start
    cdef void *at
    total[0] = largest[0] = 0
    for i in range(all_of_them.count):
        start = 0
        while start < all_of_them.sizes[i]:
            at = <real *>all_of_them.at[i] + start
            add_result(over(&at, min(<Py_ssize_t>CHUNK, all_of_them.sizes[i] - start), given), total, largest)
            start += CHUNK
    return 0


cdef int clip_given(void **at, const Py_ssize_t *sizes, Py_ssize_t count, double max_norm, double p, double *norm) noexcept nogil:
    cdef GivenArrays arrays
    cdef double factor, root, total, largest
    cdef double[2] factors
    cdef Py_ssize_t i
    if not max_norm >= 0 or not p > 0:
        return interface.WRONG_CLIP
    if count < 0:
        return interface.WRONG_SIZES
    if count > 0 and (at == NULL or sizes == NULL):
        return interface.MISSING_ARRAY
    for i in range(count):
        if sizes[i] < 0:
            return interface.WRONG_SIZES
        if sizes[i] > 0 and at[i] == NULL:
            return interface.MISSING_ARRAY
        if <size_t>at[i] % sizeof(real):
            return interface.MISALIGNED_ARRAY
    arrays.at, arrays.sizes, arrays.count = at, sizes, count
    measure(fold_given, &arrays, p, &factor, &root)
    if is_to_be_clipped(max_norm, factor, root, factors):
        fold_given(&arrays, chunk_scale, factors, 2, 1, &total, &largest)
    if norm != NULL:
        norm[0] = finite_product(factor, root)
    return interface.OK


# --- The table --------------------------------------------------------------------------------------------------------

cdef interface.Entries table
table.workspace_bytes, table.packed_bytes, table.pack = workspace_bytes, packed_bytes, pack_given
table.forward, table.backward, table.step, table.clip_norm = forward_given, backward_given, step_given, clip_given

entries = PyCapsule_New(&table, "fastbptt._kernels.entries", NULL)
