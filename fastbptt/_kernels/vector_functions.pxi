# The vector functions by themselves, so that their error can be measured: tests/test_math.py, benchmarks/sweep_float32.py.

def vector_function(str name not None, const real[::1] x, real[::1] y):
    """y = exp(x), tanh(x) or sigmoid(x)"""
    cdef int f = {"exp": 0, "tanh": 1, "sigmoid": 2}[name]
    cdef Py_ssize_t i = 0, n = x.shape[0]
    cdef vec v
    with nogil:
        while i < n:
            v = load(&x[i]) if i + LANES <= n else load_part(&x[i], n - i)
            v = vector_exp(v) if f == 0 else vector_tanh(v) if f == 1 else vector_sigmoid(v)
            if i + LANES <= n:
                store(&y[i], v)
            else:
                store_part(&y[i], v, n - i)
            i += LANES
