# Who does what. Threads share the rows of the batch, each for the whole sequence. Where rows are few, they share the units too, step by
# step: then each keeps its part of W_hh in its own cache. Threads that have the same rows meet at each step.

cdef struct Sharing:
    int threads                    # how many a call may use
    int workers                    # how many of them the phase at hand is worth
    int tasks                      # how many it is cut into

cdef struct Patches:               # how a step is cut
    int by_rows
    int by_units                   # 1: by rows alone

cdef double LONG_STEP = 5e8        # multiply-adds of a step that is split, so that Ctrl-C is seen in time
cdef double STEP_RATE = 2 * LANES  # multiply-adds in a nanosecond, in steps of one row; benchmarks/bench_threads.py
cdef double READING = 0.8          # rows that it takes as long to compute as W_hh is read from the cache; from beyond it, MANY_ROWS
cdef double STEP_GAIN = 3          # times what it costs to meet: what sharing a step costs,
cdef double LINES_AT_ONCE = 6      # and once more for each so many lines of the cache that must come from the others
cdef double LEAST_STEP = 200       # ns on one thread, below which that is not even asked

cdef enum:
    SECOND_LEVEL_CACHE = 1 << 19   # bytes, with room for more than W_hh
    FEW_ROWS = 4                   # with fewer rows for each thread, the product is limited by how fast W_hh can be read
    MANY_ROWS = 64                 # ... and with fewer than these, if W_hh does not fit the cache
    SHARES = 4                     # tasks for each thread, at most
    LEAST_ROWS = 4                 # of the batch in a task
    STEPS_BEHIND = 12              # steps that a layer goes behind the one it reads, where both go side by side
    FETCHED = 1 << 12              # bytes that are asked for at the beginning of a step, at most


cdef inline double recurrent_work(const Problem *problem, Py_ssize_t t0, Py_ssize_t t1) noexcept nogil:
    """Multiply-adds of steps t0..t1."""
    return <double>(first_row(&problem.time, t1) - first_row(&problem.time, t0)) * problem.N * (problem.P + CELL_WORK)


cdef inline double patch_work(const Problem *problem, const Patch *patch) noexcept nogil:
    return <double>(patch.b1 - patch.b0) * (patch.u1 - patch.u0) * problem.gates * (problem.P + CELL_WORK)


cdef inline double step_time(const Problem *problem, double rows, int parts) noexcept nogil:
    """About how many nanoseconds a step of so many rows takes, if so many threads share its units and meeting takes none."""
    cdef Py_ssize_t weights = problem.N * problem.P
    cdef bint near = weights * <Py_ssize_t>sizeof(real) <= parts * <Py_ssize_t>SECOND_LEVEL_CACHE
    return weights * (rows + (READING if near else MANY_ROWS)) / (1 + READING) / (parts * STEP_RATE * stages(problem))


cdef inline Patches patches_of_steps(const Problem *problem, int threads, Py_ssize_t t0, Py_ssize_t t1) noexcept nogil:
    """How threads had better cut each of these steps. By units, too, if rows are so few that reading W_hh is what takes time.

    Of many threads, as many share the rows as leave each some rows, and a part of W_hh that fits its cache. So many share the units as
    make a step, and meeting after it, shortest.
    """
    cdef Patches patches
    cdef int most = <int>min(problem.H // LANES, <Py_ssize_t>MAX_PARTS), n, parts
    cdef Py_ssize_t B = active(&problem.time, t0), size = problem.N * problem.P * <Py_ssize_t>sizeof(real), rows
    cdef Py_ssize_t few = FEW_ROWS if size <= SECOND_LEVEL_CACHE else MANY_ROWS
    cdef double shortest, step, lines
    patches.by_rows = patches.by_units = 1
    if most < 2 or step_time(problem, B, 1) < LEAST_STEP:
        return patches
    n = tasks_for(threads, recurrent_work(problem, t0, t1), most * <Py_ssize_t>MAX_CHAINS)
    if problem.time.B >= few * n and B >= FEW_ROWS * n:    # in all of a ragged batch, and here
        return patches
    while (n % (2 * patches.by_rows) == 0 and 2 * patches.by_rows <= MAX_CHAINS and B >= 2 * patches.by_rows * FEW_ROWS
           and 2 * patches.by_rows * size <= n * <Py_ssize_t>SECOND_LEVEL_CACHE):
        patches.by_rows *= 2
    rows, parts = ceil_div(B, patches.by_rows), min(n // patches.by_rows, most)
    lines = <double>rows * (problem.P + problem.N) / 2 * sizeof(real) / CACHE_LINE     # of h forward, or of da back
    shortest = step_time(problem, ceil_div(B, n), 1)       # by rows alone
    while parts > 1:
        step = step_time(problem, rows, parts) + (STEP_GAIN + lines * (parts - 1) / parts / LINES_AT_ONCE) * step_cost(parts)
        if step < shortest:
            shortest, patches.by_units = step, parts
        parts //= 2
    if patches.by_units == 1:
        patches.by_rows = 1
    else:
        patches.by_rows = max(patches.by_rows, <int>min(n // patches.by_units, min(B // FEW_ROWS, <Py_ssize_t>MAX_CHAINS)))
    return patches


cdef inline void share(Sharing *sharing, double work, Py_ssize_t parts, Py_ssize_t least) noexcept nogil:
    """Cut ``parts`` into tasks of at least ``least``: several for each thread, so that one whose core is slow does fewer of them."""
    cdef int workers = tasks_for(sharing.threads, work, parts)
    cdef int each = <int>max(1, min(<Py_ssize_t>SHARES, parts // (least * workers))) if workers > 1 else 1
    sharing.workers, sharing.tasks = workers, min(workers * each, <int>MAX_THREADS)


cdef inline void share_rows(Sharing *sharing, const Problem *problem, Py_ssize_t t, double work) noexcept nogil:
    """Cut the rows of step t, and so of all after it, into tasks; into more of them if one step of one task would keep Ctrl-C waiting."""
    cdef Py_ssize_t B = active(&problem.time, t)
    cdef double longest = <double>B * problem.N * problem.P / LONG_STEP
    share(sharing, work, B, LEAST_ROWS)
    sharing.tasks = max(sharing.tasks, <int>min(longest, <double>min(B, <Py_ssize_t>MAX_THREADS)))


cdef inline void parallel_by_rows(const Problem *problem, Task run, void *context, int tasks, int threads, Watch *watch) noexcept nogil:
    """Tasks that share rows, of which the first are the longest if time is ragged."""
    if problem.time.first == NULL:
        parallel(run, context, tasks, threads, watch)
    else:
        parallel_in_order(run, context, tasks, threads, watch)


cdef inline bint has_short_steps(const Problem *problem) noexcept nogil:
    """Whether Ctrl-C can wait for the end of each."""
    return <double>problem.time.B * problem.N * problem.P < 2 * LONG_STEP


cdef inline Patch whole_rows(const Problem *problem, Py_ssize_t b0, Py_ssize_t b1) noexcept nogil:
    cdef Patch patch
    patch.b0, patch.b1 = b0, b1
    patch.u0, patch.u1 = 0, problem.H
    patch.p0, patch.p1 = 0, min(problem.P, problem.H)     # what units write of h
    return patch


cdef inline Patch rows_of_task(const Problem *problem, Py_ssize_t t, int task, int tasks) noexcept nogil:
    """A task's share of the rows of step t."""
    cdef Py_ssize_t B = active(&problem.time, t)
    return whole_rows(problem, B * task // tasks, B * (task + 1) // tasks)


cdef inline Patch units_of_part(const Problem *problem, int part, int parts) noexcept nogil:
    """A part's share of the units, for all rows."""
    cdef Patch patch
    patch.b0, patch.b1 = 0, problem.time.B
    cut_panels(problem.H, part, parts, &patch.u0, &patch.u1)
    patch.p0, patch.p1 = patch.u0, patch.u1
    if problem.w_hr != NULL:
        cut_panels(problem.P, part, parts, &patch.p0, &patch.p1)
    return patch


cdef inline Patch one_of_patches(const Problem *problem, const Patches *patches, int i, Py_ssize_t t) noexcept nogil:
    """The i-th: neighbours have the same rows of step t, and so of all after it."""
    cdef Patch patch = units_of_part(problem, i % patches.by_units, patches.by_units)
    cdef Py_ssize_t B = active(&problem.time, t), rows = i // patches.by_units
    patch.b0, patch.b1 = B * rows // patches.by_rows, B * (rows + 1) // patches.by_rows
    return patch


cdef inline void fetch_others(const Problem *problem, const Patch *patch, const real *made, Py_ssize_t n) noexcept nogil:
    """If threads share the step's units: ask for what they made in the one before. A sum would ask for one line after the other."""
    if patch.u1 - patch.u0 < problem.H:
        prefetch_rows(made, 0, 1, min(n, <Py_ssize_t>(FETCHED // sizeof(real))))


cdef inline void cut_panels(Py_ssize_t n, int part, int parts, Py_ssize_t *first, Py_ssize_t *end) noexcept nogil:
    """A part of n columns, in whole panels."""
    cdef Py_ssize_t panels = ceil_div(n, LANES)
    first[0] = panels * part // parts * LANES
    end[0] = min(n, panels * (part + 1) // parts * LANES)
