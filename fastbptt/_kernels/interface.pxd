"""The types and constants of the C interface (`fastbptt/cython_api.pxd`), and what a module of kernels does for it."""

from libc.stdint cimport int64_t

cdef enum:
    API_MAJOR = 1
    API_MINOR = 0                  # more of them: functions or fields were added

cdef enum:                         # what functions return
    OK = 0
    WRONG_STRUCT = -1              # problem is NULL, or its ``size`` is not that of a struct that this version knows
    UNKNOWN_DTYPE = -2
    UNKNOWN_CELL = -3
    UNKNOWN_ACTIVATION = -4
    WRONG_THREADS = -5             # not from 1 to 256
    WRONG_SIZES = -6               # one of T, B, I, H and P is not above 0; P is not H, or with w_hr not below it; a step's T is not 1
    TOO_LARGE = -7                 # no memory could hold such arrays
    MISSING_ARRAY = -8             # NULL where there must be an array
    UNEXPECTED_ARRAY = -9          # an array that this cell or call has no use for: x and tokens, dx of tokens, leak or w_hr
    MISALIGNED_ARRAY = -10         # an array does not begin at a multiple of its elements' size
    WRONG_LENGTH = -11             # a length is not from 0 to T
    WRONG_TOKEN = -12              # a token is not from 0 to I - 1
    WRONG_CLIP = -13               # an unknown kind, or a limit that is not above 0
    SMALL_WORKSPACE = -14          # fewer bytes than `workspace_bytes` says
    WRONG_PACKED = -15             # weights were packed for another layer, or their memory was moved or is too small
    WRONG_CALL = -16               # none of FORWARD, BACKWARD and STEP

cdef enum:                         # dtype: bytes of an element
    FLOAT32 = 4
    FLOAT64 = 8

cdef enum:                         # cell
    RNN = 0
    GRU = 1                        # gates r z n, the reset after the product
    LSTM = 2                       # gates i f g o

cdef enum:                         # activation, of an RNN
    TANH = 0
    RELU = 1
    SIGMOID = 2
    IDENTITY = 3

cdef enum:                         # clip
    UNCLIPPED = 0
    CLIP_VALUE = 1
    CLIP_NORM = 2

cdef enum:                         # for `workspace_bytes`
    FORWARD = 0
    BACKWARD = 1
    STEP = 2

cdef struct Problem:
    # Arrays lie in C's order, and are of ``dtype`` but for tokens, lengths and resets. NULL is an array that is not there.
    # G gates: 1, 3 or 4. P is H or, of an LSTM with w_hr, below it. What is written by no call is const.
    size_t size                    # sizeof(Problem)
    int dtype
    int cell
    int activation
    int threads                    # at most; with 1 all is done by the calling thread
    Py_ssize_t T, B, I, H, P       # steps, rows of the batch, inputs, units, numbers in h
    # the input: one of the two
    const void *x                  # (T, B, I)
    const int64_t *tokens          # (T, B), from 0 to I - 1
    # where rows end, and where their states are set to zero before a step
    const int64_t *lengths         # (B,), or NULL: T for all
    const unsigned char *resets    # (T, B), or NULL: nowhere
    # weights
    const void *w_ih               # (G*H, I)
    const void *w_hh               # (G*H, P)
    const void *b_ih               # (G*H,), or NULL
    const void *b_hh               # (G*H,), or NULL
    const void *w_hr               # (P, H), or NULL
    const void *leak               # (H,), of a leaky RNN, or NULL
    void *packed                   # `pack` has packed them here; or NULL
    Py_ssize_t packed_size         # bytes
    # states
    const void *h0                 # (B, P), or NULL: zeros
    const void *c0                 # (B, H), or NULL: zeros
    void *h_n                      # (B, P): the last states; or NULL
    void *c_n                      # (B, H), or NULL
    void *out                      # (T, B, P), or NULL
    # the tape: a forward pass leaves it for the backward pass. NULL: not kept
    void *h                        # (T+1, B, P); with resets (2*T, B, P)
    void *c                        # (T+1, B, H), of an LSTM; with resets (2*T, B, H)
    void *gates                    # (T, B, G*H), of a GRU, an LSTM and a leaky RNN
    void *m                        # (T, B, H), of a GRU
    # the backward pass
    const void *d_out              # (T, B, P), or NULL: zeros
    const void *d_h_n              # (B, P), or NULL: zeros
    const void *d_c_n              # (B, H), or NULL: zeros
    int clip                       # the gradient of the state, before each step
    double clip_limit
    void *dx                       # (T, B, I), or NULL: not wanted
    void *dh0                      # (B, P), or NULL
    void *dc0                      # (B, H), or NULL
    void *dw_ih                    # (G*H, I)
    void *dw_hh                    # (G*H, P)
    void *db_ih                    # (G*H,), or NULL
    void *db_hh                    # (G*H,), or NULL
    void *dw_hr                    # (P, H), with w_hr
    # memory for the time of a call
    void *workspace
    Py_ssize_t workspace_size      # bytes

cdef struct Entries:               # of a module of kernels, in its capsule ``entries``
    Py_ssize_t (*workspace_bytes)(const Problem *problem, int call) noexcept nogil
    Py_ssize_t (*packed_bytes)(const Problem *problem) noexcept nogil
    int (*pack)(const Problem *problem) noexcept nogil
    int (*forward)(const Problem *problem) noexcept nogil
    int (*backward)(const Problem *problem) noexcept nogil
    int (*step)(const Problem *problem) noexcept nogil
    int (*clip_norm)(void **arrays, const Py_ssize_t *sizes, Py_ssize_t count, double max_norm, double p, double *norm) noexcept nogil
