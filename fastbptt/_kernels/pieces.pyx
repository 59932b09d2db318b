"""The pieces of a ragged batch: rows cut where they are reset, sorted by length, and laid out in time as `time.pxi` has it."""

import numpy as np

from libc.stdint cimport int64_t, uint8_t


def lay_out(Py_ssize_t T, const int64_t[::1] lengths, const uint8_t[:, ::1] resets):
    """How many pieces there are, whether a row has no steps, and where everything stands; ``resets`` is (T, B), or None.

    Pieces come the longest first, and those of one length as their rows do, and as they follow each other. -1 means that there is none.

    first    (S+1,)    where each step of the longest piece begins among the packed rows; at last, their number R
    place    (R,)      which row of an array (T * B, W) each packed row is
    packed   (T * B,)  and which packed row each row of that array is
    source   (count,)  the batch's row from whose initial state a piece starts; -1: from zero
    target   (count,)  the row whose last state a piece's is; -1: the row goes on
    started  (B,)      the other way, the piece that starts from a row's initial state
    ended    (B,)      and the piece that a row ends with; -1: it has no steps
    ends     (B,)      which row of a history (count + R, W) its last state is
    """
    cdef Py_ssize_t B = lengths.shape[0], b, t, i, start, end, length, count = 0, steps = 0, active, before = 0, row
    cdef bint idle = False
    cdef int64_t[::1] next = np.zeros(T + 1, np.int64)    # by length: first how many there are, then where the next one goes
    for b in range(B):
        idle |= lengths[b] == 0
        end = 0
        while end < lengths[b]:
            start, end = end, end_of_piece(resets, b, end, lengths[b])
            steps = max(steps, end - start)
            next[end - start] += 1
            count += 1
    first_of, packed_of = np.empty(steps + 1, np.intp), np.full(T * B, -1, np.int64)
    cdef Py_ssize_t[::1] first = first_of
    first[0], active = 0, count
    for t in range(steps):
        active -= next[t]         # those that ended with step t - 1
        first[t + 1] = first[t] + active
    for length in range(steps, -1, -1):
        before += next[length]
        next[length] = before - next[length]
    place_of = np.empty(first[steps], np.int64)
    of_pieces, of_rows = np.full((2, count), -1, np.int64), np.full((3, B), -1, np.int64)
    cdef int64_t[::1] place = place_of, packed = packed_of
    cdef int64_t[:, ::1] by_piece = of_pieces, by_row = of_rows
    for b in range(B):
        end = 0
        while end < lengths[b]:
            start, end = end, end_of_piece(resets, b, end, lengths[b])
            i = next[end - start]
            next[end - start] += 1
            for t in range(end - start):
                row = (start + t) * B + b
                place[first[t] + i] = row
                packed[row] = first[t] + i
            if start == 0 and (resets is None or not resets[0, b]):
                by_piece[0, i], by_row[0, b] = b, i
            if end == lengths[b]:
                by_piece[1, i], by_row[1, b], by_row[2, b] = b, i, count + first[end - start - 1] + i
    return count, idle, (first_of, place_of, packed_of, *of_pieces, *of_rows)


cdef inline Py_ssize_t end_of_piece(const uint8_t[:, ::1] resets, Py_ssize_t b, Py_ssize_t start, Py_ssize_t length) noexcept:
    """Of row b's piece that begins at step ``start``: where the row ends or is reset."""
    cdef Py_ssize_t t = start + 1
    if resets is None:
        return length
    while t < length and not resets[t, b]:                 # True may be any other byte, too
        t += 1
    return t
