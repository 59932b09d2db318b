# Scratch memory of one call. Kernels do not allocate: the entry points size a workspace, and carve it up.
#
# The last one given back is kept for the next call, unless it is large: fresh memory would have to be mapped page by page, which at
# T=100, B=64, H=32 took an eighth of the time of forward and backward.

cdef enum:
    KEPT_BYTES = 1 << 25

cdef void *kept = NULL
cdef Py_ssize_t kept_bytes = 0


cdef class Workspace:
    """``elements`` of scratch for ``parts`` arrays, each aligned to a cache line; MemoryError if they are not to be had."""
    cdef void *block
    cdef Py_ssize_t bytes
    cdef real *free

    def __cinit__(self, Py_ssize_t elements, int parts):
        global kept, kept_bytes
        if elements > PY_SSIZE_T_MAX // 16:
            raise MemoryError(f"a workspace of {elements} elements")
        self.bytes = elements * sizeof(real) + (parts + 1) * CACHE_LINE
        if kept_bytes >= self.bytes:
            self.block, self.bytes = kept, kept_bytes
            kept, kept_bytes = NULL, 0
        else:
            self.block = PyMem_RawMalloc(self.bytes)
        if self.block == NULL:
            raise MemoryError(f"a workspace of {self.bytes} bytes")
        self.free = <real *>((<size_t>self.block + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE)

    def __dealloc__(self):
        global kept, kept_bytes
        if kept_bytes < self.bytes <= KEPT_BYTES:
            self.block, kept = kept, self.block
            kept_bytes = self.bytes
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
