# The layout of time: which rows of the batch are active at a step, and where they stand.
#
# Rows are sorted by length, the longest first, so those that are active at a step are the first of the batch. Arrays with a row for each
# step and active row have no gaps: row b of step t is row first[t] + b of x, a and m (PyTorch's PackedSequence). In a rectangle,
# where all rows are equally long, first[t] = t * B, and no such numbers are stored.
#
# Arrays of the caller's may have an order of their own: out, d_out, dx, and what x is filled from. There row r is row place[r]; or, of a
# rectangle that is read backwards, step t is step T - 1 - t.
#
# The states before step t are slot t of their history. Slot 0, the initial states, has all B rows; slot t + 1 has those of step t.

cdef struct Time:
    Py_ssize_t T, B
    const Py_ssize_t *first        # (T + 1,), or NULL for a rectangle
    const int64_t *place           # (first[T],), of all rows in the caller's arrays; or NULL: the same as everywhere,
    bint turned                    # but the last step first


cdef inline Py_ssize_t first_row(const Time *time, Py_ssize_t t) noexcept nogil:
    """Of step t; of step T, the number of all rows."""
    return t * time.B if time.first == NULL else time.first[t]


cdef inline Py_ssize_t place_of(const Time *time, Py_ssize_t row) noexcept nogil:
    """In the caller's arrays."""
    if time.turned:
        return (time.T - 1 - row // time.B) * time.B + row % time.B
    return row if time.place == NULL else time.place[row]


cdef inline bint in_place(const Time *time) noexcept nogil:
    """Whether rows stand in the caller's arrays as they do everywhere."""
    return time.place == NULL and not time.turned


cdef inline Py_ssize_t slot(const Time *time, Py_ssize_t t) noexcept nogil:
    """The first row of the states before step t."""
    return t * time.B if time.first == NULL or t == 0 else time.B + time.first[t - 1]


cdef inline Py_ssize_t active(const Time *time, Py_ssize_t t) noexcept nogil:
    """How many rows step t has."""
    return time.B if time.first == NULL else time.first[t + 1] - time.first[t]


cdef inline Py_ssize_t steps_of(const Time *time, Py_ssize_t b) noexcept nogil:
    """How many steps row b has."""
    cdef Py_ssize_t t = time.T
    while time.first != NULL and t > 0 and active(time, t - 1) <= b:
        t -= 1
    return t


cdef struct Patch:                 # the part of a step that a task does: rows b0..b1, units u0..u1 (a multiple of LANES, or H), and those
    Py_ssize_t b0, b1, u0, u1      # columns p0..p1 of h that units write: of a projection a share of their own, or else u0..u1
    Py_ssize_t p0, p1


cdef inline Py_ssize_t rows_at(const Time *time, Py_ssize_t t, Py_ssize_t b0, Py_ssize_t b1) noexcept nogil:
    """How many of the rows b0..b1 step t has."""
    return b1 - b0 if time.first == NULL else max(0, min(b1, active(time, t)) - b0)
