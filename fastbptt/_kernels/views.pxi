# The arrays of a call, as addresses and sizes, held until it is over. The smallest call has eight of them and is little more than taking
# them: for a typed memoryview each, with an object of its own, LSTM T=1 B=1 H=8 took 1.0 us longer under the limited API.

cdef enum:
    VIEWS = 24                     # arrays of a call, at most
    ANY = -1                       # number of rows

cdef const char *REAL_FORMAT = b"f" if sizeof(real) == 4 else b"d"
cdef const char *INTEGER_FORMATS = b"lqn" if sizeof(long) == 8 else b"qn"   # of eight bytes

cdef struct Views:
    Py_buffer held[VIEWS]
    int count


cdef Py_buffer *view(Views *views, str name, array, int ndim, int access, const char *formats=REAL_FORMAT) except NULL:
    """A contiguous array, to READ or to WRITE, of elements of one of these formats. TypeError or ValueError if it is not one."""
    return view_of_layout(views, name, array, ndim, access, formats, PyBUF_C_CONTIGUOUS)


cdef Py_buffer *view_of_layout(Views *views, str name, array, int ndim, int access, const char *formats, int layout) except NULL:
    cdef Py_buffer *buffer = &views.held[views.count]
    PyObject_GetBuffer(array, buffer, layout | PyBUF_FORMAT | (PyBUF_WRITABLE if access == WRITE else 0))
    views.count += 1
    if buffer.ndim != ndim:
        raise ValueError(f"{name}: expected {ndim} dimensions, got {buffer.ndim}")
    if strlen(buffer.format) != 1 or strchr(formats, buffer.format[0]) == NULL:
        raise ValueError(f"{name}: expected elements of format {formats.decode()}, got {buffer.format.decode()}")
    return buffer


cdef real *view_or_null(Views *views, str name, array, int ndim, int access) except? NULL:
    """The address of an array of reals; of None, NULL."""
    return NULL if array is None else <real *>view(views, name, array, ndim, access).buf


cdef wrong_shape(str name, const Py_buffer *given, str expected):
    return ValueError(f"{name}: expected {expected}, got shape {tuple([given.shape[i] for i in range(given.ndim)])}")


cdef real *sized(Views *views, str name, array, int access, Py_ssize_t n, Py_ssize_t m=-1) except? NULL:
    """The address of a vector of n reals, or of a matrix (n, m), of any number of rows if n is ANY; of None, NULL."""
    cdef const Py_buffer *given
    if array is None:
        return NULL
    given = view(views, name, array, 1 if m < 0 else 2, access)
    if (given.shape[0] != n and n != ANY) or (m >= 0 and given.shape[1] != m):
        raise wrong_shape(name, given, f"{n} numbers" if m < 0 else f"rows of {m} numbers" if n == ANY else f"shape {(n, m)}")
    return <real *>given.buf


cdef real *rows_of_width(Views *views, str name, array, int access, Py_ssize_t W) except? NULL:
    """The address of an array (..., ..., W); of None, NULL."""
    cdef const Py_buffer *given
    if array is None:
        return NULL
    given = view(views, name, array, 3, access)
    if given.shape[2] != W:
        raise wrong_shape(name, given, f"rows of {W} numbers")
    return <real *>given.buf


cdef real *rows_or_null(Views *views, str name, array, int access, Py_ssize_t width, Py_ssize_t *gap) except? NULL:
    """The address of an array (T, B, width) whose rows may have gaps between them, all of ``gap`` reals; of None, NULL."""
    cdef const Py_buffer *given
    cdef Py_ssize_t T, B, W, row
    gap[0] = 0
    if array is None:
        return NULL
    given = view_of_layout(views, name, array, 3, access, REAL_FORMAT, PyBUF_STRIDES)
    T, B, W = given.shape[0], given.shape[1], given.shape[2]
    row = given.strides[1] if B > 1 else given.strides[0] if T > 1 else W * <Py_ssize_t>sizeof(real)
    if W != width:
        raise wrong_shape(name, given, f"rows of {width} numbers")
    if (W > 1 and given.strides[2] != sizeof(real)) or (T > 1 and given.strides[0] != B * row) or row % <Py_ssize_t>sizeof(real):
        raise ValueError(f"{name}: expected rows in one piece each, all as far apart as two of them")
    gap[0] = row // <Py_ssize_t>sizeof(real) - W
    return <real *>given.buf


cdef void release(Views *views):
    cdef int i
    for i in range(views.count):
        PyBuffer_Release(&views.held[i])
    views.count = 0
