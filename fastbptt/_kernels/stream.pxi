# One step at a time: a layer's weights are packed once, and its state stays between the calls.

cdef class Stream:
    """A layer at work on B sequences without an end, of vectors or of tokens, and whatever layers are ``above`` it.

    ``x`` (1, B, I) and ``tokens`` (1, B) are where a step's input is copied to; slot 0 of ``h`` (2, B, P) and of ``c`` (2, B, H) is the
    state. Weights are packed when a step first needs them, those of vectors apart from those of tokens, and kept.
    """
    cdef Forward run
    cdef Views views
    cdef const real *x
    cdef const int64_t *tokens
    cdef const real *b_ih
    cdef const real *b_hh
    cdef PackedWeights of_vectors
    cdef PackedWeights of_tokens
    cdef Block room
    cdef tuple above
    cdef bint back                 # whether the last step went through the weights from the last to the first
    cdef bint busy

    def __init__(self, int cell, int activation, x, tokens, w_ih, w_hh, b_ih, b_hh, w_hr, leak, h, c, a, m, tuple above=()):
        cdef Problem *problem = &self.run.problem
        cdef Stream layer, below = self
        if self.views.count:
            raise TypeError("a stream is made once")
        bind(problem, &self.views, cell, activation, x, tokens, w_ih, w_hh, w_hr, leak, h, c, a, m, None, WRITE)
        self.x, self.tokens = problem.x, problem.tokens
        self.b_ih, self.b_hh = view_or_null(&self.views, "b_ih", b_ih, 1, READ), view_or_null(&self.views, "b_hh", b_hh, 1, READ)
        if problem.w_hr != NULL:
            self.room = make_room(lay_out_shown, &self.run)
        for layer in above:
            if layer.run.problem.I != below.run.problem.P or layer.run.problem.time.B != problem.time.B:
                raise ValueError("above: expected layers that read what the one below shows")
            below = layer
        self.above = above

    def __dealloc__(self):
        release(&self.views)

    def undisturbed(self, call):
        """The result of ``call()``, during which no step is made."""
        self._begin()
        try:
            return call()
        finally:
            self.busy = False

    def step(self, x, out):
        """Take a step's input, (B, I) or (B,), and put the last layer's new h into ``out``. False if x is of another layout or shape.

        Then, and after an error, the states are as before.
        """
        cdef Stream layer, last = self.above[len(self.above) - 1] if self.above else self
        cdef const real *shown
        cdef Views views
        cdef const Py_buffer *given
        views.count = 0
        self._begin()
        try:
            given = view(&views, "out", out, 2, WRITE)
            if given.shape[0] != last.run.problem.time.B or given.shape[1] != last.run.problem.P:
                raise ValueError(f"out: expected shape ({last.run.problem.time.B}, {last.run.problem.P})")
            if not self._take(x):
                return False
            shown = self._go()
            for layer in self.above:
                layer._read(shown)
                shown = layer._go()
            memcpy(given.buf, shown, given.len)
            self._keep()
            for layer in self.above:
                layer._keep()
            return True
        finally:
            self.busy = False
            release(&views)

    cdef int _begin(self) except -1:
        if not self.views.count:
            raise TypeError("a stream of a layer is made by the layer")
        if self.busy:
            raise RuntimeError("stream: a step is under way, in another thread or below a signal's handler; it serves one at a time")
        self.busy = True
        return 0

    cdef int _take(self, x) except -1:
        """Copy the input, which may change meanwhile, to where it is read; 0 if it is not as it is read."""
        cdef Problem *problem = &self.run.problem
        cdef Py_ssize_t B = problem.time.B, b
        cdef Py_buffer given
        try:
            PyObject_GetBuffer(x, &given, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
        except (BufferError, ValueError):
            return 0
        try:
            if given.ndim == 2 and given.shape[0] == B and given.shape[1] == problem.I and strcmp(given.format, REAL_FORMAT) == 0:
                self._read(<const real *>given.buf)
            elif given.ndim == 1 and given.shape[0] == B and strlen(given.format) == 1 and strchr(INTEGER_FORMATS, given.format[0]) != NULL:
                problem.x, problem.tokens = NULL, self.tokens
                memcpy(<void *>self.tokens, given.buf, B * sizeof(int64_t))
                for b in range(B):
                    if not 0 <= self.tokens[b] < problem.I:
                        raise IndexError(f"x_t: expected tokens from 0 to {problem.I - 1}, got {self.tokens[b]}")
            else:
                return 0
        finally:
            PyBuffer_Release(&given)
        return 1

    cdef void _read(self, const real *x) noexcept:
        self.run.problem.x, self.run.problem.tokens = self.x, NULL
        memcpy(<void *>self.x, x, self.run.problem.time.B * self.run.problem.I * sizeof(real))

    cdef const real *_go(self) except NULL:
        """Run the step into slot 1; the new h."""
        cdef const Problem *problem = &self.run.problem
        cdef PackedWeights weights = self.of_vectors if problem.x != NULL else self.of_tokens
        if weights is None:
            weights = self._pack(problem.x != NULL)
        self.run.sharing.threads = thread_limit()
        prepare_forward(&self.run, &weights.at)
        memset(&self.run.watch, 0, sizeof(Watch))
        self.back = not self.back
        with nogil:
            if is_mostly_reading(problem):
                run_step(&self.run, self.back)
            else:
                run_forward(&self.run)
        raise_if_interrupted(&self.run.watch)
        return problem.h + problem.time.B * problem.P

    cdef PackedWeights _pack(self, bint vectors):
        """The weights for one kind of input; once there have been both, for both, and those above, that all are of one moment."""
        cdef const Problem *problem = &self.run.problem
        cdef Stream layer
        if self.of_vectors is not None or self.of_tokens is not None:
            for layer in self.above:
                layer.of_vectors = None
            self.of_vectors = packed(problem, VECTORS, self.b_ih, self.b_hh)
            self.of_tokens = packed(problem, TOKENS, self.b_ih, self.b_hh)
        elif vectors:
            self.of_vectors = packed(problem, VECTORS, self.b_ih, self.b_hh)
        else:
            self.of_tokens = packed(problem, TOKENS, self.b_ih, self.b_hh)
        return self.of_vectors if vectors else self.of_tokens

    cdef void _keep(self) noexcept:
        """What slot 1 has is the state."""
        cdef const Problem *problem = &self.run.problem
        cdef Py_ssize_t B = problem.time.B
        memcpy(problem.h, problem.h + B * problem.P, B * problem.P * sizeof(real))
        if problem.c != NULL:
            memcpy(problem.c, problem.c + B * problem.H, B * problem.H * sizeof(real))
