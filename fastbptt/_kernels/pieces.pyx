"""The pieces of a ragged batch: rows cut where they are reset, sorted by length, and laid out in time as `time.pxi` has it."""

import numpy as np

from libc.stdint cimport int64_t, uint8_t


def find(const int64_t[::1] lengths, const uint8_t[:, ::1] resets):
    """The pieces, the longest first, and those of one length as their rows are, and as they follow each other: three arrays, the row, the
    first step and the length of each. ``resets`` is (T, B), or None.
    """
    cdef Py_ssize_t B = lengths.shape[0], b, t, found = 0, longest = 0, length
    for b in range(B):
        longest = max(longest, lengths[b])
        found += lengths[b] > 0
        if resets is not None:
            for t in range(1, lengths[b]):
                found += resets[t, b] != 0  # True may be any other byte, too
    cdef int64_t[:, ::1] unsorted = np.empty((3, found), np.int64), pieces = np.empty((3, found), np.int64)
    cdef int64_t[::1] place = np.zeros(longest + 1, np.int64)  # by length: first how many there are, then where the next one goes
    cdef Py_ssize_t i = 0, start, before = 0
    for b in range(B):
        start = 0
        for t in range(1, lengths[b] + 1):
            if t == lengths[b] or (resets is not None and resets[t, b]):
                unsorted[0, i], unsorted[1, i], unsorted[2, i] = b, start, t - start
                place[t - start] += 1
                start = t
                i += 1
    for length in range(longest, -1, -1):
        before += place[length]
        place[length] = before - place[length]
    for i in range(found):
        length = unsorted[2, i]
        for t in range(3):
            pieces[t, place[length]] = unsorted[t, i]
        place[length] += 1
    return np.asarray(pieces)


def lay_out(const int64_t[:, ::1] pieces, Py_ssize_t T, Py_ssize_t B):
    """Where each step begins among the packed rows, and behind the last step their number; which row of an array (T * B, W) each packed
    row is; and which packed row each row of that array is, -1 where there is none.
    """
    cdef Py_ssize_t count = pieces.shape[1], steps = pieces[2, 0] if count else 0, t, i, active = count, row
    first_of, padded_of, packed_of = np.empty(steps + 1, np.intp), None, np.full(T * B, -1)
    cdef Py_ssize_t[::1] first = first_of
    cdef int64_t[::1] padded, packed = packed_of
    first[0] = 0
    for t in range(steps):
        while pieces[2, active - 1] <= t:
            active -= 1
        first[t + 1] = first[t] + active
    padded_of = np.empty(first[steps], np.int64)
    padded = padded_of
    for i in range(count):
        for t in range(pieces[2, i]):
            row = (pieces[1, i] + t) * B + pieces[0, i]
            padded[first[t] + i] = row
            packed[row] = first[t] + i
    return first_of, padded_of, packed_of
