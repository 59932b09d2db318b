"""Truncated backpropagation through time."""

from collections import deque

from . import _checks
from .layers import Recurrent


class TruncatedBPTT:
    """BPTT(h; h'): every h' steps forward, h steps back (Williams and Peng 1990).

    The state is carried from call to call, so that the layer reads one endless sequence; the gradient of the newest h' outputs is taken
    back through the last h steps and cut there. With h' = h these are plain windows; with h > h' each output's gradient reaches at
    least h - h' + 1 steps back, at the price of h / h' backward steps per step.

    As in the original, older steps are gone back through with the states of their time and the weights of now.

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
    state : as the layer returns it, or None
        The carried state; None is the start of a sequence.
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

    def __init__(self, layer, h, h_prime=None):
        if not isinstance(layer, Recurrent):
            raise TypeError(f"layer: expected an RNN, GRU or LSTM, got {_checks.describe(layer)}")
        self.layer = layer
        self.h = _checks.size("h", h)
        self.h_prime = self.h if h_prime is None else _checks.size("h_prime", h_prime)
        if self.h_prime > self.h:
            raise ValueError(f"h_prime: expected at most h = {self.h}, got {h_prime}")
        self.reset()

    def reset(self, state=None):
        """Start a sequence, from ``state``; nothing that was read before is gone back through."""
        self.state = state
        self._tapes, self._read = deque(), 0  # what may be gone back through, and how many steps that is
        self._fresh = False

    @property
    def tape(self):
        return self._tapes[-1] if self._fresh else None

    def forward(self, x):
        """Read the next window of inputs, up to h' steps; returns ``out``."""
        x = _checks.require_array("x", x)
        steps = x.shape[1 if self.layer.batch_first else 0] if x.ndim > 1 else 0
        if steps > self.h_prime:
            raise ValueError(f"x: expected at most h_prime = {self.h_prime} steps, got {steps}")
        out, self.state = self.layer.forward(x, self.state)
        if self.layer.training:
            if self._tapes and not len(self._tapes[-1]):  # an empty window
                self._tapes.pop()
            self._tapes.append(self.layer.take_tape())
            self._read += steps
            self._keep(self.h)
            self._fresh = True
        return out

    def backward(self, d_out, d_state=None, *, need_dx=True):
        """Go back from the newest window's outputs, h steps; add to the layer's `grads`.

        Parameters
        ----------
        d_out : ndarray, shaped as ``out``, or None
        d_state : as the layer takes it, or None
            The gradient of the loss with respect to the state after the window, apart from what later windows have to do with it.
        need_dx : bool

        Returns
        -------
        dx : ndarray or None
            The gradient of the newest window's inputs.

        Raises
        ------
        RuntimeError
            If there was no forward pass since the last backward pass.
        """
        if not self._fresh:
            raise RuntimeError("TruncatedBPTT.backward: no forward pass since the last backward pass")
        newest, *older = reversed(self._tapes)
        grads = self.layer.gradients_through(newest, d_out, d_state, need_dx=need_dx)
        totals, d_state = [g for g in grads[2:] if g is not None], grads.state
        left = self.h - len(newest)
        for tape in older:
            if left <= 0:
                break
            past = self.layer.gradients_through(tape.last(left), None, d_state, need_dx=False)
            for total, g in zip(totals, past[2:]):
                total += g
            d_state = past.state
            left -= len(tape)
        self._fresh = False
        self.layer._add(*totals)
        self._keep(self.h - 1 if self.h > self.h_prime else 0)
        return self.layer._between_layouts(grads.x)

    def _keep(self, steps):
        """Drop the windows that end before the last ``steps`` steps."""
        while self._tapes and self._read - len(self._tapes[0]) >= steps:
            self._read -= len(self._tapes.popleft())
