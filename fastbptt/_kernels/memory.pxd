"""Recycled memory; ``memory.pyx`` explains it."""

cdef class Block:
    cdef void *at
    cdef size_t size
