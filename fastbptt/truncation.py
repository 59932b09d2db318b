"""Truncated backpropagation through time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from . import _checks
from ._typing import Array, Bool, Bools, ClipStep, Float64s, Int, Integers, Real, Seed
from .layers import OneThread, Recurrent, fixed, wrong_layer
from .tape import Tape

if TYPE_CHECKING:
    from ._typing import Fixed

Windows: TypeAlias = "tuple[tuple[Tape, Any], ...]"  # each with its factors, or None


class Reader(OneThread):
    """What reads an endless sequence window by window, with the state carried over; see `TruncatedBPTT` and `ARTBP`.

    ``_windows`` are those that a gradient can still reach, the oldest first: of each its tape and the factors of `rnn_backward`'s ``carry``.
    """

    layer: Fixed[Recurrent] = fixed("layer")
    _with: Callable[[Tape], Windows]
    _reached: Callable[[Tape, Sequence[tuple[Tape, Any]]], Iterable[tuple[Tape, Any]]]
    _still_in_reach: Callable[[Windows], Windows]

    def __init__(self, layer: Recurrent) -> None:
        if not isinstance(layer, Recurrent):
            raise wrong_layer("layer", Recurrent, layer)
        self._layer = layer
        self.reset()

    def reset(self, state: Any = None) -> None:
        """Start a sequence, from ``state``; no gradient goes back to anything before."""
        self.layer._without_layer_axis("state", state, None)
        self._windows: Windows = ()
        self._keep(None)
        self._state = state

    @property
    def state(self) -> Any:
        return self._state

    @state.setter
    def state(self, state: Any) -> None:
        self.reset(state)

    @property
    def tape(self) -> Tape | None:
        kept = self._kept
        return None if kept is None else kept[0]

    def forward(self, x: Array, *, lengths: Integers | None = None, resets: Bools | None = None) -> Array:
        """Read the next window of inputs; returns ``out``. ``lengths`` and ``resets`` are as the layer takes them."""
        out, state = self.layer.forward(x, self.state, lengths=lengths, resets=resets)
        if not self.layer.training:
            self.reset(state)
            return out
        tape = self.layer.take_tape()
        self._windows = self._with(tape)
        self._keep(tape)
        self._state = state
        return out

    def backward(
        self, d_out: Array | None, d_state: Any = None, *, need_dx: Bool = True, clip_step: ClipStep | None = None
    ) -> Array | None:
        """Go back from the newest window's outputs, as far as gradients reach; add to the layer's `grads`.

        Parameters
        ----------
        d_out : ndarray, shaped as ``out``, or None
        d_state : as the layer takes it, or None
            The gradient of the loss with respect to the state after the window, without that of later windows.
        need_dx : bool
        clip_step : ("value", c), ("norm", c) or None
            As for the layer.

        Returns
        -------
        dx : ndarray or None
            The gradient of the newest window's inputs.

        Raises
        ------
        RuntimeError
            If there was no forward pass since the last backward pass, or it was another thread's.
        """
        newest, windows, given = self._last_tape(), self._windows, d_state
        (_, carry), *older = reversed(windows)
        grads = self.layer.gradients_through(newest, d_out, d_state, need_dx=need_dx, clip_step=clip_step, carry=carry)
        totals, d_state = [g for g in grads[2:] if g is not None], grads.state
        for tape, carry in self._reached(newest, older):
            past = self.layer.gradients_through(tape, None, d_state, need_dx=False, clip_step=clip_step, carry=carry)
            for total, g in zip(totals, (g for g in past[2:] if g is not None)):
                total += g
            d_state = past.state
        self._use_up(newest, self.layer, totals)
        self.layer._look_for_nonfinite(newest, d_out, given, grads, clip_step)
        self._windows = self._still_in_reach(windows)
        return self.layer._between_layouts(grads.x)


class TruncatedBPTT(Reader):
    """BPTT(h; h'): every h' steps forward, h steps back (Williams and Peng 1990).

    The state is carried from call to call, so that the layer reads one endless sequence; the gradient of the newest window's outputs is
    taken back through the last h steps, counted from the window's end, and cut there, whatever h' is and however long the windows were.
    In windows of h' steps, with h' = h, these are plain windows; with h > h' each output's gradient reaches at least h - h' + 1 steps
    back, at the price of h / h' backward steps per step. For plain windows of any lengths, ``reset(state)`` before each of them.

    A window that is read in evaluation mode is not kept: no gradient goes back through it, nor to anything before it.

    As in the original, the backward pass goes through older steps with the states they had and the weights of now. Like a layer, it serves
    one thread at a time, which runs both the forward and the backward pass.

    Parameters
    ----------
    layer : RNN, GRU or LSTM
        Its `grads` are added to.
    h : int
        Steps back.
    h_prime : int or None
        Steps forward between backward passes, at most h; None means h.

    Attributes
    ----------
    layer, h, h_prime
        As given; they are fixed.
    state : as the layer returns it, or None
        The carried state; None is the start of a sequence. Assigning to it is a `reset`.
    tape : Tape or None
        The newest window's, until the backward pass has gone through it.

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> layer = fastbptt.RNN(4, 7, rng=0)
    >>> reader = fastbptt.TruncatedBPTT(layer, h=10, h_prime=5)
    >>> for window in np.ones((4, 5, 3, 4)):                                            # 20 steps of 3 rows, 5 at a time
    ...     out = reader.forward(window)
    ...     dx = reader.backward(np.ones_like(out))
    >>> out.shape, dx.shape
    ((5, 3, 7), (5, 3, 4))
    """

    h: Fixed[int] = fixed("h")
    h_prime: Fixed[int] = fixed("h_prime")

    def __init__(self, layer: Recurrent, h: Int, h_prime: Int | None = None) -> None:
        super().__init__(layer)
        self._h = _checks.size("h", h)
        self._h_prime = self._h if h_prime is None else _checks.size("h_prime", h_prime)
        if self._h_prime > self._h:
            raise ValueError(f"h_prime: expected at most h = {self._h}, got {_checks.quoted(self._h_prime)}")

    def forward(self, x: Array, *, lengths: Integers | None = None, resets: Bools | None = None) -> Array:
        """Read the next window of inputs, up to h' steps; returns ``out``. ``lengths`` and ``resets`` are as the layer takes them."""
        x = _checks.require_array("x", x)
        steps = x.shape[1 if self.layer.batch_first else 0] if x.ndim > 1 else 0
        if steps > self.h_prime:
            raise ValueError(f"x: expected at most h_prime = {self.h_prime} steps, got {steps}")
        return super().forward(x, lengths=lengths, resets=resets)

    def _with(self, tape: Tape) -> Windows:
        return (*within_reach(self._windows, self.h - len(tape)), (tape, None))

    def _reached(self, newest: Tape, older: Sequence[tuple[Tape, Any]]) -> Iterable[tuple[Tape, Any]]:
        left = self.h - len(newest)
        for tape, _ in older:
            if left <= 0:
                return
            yield tape.last(left), None
            left -= len(tape)

    def _still_in_reach(self, windows: Windows) -> Windows:
        return within_reach(windows, self.h - 1)


def within_reach(windows: Windows, steps: int) -> Windows:
    """The last windows, as many as hold the last ``steps`` steps; none that is empty."""
    kept = []
    for window in reversed(windows):
        if steps <= 0:
            break
        if len(window[0]):
            kept.append(window)
        steps -= len(window[0])
    return tuple(reversed(kept))


class ARTBP(Reader):
    r"""Anticipated reweighted truncated backpropagation: truncation at random, without bias (Tallec and Ollivier 2017).

    Between any two steps the way back is cut with probability c_t, and where it is not, what goes back is multiplied by 1 / (1 - c_t).
    With X_t = 1 for a cut behind step t, and L_t the loss at step t,

    .. math::
        \widetilde{\mathrm{d}h}_t = \frac{\partial L_t}{\partial h_t} + \begin{cases}
        0 & X_t = 1 \\
        \frac{1}{1 - c_t} \left(\frac{\partial h_{t+1}}{\partial h_t}\right)^{\!\top} \widetilde{\mathrm{d}h}_{t+1} & X_t = 0
        \end{cases}

    whose expectation is the gradient of full BPTT, as that of each factor is 1. `TruncatedBPTT` is biased towards short memory. The price is
    variance: a gradient that goes back n steps in spite of c is multiplied by (1 - c)^-n, so it is for gradients that do not explode, and
    for 1 / c of about the length of memory that counts.

    Rows are cut one by one. Windows may be of any lengths, and their ends mean nothing: the gradient of each window's outputs goes back
    through all that is not cut off. Windows behind the last cut of every row are let go, so that memory does not grow with the sequence.

    A window that is read in evaluation mode is not kept: no gradient goes back through it, nor to anything before it. Like a layer, it serves
    one thread at a time, which runs both the forward and the backward pass.

    Parameters
    ----------
    layer : RNN, GRU or LSTM
        Its `grads` are added to.
    probability : float, or ndarray (n,) of numbers
        c, at least 0 and below 1: pieces have geometric lengths, of 1 / c steps in the mean. Or one number for each count of steps since
        the row's last cut, 1, 2, ..., of which the last goes on: the lengths may be distributed in any way.
    rng : None, int or numpy.random.Generator
        Draws the cuts.

    Attributes
    ----------
    layer, probability
        As given, the latter as an array (n,), read-only.
    state : as the layer returns it, or None
        The carried state; None is the start of a sequence. Assigning to it is a `reset`.
    tape : Tape or None
        The newest window's, until the backward pass has gone through it.

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> layer = fastbptt.RNN(4, 7, rng=0)
    >>> reader = fastbptt.ARTBP(layer, 0.1, rng=0)                                      # cut after 10 steps in the mean
    >>> for window in np.ones((4, 5, 3, 4)):                                            # 20 steps of 3 rows, 5 at a time
    ...     out = reader.forward(window)
    ...     dx = reader.backward(np.ones_like(out))
    >>> out.shape, dx.shape
    ((5, 3, 7), (5, 3, 4))
    """

    probability: Fixed[Float64s] = fixed("probability")

    def __init__(self, layer: Recurrent, probability: Real | Array, *, rng: Seed = None) -> None:
        self._since_cut: Integers | None = None
        super().__init__(layer)
        self._probability = _probabilities(probability)
        self._rng = _checks.generator("rng", rng)

    def reset(self, state: Any = None) -> None:
        """Start a sequence, from ``state``; no gradient goes back to anything before."""
        super().reset(state)
        self._since_cut = None

    def _with(self, tape: Tape) -> Windows:
        factors = self._draw(*tape.shape[:2]).astype(tape.h.dtype)
        before = uncut(self._windows, factors[0] != 0 if len(factors) else True)  # a loss at the window's first step reaches them
        return (*before, (tape, factors))

    def _reached(self, newest: Tape, older: Sequence[tuple[Tape, Any]]) -> Iterable[tuple[Tape, Any]]:
        return older

    def _still_in_reach(self, windows: Windows) -> Windows:
        return uncut(windows, True)

    def _draw(self, T: int, B: int) -> Float64s:
        """The factors (T, B) on what each step hands to the state before it. Nothing is cut before the first step of a sequence."""
        chances = np.concatenate([[0.0], self.probability])
        since = np.zeros(B, int) if self._since_cut is None else self._since_cut
        factors = np.empty((T, B))
        for drawn, factor in zip(self._rng.random((T, B)), factors):
            c = chances[np.minimum(since, len(chances) - 1)]
            cut = drawn < c
            factor[:] = np.where(cut, 0, 1 / (1 - c))
            since = np.where(cut, 1, since + 1)
        self._since_cut = since
        return factors


def uncut(windows: Windows, rows: Bools | bool) -> Windows:
    """The last windows, as many as the ``rows`` (B,) of bools, or any of them, reach from the end on without being cut."""
    kept = []
    for tape, factors in reversed(windows):
        if not np.any(rows):
            break
        kept.append((tape, factors))
        rows = rows & (factors != 0).all(axis=0)
    return tuple(reversed(kept))


def _probabilities(value: Any) -> Float64s:
    """One or more numbers, each at least 0 and below 1, in an array that is read-only."""
    value = _checks.scalar(value)
    if not isinstance(value, np.ndarray):
        value = np.array([_checks.real("probability", value)])
    elif _checks.require_array("probability", value).ndim != 1 or not value.size or value.dtype.kind != "f":
        raise ValueError(f"probability: expected a number, or a one-dimensional array of float numbers, got {_checks.describe(value)}")
    value = np.array(value, float)
    fit = (value >= 0) & (value < 1)
    if not fit.all():
        raise ValueError(f"probability: expected numbers of at least 0 and below 1, got {_checks.quoted(float(value[~fit][0]))}")
    value.setflags(write=False)
    return value
