"""Arrays that are read or written in place, chunk by chunk, by all threads: gradients, parameters, and what optimisers know of them.

They come in groups of one size, such as a parameter with its gradient and its moments. Each group is cut into chunks of fixed size, and
the result of every chunk is kept in a place of its own, so that a sum over the chunks has the same bits at any number of threads.

Reading can be interrupted. Writing cannot: Ctrl-C comes before the first element is written, or after the last.
"""

from cpython.buffer cimport PyBUF_ANY_CONTIGUOUS, PyBUF_C_CONTIGUOUS, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject_GenericSetAttr
from libc.stdlib cimport qsort
from libc.string cimport memcpy, memset

from fastbptt._kernels.pool cimport interrupted, parallel, raise_if_interrupted, tasks_for, thread_limit

cdef inline Py_ssize_t chunks_in(Py_ssize_t size) noexcept nogil:
    return (size + CHUNK - 1) // CHUNK


cdef class Arrays:
    """Arrays of elements of ``unit`` bytes, in groups of ``columns``; None stands for one that a group does without.

    The second of a group is only read. ValueError or BufferError unless each is contiguous (alone in either order, in a group in C's),
    aligned, writable where it is to be written, and as large as the others of its group; arrays that are written alone must not overlap.
    """

    def __cinit__(self, list items, int columns, int unit, bint writable):
        cdef Py_ssize_t room = len(items), i = 0
        cdef int flags = PyBUF_ANY_CONTIGUOUS if columns == 1 else PyBUF_C_CONTIGUOUS
        cdef Chunks *chunks = &self.chunks
        cdef Group *group = NULL
        cdef Py_buffer *view
        chunks.unit = unit
        chunks.groups = <Group *>PyMem_Calloc(room // columns + 1, sizeof(Group))
        self.views = <Py_buffer *>PyMem_Malloc((room + 1) * sizeof(Py_buffer))
        if chunks.groups == NULL or self.views == NULL:
            raise MemoryError
        for i, item in enumerate(items):
            if item is None:
                continue
            view = &self.views[self.held]
            PyObject_GetBuffer(item, view, flags | (PyBUF_WRITABLE if writable and i % columns != 1 else 0))
            self.held += 1
            group = &chunks.groups[i // columns]
            group.at[i % columns] = <char *>view.buf
            if <size_t>view.buf % unit:
                raise ValueError("not aligned")
            if i % columns == 0:
                group.size = view.len // unit
                group.first_chunk = chunks.count
                chunks.count += chunks_in(group.size)
                chunks.elements += group.size
            elif view.len != group.size * unit:
                raise ValueError("of different sizes")
        if writable and columns == 1 and self.any_overlap():
            raise ValueError("overlapping")
        chunks.results = <double *>PyMem_Malloc((chunks.count + 1) * sizeof(double))
        if chunks.results == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef int i
        for i in range(self.held):
            PyBuffer_Release(&self.views[i])
        PyMem_Free(self.views)
        PyMem_Free(self.chunks.groups)
        PyMem_Free(self.chunks.results)

    cdef bint any_overlap(self) noexcept:
        """Looks at neighbours, once the views are in the order of their addresses: in a list of gradients they mostly are."""
        cdef int i
        for i in range(1, self.held):
            if by_address(&self.views[i - 1], &self.views[i]) > 0:
                qsort(self.views, self.held, sizeof(Py_buffer), by_address)
                break
        for i in range(1, self.held):
            if <size_t>self.views[i - 1].buf + self.views[i - 1].len > <size_t>self.views[i].buf:
                return True
        return False

    cdef Arrays plan(self, OverChunk over, const double *given=NULL, int count=0, double work=1):
        plan_chunks(&self.chunks, over, given, count, work)
        return self

    cdef int run(self, bint writes) except -1:
        with nogil:
            run_chunks(&self.chunks, writes)
        return 0 if writes else raise_if_interrupted(&self.chunks.watch)


cdef void plan_chunks(Chunks *chunks, OverChunk over, const double *given, int count, double work) noexcept nogil:
    """What to do with each chunk, and the numbers that ``over`` is given; ``work`` multiply-adds an element."""
    cdef int i
    chunks.over = over
    chunks.work = work
    for i in range(count):
        chunks.given[i] = given[i]


cdef bint run_chunks(Chunks *chunks, bint writes) noexcept nogil:
    """``results[i] = over(chunk i)`` for all chunks, as planned. To READ can be interrupted, and then is True; to WRITE cannot."""
    memset(&chunks.watch, 0, sizeof(Watch))
    chunks.writes = chunks.watch.stop = writes    # a watch that has stopped looks at no signals
    chunks.tasks = tasks_for(thread_limit(), chunks.elements * chunks.work, chunks.count)
    parallel(over_chunks, chunks, chunks.tasks, chunks.tasks, &chunks.watch)
    return not writes and chunks.watch.stop


cdef int by_address(const void *a, const void *b) noexcept nogil:
    """The order of two views for qsort; of two that begin in one place, the empty one comes first."""
    cdef const Py_buffer *left = <const Py_buffer *>a
    cdef const Py_buffer *right = <const Py_buffer *>b
    if left.buf != right.buf:
        return 1 if <size_t>left.buf > <size_t>right.buf else -1
    return (left.len > right.len) - (left.len < right.len)


cdef void over_chunks(void *context, int task, int worker) noexcept nogil:
    cdef Chunks *chunks = <Chunks *>context
    cdef Py_ssize_t chunk = chunks.count * task // chunks.tasks, end = chunks.count * (task + 1) // chunks.tasks, start
    cdef const Group *group = chunks.groups
    cdef void *at[COLUMNS]
    cdef int i
    while chunk < end:
        while chunk >= group.first_chunk + chunks_in(group.size):
            group += 1
        start = (chunk - group.first_chunk) * CHUNK
        for i in range(COLUMNS):
            at[i] = group.at[i] + start * chunks.unit if group.at[i] != NULL else NULL
        chunks.results[chunk] = chunks.over(at, min(<Py_ssize_t>CHUNK, group.size - start), chunks.given)
        chunk += 1
        if not chunks.writes and interrupted(&chunks.watch, worker, CHUNK * chunks.work):
            return


def carry_out(list updates, owner=None, **attributes):
    """Write what is planned for all of these `Arrays`, then set attributes of ``owner``: everything or, if a signal comes first, nothing.

    Python handles signals between its own instructions, and where C code asks for it, which none does here.
    """
    cdef Arrays arrays
    for arrays in updates:
        arrays.run(WRITE)
    for name, value in attributes.items():
        PyObject_GenericSetAttr(owner, name, value)   # not what a subclass makes of it, which may raise


cdef double chunk_copy(void **at, Py_ssize_t n, const double *given) noexcept nogil:
    memcpy(at[0], at[1], n)
    return 0


cdef double chunk_zero(void **at, Py_ssize_t n, const double *given) noexcept nogil:
    memset(at[0], 0, n)
    return 0


def copy(list pairs):
    """Copy the second of each pair, one array after the other in ``pairs``, into the first; they are of one dtype, whichever that is."""
    Arrays(pairs, 2, 1, True).plan(chunk_copy).run(WRITE)


def zero(list arrays):
    """Set all elements of float arrays to 0."""
    Arrays(arrays, 1, 1, True).plan(chunk_zero).run(WRITE)


def disjoint(list arrays):
    """Whether each array has memory of its own."""
    return not Arrays(arrays, 1, 1, False).any_overlap()
