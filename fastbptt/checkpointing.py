"""Memory for time: a tape that keeps the state at some steps only, and a backward pass that computes the rest once more.

Time is cut into segments, and there is room for the whole tape of one of them. Going back, a segment is taped anew from the state before
it, and that state, if it was not kept, is reached from the nearest one that was. Which are kept when is Griewank and Walther's "revolve"
(2000, ACM TOMS algorithm 799), which computes least; segments are as long as the budget allows. They begin where blocks of the backward
pass do, so sums are the same as without a budget, to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import comb
from typing import TYPE_CHECKING, Any

import numpy as np

from ._kernels import kernels
from ._typing import Array
from .segments import Segments, outputs
from .tape import kernel_numbers

if TYPE_CHECKING:
    from .segments import Initial, Room
    from .tape import Tape


# --- Revolve ----------------------------------------------------------------------------------------------------------


def reach(checkpoints: int, sweeps: int) -> int:
    """Of how many segments none has to be run forward more than ``sweeps`` times before it is taped."""
    return comb(checkpoints + sweeps, checkpoints)


def _sweeps(segments: int, checkpoints: int) -> int:
    """The least that reach so far."""
    if checkpoints == 1:
        return segments - 1
    sweeps = 0
    while reach(checkpoints, sweeps) < segments:
        sweeps += 1
    return sweeps


def advances(segments: int, checkpoints: int) -> int:
    """How many segments must be run forward, besides being taped, to go back through all of them.

    The first run is among them, and the initial state among the ``checkpoints`` that can be kept at a time.
    """
    sweeps = _sweeps(segments, checkpoints)
    return sweeps * segments - reach(checkpoints + 1, sweeps - 1) if sweeps else 0


def next_checkpoint(segments: int, checkpoints: int) -> int:
    """How far from the first of these ``checkpoints`` the second belongs."""
    sweeps = _sweeps(segments, checkpoints)
    return min(reach(checkpoints, sweeps - 1), segments - reach(checkpoints - 1, sweeps - 1))


def schedule(segments: int, checkpoints: int, kept: list[int], taped: bool = False) -> Iterator[tuple[str, int, int]]:
    """What to do, in order: ("advance", k, l), from the state before segment k to that before l; ("keep", l, l) that; or ("back", k, k),
    through segment k, which is taped just before.

    ``kept`` are the segments before which the state is kept to begin with, 0 among them; ``taped`` tells if the last one is on the tape.
    """
    kept, end = list(kept), segments
    while end:
        while not taped and kept[-1] < end - 1:
            at, free = kept[-1], checkpoints - len(kept)
            to = at + next_checkpoint(end - at, free + 1) if free else end - 1
            yield "advance", at, to
            if not free:
                break
            if to < end - 1:
                yield "keep", to, to
            kept.append(to)
        yield "back", end - 1, end - 1
        end, taped = end - 1, False
        while kept[-1] >= max(end, 1):
            kept.pop()


def kept_on_the_way(segments: int, checkpoints: int) -> list[int]:
    """Before which segments the first run keeps the state."""
    kept = [0]
    for what, at, _ in schedule(segments, checkpoints, kept):
        if what == "back":
            break
        if what == "keep":
            kept.append(at)
    return kept


# --- The plan ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What `Tape.plan` says of a call with a memory budget.

    Attributes
    ----------
    segments : int
        Pieces of time, of which one is on the tape at a time.
    checkpoints : int
        States that can be kept at a time, the initial one included; 0 where ``out`` has all that there is to keep.
    recomputed_steps : int
        Steps that the backward pass will run forward once more. One after it, from the same tape, may have to run more.
    bytes : int
        Memory at the peak, beyond the call's arguments and results.
    """

    segments: int
    checkpoints: int
    recomputed_steps: int
    bytes: int


@dataclass(frozen=True)
class Cut:
    """Time in segments, and room for one of them. Segment k is steps ``bounds[k]`` to ``bounds[k+1]``.

    To go back through it, it may have to be taped a little further, to ``stops[k]``: groups of rows whose blocks of time are not those of
    other groups come a few steps less far.
    """

    bounds: Array
    stops: Array
    rows: int
    entering: int

    @property
    def segments(self) -> int:
        return len(self.stops)


def cut(segments: Segments, blocks: list[Array], each: int) -> Cut:
    """Segments of so many blocks ``each``, counted from the end; ``blocks`` are where those of each group of rows begin, and the end."""
    finest = blocks[0] if segments.first is not None else max(blocks, key=len)
    bounds = np.union1d(finest[::-1][::each], 0)
    stops = bounds[1:]
    for group in blocks:
        at = np.minimum(np.searchsorted(group, bounds[1:]), len(group) - 1)
        stops = np.maximum(stops, group[at])
    stops[-1:] = segments.steps
    rows = segments.rows(bounds[:-1], stops)
    return Cut(bounds, stops, int(rows.max()), int(segments.entering(bounds[:-1]).max()))


def sizes_to_try(blocks: int) -> list[int]:
    """How many blocks a segment might have: all numbers up to 64, and then some, each 3 % above the one before."""
    sizes = list(range(1, min(blocks, 64) + 1))
    while sizes[-1] < blocks:
        sizes.append(min(blocks, sizes[-1] * 103 // 100 + 1))
    return sizes


def cuts(segments: Segments) -> Iterator[tuple[Cut, int, int]]:
    """Those to try; of each, the bytes that it takes beside checkpoints, and those of a checkpoint."""
    tape, cell, item = segments.tape, segments.cell, segments.dtype.itemsize
    (N, I), P, states = tape._w_ih.shape, tape._w_hh.shape[1], segments.states
    sizes = N, I, segments.H, P, cell.reset_after, segments.steps, segments.count, segments.first, segments.tokens
    scratch, starts = kernels[segments.dtype].plan_segments(*sizes)
    blocks = [np.array(group[::-1]) for group in starts]
    widths = segments.widths()
    row, state = item * sum(widths.values()), item * sum(states[name] for name in segments.saved())
    slot = item * sum(width for name, width in widths.items() if name in cell.states)
    fixed = scratch + 4 * item * segments.count * sum(states.values())
    if P < segments.H:
        fixed += item * segments.count * segments.H  # what is shown, of one step
    if segments.tokens:
        fixed += tape._x.nbytes  # a copy of the call's
    if segments.pieces is not None:  # x, d_out and dx of a segment, packed
        row += item * (2 * I + P) if not segments.tokens else item * P + tape._x.itemsize
        slot += item * P
        fixed += segments.pieces.nbytes
    for each in sizes_to_try(max(map(len, blocks)) - 1):
        tried = cut(segments, blocks, each)
        yield tried, fixed + tried.rows * row + tried.entering * slot, state * tried.entering


def least(segments: Segments) -> int:
    """Bytes, of the smallest budget."""
    return min(taken + before for _, taken, before in cuts(segments)) if segments.rows(0, segments.steps) else 1


def choose(segments: Segments, budget: int) -> tuple[Cut, Plan]:
    """The cut that computes least once more within the budget."""
    rows = segments.rows(0, segments.steps)
    if not rows:
        return Cut(np.zeros(1, np.intp), np.zeros(0, np.intp), 0, segments.count), Plan(0, 0, 0, 0)
    best: tuple[float, int, Cut, int] | None = None
    for tried, taken, before in cuts(segments):
        if taken + before > budget:
            continue
        K = tried.segments
        checkpoints = min(K, (budget - taken) // before) if before else K
        work = advances(K, checkpoints) * rows / K
        if best is None or work <= best[0]:
            best = work, taken + before * checkpoints, tried, checkpoints
    if best is None:
        raise too_small(least(segments), budget)
    _, taken, chosen, checkpoints = best
    again = recomputed(chosen, checkpoints)
    return chosen, Plan(chosen.segments, checkpoints if segments.saved() else 0, again if segments.widths() else 0, taken)


def too_small(least: int, budget: int) -> ValueError:
    return ValueError(f"memory_budget: expected at least {least} bytes for arrays of these sizes, got {budget}")


def recomputed(chosen: Cut, checkpoints: int) -> int:
    """Steps that a backward pass runs forward once more, straight after the first run."""
    bounds, K, steps = chosen.bounds, chosen.segments, 0
    for what, at, to in schedule(K, checkpoints, kept_on_the_way(K, checkpoints), taped=True):
        if what == "advance":
            steps += int(bounds[to] - bounds[at])
        elif what == "back" and to < K - 1:
            steps += int(chosen.stops[to] - bounds[to])
    return steps


# --- The tape, and the two passes -------------------------------------------------------------------------------------


class Checkpoints:
    """What a tape has in place of its states.

    Attributes
    ----------
    plan : Plan
    cut : Cut
    h, out : ndarray or None
        As for `Segments`.
    first : dict of ndarray
        The initial state.
    finite : list of bool
        Of each segment, whether all that it left in the room is finite.
    left : list of (Room, dict of Room, int)
        What the last pass has left: its room, the states that it kept, by segment, and which segment is on the tape; the initial state is
        not among them. A backward pass takes it, and so another at the same time, in another thread, finds none, and makes its own.
    """

    def __init__(self, plan: Plan, chosen: Cut, h: Array | None, out: Array | None, first: Room, finite: list[bool]) -> None:
        self.plan, self.cut, self.h, self.out, self.first, self.finite = plan, chosen, h, out, first, finite
        self.left: list[tuple[Room, dict[int, Room], int]] = []

    def take(self, segments: Segments) -> tuple[Room, dict[int, Room], int]:
        try:
            return self.left.pop()
        except IndexError:
            return segments.room(self.cut.rows, self.cut.entering), {}, -1


def forward(tape: Tape, initial: Initial, budget: int, last_only: bool) -> tuple[Array | None, list[Array]]:
    """The outputs, unless they are not wanted, and the last states. The tape gets its checkpoints."""
    h, out = outputs(tape, last_only)
    segments = Segments(tape, h, out)
    chosen, plan = choose(segments, budget)
    room, kept = segments.room(chosen.rows, chosen.entering), {}
    keep = kept_on_the_way(chosen.segments, max(1, plan.checkpoints or chosen.segments))

    finite: list[bool] = []

    def before(k: int) -> None:
        if k in keep:
            kept[k] = segments.save(room, chosen.bounds[k])

    def after(k: int) -> None:
        finite.append(segments.finite(room, chosen.bounds[k], chosen.bounds[k + 1]))

    last = segments.run(room, chosen.bounds.tolist(), initial, before, after)
    tape._checkpoints = Checkpoints(plan, chosen, h, out, kept.pop(0, {}), finite)
    tape._checkpoints.left.append((room, kept, chosen.segments - 1))
    if out is not None:
        out.setflags(write=False)
    return out, last


def backward(
    tape: Tape,
    d_out: Array | None,
    d_state: list[Array],
    dx: Array | None,
    sums: tuple[Array | None, ...],
    dw_hr: Array | None,
    clip: tuple[int, float],
    carry: Array | None,
) -> None:
    """Fill dx and the sums, and do with ``d_state`` what the kernels' `backward` does; d_out, dx and carry as their caller has them."""
    checkpoints = tape._checkpoints
    assert checkpoints is not None
    segments = Segments(tape, checkpoints.h, checkpoints.out)
    bounds, K = checkpoints.cut.bounds, checkpoints.cut.segments
    room, kept, taped = checkpoints.take(segments)
    limit = checkpoints.plan.checkpoints or K
    reached = kernels[segments.dtype].Reached(segments.steps, segments.count)
    weights = segments.pack()
    at = taped  # the segment whose first state stands in the room; -1 for none
    quiet = _quiet_segments(segments, checkpoints, d_out, dx is not None)

    def load(k: int) -> None:
        nonlocal at
        if at != k:
            segments.load(room, kept[k] if k else checkpoints.first)
            at = k

    for what, k, to in schedule(K, limit, [0, *kept], taped == K - 1):
        if what == "keep":
            kept[k] = segments.save(room, bounds[k])
        elif what == "advance":
            load(k)
            for i in range(k, to):
                segments.again(room, bounds[i], bounds[i + 1], weights)
                segments.carry(room, bounds[i], bounds[i + 1])
            at, taped = to, -1
        else:
            start, stop = int(bounds[k]), reached.step
            if stop <= start:  # all rows that are not done yet end before
                kept.pop(k, None)
                continue
            if taped != k:
                load(k)
                segments.again(room, start, stop, weights)
                taped = k
            reached.start, reached.quiet = start, k <= quiet
            _back_through(segments, room, stop, d_out, d_state, dx, sums, dw_hr, clip, carry, reached)
            if not reached.step:
                if dx is not None and segments.pieces is None:
                    dx[:start] = 0
                break
            kept.pop(k, None)
    checkpoints.left.append((room, kept, taped))


def _quiet_segments(segments: Segments, checkpoints: Checkpoints, d_out: Array | None, to_inputs: bool) -> int:
    """How many segments, from the first one on, have no loss and nothing that is not finite: what a gradient of 0 leaves as it is."""
    tape, bounds = segments.tape, checkpoints.cut.bounds.tolist()
    if not (_finite(tape._w_hh) and (tape._w_hr is None or _finite(tape._w_hr)) and (_finite(tape._w_ih) or not to_inputs)):
        return 0
    for k, finite in enumerate(checkpoints.finite):
        start, stop = bounds[k], bounds[k + 1]
        if not finite or (d_out is not None and segments.of_steps(d_out, start, stop).view(f"i{d_out.itemsize}").any()):
            return k
        if not segments.tokens and not _finite(segments.of_steps(tape._x, start, stop)):
            return k
        if segments.h is not None and not _finite(segments.h[start : stop + 1]):
            return k
    return len(checkpoints.finite)


def _finite(array: Array) -> bool:
    """Whether all elements are; or else their sum, at least, is not."""
    with np.errstate(all="ignore"):
        return bool(np.isfinite(array.sum()))


def _back_through(
    segments: Segments,
    room: Room,
    stop: int,
    d_out: Array | None,
    d_state: list[Array],
    dx: Array | None,
    sums: tuple[Array | None, ...],
    dw_hr: Array | None,
    clip: tuple[int, float],
    carry: Array | None,
    reached: Any,
) -> None:
    """Through the segment that is in the room."""
    tape, start, pieces = segments.tape, reached.start, segments.pieces
    d_out, carry = (
        None if array is None else segments.of_steps(array, at, stop) for array, at in ((d_out, max(start - 1, 0)), (carry, start))
    )
    d_inputs = None if dx is None else segments.of_steps(dx, start, stop)  # some of it may be done, and is to stay
    arrays = segments.arrays(room, start, stop)
    dh, dc = d_state if len(d_state) == 2 else (*d_state, None)
    weights = tape._w_ih, tape._w_hh, tape._leak
    inputs = segments.inputs(start, stop)
    numbers, options, projection = kernel_numbers(tape), (segments.first, *clip, carry), (tape._w_hr, dw_hr)
    kernel = kernels[segments.dtype].backward
    kernel(*numbers, *inputs, *weights, *arrays, d_out, dh, dc, d_inputs, *sums, *options, *projection, reached).run()
    if dx is not None and d_inputs is not None and pieces is not None:
        pieces.put_steps(d_inputs, dx, start, stop)
