# One optimiser step over one flat array of parameters, in place. The formulas are PyTorch's; so are the names.
#
# An array that an option does not need is None. Weight decay adds weight_decay * p to the gradient, which itself is not changed.

def sgd(real[::1] p, const real[::1] g, real[::1] momentum_buffer, double lr, double momentum, double dampening, double weight_decay,
        bint nesterov, bint first):
    cdef Py_ssize_t i
    cdef real d, rate = lr, mu = momentum, decay = weight_decay, fresh = 1 if first else 1 - dampening
    cdef bint heavy = momentum_buffer is not None
    with nogil:
        for i in range(p.shape[0]):
            d = g[i] + decay * p[i]
            if heavy:
                momentum_buffer[i] = mu * momentum_buffer[i] + fresh * d
                d = d + mu * momentum_buffer[i] if nesterov else momentum_buffer[i]
            p[i] -= rate * d


def rmsprop(real[::1] p, const real[::1] g, real[::1] square_avg, real[::1] grad_avg, real[::1] momentum_buffer, double lr, double alpha,
            double eps, double weight_decay, double momentum):
    cdef Py_ssize_t i
    cdef real d, v, step, rate = lr, a = alpha, e = eps, decay = weight_decay, mu = momentum
    cdef bint centered = grad_avg is not None, heavy = momentum_buffer is not None
    with nogil:
        for i in range(p.shape[0]):
            d = g[i] + decay * p[i]
            v = a * square_avg[i] + (1 - a) * d * d
            square_avg[i] = v
            if centered:
                grad_avg[i] = a * grad_avg[i] + (1 - a) * d
                v -= grad_avg[i] * grad_avg[i]
            step = d / (<real>sqrt(v) + e)
            if heavy:
                momentum_buffer[i] = mu * momentum_buffer[i] + step
                step = momentum_buffer[i]
            p[i] -= rate * step


def adam(real[::1] p, const real[::1] g, real[::1] exp_avg, real[::1] exp_avg_sq, real[::1] max_exp_avg_sq, long step, double lr,
         double beta1, double beta2, double eps, double weight_decay):
    cdef Py_ssize_t i
    cdef double correction1 = 1 - beta1 ** step, correction2 = 1 - beta2 ** step
    cdef real d, v, rate = lr / correction1, b1 = beta1, b2 = beta2, e = eps, decay = weight_decay, root = 1 / sqrt(correction2)
    cdef bint amsgrad = max_exp_avg_sq is not None
    with nogil:
        for i in range(p.shape[0]):
            d = g[i] + decay * p[i]
            exp_avg[i] = b1 * exp_avg[i] + (1 - b1) * d
            v = b2 * exp_avg_sq[i] + (1 - b2) * d * d
            exp_avg_sq[i] = v
            if amsgrad:
                v = max(v, max_exp_avg_sq[i])
                max_exp_avg_sq[i] = v
            p[i] -= rate * exp_avg[i] / (<real>sqrt(v) * root + e)
