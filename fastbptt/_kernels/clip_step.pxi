# Clipping inside the backward pass: the gradient of the state, before it goes through a step. Every row is clipped for itself, and so keeps
# its bits in any batch.

cdef enum:
    UNCLIPPED = 0
    BY_VALUE = 1                   # every element into [-limit, limit]
    BY_NORM = 2                    # every row (dh, dc) down to a norm of ``limit``

cdef struct StepClip:
    int kind
    double limit


cdef inline bint needs_whole_rows(const StepClip *clip) noexcept nogil:
    return clip.kind == BY_NORM


cdef void clip_row(const StepClip *clip, real *dh, Py_ssize_t n_h, real *dc, Py_ssize_t n_c) noexcept nogil:
    """One row's n_h elements of dh and n_c of dc."""
    cdef double largest, root
    if clip.kind == BY_VALUE:
        clip_elements(clip.limit, dh, n_h)
        clip_elements(clip.limit, dc, n_c)
        return
    measure_row(dh, n_h, dc, n_c, &largest, &root)
    # without a direction there is nothing to shorten: inf and NaN stay, to be seen; in this form, no finite row overflows
    if root < INFINITY and root > clip.limit / largest:
        shorten(clip.limit, largest, root, dh, n_h)
        shorten(clip.limit, largest, root, dc, n_c)


cdef inline void clip_elements(double limit, real *v, Py_ssize_t n) noexcept nogil:
    """A NaN stays."""
    cdef real c = <real>limit
    cdef Py_ssize_t i
    for i in range(n):
        v[i] = c if v[i] > c else -c if v[i] < -c else v[i]


cdef inline void measure_row(const real *dh, Py_ssize_t n_h, const real *dc, Py_ssize_t n_c, double *largest, double *root) noexcept nogil:
    """The row's 2-norm is largest * root, which may overflow; root is inf or NaN only where an element is."""
    cdef double total = add_up(square, dh, n_h) + add_up(square, dc, n_c)
    largest[0] = 1
    if not SAFELY_ABOVE_ZERO < total < INFINITY:
        largest[0] = max(largest_magnitude(dh, n_h), largest_magnitude(dc, n_c))
        if 0 < largest[0] < INFINITY:
            total = squares_of_ratios(dh, n_h, largest[0]) + squares_of_ratios(dc, n_c, largest[0])
        else:
            largest[0] = 1         # all are 0, or one is not finite, and so is the total
    root[0] = sqrt(total)


cdef inline double largest_magnitude(const real *v, Py_ssize_t n) noexcept nogil:
    """A NaN stays."""
    cdef double largest = 0
    cdef Py_ssize_t i
    for i in range(n):
        if not fabs(v[i]) <= largest:
            largest = fabs(v[i])
            if largest != largest:
                return largest
    return largest


cdef inline double squares_of_ratios(const real *v, Py_ssize_t n, double unit) noexcept nogil:
    cdef double total = 0
    cdef Py_ssize_t i
    for i in range(n):
        total += square(v[i] / unit)
    return total


cdef inline void shorten(double limit, double largest, double root, real *v, Py_ssize_t n) noexcept nogil:
    """v * (limit / (largest * root)); where that factor would lose digits, in steps that do not."""
    cdef double factor = limit / largest / root
    cdef Py_ssize_t i
    if factor > SAFELY_ABOVE_ZERO:
        for i in range(n):
            v[i] = <real>(v[i] * factor)
    else:
        for i in range(n):
            v[i] = <real>(v[i] / largest / root * limit)
