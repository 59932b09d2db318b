# Nets of a fleet, one after the other: a task is a net, which one thread takes through all time, with the passes of `forward.pxi` and
# `gradients.pxi`, and so with their bits. If there are fewer nets than threads, and these are long, the threads share each.
#
# Nets whose rows end early are packed, as ragged batches are (`time.pxi`), though there is room for the rectangle; the caller's arrays are
# not, and rows are sorted here.

cdef struct Order:                 # a net's rows or, where states are reset, the pieces that rows are cut into; the longest first
    Py_ssize_t *row                # (places,)
    Py_ssize_t *start              # (places,): a piece's first step; NULL: all begin at step 0
    Py_ssize_t places              # at most so many pieces, or B
    const unsigned char *resets    # (T, B), or NULL
    const int64_t *lengths         # (B,), or NULL
    Py_ssize_t steps               # of the batch: how long a row is without a length of its own
    Py_ssize_t *first              # (T + 1,), as `Time` has it
    int64_t *place                 # (T * B,), as `Time` has it, in the arrays of one net; not of nets that go side by side
    Py_ssize_t *next               # (T + 1,), scratch
    Py_ssize_t count, T
    bint ragged                    # or else all have all steps, and nothing is packed

cdef struct NetForward:
    const Fleet *fleet
    Forward run
    ForwardWeights weights
    Order order
    real *x
    int64_t *tokens

cdef struct NetBackward:
    const Fleet *fleet
    Gradients run
    Order order
    real *x
    int64_t *tokens
    real *dh
    real *dc


# --- One net ----------------------------------------------------------------------------------------------------------

cdef Problem problem_of_net(const Fleet *fleet, Py_ssize_t k) noexcept nogil:
    cdef Problem net = fleet.net
    cdef Py_ssize_t N = net.N, I = net.I, P = net.P, H = net.H, T = net.time.T, B = net.time.B
    net.w_ih += k * N * I
    net.w_hh += k * N * P
    net.w_hr += k * P * H if net.w_hr != NULL else 0
    net.leak += k * H if net.leak != NULL else 0
    net.x += k * T * B * I if net.x != NULL and not fleet.one_x else 0
    net.tokens += k * T * B if net.tokens != NULL and not fleet.one_x else 0
    move_kept(&net, k)
    return net


cdef inline void move_kept(Problem *net, Py_ssize_t k) noexcept nogil:
    """On to the states and gates of the k-th task."""
    cdef Py_ssize_t T = net.time.T, B = net.time.B
    net.h += k * (T + 1) * B * net.P if net.h != NULL else 0
    net.c += k * (T + 1) * B * net.H if net.c != NULL else 0
    net.a += k * T * B * net.N if net.a != NULL else 0
    net.m += k * T * B * net.H if net.m != NULL else 0


cdef void lay_out_unkept(Problem *net, bint has_c, Py_ssize_t places, Space *space) noexcept nogil:
    """Room for states and gates that no tape keeps; so many rows or pieces have a first state."""
    cdef Py_ssize_t T = net.time.T, B = net.time.B
    if net.h == NULL:
        net.h = take(space, (T * B + places) * net.P)
    if net.c == NULL and has_c:
        net.c = take(space, (T * B + places) * net.H)
    if net.a == NULL and has_gates(net):
        net.a = take(space, T * B * net.N)
    if net.m == NULL and net.reset_after:
        net.m = take(space, T * B * net.H)


cdef inline const int64_t *lengths_of_net(const Fleet *fleet, Py_ssize_t k) noexcept nogil:
    return fleet.lengths + (0 if fleet.one_lengths or fleet.lengths == NULL else k * fleet.net.time.B)


cdef inline bint may_be_ragged(const Fleet *fleet) noexcept nogil:
    return fleet.lengths != NULL or fleet.resets != NULL


cdef inline bint has_gates(const Problem *net) noexcept nogil:
    """Whether a is an array of its own, and not h."""
    return net.gates > 1 or net.leak != NULL


cdef inline double work_of_net(const Problem *net) noexcept nogil:
    """Multiply-adds forward."""
    return <double>net.time.T * net.time.B * net.N * (net.I + net.P + CELL_WORK)


cdef inline Py_ssize_t length_of_row(const Order *order, Py_ssize_t b) noexcept nogil:
    return order.steps if order.lengths == NULL else order.lengths[b]


cdef inline Py_ssize_t end_of_piece(const Order *order, Py_ssize_t b, Py_ssize_t start, Py_ssize_t B) noexcept nogil:
    """Of row b's piece that begins at step ``start``: where the row ends or is reset."""
    cdef Py_ssize_t length = length_of_row(order, b), t = start + 1
    if order.resets == NULL:
        return length
    while t < length and not order.resets[t * B + b]:
        t += 1
    return t


cdef Py_ssize_t pieces_of_net(const int64_t *lengths, const unsigned char *resets, Py_ssize_t T, Py_ssize_t B) noexcept nogil:
    """Into how many pieces B rows are cut; without resets, B."""
    cdef Py_ssize_t t, b, count = 0, length
    if resets == NULL:
        return B
    for b in range(B):
        length = T if lengths == NULL else lengths[b]
        count += length > 0
        for t in range(1, length):
            count += resets[t * B + b] != 0
    return count


cdef inline bint any_reset(const unsigned char *resets, Py_ssize_t B) noexcept nogil:
    """At one step."""
    cdef Py_ssize_t b
    for b in range(B):
        if resets[b]:
            return True
    return False


cdef void sort_rows_of_net(Order *order, const int64_t *lengths, const unsigned char *resets, Py_ssize_t T, Py_ssize_t B) noexcept nogil:
    """Pieces of one length stay in the order of their rows, and of their steps. Without resets, rows without a step come last."""
    cdef Py_ssize_t t, b, longer = 0, same, start, end, at
    order.lengths, order.resets, order.steps = lengths, resets, T
    memset(order.next, 0, (T + 1) * sizeof(Py_ssize_t))
    for b in range(B):
        end = 0
        while end < length_of_row(order, b):
            start, end = end, end_of_piece(order, b, end, B)
            order.next[end - start] += 1
        order.next[0] += end == 0 and resets == NULL
    order.ragged = order.next[T] < B or (resets != NULL and any_reset(resets, B))
    t = T
    while t >= 0:                  # next[t]: where the first piece of length t stands
        same, order.next[t] = order.next[t], longer
        longer += same
        t -= 1
    order.count, order.T, order.first[0] = 0 if T == 0 else order.next[0], 0, 0
    for t in range(T):             # next[t] is also how many pieces are longer, and so the number of those that have a step t
        order.first[t + 1] = order.first[t] + order.next[t]
        order.T += order.next[t] > 0
    for b in range(B):
        end = 0
        while end < length_of_row(order, b):
            start, end = end, end_of_piece(order, b, end, B)
            at = order.next[end - start]
            order.row[at] = b
            if order.start != NULL:
                order.start[at] = start
            order.next[end - start] += 1
        if end == 0 and resets == NULL:
            order.row[order.next[0]] = b
            order.next[0] += 1


cdef void lay_out_order(Order *order, Py_ssize_t T, Py_ssize_t places, bint cut, Space *space) noexcept nogil:
    """``cut``: at resets."""
    order.places = places
    order.row = take_indices(space, places)
    order.start = take_indices(space, places) if cut else NULL
    order.first = take_indices(space, T + 1)
    order.next = take_indices(space, T + 1)


cdef inline bint begins_its_row(const Order *order, Py_ssize_t i) noexcept nogil:
    """Whether the i-th piece starts at step 0."""
    return order.start == NULL or order.start[i] == 0


cdef inline bint takes_the_state(const Order *order, Py_ssize_t i) noexcept nogil:
    """Whether it starts from its row's initial state, and not from 0."""
    return begins_its_row(order, i) and (order.resets == NULL or not order.resets[order.row[i]])


cdef inline bint ends_its_row(const Order *order, Py_ssize_t i, Py_ssize_t length) noexcept nogil:
    return order.start == NULL or order.start[i] + length == length_of_row(order, order.row[i])


cdef void use_order(Problem *net, const Order *order) noexcept nogil:
    """Lay out the net's time, and say where its rows stand in the caller's arrays."""
    cdef Py_ssize_t t, i, B = net.time.B
    if order.ragged:
        for t in range(order.T):
            for i in range(order.first[t + 1] - order.first[t]):
                order.place[order.first[t] + i] = ((order.start[i] if order.start != NULL else 0) + t) * B + order.row[i]
        net.time.T, net.time.B, net.time.first, net.time.place = order.T, order.count, order.first, order.place


cdef inline Py_ssize_t steps_of_piece(const Order *order, Py_ssize_t i, Py_ssize_t most) noexcept nogil:
    """Of the i-th in the order, which has no more than ``most``: those of the one before it, or all."""
    while order.first[most] - order.first[most - 1] <= i:
        most -= 1
    return most


cdef void pack_inputs(Problem *net, real *x, int64_t *tokens) noexcept nogil:
    """Those of the rows that are there, without gaps."""
    cdef Py_ssize_t row
    if net.x == NULL:
        for row in range(first_row(&net.time, net.time.T)):
            tokens[row] = net.tokens[net.time.place[row]]
        net.tokens = tokens
    else:
        for row in range(first_row(&net.time, net.time.T)):
            memcpy(x + row * net.I, net.x + net.time.place[row] * net.I, net.I * sizeof(real))
        net.x = x


cdef void lay_out_inputs(const Problem *net, Order *order, real **x, int64_t **tokens, Space *space) noexcept nogil:
    """Packed, and the places that they come from."""
    cdef Py_ssize_t R = net.time.T * net.time.B
    order.place = <int64_t *>take_bytes(space, R * sizeof(int64_t))
    if net.x != NULL:
        x[0] = take(space, R * net.I)
    else:
        tokens[0] = <int64_t *>take_bytes(space, R * sizeof(int64_t))


# --- A net forward ----------------------------------------------------------------------------------------------------

cdef void size_net_forward(NetForward *task, const Fleet *fleet, Py_ssize_t k) noexcept nogil:
    """Before it is laid out."""
    memset(task, 0, sizeof(NetForward))
    task.fleet = fleet
    task.run.problem = problem_of_net(fleet, k)
    set_sizes(&task.weights, &task.run.problem, kind_of_input(&task.run.problem))


cdef void lay_out_net_forward(void *call, Space *space) noexcept nogil:
    """Room for the weights; for rows that are packed; and for what is not kept."""
    cdef NetForward *task = <NetForward *>call
    cdef Problem *net = &task.run.problem
    if task.fleet.packed == NULL:
        lay_out_forward(&task.weights, space)
    if net.w_hr != NULL:
        task.run.shown = take(space, task.fleet.places * net.H)
    if may_be_ragged(task.fleet):
        lay_out_order(&task.order, net.time.T, task.fleet.places, task.fleet.resets != NULL, space)
        lay_out_inputs(net, &task.order, &task.x, &task.tokens, space)
    lay_out_unkept(net, task.fleet.has_c, task.fleet.places, space)


cdef void forward_of_net(void *context, int k, int worker) noexcept nogil:
    cdef Fleet *fleet = <Fleet *>context
    cdef NetForward task
    cdef Forward *run = &task.run
    cdef Problem *net = &run.problem
    cdef Py_ssize_t N = fleet.net.N, P = fleet.net.P, H = fleet.net.H, T = fleet.net.time.T, B = fleet.net.time.B, of_k = k
    cdef Space space
    if fleet.watch.stop:
        return
    size_net_forward(&task, fleet, k)
    space.free = fleet.room + worker * fleet.room_each
    lay_out_net_forward(&task, &space)
    if may_be_ragged(fleet):
        sort_rows_of_net(&task.order, lengths_of_net(fleet, k), fleet.resets, T, B)
        use_order(net, &task.order)
        if task.order.ragged and net.x != NULL:
            run.projection.given, net.x = net.x, task.x
        elif task.order.ragged:
            pack_inputs(net, task.x, task.tokens)
    if not has_gates(net):
        net.a = net.h + net.time.B * P
    if fleet.packed == NULL:
        pack_forward(&task.weights, net.w_ih, net.w_hh, net.w_hr, fleet.b_ih + of_k * N if fleet.b_ih != NULL else NULL,
                     fleet.b_hh + of_k * N if fleet.b_hh != NULL else NULL, fleet.threads, &fleet.watch)
    begin_net(&task, fleet.h0 + of_k * B * P if fleet.h0 != NULL else NULL, P, net.h)
    if net.c != NULL:
        begin_net(&task, fleet.c0 + of_k * B * H if fleet.c0 != NULL else NULL, H, net.c)
    if fleet.out != NULL:
        run.out = fleet.out + of_k * T * B * P
    run.sharing.threads = fleet.threads
    prepare_forward(run, fleet.packed if fleet.packed != NULL else <const ForwardWeights *>&task.weights)
    run.watch.above, run.watch.deaf = &fleet.watch, fleet.watch.deaf
    if net.time.T > 0:
        run_forward(run)
    if fleet.h_n != NULL:
        end_net(&task, fleet.h0 + of_k * B * P if fleet.h0 != NULL else NULL, P, net.h, fleet.h_n + of_k * B * P)
    if fleet.c_n != NULL:
        end_net(&task, fleet.c0 + of_k * B * H if fleet.c0 != NULL else NULL, H, net.c, fleet.c_n + of_k * B * H)
    if run.watch.stop or interrupted(&fleet.watch, worker, work_of_net(net)):
        fleet.watch.stop = 1


cdef void begin_net(const NetForward *task, const real *state, Py_ssize_t width, real *history) noexcept nogil:
    """Slot 0 of a history; ``state`` is (B, width), or NULL for zeros."""
    cdef Py_ssize_t B = task.run.problem.time.B, b
    if state == NULL:
        memset(history, 0, B * width * sizeof(real))
    elif not task.order.ragged:
        memcpy(history, state, B * width * sizeof(real))
    else:
        for b in range(B):
            if takes_the_state(&task.order, b):
                memcpy(history + b * width, state + task.order.row[b] * width, width * sizeof(real))
            else:
                memset(history + b * width, 0, width * sizeof(real))


cdef void end_net(const NetForward *task, const real *state, Py_ssize_t width, const real *history, real *last) noexcept nogil:
    """Each row's last state; ``state``, the first, of a row without steps."""
    cdef const Time *time = &task.run.problem.time
    cdef const Order *order = &task.order
    cdef Py_ssize_t B = task.fleet.net.time.B, b, steps = order.T
    if not order.ragged:
        memcpy(last, history + slot(time, time.T) * width, B * width * sizeof(real))
        return
    if state == NULL:
        memset(last, 0, B * width * sizeof(real))
    elif state != last:
        memcpy(last, state, B * width * sizeof(real))
    for b in range(order.count):
        steps = steps_of_piece(order, b, steps)
        if ends_its_row(order, b, steps):
            memcpy(last + order.row[b] * width, history + (slot(time, steps) + b) * width, width * sizeof(real))


# --- A net backward ---------------------------------------------------------------------------------------------------

cdef void size_net_backward(NetBackward *task, const Fleet *fleet, Py_ssize_t k) noexcept nogil:
    cdef Gradients *run = &task.run
    cdef const Problem *net = &run.back.problem
    cdef Py_ssize_t N = fleet.net.N, P = fleet.net.P, H = fleet.net.H, I = fleet.net.I, B = fleet.net.time.B, R = B * fleet.net.time.T
    memset(task, 0, sizeof(NetBackward))
    task.fleet = fleet
    run.back.problem = problem_of_net(fleet, k)
    run.back.clip = fleet.clip
    run.back.d_out = fleet.d_out + k * R * P if fleet.d_out != NULL else NULL
    run.back.dh = fleet.dh + k * B * P
    run.back.dc = fleet.dc + k * B * H if fleet.dc != NULL else NULL
    run.dx = fleet.dx + k * R * I if fleet.dx != NULL else NULL
    run.dw_ih = run.sums.dw_ih = fleet.sums.dw_ih + k * N * I
    run.sums.dw_hh = fleet.sums.dw_hh + k * N * P
    run.sums.db_ih = fleet.sums.db_ih + k * N
    run.sums.db_hh = fleet.sums.db_hh + k * N if fleet.sums.db_hh != NULL else NULL
    run.sums.dw_hr = fleet.sums.dw_hr + k * P * H if fleet.sums.dw_hr != NULL else NULL
    run.begins = run.in_one_call = run.quiet = True
    run.back.sharing.threads = fleet.threads
    run.back.watch.above, run.back.watch.deaf = &fleet.watch, fleet.watch.deaf


cdef void lay_out_packed(void *call, Space *space) noexcept nogil:
    """What is packed of a net with lengths or resets, and comes before all else."""
    cdef NetBackward *task = <NetBackward *>call
    cdef const Problem *net = &task.run.back.problem
    if not may_be_ragged(task.fleet):
        return
    lay_out_order(&task.order, net.time.T, task.fleet.places, task.fleet.resets != NULL, space)
    lay_out_inputs(net, &task.order, &task.x, &task.tokens, space)
    task.dh = take(space, task.fleet.places * net.P)
    task.dc = take(space, task.fleet.places * net.H)


cdef size_t room_for_net_backward(const Fleet *fleet) noexcept nogil:
    """Whatever the lengths: then groups of rows and blocks of time are other ones, and none is longer than this."""
    cdef NetBackward task
    cdef Gradients *run = &task.run
    cdef size_t packed, grouped, ungrouped
    cdef Py_ssize_t any_step
    size_net_backward(&task, fleet, 0)
    plan_backward(run)
    if not may_be_ragged(fleet):
        return bytes_of(lay_out_backward, run)
    packed = bytes_of(lay_out_packed, &task)               # of the rectangle; what follows is of its pieces
    run.held_rows, run.back.problem.time.first, run.back.problem.time.B = BACKWARD_ROWS + fleet.places, &any_step, fleet.places
    run.groups = 1
    ungrouped = bytes_of(lay_out_backward, run)
    run.groups = MAX_GROUPS
    grouped = bytes_of(lay_out_backward, run)
    return packed + max(grouped, ungrouped)


cdef void backward_of_net(void *context, int k, int worker) noexcept nogil:
    cdef Fleet *fleet = <Fleet *>context
    cdef NetBackward task
    cdef Gradients *run = &task.run
    cdef Problem *net = &run.back.problem
    cdef Order *order = &task.order
    cdef Py_ssize_t P = fleet.net.P, H = fleet.net.H, T = fleet.net.time.T, B = fleet.net.time.B
    cdef real *dh
    cdef real *dc
    cdef Space space
    if fleet.watch.stop:
        return
    size_net_backward(&task, fleet, k)
    space.free = fleet.room + worker * fleet.room_each
    lay_out_packed(&task, &space)
    dh, dc = run.back.dh, run.back.dc
    if may_be_ragged(fleet):
        sort_rows_of_net(order, lengths_of_net(fleet, k), fleet.resets, T, B)
        use_order(net, order)
    if order.ragged:
        pack_inputs(net, task.x, task.tokens)
        run.back.dh, run.back.dc = task.dh, task.dc if dc != NULL else NULL
        give_last_gradients(order, dh, P, task.dh)
        if dc != NULL:
            give_last_gradients(order, dc, H, task.dc)
    if not has_gates(net):
        net.a = net.h + net.time.B * P
    if net.time.T > 0:
        plan_backward(run)
        lay_out_backward(run, &space)
        go_back(run)
    else:
        clear_sums(run)
    if order.ragged:
        take_first_gradients(order, task.dh, P, dh)
        if dc != NULL:
            take_first_gradients(order, task.dc, H, dc)
    if run.back.watch.stop or interrupted(&fleet.watch, worker, 2 * work_of_net(net)):
        fleet.watch.stop = 1


cdef void give_last_gradients(const Order *order, const real *of_rows, Py_ssize_t width, real *of_pieces) noexcept nogil:
    """The gradient of a row's last state is that of the piece which ends the row; of all other pieces it is 0."""
    cdef Py_ssize_t i, steps = order.T
    for i in range(order.count):
        steps = steps_of_piece(order, i, steps)
        if ends_its_row(order, i, steps):
            memcpy(of_pieces + i * width, of_rows + order.row[i] * width, width * sizeof(real))
        else:
            memset(of_pieces + i * width, 0, width * sizeof(real))


cdef void take_first_gradients(const Order *order, const real *of_pieces, Py_ssize_t width, real *of_rows) noexcept nogil:
    """The gradient of a row's initial state: 0 if the row is reset at once. A row without a step keeps that of its last state."""
    cdef Py_ssize_t i
    for i in range(order.count):
        if takes_the_state(order, i):
            memcpy(of_rows + order.row[i] * width, of_pieces + i * width, width * sizeof(real))
        elif begins_its_row(order, i):
            memset(of_rows + order.row[i] * width, 0, width * sizeof(real))
