"""Each call of the interface, for a problem whose fields Python sets: without the GIL, and on threads that Python does not know."""

cimport fastbptt.cython_api as bptt
from libc.stdlib cimport free, malloc

bptt.import_fastbptt()

cdef extern from *:
    """
    #include <pthread.h>
    #include <time.h>

    static double now(void)
    {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return t.tv_sec + 1e-9 * t.tv_nsec;
    }
    """
    ctypedef unsigned long pthread_t
    int pthread_create(pthread_t *thread, void *attributes, void *(*run)(void *) noexcept nogil, void *argument) nogil
    int pthread_join(pthread_t thread, void **result) nogil
    double now() nogil

CALLS = {"forward": bptt.FORWARD, "backward": bptt.BACKWARD, "step": bptt.STEP}
STATUS = {
    name: status
    for name, status in (
        ("OK", bptt.OK), ("WRONG_STRUCT", bptt.WRONG_STRUCT), ("UNKNOWN_DTYPE", bptt.UNKNOWN_DTYPE), ("UNKNOWN_CELL", bptt.UNKNOWN_CELL),
        ("UNKNOWN_ACTIVATION", bptt.UNKNOWN_ACTIVATION), ("WRONG_THREADS", bptt.WRONG_THREADS), ("WRONG_SIZES", bptt.WRONG_SIZES),
        ("TOO_LARGE", bptt.TOO_LARGE), ("MISSING_ARRAY", bptt.MISSING_ARRAY), ("UNEXPECTED_ARRAY", bptt.UNEXPECTED_ARRAY),
        ("MISALIGNED_ARRAY", bptt.MISALIGNED_ARRAY), ("WRONG_LENGTH", bptt.WRONG_LENGTH), ("WRONG_TOKEN", bptt.WRONG_TOKEN),
        ("WRONG_CLIP", bptt.WRONG_CLIP), ("SMALL_WORKSPACE", bptt.SMALL_WORKSPACE), ("WRONG_PACKED", bptt.WRONG_PACKED),
        ("WRONG_CALL", bptt.WRONG_CALL),
    )
}
VERSION = bptt.API_MAJOR, bptt.API_MINOR

cdef bptt.Problem layout
cdef dict numbers, sizes, pointers   # offsets of fields, by name


cdef offset(void *field):
    return <char *>field - <char *>&layout


numbers = {
    "dtype": offset(&layout.dtype), "cell": offset(&layout.cell), "activation": offset(&layout.activation),
    "threads": offset(&layout.threads), "clip": offset(&layout.clip),
}
sizes = {
    "size": offset(&layout.size), "T": offset(&layout.T), "B": offset(&layout.B), "I": offset(&layout.I), "H": offset(&layout.H),
    "P": offset(&layout.P), "packed_size": offset(&layout.packed_size), "workspace_size": offset(&layout.workspace_size),
}
pointers = {
    "x": offset(&layout.x), "tokens": offset(&layout.tokens), "lengths": offset(&layout.lengths), "resets": offset(&layout.resets),
    "w_ih": offset(&layout.w_ih), "w_hh": offset(&layout.w_hh), "b_ih": offset(&layout.b_ih), "b_hh": offset(&layout.b_hh),
    "w_hr": offset(&layout.w_hr), "leak": offset(&layout.leak), "packed": offset(&layout.packed), "h0": offset(&layout.h0),
    "c0": offset(&layout.c0), "h_n": offset(&layout.h_n), "c_n": offset(&layout.c_n), "out": offset(&layout.out), "h": offset(&layout.h),
    "c": offset(&layout.c), "gates": offset(&layout.gates), "m": offset(&layout.m), "d_out": offset(&layout.d_out),
    "d_h_n": offset(&layout.d_h_n), "d_c_n": offset(&layout.d_c_n), "dx": offset(&layout.dx), "dh0": offset(&layout.dh0),
    "dc0": offset(&layout.dc0), "dw_ih": offset(&layout.dw_ih), "dw_hh": offset(&layout.dw_hh), "db_ih": offset(&layout.db_ih),
    "db_hh": offset(&layout.db_hh), "dw_hr": offset(&layout.dw_hr), "workspace": offset(&layout.workspace),
}


cdef class Call:
    """A problem; ``fields`` are numbers, arrays, or addresses."""

    cdef bptt.Problem problem
    cdef int (*function)(const bptt.Problem *) noexcept nogil
    cdef int status
    cdef dict held

    def __init__(self, **fields):
        self.problem = bptt.new_problem()
        self.held = {}
        self.set(**fields)

    def set(self, **fields):
        cdef char *start = <char *>&self.problem
        for name, value in fields.items():
            if name == "clip_limit":
                self.problem.clip_limit = value
            elif name in numbers:
                (<int *>(start + <Py_ssize_t>numbers[name]))[0] = value
            elif name in sizes:
                (<Py_ssize_t *>(start + <Py_ssize_t>sizes[name]))[0] = value
            else:
                self.held[name] = value
                address = 0 if value is None else value if isinstance(value, int) else value.ctypes.data
                (<size_t *>(start + <Py_ssize_t>pointers[name]))[0] = address
        return self

    def workspace_bytes(self, int call):
        return bptt.workspace_bytes(&self.problem, call)

    def packed_bytes(self):
        return bptt.packed_bytes(&self.problem)

    cdef _choose(self, str name):
        if name == "forward":
            self.function = bptt.forward
        elif name == "backward":
            self.function = bptt.backward
        elif name == "step":
            self.function = bptt.step
        else:
            self.function = bptt.pack

    def run(self, str name):
        self._choose(name)
        with nogil:
            self.status = self.function(&self.problem)
        return self.status

    def seconds(self, str name, Py_ssize_t times):
        """Of one call, in a loop."""
        cdef double start
        cdef Py_ssize_t _
        self._choose(name)
        with nogil:
            start = now()
            for _ in range(times):
                self.status |= self.function(&self.problem)
            start = now() - start
        assert self.status == 0
        return start / times


cdef void *live(void *argument) noexcept nogil:
    """The life of a thread."""
    cdef void **both = <void **>argument
    (<int *>both[2])[0] = (<int (*)(const bptt.Problem *) noexcept nogil>both[0])(<const bptt.Problem *>both[1])
    return NULL


def on_threads(list calls, str name):
    """Run all of these at once, each on a thread of its own, which Python does not know; their statuses."""
    cdef Py_ssize_t i, count = len(calls)
    cdef Call call
    cdef pthread_t *threads = <pthread_t *>malloc(count * sizeof(pthread_t))
    cdef void **arguments = <void **>malloc(3 * count * sizeof(void *))
    for i in range(count):
        call = calls[i]
        call._choose(name)
        arguments[3 * i], arguments[3 * i + 1], arguments[3 * i + 2] = <void *>call.function, &call.problem, &call.status
    with nogil:
        for i in range(count):
            pthread_create(&threads[i], NULL, live, &arguments[3 * i])
        for i in range(count):
            pthread_join(threads[i], NULL)
    free(threads)
    free(arguments)
    return [(<Call>call).status for call in calls]


def without_problem():
    """What each function returns for NULL."""
    return {
        bptt.forward(NULL), bptt.backward(NULL), bptt.step(NULL), bptt.pack(NULL), <int>bptt.workspace_bytes(NULL, bptt.FORWARD),
        <int>bptt.packed_bytes(NULL),
    }


def clip_norm(int dtype, list arrays, double max_norm, double norm_type, list lengths=None):
    """The status and the norm; ``arrays`` are NumPy's, or addresses of ``lengths``."""
    cdef void *at[8]
    cdef Py_ssize_t count[8]
    cdef double norm = -1
    cdef Py_ssize_t i, n = len(arrays)
    cdef int status
    for i in range(n):
        at[i] = <void *><size_t>(arrays[i] if isinstance(arrays[i], int) else arrays[i].ctypes.data)
        count[i] = arrays[i].size if lengths is None else lengths[i]
    with nogil:
        status = bptt.clip_norm(dtype, at, count, n, max_norm, norm_type, &norm)
    return status, norm


def describe(int status):
    return bptt.describe(status).decode()


def version():
    return bptt.version()


def max_threads():
    return bptt.max_threads()
