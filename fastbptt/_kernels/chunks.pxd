"""Arrays that are read or written chunk by chunk; ``chunks.pyx`` explains it."""

from fastbptt._kernels.pool cimport Watch

cdef enum:
    CHUNK = 1 << 14                # elements
    COLUMNS = 5                    # arrays in a group, at most
    READ = 0
    WRITE = 1

# What is done to one chunk, n elements of each array of a group; NULL stands for an array that is not there. The result is that of reading.
ctypedef double (*OverChunk)(void **at, Py_ssize_t n, const double *given) noexcept nogil

cdef struct Group:
    char *at[COLUMNS]
    Py_ssize_t size                # elements of each array
    Py_ssize_t first_chunk

cdef struct Chunks:
    Group *groups
    double *results                # of every chunk
    Py_ssize_t count, elements
    int unit                       # bytes of an element
    OverChunk over
    double given[8]                # room for what ``over`` is given
    double work                    # multiply-adds for an element
    bint writes
    int tasks
    Watch watch

cdef void plan_chunks(Chunks *chunks, OverChunk over, const double *given, int count, double work) noexcept nogil
cdef bint run_chunks(Chunks *chunks, bint writes) noexcept nogil

cdef class Arrays:
    cdef Chunks chunks
    cdef Py_buffer *views
    cdef int held                  # views
    cdef bint any_overlap(self) noexcept
    cdef Arrays plan(self, OverChunk over, const double *given=*, int count=*, double work=*)
    cdef int run(self, bint writes) except -1
