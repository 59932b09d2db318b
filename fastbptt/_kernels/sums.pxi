# Sums in double precision, whatever the element type, through 16 running sums side by side: enough for any vector unit, and the same
# order of additions, so the same bits, at every level.

ctypedef double (*Term)(double v) noexcept nogil


cdef inline double itself(double v) noexcept nogil:
    return v


cdef inline double square(double v) noexcept nogil:
    return v * v


cdef inline double add_up(Term term, const real *v, Py_ssize_t n) noexcept nogil:
    cdef double acc[16]
    cdef double total = 0
    cdef Py_ssize_t i = 0
    cdef int j
    for j in range(16):
        acc[j] = 0
    while i + 16 <= n:
        for j in range(16):
            acc[j] += term(v[i + j])
        i += 16
    for j in range(<int>(n - i)):
        acc[j] += term(v[i + j])
    for j in range(16):
        total += acc[j]
    return total


cdef inline bint all_finite(const real *v, Py_ssize_t n) noexcept nogil:
    """inf - inf and NaN - NaN are NaN, and a NaN stays in a sum."""
    return add_up(difference_from_itself, v, n) == 0


cdef inline double difference_from_itself(double v) noexcept nogil:
    return v - v


cdef inline bint all_zero_bits(const real *v, Py_ssize_t n) noexcept nogil:
    """Whether all are 0, and none -0: the first is, and each has the bits of the one before it."""
    return n == 0 or (v[0] == 0 and not signbit(v[0]) and memcmp(v, v + 1, (n - 1) * sizeof(real)) == 0)


cdef double sum_of(const real *v, Py_ssize_t n) noexcept nogil:
    return add_up(itself, v, n)
