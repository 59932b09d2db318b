# Norms and clipping of a list of arrays, in place: one pass to measure, one to scale.
#
# The arrays are cut into chunks of fixed size; each chunk's partial result has a place of its own, and these are put together in order,
# so that the norm has the same bits at any thread count.
#
# Measuring can be interrupted. Writing cannot: Ctrl-C comes before the first element is written, or after the last.

cdef enum:
    CHUNK = 1 << 14                # elements
    POW_WORK = 100                 # a pow costs about as much as this many multiply-adds

cdef double SAFELY_ABOVE_ZERO = 1e-280   # a smaller sum of squares may have lost terms to underflow, a smaller factor digits

cdef struct Array:
    real *at
    Py_ssize_t size
    Py_ssize_t first_chunk

ctypedef double (*OverChunk)(real *at, Py_ssize_t n, double parameter, double p) noexcept nogil

cdef struct Pass:
    OverChunk over
    double parameter, p
    double work                    # multiply-adds for an element
    bint writes
    const Array *arrays
    double *partial                # a result for every chunk
    int count, tasks
    Py_ssize_t chunks
    Watch watch


cdef class Arrays:
    """A list of float arrays of the kernels' dtype: where each lies, and how many chunks they make.

    ValueError (or BufferError) unless each is contiguous, in either order, aligned, and, if they are to be written, writable and apart
    from the others.
    """
    cdef Array *arrays
    cdef Py_buffer *views
    cdef double *partial
    cdef Py_ssize_t chunks, elements
    cdef int count

    def __cinit__(self, list items, bint writable):
        cdef Py_ssize_t room = max(1, len(items))
        cdef int flags = PyBUF_ANY_CONTIGUOUS | PyBUF_FORMAT | (PyBUF_WRITABLE if writable else 0)
        cdef Array *array
        self.arrays = <Array *>PyMem_RawMalloc(room * sizeof(Array))
        self.views = <Py_buffer *>PyMem_RawMalloc(room * sizeof(Py_buffer))
        if self.arrays == NULL or self.views == NULL:
            raise MemoryError
        for item in items:
            PyObject_GetBuffer(item, &self.views[self.count], flags)
            array = &self.arrays[self.count]
            array.at = <real *>self.views[self.count].buf
            array.size = self.views[self.count].len // <Py_ssize_t>sizeof(real)
            array.first_chunk = self.chunks
            self.chunks += ceil_div(array.size, CHUNK)
            self.elements += array.size
            self.count += 1
            if <size_t>array.at % sizeof(real):
                raise ValueError("not aligned")
        if writable and self.any_overlap():
            raise ValueError("overlapping")
        self.partial = <double *>PyMem_RawMalloc(max(1, self.chunks) * sizeof(double))
        if self.partial == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef int i
        for i in range(self.count):
            PyBuffer_Release(&self.views[i])
        PyMem_RawFree(self.views)
        PyMem_RawFree(self.arrays)
        PyMem_RawFree(self.partial)

    cdef bint any_overlap(self) noexcept:
        """Sorts views by address: in a list of gradients they mostly are."""
        cdef int i, j
        cdef Py_buffer view
        for i in range(1, self.count):
            view = self.views[i]
            j = i
            while j > 0 and <size_t>self.views[j - 1].buf > <size_t>view.buf:
                self.views[j] = self.views[j - 1]
                j -= 1
            self.views[j] = view
        for i in range(1, self.count):
            if <size_t>self.views[i - 1].buf + self.views[i - 1].len > <size_t>self.views[i].buf:
                return True
        return False

    cdef int read(self, OverChunk over, double parameter=0, double p=0, double work=1) except -1:
        """``partial[i] = over(chunk i, parameter, p)``, at ``work`` multiply-adds an element."""
        return self.each_chunk(over, parameter, p, work, False)

    cdef int write(self, OverChunk over, double parameter, double p=0) except -1:
        """``over(chunk i, parameter, p)`` for all chunks, or for none."""
        PyErr_CheckSignals()
        return self.each_chunk(over, parameter, p, 1, True)

    cdef int each_chunk(self, OverChunk over, double parameter, double p, double work_each, bint writes) except -1:
        cdef Pass work
        memset(&work, 0, sizeof(Pass))
        work.over = over
        work.parameter = parameter
        work.p = p
        work.work = work_each
        work.writes = writes
        work.arrays = self.arrays
        work.count = self.count
        work.partial = self.partial
        work.chunks = self.chunks
        with nogil:
            work.tasks = tasks_for(thread_limit(), self.elements * work_each, self.chunks)
            parallel(over_chunks, &work, work.tasks, work.tasks, &work.watch)
        return raise_if_interrupted(&work.watch)

    cdef double total(self) noexcept:
        cdef double total = 0
        cdef Py_ssize_t i
        for i in range(self.chunks):
            total += self.partial[i]
        return total

    cdef double largest(self) noexcept:
        """A NaN among them wins."""
        cdef double largest = 0
        cdef Py_ssize_t i
        for i in range(self.chunks):
            if not self.partial[i] <= largest:
                largest = self.partial[i]
                if largest != largest:
                    break
        return largest


cdef void over_chunks(void *context, int task, int worker) noexcept nogil:
    cdef Pass *work = <Pass *>context
    cdef Py_ssize_t chunk = work.chunks * task // work.tasks, end = work.chunks * (task + 1) // work.tasks, start
    cdef const Array *array = work.arrays
    while chunk < end:
        while chunk >= array.first_chunk + ceil_div(array.size, CHUNK):
            array += 1
        start = (chunk - array.first_chunk) * CHUNK
        work.partial[chunk] = work.over(array.at + start, min(<Py_ssize_t>CHUNK, array.size - start), work.parameter, work.p)
        chunk += 1
        if not work.writes and interrupted(&work.watch, worker, CHUNK * work.work):
            return


cdef double chunk_squares(real *at, Py_ssize_t n, double unused, double p) noexcept nogil:
    return add_up(square, at, n)


cdef double chunk_scaled_powers(real *at, Py_ssize_t n, double scale, double p) noexcept nogil:
    cdef double total = 0
    cdef Py_ssize_t i
    for i in range(n):
        total += pow(fabs(at[i]) / scale, p)
    return total


cdef double chunk_magnitudes(real *at, Py_ssize_t n, double unused, double p) noexcept nogil:
    return add_up(fabs, at, n)


cdef double chunk_largest(real *at, Py_ssize_t n, double unused, double p) noexcept nogil:
    """The largest magnitude; a NaN stays."""
    cdef double largest = 0
    cdef Py_ssize_t i
    for i in range(n):
        if not fabs(at[i]) <= largest:
            largest = fabs(at[i])
            if largest != largest:
                return largest
    return largest


cdef double chunk_scale(real *at, Py_ssize_t n, double factor, double p) noexcept nogil:
    """In double: a factor may be smaller than the smallest float32."""
    cdef Py_ssize_t i
    for i in range(n):
        at[i] = <real>(<double>at[i] * factor)
    return 0


cdef double chunk_scale_twice(real *at, Py_ssize_t n, double first, double second) noexcept nogil:
    """By a product of factors that would vanish."""
    cdef Py_ssize_t i
    for i in range(n):
        at[i] = <real>(<double>at[i] * first * second)
    return 0


cdef double chunk_clip(real *at, Py_ssize_t n, double limit, double p) noexcept nogil:
    """A NaN stays."""
    cdef Py_ssize_t i
    cdef real c = <real>limit
    for i in range(n):
        at[i] = c if at[i] > c else -c if at[i] < -c else at[i]
    return 0


cdef int measure(Arrays arrays, double p, double *factor, double *root) except -1:
    """The p-norm as factor * root, which may overflow or vanish where the two do not."""
    cdef double total, largest, scale
    factor[0] = 1
    if p == 1 or p == 2:
        arrays.read(chunk_squares if p == 2 else chunk_magnitudes)
        total = arrays.total()
        if total != total or SAFELY_ABOVE_ZERO < total < INFINITY:
            root[0] = sqrt(total) if p == 2 else total
            return 0
    arrays.read(chunk_largest)
    largest = arrays.largest()
    root[0] = largest
    if p < INFINITY and 0 < largest < INFINITY:
        scale = largest if p > 0.5 else 1    # where it is 1, no power leaves the range, and a ratio that did would still count
        arrays.read(chunk_scaled_powers, scale, p, POW_WORK)
        total = arrays.total() / pow(largest / scale, p)
        factor[0] = largest
        root[0] = pow(total, 1 / p)
        if root[0] == INFINITY:              # the norm may be in range all the same: it is taken by halves of its logarithm
            factor[0] = root[0] = min(exp((log(largest) + log(total) / p) / 2), DBL_MAX)
    return 0


cdef double finite_product(double factor, double root) noexcept:
    """The product, the largest double instead of an overflow; inf and NaN stay themselves."""
    cdef double product = factor * root
    return DBL_MAX if product == INFINITY and factor < INFINITY and root < INFINITY else product


def disjoint(list arrays):
    """Whether each array, of any dtype, has memory of its own."""
    return not Arrays(arrays, False).any_overlap()


def total_norm(list arrays, double p):
    """The p-norm of all elements of all arrays; finite if they are."""
    cdef double factor, root
    measure(Arrays(arrays, False), p, &factor, &root)
    return finite_product(factor, root)


def clip_norm(list arrays, double max_norm, double p):
    """The p-norm; if it is finite and above ``max_norm``, the arrays are scaled down to that."""
    cdef double factor, root, total
    cdef Arrays checked = Arrays(arrays, True)
    measure(checked, p, &factor, &root)
    total = finite_product(factor, root)
    cdef double scale = max_norm / factor / root
    if max_norm < total < INFINITY:
        if scale >= SAFELY_ABOVE_ZERO or max_norm == 0:
            checked.write(chunk_scale, scale)
        else:
            checked.write(chunk_scale_twice, 1 / factor / root, max_norm)
    return total


def clip_value(list arrays, double limit):
    """Every element into [-limit, limit]; a NaN stays."""
    Arrays(arrays, True).write(chunk_clip, limit)
