"""A small thread pool: bounded spinning, then giving way, then sleep; safe after fork; no OpenMP.

``parallel`` runs ``tasks`` calls of one function, on the calling thread (worker 0) and on sleeping helpers. Whoever is free takes
the next task, so a helper that the system does not schedule costs nothing but its help. Every other worker takes the last task that is
left, instead of the first: so of two threads each has the same half of the rows from job to job, and finds it in its own cache. What a task
computes never depends on who runs it, or on how many tasks there are: that is how results keep their bits at any thread count.

``parallel_steps`` is for a chain of steps, each too short to be worth a call of ``parallel``: the parts of a step run side by side, and
the next step starts when all are done. A thread waits for the others only while they are at work; a part that nobody has started it
does itself. There may be several chains, which do not wait for each other.

Locks are CPython's own (``pythread.h``), and so are threads on Windows; elsewhere they are POSIX threads, whose stack must be asked for
where the usual one is small. A failed start is a return value.
If the pool is held already, by another Python thread or by a pair of passes that has begun (`side_by_side.pxi`), or no helper could be
started, the caller runs all tasks by itself.

Helpers compute as their caller does: they take over how its processor rounds, and whether it flushes subnormal numbers to 0, as PyTorch's
`set_flush_denormal` and XLA's own threads have it. A result would else depend on who made which part of it.
"""

import operator
import os
import threading

import numpy as np

from libc.stdlib cimport calloc
from libc.string cimport memset

cdef extern from "pythread.h" nogil:
    ctypedef void *PyThread_type_lock
    unsigned long PyThread_get_thread_ident()
    PyThread_type_lock PyThread_allocate_lock()
    int PyThread_acquire_lock(PyThread_type_lock lock, int wait)
    int PyThread_acquire_lock_timed(PyThread_type_lock lock, long long microseconds, int interruptible)
    void PyThread_release_lock(PyThread_type_lock lock)

cdef extern from "<stdatomic.h>" nogil:
    int atomic_load(atomic_int *value)
    void atomic_store(atomic_int *value, int desired)
    int atomic_fetch_add(atomic_int *value, int addend)
    int atomic_fetch_sub(atomic_int *value, int subtrahend)
    bint atomic_compare_exchange_strong(atomic_llong *value, long long *expected, long long desired)
    long long load_wide "atomic_load"(atomic_llong *value)
    void store_wide "atomic_store"(atomic_llong *value, long long desired)
    long long add_wide "atomic_fetch_add"(atomic_llong *value, long long addend)
    ctypedef enum memory_order:
        memory_order_release
    void atomic_store_explicit(atomic_llong *value, long long desired, memory_order order)

cdef extern from *:
    """
    #include <stddef.h>
    #include "pythread.h"

    static _Thread_local int cap_of_thread; /* 0: none */

    /* How this thread's floating-point unit rounds, flushes and traps, without the flags that its results have raised. */
    #if defined(__x86_64__)
    enum { USUAL_CONTROLS = 0x1f80 };
    static size_t controls_here(void) { return __builtin_ia32_stmxcsr() & ~0x3fu; }
    static void control(size_t controls) { __builtin_ia32_ldmxcsr((unsigned)controls | (__builtin_ia32_stmxcsr() & 0x3fu)); }
    #elif defined(__aarch64__)
    enum { USUAL_CONTROLS = 0 };
    static size_t controls_here(void) { size_t controls; __asm__ volatile("mrs %0, fpcr" : "=r"(controls)); return controls; }
    static void control(size_t controls) { __asm__ volatile("msr fpcr, %0" : : "r"(controls) : "memory"); }
    #else
    enum { USUAL_CONTROLS = 0 };
    static size_t controls_here(void) { return 0; }
    static void control(size_t Py_UNUSED(controls)) {}
    #endif

    #if defined(__x86_64__) || defined(__i386__)
    #define spin_pause() __builtin_ia32_pause()
    #elif defined(__aarch64__)
    #define spin_pause() __asm__ volatile("isb" ::: "memory") /* some 10 ns; "yield" does nothing on most processors */
    #else
    #define spin_pause() ((void)0)
    #endif

    #ifdef _WIN32
    #define WIN32_LEAN_AND_MEAN
    #include <windows.h>
    #define give_way() SwitchToThread()

    static long long nanoseconds(void)
    {
        LARGE_INTEGER now, in_a_second;
        QueryPerformanceCounter(&now);
        QueryPerformanceFrequency(&in_a_second);
        return (long long)(1e9 * (double)now.QuadPart / (double)in_a_second.QuadPart);
    }

    static int start_thread(void (*life)(void *), void *argument, size_t Py_UNUSED(stack))
    {
        return PyThread_start_new_thread(life, argument) != (unsigned long)-1; /* its name is not in the limited API */
    }
    #else
    #include <pthread.h>
    #include <sched.h>
    #include <time.h>
    #define give_way() sched_yield()

    static long long nanoseconds(void)
    {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return now.tv_sec * 1000000000LL + now.tv_nsec;
    }

    static void (*life_of_threads)(void *); /* one for all, and set before the first starts */

    static void *live(void *argument)
    {
        life_of_threads(argument);
        return NULL;
    }

    static int start_thread(void (*life)(void *), void *argument, size_t stack)
    {
        pthread_t thread;
        pthread_attr_t attributes;
        size_t usual;
        int failed;
        life_of_threads = life;
        if (pthread_attr_init(&attributes))
            return 0;
        failed = pthread_attr_getstacksize(&attributes, &usual);
        if (!failed && usual < stack)
            failed = pthread_attr_setstacksize(&attributes, stack);
        failed = failed || pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED)
            || pthread_create(&thread, &attributes, live, argument);
        pthread_attr_destroy(&attributes);
        return !failed;
    }
    #endif
    """
    int cap_of_thread
    long long nanoseconds() nogil
    const size_t USUAL_CONTROLS
    size_t controls_here() nogil
    void control(size_t controls) nogil
    void spin_pause() nogil
    void give_way() nogil
    bint start_thread(void (*life)(void *) noexcept nogil, void *argument, size_t stack) nogil  # of that size or, where it is usual, more

cdef extern from "Python.h":
    # declared without "except": what they raise stays pending until raise_if_interrupted
    int PyErr_CheckSignals()
    void PyErr_SetString(object kind, const char *message)

cdef enum:
    SPINS = 2000                 # pauses before giving way to other processes, 20 to 80 us
    IDLE_SPINS = 4000            # of a helper without work: more than the gap between two calls, and a small call that does not need it
    YIELDS = 1000                # times of giving way before going to sleep: on a virtual machine a sleeper is slow to wake
    STACK = 1 << 20              # bytes for a helper, which needs some 50,000: musl's threads have 128 KB, macOS's 512 KB
    LOOK_AROUND = 50_000         # us between looks at signals while the caller sleeps
    PATIENCE = 200               # pauses, a few us, before doing a part that its thread has not started
    EMPTY_STEPS = 40             # in a measurement of what it costs to meet, which takes some 3 to 16 us,
    NEIGHBOURS = 16              # and of which so many are looked at together
    LOOK_AGAIN = 100_000_000     # ns until the next: a virtual machine's cores can move, and be five times as far from each other then
    FORGOTTEN = 1_000_000_000    # ns after which it says nothing any more
    TRY_AGAIN = 10_000_000       # ns after one in which threads did not meet
    OWN_COST = 30                # ns that such a step takes besides: a look at the clock, and its counters
    USUAL_COST = 50              # ns, as long as nothing is known
    NEAR_COST = 45               # ns, where the threads' cores share a cache
    FAR_TASKS = 20               # so many tasks are worth it, however far threads are from each other
    NOBODY_CAME = 1_000_000      # ns

cdef double WORK_PER_TASK = 1e5  # multiply-adds worth waking a thread for; benchmarks/bench_threads.py
cdef double WORK_PER_YIELD = 1e4  # multiply-adds that giving way once is counted as
cdef double WORK_PER_LOOK = 1e8  # multiply-adds between looks at signals: some 10 ms of vector code, 0.1 s of scalar code

cdef struct Helper:
    PyThread_type_lock wake
    atomic_int asleep
    int seen

cdef struct Job:
    Task run
    void *context
    int tasks
    int threads         # how many may take part
    bint in_order       # whether tasks must be begun in their order
    size_t controls     # the caller's
    atomic_llong taken  # how many from the first on; and in its upper half, how many from the last on
    atomic_int open     # 1 while helpers may still join
    atomic_int inside   # helpers that have joined and not left

cdef Job job
cdef Helper helpers[MAX_THREADS]
cdef int started = 0               # helpers that run
cdef int wanted = 1                # get_num_threads()
cdef atomic_int busy               # a job is under way
cdef atomic_int epoch              # counts jobs: a change is the call to work
cdef atomic_int caller_sleeps
cdef unsigned long main_thread = threading.main_thread().ident  # the only one that Python lets run signal handlers
cdef int abandoned = 0             # jobs under way at a fork: in the child nobody does the helpers' part of them
cdef PyThread_type_lock finished = NULL


cdef int thread_limit() noexcept nogil:
    """get_num_threads(), or less if this thread has a cap. A call asks once, since another Python thread may change it."""
    return min(wanted, cap_of_thread) if cap_of_thread else wanted


cdef int tasks_for(int threads, double work, Py_ssize_t parts) noexcept nogil:
    """How many tasks to cut ``work`` multiply-adds into, for so many threads, when it can be cut into ``parts``."""
    cdef double most = work / WORK_PER_TASK
    threads = <int>min(<Py_ssize_t>threads, parts)
    if threads > 1 and 2 <= most < FAR_TASKS:
        most /= how_far()
    return <int>max(1, min(<double>threads, most))


cdef void parallel(Task run, void *context, int tasks, int threads, Watch *watch) noexcept nogil:
    """Call ``run(context, i, worker)`` for every i < tasks, with worker < threads, and return when all have returned."""
    take_all(run, context, tasks, threads, False, watch)


cdef void parallel_in_order(Task run, void *context, int tasks, int threads, Watch *watch) noexcept nogil:
    """The same for tasks of which the first are the longest: they are begun in their order."""
    take_all(run, context, tasks, threads, True, watch)


cdef void take_all(Task run, void *context, int tasks, int threads, bint in_order, Watch *watch) noexcept nogil:
    cdef int i
    threads = min(tasks, threads)
    if take_pool(threads):
        open_job(run, context, tasks, threads, in_order)
        end_parallel(watch)
        return
    for i in range(tasks):
        run(context, i, 0)


cdef bint begin_parallel(Task run, void *context, int tasks, int threads) noexcept nogil:
    """Have helpers begin with what `parallel` would do, for `end_parallel` to go on with. False if none may, and nothing has begun.

    Tasks are begun in their order.
    """
    if not take_pool(min(tasks, threads)):
        return False
    open_job(run, context, tasks, min(tasks, threads), True)
    return True


cdef inline bint take_pool(int threads) noexcept nogil:
    """Whether it is the caller's now, for a job of so many threads."""
    return threads != 1 and not atomic_exchange(&busy, 1)


cdef void open_job(Task run, void *context, int tasks, int threads, bint in_order) noexcept nogil:
    """By who has the pool."""
    cdef int i
    start_helpers(threads - 1)
    job.run = run
    job.context = context
    job.tasks = tasks
    job.threads = threads
    job.in_order = in_order
    job.controls = controls_here()
    store_wide(&job.taken, 0)
    atomic_store(&job.open, 1)
    atomic_fetch_add(&epoch, 1)
    for i in range(min(threads - 1, started)):
        if atomic_exchange(&helpers[i].asleep, 0):
            PyThread_release_lock(helpers[i].wake)


cdef void end_parallel(Watch *watch) noexcept nogil:
    """Take the tasks that are left, and return when all have returned."""
    take_tasks(0)
    atomic_store(&job.open, 0)
    wait_for_helpers(watch)
    atomic_store(&busy, 0)


cdef int jobs_abandoned() noexcept nogil:
    """A job that has begun is lost if this is another number then than now: in the child of a fork there are no helpers to finish it."""
    return abandoned


cdef size_t use_controls(size_t controls) noexcept nogil:
    """Have this thread's floating-point unit work so; how it did before."""
    cdef size_t before = controls_here()
    if before != controls:
        control(controls)
    return before


cdef size_t usual_controls() noexcept nogil:
    """As C begins: to nearest, and subnormal numbers are numbers."""
    return USUAL_CONTROLS


cdef void take_tasks(int worker) noexcept nogil:
    cdef bint from_last = worker % 2 == 1 and not job.in_order
    cdef long long one = <long long>1 << 32 if from_last else 1, taken = add_wide(&job.taken, one), first, last
    while True:
        first, last = <unsigned int>taken, taken >> 32
        if first + last >= job.tasks:
            return
        job.run(job.context, <int>(job.tasks - 1 - last if from_last else first), worker)
        taken = add_wide(&job.taken, one)


cdef struct Slot:                  # a cache line of its own, lest counters slow each other down
    atomic_llong count
    char padding[56]

cdef struct Chain:
    Slot started[MAX_PARTS]        # steps of each part that have been taken
    Slot done[MAX_PARTS]           # ... and that are done
    Part run
    void *context
    Py_ssize_t steps
    int first                      # of its parts, as they are counted through all chains
    int parts
    Watch *watch
    char behind[88]                # to a whole number of cache lines, and one between what all read here and what the next chain writes

cdef Chain[MAX_CHAINS] first_chains
cdef Chain *chain_of_job = first_chains   # who has the pool has them: too large for the stack of a small thread. NULL: there are none


cdef void parallel_steps(Part run, void *context, Py_ssize_t steps, int chains, int parts, Watch *watch) noexcept nogil:
    """Call ``run(context, step, part, worker)`` for every part < chains * parts of every step < steps. The parts of a chain, which are
    neighbours, go step by step. There are at most MAX_CHAINS chains, of at most MAX_PARTS parts.
    """
    cdef Chain *chain
    cdef Py_ssize_t step
    cdef int i
    if chain_of_job != NULL and take_pool(chains * parts):
        memset(chain_of_job, 0, chains * sizeof(Chain))
        for i in range(chains):
            chain = &chain_of_job[i]
            chain.run, chain.context, chain.steps, chain.watch = run, context, steps, watch
            chain.first, chain.parts = i * parts, parts
        open_job(follow_chain, chain_of_job, chains * parts, chains * parts, False)
        end_parallel(watch)
        return
    for step in range(steps):
        for i in range(chains * parts):
            run(context, step, i, 0)
        if watch.stop:
            return


cdef void follow_chain(void *context, int task, int worker) noexcept nogil:
    cdef Chain *chain = <Chain *>context
    cdef Py_ssize_t step
    cdef int spins, patience = PATIENCE, own
    chain += task // chain.parts
    own = task - chain.first
    for step in range(steps_done(chain), chain.steps):
        if chain.watch.stop:
            return
        take_part(chain, step, own, worker)
        spins = 0
        while steps_done(chain) <= step:
            if chain.watch.stop:
                return
            spins += 1
            if spins == patience + 1:
                patience = 0 if take_others_parts(chain, step, own, worker) else PATIENCE
            elif spins > SPINS:
                give_way()
            else:
                spin_pause()


cdef inline Py_ssize_t steps_done(Chain *chain) noexcept nogil:
    """By all parts. None is more than a step ahead of another."""
    cdef Py_ssize_t done = chain.steps
    cdef int part
    for part in range(chain.parts):
        done = min(done, <Py_ssize_t>load_wide(&chain.done[part].count))
    return done


cdef bint take_part(Chain *chain, Py_ssize_t step, int part, int worker) noexcept nogil:
    """Do a part of a step, unless another thread has taken it.

    That it is done is said in a line of memory that nobody else writes to, and without waiting for that line to come back from those who
    read it: the next step would begin so much later.
    """
    cdef long long expected = step
    if load_wide(&chain.started[part].count) != step:
        return False
    if not atomic_compare_exchange_strong(&chain.started[part].count, &expected, step + 1):
        return False
    chain.run(chain.context, step, chain.first + part, worker)
    atomic_store_explicit(&chain.done[part].count, step + 1, memory_order_release)
    return True


cdef bint take_others_parts(Chain *chain, Py_ssize_t step, int own, int worker) noexcept nogil:
    cdef int part
    cdef bint any_left = False
    for part in range(chain.parts):
        if part != own and take_part(chain, step, part, worker):
            any_left = True
    return any_left


cdef struct Empty:                 # steps without work
    long long began[EMPTY_STEPS]   # when a step's first part did
    int worker[MAX_PARTS][EMPTY_STEPS + 16]     # who did each part; the parts' rows are a cache line apart

cdef struct Cost:                  # of a step, in ns, and how long that holds
    atomic_llong step
    atomic_llong known_until
    atomic_llong look_at           # when it may be measured again

cdef Cost costs[MAX_PARTS + 1]     # by the number of parts
cdef double assumed = 0


cdef double step_cost(int parts) noexcept nogil:
    """Nanoseconds from the end of a part until all others have seen it, if a step of `parallel_steps` has so many parts.

    Measured while helpers are awake: nobody is woken, or waited for. A call that shares its steps leaves them so for the next one.
    """
    cdef Cost *cost = &costs[parts]
    cdef long long now, measured
    cdef bint met
    if assumed:
        return assumed
    now = nanoseconds()
    if now >= load_wide(&cost.look_at) and helpers_are_awake(parts - 1):
        measured = measured_cost(parts)
        met = measured < NOBODY_CAME
        atomic_store_explicit(&cost.step, measured, memory_order_release)
        atomic_store_explicit(&cost.known_until, now + (FORGOTTEN if met else TRY_AGAIN), memory_order_release)
        atomic_store_explicit(&cost.look_at, now + (LOOK_AGAIN if met else TRY_AGAIN), memory_order_release)
        return measured
    return load_wide(&cost.step) if now < load_wide(&cost.known_until) else USUAL_COST


cdef double how_far() noexcept nogil:
    """How many times as much a task must be worth as where threads are near: what it reads comes from the other's cache."""
    return max(1, step_cost(2) / NEAR_COST)


cdef bint helpers_are_awake(int count) noexcept nogil:
    """Whether so many are there, and could begin at once."""
    cdef int i
    if started < count or atomic_load(&busy):
        return False
    for i in range(count):
        if atomic_load(&helpers[i].asleep):
            return False
    return True


cdef long long measured_cost(int parts) noexcept nogil:
    """By the fastest of neighbouring steps without work. NOBODY_CAME if there are none that as many threads shared as they have parts."""
    cdef Empty empty
    cdef Watch watch
    cdef Py_ssize_t step, shared = 0
    cdef long long cost = NOBODY_CAME
    memset(&empty, 0, sizeof(Empty))
    memset(&watch, 0, sizeof(Watch))
    watch.deaf = True
    parallel_steps(note_part, &empty, EMPTY_STEPS, 1, parts, &watch)
    for step in range(EMPTY_STEPS):
        if shared >= NEIGHBOURS:
            cost = min(cost, max(<long long>1, (empty.began[step] - empty.began[step - NEIGHBOURS]) // NEIGHBOURS - OWN_COST))
        shared = shared + 1 if workers_differ(&empty, step, parts) else 0
    return cost


cdef void note_part(void *context, Py_ssize_t step, int part, int worker) noexcept nogil:
    cdef Empty *empty = <Empty *>context
    empty.worker[part][step] = worker
    if part == 0:
        empty.began[step] = nanoseconds()


cdef bint workers_differ(const Empty *empty, Py_ssize_t step, int parts) noexcept nogil:
    """Whether each part of the step was done by another."""
    cdef int i, j
    for i in range(parts):
        for j in range(i):
            if empty.worker[i][step] == empty.worker[j][step]:
                return False
    return True


cdef void tell(Progress *progress, Py_ssize_t steps) noexcept nogil:
    """So many steps are done."""
    atomic_store_explicit(&progress.steps, steps, memory_order_release)


cdef void wait_for(Progress *progress, Py_ssize_t steps, Watch *watch) noexcept nogil:
    """Return once so many are, or ``watch`` says stop. Who does them has begun: tasks are begun in their order."""
    cdef int spins = 0
    while load_wide(&progress.steps) < steps:
        if spins < SPINS:
            spins += 1
            spin_pause()
            continue
        give_way()
        if interrupted(watch, 0, WORK_PER_YIELD):
            return


cdef void wait_for_helpers(Watch *watch) noexcept nogil:
    """Return once no helper is inside the job: spin, then sleep, looking at signals now and then."""
    cdef int spins = 0
    while atomic_load(&job.inside):
        if spins < SPINS + YIELDS:
            spins += 1
            if spins <= SPINS:
                spin_pause()
            else:
                give_way()
            continue
        atomic_store(&caller_sleeps, 1)
        if atomic_load(&job.inside) == 0:
            if not atomic_exchange(&caller_sleeps, 0):
                PyThread_acquire_lock(finished, 1)  # the last helper has seen us asleep: take its signal
            return
        if not PyThread_acquire_lock_timed(finished, LOOK_AROUND, 0):
            if atomic_exchange(&caller_sleeps, 0):
                interrupted(watch, 0, WORK_PER_LOOK)
            else:
                PyThread_acquire_lock(finished, 1)


cdef void help_out(void *argument) noexcept nogil:
    """The life of a helper: wait for a job, join it if it is still open, leave."""
    cdef Helper *helper = <Helper *>argument
    cdef int worker = 1 + <int>(helper - helpers)
    while True:
        wait_for_job(helper)
        atomic_fetch_add(&job.inside, 1)
        if atomic_load(&job.open) and worker < job.threads:
            use_controls(job.controls)
            take_tasks(worker)
        if atomic_fetch_sub(&job.inside, 1) == 1 and atomic_exchange(&caller_sleeps, 0):
            PyThread_release_lock(finished)


cdef void wait_for_job(Helper *helper) noexcept nogil:
    cdef int spins = 0
    while atomic_load(&epoch) == helper.seen:
        if spins < IDLE_SPINS + YIELDS:
            spins += 1
            if spins <= IDLE_SPINS:
                spin_pause()
            else:
                give_way()
            continue
        atomic_store(&helper.asleep, 1)
        if atomic_load(&epoch) != helper.seen and atomic_exchange(&helper.asleep, 0):
            break
        PyThread_acquire_lock(helper.wake, 1)
    helper.seen = atomic_load(&epoch)


cdef void start_helpers(int count) noexcept nogil:
    """Have ``count`` helpers, or as many as the system grants."""
    global started, finished
    cdef Helper *helper
    if finished == NULL:
        finished = new_taken_lock()
    while started < count and finished != NULL:
        helper = &helpers[started]
        if helper.wake == NULL:
            helper.wake = new_taken_lock()
        helper.seen = atomic_load(&epoch)
        atomic_store(&helper.asleep, 0)
        if helper.wake == NULL or not start_thread(help_out, helper, STACK):
            return
        started += 1


cdef PyThread_type_lock new_taken_lock() noexcept nogil:
    cdef PyThread_type_lock lock = PyThread_allocate_lock()
    if lock != NULL:
        PyThread_acquire_lock(lock, 1)
    return lock


def forget_helpers():
    """In a forked child: no helper lives there, no lock can be trusted, and the thread that forked is the main one."""
    global started, finished, abandoned, main_thread, chain_of_job
    cdef int i
    main_thread = PyThread_get_thread_ident()
    if atomic_load(&busy):
        abandoned += 1
        chain_of_job = <Chain *>calloc(MAX_CHAINS, sizeof(Chain))  # a call under way looks at the old ones once more
    for i in range(MAX_THREADS):
        helpers[i].wake = NULL
    started = 0
    finished = NULL
    atomic_store(&busy, 0)
    atomic_store(&job.inside, 0)
    atomic_store(&job.open, 0)
    atomic_store(&caller_sleeps, 0)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget_helpers)


cdef bint interrupted(Watch *watch, int worker, double work) noexcept nogil:
    """Count ``work`` as done; now and then look at signals. True once the call should end.

    Only the main thread looks. Any other could see none, and must not ask for the GIL here: while Python shuts down, it ends a daemon
    thread that does, and the helpers would go on with what stood on that thread's stack.
    """
    if worker == 0:
        watch.work += work
        if watch.work >= WORK_PER_LOOK:
            watch.work = 0
            if not watch.deaf and PyThread_get_thread_ident() == main_thread:
                look_at_signals(watch)
    if watch.above != NULL and watch.above.stop:
        watch.stop = 1
    return watch.stop


cdef void look_at_signals(Watch *watch) noexcept with gil:
    """Let Python run the handlers of signals that have come."""
    cdef int abandoned_before = abandoned
    if not watch.stop and PyErr_CheckSignals():
        watch.stop = 1
    elif abandoned != abandoned_before:
        watch.stop = 1
        PyErr_SetString(RuntimeError, "a signal handler has forked; in the child, the call that it interrupted cannot go on")


cdef int raise_if_interrupted(Watch *watch) except -1:
    """To be called with the GIL, first thing after the work: the exception is already set."""
    return -1 if watch.stop else 0


def get_num_threads():
    """The number of threads that one call may use.

    Returns
    -------
    int

    See Also
    --------
    set_num_threads

    Examples
    --------
    >>> import fastbptt
    >>> fastbptt.get_num_threads() >= 1
    True
    """
    return wanted


def set_num_threads(n):
    """Let one call use up to ``n`` threads. Results keep their bits whatever ``n`` is.

    Parameters
    ----------
    n : int
        1 to 256. Small calls use one thread all the same. The start value is the environment variable FASTBPTT_NUM_THREADS,
        or else the number of cores that this process may use (its affinity and its cgroup's quota).

    Raises
    ------
    TypeError
        If ``n`` is not an integer.
    ValueError
        If ``n`` is out of range.

    Examples
    --------
    >>> import fastbptt
    >>> before = fastbptt.get_num_threads()
    >>> fastbptt.set_num_threads(1)
    >>> fastbptt.set_num_threads(before)
    """
    global wanted
    try:
        count = None if isinstance(n, (bool, np.bool_)) else operator.index(n)
    except TypeError:
        count = None
    if count is None:
        raise TypeError(f"n: expected an int, got {type(n).__name__}")
    if not 1 <= count <= MAX_THREADS:
        raise ValueError(f"n: expected 1 to {MAX_THREADS} threads, got {count}")
    wanted = count


def threads_here():
    """How many threads a call of this Python thread may use now: `get_num_threads`, or what `cap_threads` leaves of them."""
    return thread_limit()


def assume_step_cost(double cost):
    """Take it that threads need so many nanoseconds to meet at a step, instead of measuring it; 0: measure it. What was assumed before."""
    global assumed
    before, assumed = assumed, cost
    return before


def measured_step_cost(int parts):
    """Nanoseconds, if so many threads meet."""
    if not 1 <= parts <= MAX_PARTS:
        raise ValueError(f"parts: expected 1 to {MAX_PARTS}, got {parts}")
    return step_cost(parts)


def cap_threads(int n):
    """Let calls of this Python thread use no more than ``n`` threads, whatever `set_num_threads` says; 0 lifts that."""
    global cap_of_thread
    cap_of_thread = n
