# Rows of an array, put in another order: between a batch as its caller has it and the packed one of `time.pxi`.

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
