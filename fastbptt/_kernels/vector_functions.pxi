# The vector functions by themselves, so that their error can be measured: tests/test_math.py, benchmarks/sweep_float32.py.

def vector_function(str name not None, const real[::1] x, real[::1] y):
    """y = exp(x), tanh(x) or sigmoid(x)"""
    cdef int f = {"exp": 0, "tanh": 1, "sigmoid": 2}[name]
    cdef Py_ssize_t i = 0, n = x.shape[0], k
    cdef vec v
    with nogil:
        while i < n:
            k = min(n - i, <Py_ssize_t>LANES)
            v = get(k == LANES, &x[i], k)
            v = vector_exp(v) if f == 0 else vector_tanh(v) if f == 1 else vector_sigmoid(v)
            put(k == LANES, &y[i], k, v)
            i += LANES
