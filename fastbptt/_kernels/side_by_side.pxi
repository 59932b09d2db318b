# A pass whose arrays are bound, taken alone by all threads; or two, side by side: each by one thread, as a task of the pool.
#
# Two are what the directions of a layer are, or a layer and the one that reads its outputs, where rows are so few that neither is worth
# sharing among threads. No step of one then waits for the other thread.

ctypedef void (*Go)(void *call) noexcept nogil

cdef struct Pair:
    Go go[2]
    void *call[2]
    const Watch *each[2]
    Watch watch


@cython.no_gc
cdef class Pass:
    """What `forward` and `backward` return: `run` takes it, once."""
    cdef Views views
    cdef Block room
    cdef PackedWeights weights     # of a forward pass
    cdef Go go                     # NULL once it has been taken
    cdef void *call
    cdef Watch *watch
    cdef Sharing *sharing

    def __dealloc__(self):
        release(&self.views)

    def run(self):
        """Take it, with as many threads as the call may use."""
        cdef Go go = take_once(self)
        try:
            with nogil:
                go(self.call)
            raise_if_interrupted(self.watch)
            self.note()
        finally:
            let_go(self)

    def run_with(self, Pass other not None, bint behind=False):
        """Take both, the other ``behind`` this one if it reads its results. If one is interrupted, so is the other."""
        cdef Pair pair
        cdef Progress progress
        memset(&pair, 0, sizeof(Pair))
        memset(&progress, 0, sizeof(Progress))
        add_to_pair(&pair, 0, self)
        add_to_pair(&pair, 1, other)
        if behind:
            self.show(&progress)
            other.go_behind(&progress)
        try:
            with nogil:
                parallel(take_one, &pair, 2, 2, &pair.watch)
            raise_if_interrupted(&pair.watch)
            self.note()
            other.note()
        finally:
            let_go(self)
            let_go(other)

    cdef void note(self) noexcept:
        """What is to be known of it afterwards."""

    cdef void go_behind(self, Progress *ahead) noexcept:
        """What it reads is the result of another pass, not all of which is there yet."""

    cdef void show(self, Progress *own) noexcept:
        """How far it has come."""


cdef int add_to_pair(Pair *pair, int i, Pass one) except -1:
    pair.go[i], pair.call[i], pair.each[i] = take_once(one), one.call, one.watch
    one.watch.above, one.sharing.threads = &pair.watch, 1
    return 0


cdef void take_one(void *context, int task, int worker) noexcept nogil:
    cdef Pair *pair = <Pair *>context
    if not pair.watch.stop:
        pair.go[task](pair.call[task])
    if pair.each[task].stop:
        pair.watch.stop = 1


cdef Go take_once(Pass one) except NULL:
    cdef Go go = one.go
    if go == NULL:
        raise RuntimeError("a pass is taken once")
    one.go = NULL
    return go


cdef void let_go(Pass one):
    """Of its arrays and its scratch."""
    release(&one.views)
    one.room = one.weights = None
