"""Recycled memory; ``memory.pyx`` explains it."""

cdef class Block:
    cdef void *at
    cdef size_t size

cdef enum:
    SMALL = 1 << 16                # bytes that Python allocates as well as we do

cdef double bytes_of(tuple shape, double itemsize) except -1
