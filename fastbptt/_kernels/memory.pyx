"""Memory for large results and for scratch, used again once it is free.

Fresh memory has to be mapped page by page when it is first written, and a training loop that allocates and frees its results at every
step pays for that at every step: at T=100, B=16, H=32 forward and backward took 0.95 ms on fresh memory and 0.54 ms on warm. So a few
freed blocks are kept, the oldest given back to the system first, and never more than ``KEPT_BYTES`` in all.

Blocks of ``LARGE`` bytes and more, which mostly are too large to be kept, ask for huge pages, as NumPy's large arrays do: a fleet of 1000
LSTMs (H=16, T=50, B=8, float32; 200 MB a call) made 25,000 page faults in each call and 470 with them, in two thirds of the time. To keep
such blocks as well would have saved another 4 % of it, but left a process that no longer computes with all its memory.
"""

import numpy as np

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.string cimport memmove, memset

cdef extern from *:
    """
    #ifdef __linux__
    #include <sys/mman.h>
    #endif
    #ifdef MADV_HUGEPAGE
    #define ask_for_huge_pages(start, size) ((void)madvise((void *)(start), size, MADV_HUGEPAGE)) /* as far as the system's settings go */
    #else
    #define ask_for_huge_pages(start, size) ((void)0)
    #endif
    """
    void ask_for_huge_pages(size_t start, size_t size) nogil

cdef object new_array = np.empty, zeroed_array = np.zeros, array_on = np.ndarray   # each a look-up less in the smallest calls

cdef enum:
    ALIGNMENT = 64                 # bytes: a cache line, and the longest vector
    PAGE = 4096
    LARGE = 1 << 22                # bytes that are worth huge pages, which are of 2 MB
    KEPT_BYTES = 1 << 26
    KEPT_BLOCKS = 32

cdef struct Spare:
    void *memory
    size_t size

cdef Spare spares[KEPT_BLOCKS]     # oldest first
cdef int count = 0
cdef size_t total = 0


cdef class Block:
    """At least ``size`` bytes at ``at``, aligned; a writable buffer to Python. MemoryError if they are not to be had."""

    def __cinit__(self, size_t size):
        if size > <size_t>1 << 62:
            raise MemoryError(f"a block of {size} bytes")
        self.size = (size + ALIGNMENT + PAGE - 1) // PAGE * PAGE
        self.at = take(&self.size)
        if self.at == NULL:
            raise MemoryError(f"a block of {size} bytes")

    def __dealloc__(self):
        if self.at != NULL:
            give_back(self.at, self.size)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.at, self.size - ALIGNMENT, 0, flags)


cdef void *take(size_t *size) noexcept:
    """The smallest spare block that is large enough but not twice as large; else a new one. Aligned; room for that is in ``size``.

    Of several, it is the one given back last, which is in the caches still.
    """
    cdef int i, best = -1
    cdef void *memory
    for i in range(count):
        if size[0] <= spares[i].size < 2 * size[0] and (best < 0 or spares[i].size <= spares[best].size):
            best = i
    if best < 0:
        memory = PyMem_Malloc(size[0])
        if memory != NULL and size[0] >= LARGE:
            ask_for_huge_pages((<size_t>memory + PAGE - 1) // PAGE * PAGE, size[0] - PAGE)
        return align(memory)
    memory = spares[best].memory
    size[0] = spares[best].size
    forget(best)
    return align(memory)


cdef inline void *align(void *memory) noexcept:
    """The first aligned address behind, where the start is noted just before it."""
    if memory == NULL:
        return NULL
    cdef size_t address = (<size_t>memory // ALIGNMENT + 1) * ALIGNMENT
    (<void **>(address - sizeof(void *)))[0] = memory
    return <void *>address


cdef void give_back(void *at, size_t size) noexcept:
    global count, total
    cdef void *memory = (<void **>(<size_t>at - sizeof(void *)))[0]
    if size > KEPT_BYTES:
        PyMem_Free(memory)
        return
    while count == KEPT_BLOCKS or total + size > KEPT_BYTES:
        PyMem_Free(spares[0].memory)
        forget(0)
    spares[count].memory = memory
    spares[count].size = size
    count += 1
    total += size


cdef void forget(int i) noexcept:
    global count, total
    total -= spares[i].size
    count -= 1
    memmove(&spares[i], &spares[i + 1], (count - i) * sizeof(Spare))


def empty(tuple shape, dtype):
    """As `numpy.empty`, on recycled memory if it is large."""
    cdef double size = bytes_of(shape, dtype.itemsize)
    if size < SMALL or size > 2.0 ** 62:
        return new_array(shape, dtype)
    return array_on(shape, dtype, Block(<size_t>size))


def zeros(tuple shape, dtype):
    """As `numpy.zeros`, on recycled memory if it is large."""
    cdef double size = bytes_of(shape, dtype.itemsize)
    cdef Block block
    if size < SMALL or size > 2.0 ** 62:
        return zeroed_array(shape, dtype)
    block = Block(<size_t>size)
    with nogil:
        memset(block.at, 0, <size_t>size)
    return array_on(shape, dtype, block)


cdef double bytes_of(tuple shape, double itemsize) except -1:
    cdef double size = itemsize, extent
    for n in shape:
        extent = n                 # in C: as Python's numbers, each product took some 50 ns of the smallest calls
        size *= extent
    return size
