"""Truncated backpropagation through time."""

from . import _checks


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
        self.layer = layer
        self.h = _checks.size("h", h)
        self.h_prime = self.h if h_prime is None else _checks.size("h_prime", h_prime)
        if self.h_prime > self.h:
            raise ValueError(f"h_prime: expected at most h = {self.h}, got {h_prime}")
        self.reset()

    def reset(self, state=None):
        """Start a sequence, from ``state``; nothing that was read before is gone back through."""
        self.state = state
        self._tapes = []
        self._fresh = False

    def forward(self, x):
        """Read the next window of inputs, up to h' steps; returns ``out``."""
        x = _checks.require_array("x", x)
        if x.ndim < 2:
            raise ValueError(f"x: expected shape (T, B, I), or tokens (T, B), got {x.shape}")
        steps = x.shape[1 if self.layer.batch_first else 0]
        if steps > self.h_prime:
            raise ValueError(f"x: expected at most h_prime = {self.h_prime} steps, got {steps}")
        out, self.state = self.layer.forward(x, self.state)
        if self.layer.training:
            self._tapes.append(self.layer.take_tape())
            self._fresh = True
        return out

    def backward(self, d_out, *, need_dx=True):
        """Go back from the newest window's outputs, h steps; add to the layer's `grads`.

        Parameters
        ----------
        d_out : ndarray, shaped as ``out``
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
        d_out = self.layer._time_first(d_out)
        dx, d_state = self.layer.backward_through(self._tapes[-1], d_out, need_dx=need_dx)
        self._fresh = False
        left = self.h - len(self._tapes[-1])
        for tape in reversed(self._tapes[:-1]):
            if left <= 0:
                break
            _, d_state = self.layer.backward_through(tape.last(left), None, d_state, need_dx=False)
            left -= len(tape)
        self._forget()
        return dx

    def _forget(self):
        """Drop the windows that no later backward pass can reach."""
        reach = self.h - 1
        kept = []
        for tape in reversed(self._tapes):
            if reach <= 0:
                break
            kept.insert(0, tape)
            reach -= len(tape)
        self._tapes = kept if self.h > self.h_prime else []
