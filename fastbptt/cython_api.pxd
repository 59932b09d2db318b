"""The C interface: forward, backward and single steps of recurrent layers for those who compile against fastbptt.

All functions are plain C: they need no GIL, allocate nothing and raise nothing, but return a status. What they compute has the bits of the
Python functions. ``docs/c_interface.md`` explains it, with a complete example, which begins with:

    cimport fastbptt.cython_api as bptt
    bptt.import_fastbptt()

Within a major version, functions, constants and fields are added only, at the end. A function that is added later is not for Cython to look
up at import, where it would fail without a word of versions: `import_fastbptt` looks it up, once it has compared them.
"""

from fastbptt._kernels.interface cimport (
    API_MAJOR, API_MINOR, OK, WRONG_STRUCT, UNKNOWN_DTYPE, UNKNOWN_CELL, UNKNOWN_ACTIVATION, WRONG_THREADS, WRONG_SIZES, TOO_LARGE,
    MISSING_ARRAY, UNEXPECTED_ARRAY, MISALIGNED_ARRAY, WRONG_LENGTH, WRONG_TOKEN, WRONG_CLIP, SMALL_WORKSPACE, WRONG_PACKED, WRONG_CALL,
    FLOAT32, FLOAT64, RNN, GRU, LSTM, TANH, RELU, SIGMOID, IDENTITY, UNCLIPPED, CLIP_VALUE, CLIP_NORM, FORWARD, BACKWARD, STEP, Problem
)

cdef int version() noexcept nogil
cdef int max_threads() noexcept nogil
cdef const char *describe(int status) noexcept nogil
cdef Py_ssize_t workspace_bytes(const Problem *problem, int call) noexcept nogil
cdef Py_ssize_t packed_bytes(const Problem *problem) noexcept nogil
cdef int pack(const Problem *problem) noexcept nogil
cdef int forward(const Problem *problem) noexcept nogil
cdef int backward(const Problem *problem) noexcept nogil
cdef int step(const Problem *problem) noexcept nogil
cdef int clip_norm(int dtype, void **arrays, const Py_ssize_t *sizes, Py_ssize_t count, double max_norm, double norm_type,
                   double *norm) noexcept nogil


cdef inline Problem new_problem() noexcept nogil:
    """A problem with its size, one thread, and nothing else."""
    cdef Problem problem
    cdef size_t i
    for i in range(sizeof(Problem)):
        (<char *>&problem)[i] = 0
    problem.size, problem.threads = sizeof(Problem), 1
    return problem


cdef inline int import_fastbptt() except -1:
    """To be called once, where a module begins: ImportError if the fastbptt that is installed is older than the one compiled against."""
    cdef int installed = version()
    if installed // 1000 != API_MAJOR or installed % 1000 < API_MINOR:
        raise ImportError(
            f"compiled against version {API_MAJOR}.{API_MINOR} of fastbptt's C interface, but the fastbptt that is installed has "
            f"{installed // 1000}.{installed % 1000}"
        )
    return 0
