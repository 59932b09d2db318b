# Scratch memory of one call. Kernels do not allocate: the entry points size a workspace, and carve it up.

cdef class Workspace:
    """``elements`` of scratch for ``parts`` arrays, each aligned to a cache line; MemoryError if they are not to be had."""
    cdef Block block
    cdef real *free

    def __cinit__(self, Py_ssize_t elements, int parts):
        if not 0 <= elements < PY_SSIZE_T_MAX // 16:
            raise MemoryError(f"a workspace of {elements} elements")
        self.block = Block(elements * sizeof(real) + parts * CACHE_LINE)
        self.free = <real *>self.block.at

    cdef real *take(self, Py_ssize_t elements) noexcept nogil:
        cdef real *part = self.free
        self.free += ceil_div(elements * sizeof(real), CACHE_LINE) * CACHE_LINE // <Py_ssize_t>sizeof(real)
        return part

    cdef real *take_zeros(self, Py_ssize_t elements) noexcept nogil:
        cdef real *part = self.take(elements)
        memset(part, 0, elements * sizeof(real))
        return part

    cdef Panels take_panels(self, Py_ssize_t N, Py_ssize_t K) noexcept nogil:
        cdef Panels W
        W.at = self.take(packed_size(N, K))
        W.row = LANES
        W.panel = panel_stride(K)
        return W

    cdef Stack take_stack(self, Py_ssize_t count, Py_ssize_t N, Py_ssize_t K) noexcept nogil:
        cdef Stack stack
        stack.first = self.take_panels(N, K)
        stack.size = packed_size(N, K)
        self.take((count - 1) * stack.size)
        return stack
