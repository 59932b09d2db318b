"""Truncated backpropagation through time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import _checks
from ._typing import Array, Bool, Int
from .layers import OneThread, Recurrent, fixed
from .tape import Tape

if TYPE_CHECKING:
    from ._typing import Fixed


class TruncatedBPTT(OneThread):
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

    layer: Fixed[Recurrent] = fixed("layer")
    h: Fixed[int] = fixed("h")
    h_prime: Fixed[int] = fixed("h_prime")

    def __init__(self, layer: Recurrent, h: Int, h_prime: Int | None = None) -> None:
        if not isinstance(layer, Recurrent):
            raise TypeError(f"layer: expected an RNN, GRU or LSTM, got {_checks.describe(layer)}")
        self._layer = layer
        self._h = _checks.size("h", h)
        self._h_prime = self._h if h_prime is None else _checks.size("h_prime", h_prime)
        if self._h_prime > self._h:
            raise ValueError(f"h_prime: expected at most h = {self._h}, got {_checks.quoted(self._h_prime)}")
        self.reset()

    def reset(self, state: Any = None) -> None:
        """Start a sequence, from ``state``; no gradient goes back to anything before."""
        self.layer._without_layer_axis("state", state, None)
        self._tapes: tuple[Tape, ...] = ()  # those still within reach, oldest first
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

    def forward(self, x: Array) -> Array:
        """Read the next window of inputs, up to h' steps; returns ``out``."""
        x = _checks.require_array("x", x)
        steps = x.shape[1 if self.layer.batch_first else 0] if x.ndim > 1 else 0
        if steps > self.h_prime:
            raise ValueError(f"x: expected at most h_prime = {self.h_prime} steps, got {steps}")
        out, state = self.layer.forward(x, self.state)
        if not self.layer.training:
            self.reset(state)
            return out
        tape = self.layer.take_tape()
        self._tapes = (*within_reach(self._tapes, self.h - steps), tape)
        self._keep(tape)
        self._state = state
        return out

    def backward(self, d_out: Array | None, d_state: Any = None, *, need_dx: Bool = True) -> Array | None:
        """Go back from the newest window's outputs, h steps; add to the layer's `grads`.

        Parameters
        ----------
        d_out : ndarray, shaped as ``out``, or None
        d_state : as the layer takes it, or None
            The gradient of the loss with respect to the state after the window, without that of later windows.
        need_dx : bool

        Returns
        -------
        dx : ndarray or None
            The gradient of the newest window's inputs.

        Raises
        ------
        RuntimeError
            If there was no forward pass since the last backward pass, or it was another thread's.
        """
        newest, tapes = self._last_tape(), self._tapes
        grads = self.layer.gradients_through(newest, d_out, d_state, need_dx=need_dx)
        totals, d_state = [g for g in grads[2:] if g is not None], grads.state
        left = self.h - len(newest)
        for tape in reversed(tapes[:-1]):
            if left <= 0:
                break
            past = self.layer.gradients_through(tape.last(left), None, d_state, need_dx=False)
            for total, g in zip(totals, past[2:]):
                total += g
            d_state = past.state
            left -= len(tape)
        self._use_up(newest)
        self._tapes = within_reach(tapes, self.h - 1)
        self.layer._add(*totals)
        return self.layer._between_layouts(grads.x)


def within_reach(tapes: Sequence[Tape], steps: int) -> tuple[Tape, ...]:
    """The last tapes, as many as hold the last ``steps`` steps; none that is empty."""
    kept = []
    for tape in reversed(tapes):
        if steps <= 0:
            break
        if len(tape):
            kept.append(tape)
        steps -= len(tape)
    return tuple(reversed(kept))
