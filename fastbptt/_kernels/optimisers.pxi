# One optimiser step over one flat array of parameters, in place. The formulas are PyTorch's; so are the names.
#
# A step is not interrupted: half of one is worse than none. Arrays come checked (`optim.py`): flat, of one size, apart from each other.
# An array that an option does not need is None. Weight decay adds weight_decay * p to the gradient, which itself is not changed.
# What 1 - alpha loses in float32 would be lost in every step: it is taken in double.
# The loops are written for one element, with the options as constants: so the compiler turns them into vector code.

def sgd(real[::1] p, const real[::1] g, real[::1] momentum_buffer, double lr, double momentum, double dampening, double weight_decay,
        bint nesterov, bint first):
    cdef real *buffer = &momentum_buffer[0] if momentum_buffer is not None else NULL
    cdef double fresh = 1 if first else 1 - dampening
    with nogil:
        if buffer == NULL:
            sgd_loop(0, 0, p.shape[0], &p[0], &g[0], buffer, lr, momentum, fresh, weight_decay)
        elif nesterov:
            sgd_loop(1, 1, p.shape[0], &p[0], &g[0], buffer, lr, momentum, fresh, weight_decay)
        else:
            sgd_loop(1, 0, p.shape[0], &p[0], &g[0], buffer, lr, momentum, fresh, weight_decay)


cdef inlined sgd_loop(const bint heavy, const bint nesterov, Py_ssize_t n, real *p, const real *g, real *buffer, real lr, real momentum,
                      real fresh, real weight_decay) noexcept nogil:
    cdef Py_ssize_t i
    cdef real d
    for i in range(n):
        d = g[i] + weight_decay * p[i]
        if heavy:
            buffer[i] = momentum * buffer[i] + fresh * d
            d = d + momentum * buffer[i] if nesterov else buffer[i]
        p[i] -= lr * d


def rmsprop(real[::1] p, const real[::1] g, real[::1] square_avg, real[::1] grad_avg, real[::1] momentum_buffer, double lr, double alpha,
            double eps, double weight_decay, double momentum):
    cdef real *mean = &grad_avg[0] if grad_avg is not None else NULL
    cdef real *buffer = &momentum_buffer[0] if momentum_buffer is not None else NULL
    with nogil:
        if mean == NULL and buffer == NULL:
            rmsprop_loop(0, 0, p.shape[0], &p[0], &g[0], &square_avg[0], mean, buffer, lr, alpha, 1 - alpha, eps, weight_decay, momentum)
        elif mean == NULL:
            rmsprop_loop(0, 1, p.shape[0], &p[0], &g[0], &square_avg[0], mean, buffer, lr, alpha, 1 - alpha, eps, weight_decay, momentum)
        elif buffer == NULL:
            rmsprop_loop(1, 0, p.shape[0], &p[0], &g[0], &square_avg[0], mean, buffer, lr, alpha, 1 - alpha, eps, weight_decay, momentum)
        else:
            rmsprop_loop(1, 1, p.shape[0], &p[0], &g[0], &square_avg[0], mean, buffer, lr, alpha, 1 - alpha, eps, weight_decay, momentum)


cdef inlined rmsprop_loop(const bint centered, const bint heavy, Py_ssize_t n, real *p, const real *g, real *square_avg, real *grad_avg,
                          real *buffer, real lr, real alpha, real fresh, real eps, real weight_decay, real momentum) noexcept nogil:
    cdef Py_ssize_t i
    cdef real d, v, step
    for i in range(n):
        d = g[i] + weight_decay * p[i]
        v = alpha * square_avg[i] + fresh * d * d
        square_avg[i] = v
        if centered:
            grad_avg[i] = alpha * grad_avg[i] + fresh * d
            v -= grad_avg[i] * grad_avg[i]
            v = 0 if v < 0 else v    # by rounding; a NaN stays
        step = d / (<real>sqrt(v) + eps)
        if heavy:
            buffer[i] = momentum * buffer[i] + step
            step = buffer[i]
        p[i] -= lr * step


def adam(real[::1] p, const real[::1] g, real[::1] exp_avg, real[::1] exp_avg_sq, real[::1] max_exp_avg_sq, long step, double lr,
         double beta1, double beta2, double eps, double weight_decay):
    cdef double rate = lr / (1 - beta1 ** step), root = 1 / sqrt(1 - beta2 ** step)
    cdef real *largest = &max_exp_avg_sq[0] if max_exp_avg_sq is not None else NULL
    with nogil:
        if largest == NULL:
            adam_loop(0, p.shape[0], &p[0], &g[0], &exp_avg[0], &exp_avg_sq[0], largest, rate, root,
                      beta1, 1 - beta1, beta2, 1 - beta2, eps, weight_decay)
        else:
            adam_loop(1, p.shape[0], &p[0], &g[0], &exp_avg[0], &exp_avg_sq[0], largest, rate, root,
                      beta1, 1 - beta1, beta2, 1 - beta2, eps, weight_decay)


cdef inlined adam_loop(const bint amsgrad, Py_ssize_t n, real *p, const real *g, real *exp_avg, real *exp_avg_sq, real *largest, real rate,
                       real root, real beta1, real fresh1, real beta2, real fresh2, real eps, real weight_decay) noexcept nogil:
    cdef Py_ssize_t i
    cdef real d, v
    for i in range(n):
        d = g[i] + weight_decay * p[i]
        exp_avg[i] = beta1 * exp_avg[i] + fresh1 * d
        v = beta2 * exp_avg_sq[i] + fresh2 * d * d
        exp_avg_sq[i] = v
        if amsgrad:
            v = v if v > largest[i] else largest[i]
            largest[i] = v
        p[i] -= rate * exp_avg[i] / (<real>sqrt(v) * root + eps)
