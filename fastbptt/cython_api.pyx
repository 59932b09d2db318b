"""The C interface, for ``cimport fastbptt.cython_api``: ``cython_api.pxd`` is what it says, ``docs/c_interface.md`` explains it.

Each function goes on to the kernels of the level that was chosen when fastbptt was imported. Nothing here is called from Python.
"""

from cpython.pycapsule cimport PyCapsule_GetPointer

from fastbptt._kernels.interface cimport Entries
from fastbptt._kernels.pool cimport thread_limit

import numpy as np

from fastbptt import _kernels

_kernels.require()

cdef const Entries *of_float32 = entries_in(_kernels.kernels[np.dtype(np.float32)])
cdef const Entries *of_float64 = entries_in(_kernels.kernels[np.dtype(np.float64)])


cdef const Entries *entries_in(module) except NULL:
    return <const Entries *>PyCapsule_GetPointer(module.entries, "fastbptt._kernels.entries")


cdef inline const Entries *entries_of(int dtype) noexcept nogil:
    """NULL if there is no such dtype."""
    return of_float32 if dtype == FLOAT32 else of_float64 if dtype == FLOAT64 else NULL


cdef inline int find_entries(const Problem *problem, const Entries **entries) noexcept nogil:
    """Those of the problem's dtype; a status."""
    if problem == NULL or problem.size != sizeof(Problem):
        return WRONG_STRUCT
    entries[0] = entries_of(problem.dtype)
    return OK if entries[0] != NULL else UNKNOWN_DTYPE


cdef int version() noexcept nogil:
    """1000 * API_MAJOR + API_MINOR, of the fastbptt that is installed."""
    return 1000 * API_MAJOR + API_MINOR


cdef int max_threads() noexcept nogil:
    """What `fastbptt.get_num_threads` says."""
    return thread_limit()


cdef const char *describe(int status) noexcept nogil:
    """What a status means, in words that last."""
    if status >= OK:
        return "no error"
    if status == WRONG_STRUCT:
        return "problem: expected a struct whose size is sizeof(Problem)"
    if status == UNKNOWN_DTYPE:
        return "dtype: expected FLOAT32 or FLOAT64"
    if status == UNKNOWN_CELL:
        return "cell: expected RNN, GRU or LSTM"
    if status == UNKNOWN_ACTIVATION:
        return "activation: expected TANH, RELU, SIGMOID or IDENTITY"
    if status == WRONG_THREADS:
        return "threads: expected 1 to 256"
    if status == WRONG_SIZES:
        return "T, B, I, H, P: expected sizes above 0, P equal to H or, with w_hr, below it, and T = 1 of a step"
    if status == TOO_LARGE:
        return "T, B, I, H, P: no memory could hold such arrays"
    if status == MISSING_ARRAY:
        return "NULL where there must be an array"
    if status == UNEXPECTED_ARRAY:
        return "an array that this cell or call has no use for"
    if status == MISALIGNED_ARRAY:
        return "an array does not begin at a multiple of the size of its elements"
    if status == WRONG_LENGTH:
        return "lengths: expected numbers of steps from 0 to T"
    if status == WRONG_TOKEN:
        return "tokens: expected tokens from 0 to I - 1"
    if status == WRONG_CLIP:
        return "clip: expected a known kind, and a limit above 0"
    if status == SMALL_WORKSPACE:
        return "workspace: fewer bytes than workspace_bytes says"
    if status == WRONG_PACKED:
        return "packed: expected the memory, unmoved, into which this layer's weights were packed"
    if status == WRONG_CALL:
        return "call: expected FORWARD, BACKWARD or STEP"
    return "no status of this version"


cdef Py_ssize_t workspace_bytes(const Problem *problem, int call) noexcept nogil:
    """How many bytes of workspace a call needs; below 0, a status. Looks at which arrays there are, and into lengths and resets alone."""
    cdef const Entries *entries = NULL
    cdef int status = find_entries(problem, &entries)
    return entries.workspace_bytes(problem, call) if status == OK else status


cdef Py_ssize_t packed_bytes(const Problem *problem) noexcept nogil:
    """How many bytes `pack` needs; below 0, a status."""
    cdef const Entries *entries = NULL
    cdef int status = find_entries(problem, &entries)
    return entries.packed_bytes(problem) if status == OK else status


cdef int pack(const Problem *problem) noexcept nogil:
    """Pack weights and biases into ``packed``: for tokens, if there are tokens, else for vectors. It can be used until they change."""
    cdef const Entries *entries = NULL
    cdef int status = find_entries(problem, &entries)
    return entries.pack(problem) if status == OK else status


cdef int forward(const Problem *problem) noexcept nogil:
    """From h0 and c0: out, h_n and c_n, and the tape, as far as they are wanted."""
    cdef const Entries *entries = NULL
    cdef int status = find_entries(problem, &entries)
    return entries.forward(problem) if status == OK else status


cdef int backward(const Problem *problem) noexcept nogil:
    """From the tape, d_out, d_h_n and d_c_n: all gradients, in place of what stood there."""
    cdef const Entries *entries = NULL
    cdef int status = find_entries(problem, &entries)
    return entries.backward(problem) if status == OK else status


cdef int step(const Problem *problem) noexcept nogil:
    """One step with packed weights, from h0 and c0 to h_n and c_n, which may be the same arrays."""
    cdef const Entries *entries = NULL
    cdef int status = find_entries(problem, &entries)
    return entries.step(problem) if status == OK else status


cdef int clip_norm(int dtype, void **arrays, const Py_ssize_t *sizes, Py_ssize_t count, double max_norm, double norm_type,
                   double *norm) noexcept nogil:
    """Scale arrays down, in place, to a p-norm of all of them together of ``max_norm``; ``norm``, unless NULL, is set to what it was.

    If that is not finite, the arrays stay as they are. By the calling thread alone.
    """
    cdef const Entries *entries = entries_of(dtype)
    return entries.clip_norm(arrays, sizes, count, max_norm, norm_type, norm) if entries != NULL else UNKNOWN_DTYPE
