# Norms and clipping of a list of arrays, in place: one pass over their chunks to measure, one to scale.

cdef enum:
    POW_WORK = 100                 # a pow costs about as much as this many multiply-adds

cdef double SAFELY_ABOVE_ZERO = 1e-280   # a smaller sum of squares may have lost terms to underflow, a smaller factor digits


# What ``over`` makes of every chunk of some arrays: the sum, in the order of chunks, and the largest, where a NaN wins. Not 0: interrupted.
ctypedef int (*Fold)(void *arrays, OverChunk over, const double *given, int count, double work, double *total,
                     double *largest) noexcept nogil


cdef int fold_chunks(void *arrays, OverChunk over, const double *given, int count, double work, double *total,
                     double *largest) noexcept nogil:
    """Of `Arrays`, whose ``chunks`` these are: by all threads."""
    cdef Chunks *chunks = <Chunks *>arrays
    cdef Py_ssize_t i
    plan_chunks(chunks, over, given, count, work)
    if run_chunks(chunks, READ):
        return 1
    total[0] = largest[0] = 0
    for i in range(chunks.count):
        add_result(chunks.results[i], total, largest)
    return 0


cdef inline void add_result(double result, double *total, double *largest) noexcept nogil:
    total[0] += result
    if largest[0] == largest[0] and not result <= largest[0]:
        largest[0] = result


cdef double chunk_squares(void **at, Py_ssize_t n, const double *given) noexcept nogil:
    return add_up(square, <const real *>at[0], n)


cdef double chunk_magnitudes(void **at, Py_ssize_t n, const double *given) noexcept nogil:
    return add_up(fabs, <const real *>at[0], n)


cdef double chunk_scaled_powers(void **at, Py_ssize_t n, const double *given) noexcept nogil:
    """The sum of (|v| / scale)^p."""
    cdef const real *v = <const real *>at[0]
    cdef double scale = given[0], p = given[1], total = 0
    cdef Py_ssize_t i
    for i in range(n):
        total += pow(fabs(v[i]) / scale, p)
    return total


cdef double chunk_largest(void **at, Py_ssize_t n, const double *given) noexcept nogil:
    return largest_magnitude(<const real *>at[0], n)


cdef double chunk_scale(void **at, Py_ssize_t n, const double *given) noexcept nogil:
    """By two factors, as their product may vanish; in double, as a factor may be smaller than the smallest float32."""
    cdef real *v = <real *>at[0]
    cdef double first = given[0], second = given[1]
    cdef Py_ssize_t i
    for i in range(n):
        v[i] = <real>(<double>v[i] * first * second)
    return 0


cdef double chunk_clip(void **at, Py_ssize_t n, const double *given) noexcept nogil:
    clip_elements(given[0], <real *>at[0], n)
    return 0


cdef int measure(Fold fold, void *arrays, double p, double *factor, double *root) noexcept nogil:
    """The p-norm as factor * root, which may overflow or vanish where the two do not. Not 0 if Ctrl-C came."""
    cdef double total, largest
    cdef double[2] scale_and_p
    factor[0], root[0] = 1, 0
    if p == 1 or p == 2:
        if fold(arrays, chunk_squares if p == 2 else chunk_magnitudes, NULL, 0, 1, &total, &largest):
            return 1
        if total != total or SAFELY_ABOVE_ZERO < total < INFINITY:
            root[0] = sqrt(total) if p == 2 else total
            return 0
    if fold(arrays, chunk_largest, NULL, 0, 1, &total, &largest):
        return 1
    root[0] = largest
    if p < INFINITY and 0 < largest < INFINITY:
        # where the scale is 1, no power leaves the range, and a ratio that did would still count
        scale_and_p = [largest if p > 0.5 else 1, p]
        factor[0] = largest
        if fold(arrays, chunk_scaled_powers, scale_and_p, 2, POW_WORK, &total, &largest):
            return 1
        total /= pow(factor[0] / scale_and_p[0], p)
        root[0] = pow(total, 1 / p)
        if root[0] == INFINITY:              # the norm may be in range all the same: it is taken by halves of its logarithm
            factor[0] = root[0] = min(exp((log(factor[0]) + log(total) / p) / 2), DBL_MAX)
    return 0


cdef inline bint is_to_be_clipped(double max_norm, double factor, double root, double *factors) noexcept nogil:
    """Whether the norm is finite and above ``max_norm``, and the two factors that bring it down to that."""
    if not max_norm < finite_product(factor, root) < INFINITY:
        return False
    factors[0], factors[1] = max_norm / factor / root, 1
    if 0 < max_norm and factors[0] < SAFELY_ABOVE_ZERO:
        factors[0], factors[1] = 1 / factor / root, max_norm
    return True


cdef inline double finite_product(double factor, double root) noexcept nogil:
    """The product, the largest double instead of an overflow; inf and NaN stay themselves."""
    cdef double product = factor * root
    return DBL_MAX if product == INFINITY and factor < INFINITY and root < INFINITY else product


cdef int measure_arrays(Arrays arrays, double p, double *factor, double *root) except -1:
    cdef int stopped
    with nogil:
        stopped = measure(fold_chunks, &arrays.chunks, p, factor, root)
    return raise_if_interrupted(&arrays.chunks.watch) if stopped else 0


def total_norm(list arrays, double p):
    """The p-norm of all elements of all arrays; finite if they are."""
    cdef double factor, root
    measure_arrays(Arrays(arrays, 1, sizeof(real), False), p, &factor, &root)
    return finite_product(factor, root)


def clip_norm(list arrays, double max_norm, double p):
    """The p-norm; if it is finite and above ``max_norm``, the arrays are scaled down to that."""
    cdef double factor, root
    cdef double[2] factors
    cdef Arrays checked = Arrays(arrays, 1, sizeof(real), True)
    measure_arrays(checked, p, &factor, &root)
    if is_to_be_clipped(max_norm, factor, root, factors):
        checked.plan(chunk_scale, factors, 2).run(WRITE)
    return finite_product(factor, root)


def clip_value(list arrays, double limit):
    """Every element into [-limit, limit]; a NaN stays."""
    Arrays(arrays, 1, sizeof(real), True).plan(chunk_clip, &limit, 1).run(WRITE)
