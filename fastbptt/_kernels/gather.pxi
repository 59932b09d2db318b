# Rows of an array, put in another place or order: between a batch as its caller has it and the packed one of `time.pxi`, or the halves of
# two directions.

cdef double COPY_WORK = 8          # an element's copy costs about as much as this many multiply-adds

cdef struct Gather:
    const real *source             # or NULL: only rows of zeros are written
    const int64_t *index           # the row of the source that each row of the target is; -1: of zeros
    real *target
    Py_ssize_t rows, width
    int tasks
    Watch watch


def gather(const real[:, ::1] source, const int64_t[::1] index, real[:, ::1] target):
    """target[i] = source[index[i]], or 0 where the index is -1."""
    run_gather(&source[0, 0] if source.shape[0] else NULL, index, target)


def clear_missing(const int64_t[::1] index, real[:, ::1] target):
    """target[i] = 0 where the index is -1; other rows stay as they are."""
    run_gather(NULL, index, target)


cdef int run_gather(const real *source, const int64_t[::1] index, real[:, ::1] target) except -1:
    cdef Gather run
    memset(&run, 0, sizeof(Gather))
    run.rows, run.width = target.shape[0], target.shape[1]
    run.source, run.index, run.target = source, &index[0], &target[0, 0]
    with nogil:
        run.tasks = tasks_for(thread_limit(), COPY_WORK * run.rows * run.width, run.rows)
        parallel(gather_part, &run, run.tasks, run.tasks, &run.watch)
    raise_if_interrupted(&run.watch)
    return 0


cdef void gather_part(void *context, int task, int worker) noexcept nogil:
    cdef Gather *run = <Gather *>context
    cdef Py_ssize_t row, width = run.width
    for row in range(run.rows * task // run.tasks, run.rows * (task + 1) // run.tasks):
        if run.index[row] < 0:
            memset(run.target + row * width, 0, width * sizeof(real))
        elif run.source != NULL:
            memcpy(run.target + row * width, run.source + run.index[row] * width, width * sizeof(real))
        if interrupted(&run.watch, worker, width):
            return


cdef struct Move:
    Rows source                    # row b of step t is its row (t, b)
    Rows target
    Py_ssize_t T, B, width
    bint adds
    int tasks
    Watch watch


def move_rows(const real[:, :, :] source, real[:, :, :] target, bint adds=False):
    """target = source, or target += source: arrays of one shape (T, B, W), whose rows may stand anywhere, each in one piece."""
    cdef Move run
    if source.shape[0] != target.shape[0] or source.shape[1] != target.shape[1] or source.shape[2] != target.shape[2]:
        raise ValueError("source, target: expected arrays of one shape")
    if not source.shape[0] or not source.shape[1] or not source.shape[2]:
        return
    if source.shape[2] > 1 and (source.strides[2] != sizeof(real) or target.strides[2] != sizeof(real)):
        raise ValueError("source, target: expected rows in one piece")
    memset(&run, 0, sizeof(Move))
    run.source = rows(&source[0, 0, 0], source.strides[0] // <Py_ssize_t>sizeof(real), source.strides[1] // <Py_ssize_t>sizeof(real))
    run.target = rows(&target[0, 0, 0], target.strides[0] // <Py_ssize_t>sizeof(real), target.strides[1] // <Py_ssize_t>sizeof(real))
    run.T, run.B, run.width, run.adds = source.shape[0], source.shape[1], source.shape[2], adds
    with nogil:
        run.tasks = tasks_for(thread_limit(), COPY_WORK * run.T * run.B * run.width, run.T * run.B)
        parallel(move_part, &run, run.tasks, run.tasks, &run.watch)
    raise_if_interrupted(&run.watch)


cdef void move_part(void *context, int task, int worker) noexcept nogil:
    cdef Move *run = <Move *>context
    cdef Py_ssize_t row, t, b
    cdef const real *source
    cdef real *target
    for row in range(run.T * run.B * task // run.tasks, run.T * run.B * (task + 1) // run.tasks):
        t, b = row // run.B, row % run.B
        source = run.source.at + t * run.source.outer + b * run.source.inner
        target = <real *>run.target.at + t * run.target.outer + b * run.target.inner
        if run.adds:
            add(source, run.width, target)
        else:
            memcpy(target, source, run.width * sizeof(real))
        if interrupted(&run.watch, worker, run.width):
            return
