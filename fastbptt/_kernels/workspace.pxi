# Scratch memory of one call. Kernels do not allocate: the entry points ask how much a call needs, and hand it out.
#
# What a call needs is written once, in a function that takes it, piece by piece, from a `Space`. Run from address 0 it measures.

cdef struct Space:
    size_t free                    # the address of what has not been taken

ctypedef void (*LayOut)(void *call, Space *space) noexcept nogil


cdef size_t bytes_of(LayOut lay_out, void *call) noexcept nogil:
    """The memory that a call needs."""
    cdef Space space
    space.free = 0
    lay_out(call, &space)
    return space.free


cdef Block make_room(LayOut lay_out, void *call):
    """Memory for a call, laid out; it lasts as long as the block. MemoryError if it is not to be had."""
    cdef Block block = Block(bytes_of(lay_out, call))
    cdef Space space
    space.free = <size_t>block.at
    lay_out(call, &space)
    return block


cdef inline void *take_bytes(Space *space, size_t size) noexcept nogil:
    """Aligned to a cache line, as the whole is."""
    cdef void *part = <void *>space.free
    space.free += (size + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE
    return part


cdef inline real *take(Space *space, Py_ssize_t elements) noexcept nogil:
    return <real *>take_bytes(space, elements * sizeof(real))


cdef inline Py_ssize_t *take_indices(Space *space, Py_ssize_t count) noexcept nogil:
    return <Py_ssize_t *>take_bytes(space, count * sizeof(Py_ssize_t))


cdef Panels take_panels(Space *space, Py_ssize_t N, Py_ssize_t K) noexcept nogil:
    cdef Panels W
    W.at = take(space, packed_size(N, K))
    W.row = LANES
    W.panel = panel_stride(K)
    return W


cdef Stack take_stack(Space *space, Py_ssize_t count, Py_ssize_t N, Py_ssize_t K) noexcept nogil:
    cdef Stack stack
    stack.first = take_panels(space, N, K)
    stack.size = packed_size(N, K)
    take(space, (count - 1) * stack.size)
    return stack
