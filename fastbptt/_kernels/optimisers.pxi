# What is done to parameters and gradients, element by element and in place: adding gradients up, and one step of each optimiser.
#
# The formulas of the steps are PyTorch's; so are the names. ``arrays`` are those of one parameter after the other: itself, its gradient and
# the optimiser's, or None for one that an option does not need. `optim.py` has seen to it that none overlaps another that is written.
# A step is planned here; `carry_out` makes it.
#
# Weight decay adds weight_decay * p to the gradient, which itself is not changed. What 1 - alpha loses in float32 would be lost in every
# step: it is taken in double. The loops are written for one element. What an option asks is the same for all of them, so that the compiler
# makes a loop of vector code for each answer.

cdef enum:
    ROOT_WORK = 30                 # a square root and a division cost about as much as this many multiply-adds


def add_all(list pairs):
    """Add the second of each pair, one array after the other in ``pairs``, to the first."""
    Arrays(pairs, 2, sizeof(real), True).plan(chunk_add).run(WRITE)


cdef double chunk_add(void **at, Py_ssize_t n, const double *given) noexcept nogil:
    add(<const real *>at[1], n, <real *>at[0])
    return 0


def sgd(list arrays, double lr, double momentum, double dampening, double weight_decay, bint nesterov, bint first):
    """The arrays are p, g and momentum_buffer."""
    cdef double[5] given = [lr, momentum, 1 if first else 1 - dampening, weight_decay, nesterov]
    return Arrays(arrays, 3, sizeof(real), True).plan(chunk_sgd, given, 5)


cdef double chunk_sgd(void **at, Py_ssize_t n, const double *given) noexcept nogil:
    cdef real lr = given[0], momentum = given[1], fresh = given[2], weight_decay = given[3]
    cdef bint nesterov = given[4] != 0
    cdef real *p = <real *>at[0]
    cdef const real *g = <const real *>at[1]
    cdef real *buffer = <real *>at[2]
    cdef Py_ssize_t i
    cdef real d
    for i in range(n):
        d = g[i] + weight_decay * p[i]
        if buffer != NULL:
            buffer[i] = momentum * buffer[i] + fresh * d
            d = d + momentum * buffer[i] if nesterov else buffer[i]
        p[i] -= lr * d
    return 0


def rmsprop(list arrays, double lr, double alpha, double eps, double weight_decay, double momentum):
    """The arrays are p, g, square_avg, grad_avg and momentum_buffer."""
    cdef double[6] given = [lr, alpha, 1 - alpha, eps, weight_decay, momentum]
    return Arrays(arrays, 5, sizeof(real), True).plan(chunk_rmsprop, given, 6, ROOT_WORK)


cdef double chunk_rmsprop(void **at, Py_ssize_t n, const double *given) noexcept nogil:
    cdef real lr = given[0], alpha = given[1], fresh = given[2], eps = given[3], weight_decay = given[4], momentum = given[5]
    cdef real *p = <real *>at[0]
    cdef const real *g = <const real *>at[1]
    cdef real *square_avg = <real *>at[2]
    cdef real *grad_avg = <real *>at[3]
    cdef real *buffer = <real *>at[4]
    cdef Py_ssize_t i
    cdef real d, v, step
    for i in range(n):
        d = g[i] + weight_decay * p[i]
        v = alpha * square_avg[i] + fresh * d * d
        square_avg[i] = v
        if grad_avg != NULL:
            grad_avg[i] = alpha * grad_avg[i] + fresh * d
            v -= grad_avg[i] * grad_avg[i]
            v = 0 if v < 0 else v    # by rounding; a NaN stays
        step = d / (<real>sqrt(v) + eps)
        if buffer != NULL:
            buffer[i] = momentum * buffer[i] + step
            step = buffer[i]
        p[i] -= lr * step
    return 0


def adam(list arrays, long step, double lr, double beta1, double beta2, double eps, double weight_decay):
    """The arrays are p, g, exp_avg, exp_avg_sq and max_exp_avg_sq."""
    cdef double[8] given = [
        lr / (1 - beta1 ** step), 1 / sqrt(1 - beta2 ** step), beta1, 1 - beta1, beta2, 1 - beta2, eps, weight_decay
    ]
    return Arrays(arrays, 5, sizeof(real), True).plan(chunk_adam, given, 8, ROOT_WORK)


cdef double chunk_adam(void **at, Py_ssize_t n, const double *given) noexcept nogil:
    cdef real rate = given[0], root = given[1], beta1 = given[2], fresh1 = given[3], beta2 = given[4], fresh2 = given[5]
    cdef real eps = given[6], weight_decay = given[7]
    cdef real *p = <real *>at[0]
    cdef const real *g = <const real *>at[1]
    cdef real *exp_avg = <real *>at[2]
    cdef real *exp_avg_sq = <real *>at[3]
    cdef real *largest = <real *>at[4]
    cdef Py_ssize_t i
    cdef real d, v
    for i in range(n):
        d = g[i] + weight_decay * p[i]
        exp_avg[i] = beta1 * exp_avg[i] + fresh1 * d
        v = beta2 * exp_avg_sq[i] + fresh2 * d * d
        exp_avg_sq[i] = v
        if largest != NULL:
            v = v if v > largest[i] else largest[i]
            largest[i] = v
        p[i] -= rate * exp_avg[i] / (<real>sqrt(v) * root + eps)
    return 0
