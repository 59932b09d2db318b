"""The thread pool that the kernels share; ``pool.pyx`` explains it."""

ctypedef void (*Task)(void *context, int task, int worker) noexcept nogil
ctypedef void (*Part)(void *context, Py_ssize_t step, int part, int worker) noexcept nogil

cdef struct Watch:
    int stop      # set once Ctrl-C has come: tasks return early
    bint deaf     # signals are not looked at: the caller may be no Python thread, and has not said that the GIL can be had
    const Watch *above    # that of the call which this one is a part of, or NULL
    char apart[64]        # worker 0 writes what comes now, at every step, and others read all around it: in other lines of the cache
    double work   # multiply-adds since signals were last looked at
    char behind[64]

cdef extern from "<stdatomic.h>" nogil:
    ctypedef int atomic_int
    ctypedef Py_ssize_t atomic_llong
    int atomic_exchange(atomic_int *value, int desired)

cdef struct Progress:
    atomic_llong steps    # that a task has done, for another that goes after it

cdef enum:
    MAX_THREADS = 256
    MAX_PARTS = 16    # of a step of a chain in parallel_steps
    MAX_CHAINS = 16   # of them

cdef int thread_limit() noexcept nogil
cdef int tasks_for(int threads, double work, Py_ssize_t parts) noexcept nogil
cdef void parallel(Task run, void *context, int tasks, int threads, Watch *watch) noexcept nogil
cdef void parallel_in_order(Task run, void *context, int tasks, int threads, Watch *watch) noexcept nogil
cdef bint begin_parallel(Task run, void *context, int tasks, int threads) noexcept nogil
cdef void end_parallel(Watch *watch) noexcept nogil
cdef int jobs_abandoned() noexcept nogil
cdef void parallel_steps(Part run, void *context, Py_ssize_t steps, int chains, int parts, Watch *watch) noexcept nogil
cdef double step_cost(int parts) noexcept nogil
cdef size_t use_controls(size_t controls) noexcept nogil
cdef size_t usual_controls() noexcept nogil
cdef void tell(Progress *progress, Py_ssize_t steps) noexcept nogil
cdef void wait_for(Progress *progress, Py_ssize_t steps, Watch *watch) noexcept nogil
cdef bint interrupted(Watch *watch, int worker, double work) noexcept nogil
cdef int raise_if_interrupted(Watch *watch) except -1
