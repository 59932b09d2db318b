# A pass whose arrays are bound, taken alone by all threads; or two, side by side: each by one thread, as a task of the pool.
#
# Two are what the directions of a layer are, or a layer and the one that reads its outputs, where rows are so few that neither is worth
# sharing among threads. No step of one then waits for the other thread. A helper begins with the first while Python prepares the second,
# which takes about as long as half of a small pass.

ctypedef void (*Go)(void *call) noexcept nogil

cdef struct Side:
    Go go
    void *call
    const Watch *watch

cdef struct Sides:
    Side first
    Side second
    atomic_int second_waits        # for a thread: 1 once it can begin, and until one has
    Progress progress              # of the first, for a second that is behind
    Watch watch


@cython.no_gc
cdef class Pass:
    """What `forward` and `backward` return: `run` takes it, once; or `with_another`."""
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

    def with_another(self, bint behind=False):
        """This one and another, side by side; the other ``behind`` it if it reads its results."""
        cdef Pair pair = Pair.__new__(Pair)
        pair.first, pair.behind = self, behind
        return pair

    cdef void note(self) noexcept:
        """What is to be known of it afterwards."""

    cdef void go_behind(self, Progress *ahead) noexcept:
        """What it reads is the result of another pass, not all of which is there yet."""

    cdef void show(self, Progress *own) noexcept:
        """How far it has come."""


@cython.no_gc
cdef class Pair:
    """Two passes side by side. If one is interrupted, so is the other.

    Once it is entered, the first is under way, if a helper is free; `run` takes the second, and what is left of the first. If it is left
    without that, because there is no second, nobody is at work on the first any more.
    """
    cdef Pass first
    cdef Pass second
    cdef Sides at
    cdef bint behind               # whether the second is
    cdef bint entered              # and not yet run, or left
    cdef bint begun                # by a helper, or to be
    cdef int abandoned             # jobs, before

    def __enter__(self):
        if self.first is None:
            raise RuntimeError("a pair of passes is what with_another returns")
        self.at.first = side_of(self.first, &self.at.watch)
        if self.behind:
            self.first.show(&self.at.progress)
        self.entered, self.abandoned = True, jobs_abandoned()
        self.begun = begin_parallel(take_side, &self.at, 2, 2)
        return self

    def __exit__(self, *_):
        self.call_off()

    def __dealloc__(self):
        self.call_off()

    def run(self, Pass second not None):
        """Both, to their ends."""
        if not self.entered:
            raise RuntimeError("a pair of passes is run once, where it has been entered")
        self.at.second = side_of(second, &self.at.watch)
        self.second = second
        if self.behind:
            second.go_behind(&self.at.progress)
        if self.begun and self.abandoned != jobs_abandoned():
            self.call_off()
            raise RuntimeError("the process has forked between two passes; in the child, the call that was under way cannot go on")
        try:
            with nogil:
                take_sides(&self.at, self.begun)
            raise_if_interrupted(&self.at.watch)
            self.first.note()
            second.note()
        finally:
            self.begun = False
            self.call_off()

    cdef void call_off(self) noexcept:
        """Whatever is still to be done of both."""
        if self.begun and self.abandoned == jobs_abandoned():
            self.at.watch.stop = 1
            with nogil:
                end_parallel(&self.at.watch)
        if self.second is not None:
            let_go(self.second)
        if self.entered:
            let_go(self.first)     # last, for the next pair's first: what a helper has in its caches goes to a helper again
        self.begun = self.entered = False


cdef Side side_of(Pass one, const Watch *above) except *:
    """Of a pair with the watch ``above``."""
    cdef Side side
    side.go, side.call, side.watch = take_once(one), one.call, one.watch
    one.watch.above, one.sharing.threads = above, 1
    return side


cdef void take_sides(Sides *sides, bint begun) noexcept nogil:
    atomic_exchange(&sides.second_waits, 1)
    if begun:
        end_parallel(&sides.watch)
    else:
        take_side(sides, 0, 0)
    take_side(sides, 1, 0)         # unless a helper has: one that came to it too early has left it


cdef void take_side(void *context, int task, int worker) noexcept nogil:
    cdef Sides *sides = <Sides *>context
    cdef const Side *side = &sides.second if task else &sides.first
    if sides.watch.stop or (task and not atomic_exchange(&sides.second_waits, 0)):
        return
    side.go(side.call)
    if side.watch.stop:
        sides.watch.stop = 1


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
