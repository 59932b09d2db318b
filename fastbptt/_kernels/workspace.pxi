# Scratch memory of one call. Kernels do not allocate: the entry points size a workspace, and carve it up.

cdef class Workspace:
    """``elements`` of scratch, aligned to cache lines; MemoryError if they are not to be had."""
    cdef void *block
    cdef real *free

    def __cinit__(self, Py_ssize_t elements, int parts):
        cdef double size = <double>elements * sizeof(real)
        if size > 2.0 ** 62:
            raise MemoryError(f"a workspace of {size:.3g} bytes")
        self.block = PyMem_RawMalloc(elements * sizeof(real) + (parts + 1) * CACHE_LINE)
        if self.block == NULL:
            raise MemoryError(f"a workspace of {size:.3g} bytes")
        self.free = <real *>((<size_t>self.block + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE)

    def __dealloc__(self):
        PyMem_RawFree(self.block)

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
