"""The net that is trained: a recurrent layer, and a linear layer that turns its states into answers."""

from contextlib import contextmanager

import numpy as np

from ... import _checks
from ...cells import CELLS, NONLINEARITIES
from ...init import STARTS
from ...layers import LAYERS, Linear
from .checkpoint import below


class Model:
    """A recurrent layer with a linear readout.

    Parameters
    ----------
    inputs, hidden, outputs : int
        I, H and N.
    layers : int
        Of the recurrent layers, one above the other.
    dropout : float
        Between them.
    cell : {"rnn", "gru", "lstm"}
    nonlinearity : {"tanh", "relu", "sigmoid", "identity"} or None
        Of an RNN; None means tanh. The others have no choice.
    dtype : dtype
        float64 or float32.
    init : str
        One of `fastbptt.init.STARTS`.
    rng : None, int or numpy.random.Generator
        Draws the parameters.

    Attributes
    ----------
    rnn : RNN, GRU or LSTM
    readout : Linear
    layers : list
        Both, for clipping and optimisers.

    Examples
    --------
    >>> import numpy as np
    >>> model = Model(inputs=6, hidden=7, outputs=4, init="basic-tanh", rng=0)
    >>> out, state = model.rnn(np.zeros((5, 3), int))
    >>> model.readout(out).shape, model.parameters
    ((5, 3, 4), 137)
    """

    def __init__(
        self, inputs, hidden, outputs, *, layers=1, dropout=0.0, cell="rnn", nonlinearity=None, dtype=np.float64, init="default", rng=None
    ):
        rng = np.random.default_rng(rng)
        choice = {} if nonlinearity is None else {"nonlinearity": nonlinearity}
        self.rnn = LAYERS[cell](inputs, hidden, layers, dropout=dropout, dtype=dtype, rng=rng, **choice)
        self.readout = Linear(hidden, outputs, dtype=dtype, rng=rng)
        self.layers = [self.rnn, self.readout]
        STARTS[init].draw(self.rnn, self.readout, rng)

    @property
    def parameters(self):
        """How many numbers are learned."""
        return sum(layer.flat_params.size for layer in self.layers)

    def initial_state(self, batch):
        """The state to begin with: zeros (L, B, H) for L layers, of an LSTM two of them."""
        cell = CELLS[self.rnn._cell]
        return cell.state([np.zeros((self.rnn.num_layers, batch, self.rnn.hidden_size), self.rnn.dtype) for _ in cell.states])

    def loss(self, loss, out, targets):
        """``loss(answers, targets)`` at the last S steps of ``out``, as many as there are targets, and its gradient there (S, B, H)."""
        value, d_answers = loss(self.readout(out[len(out) - len(targets) :]), targets)
        return value, self.readout.backward(d_answers)

    def zero_grad(self):
        for layer in self.layers:
            layer.zero_grad()

    @contextmanager
    def evaluating(self):
        """Within it, the layers keep nothing for a backward pass, and drop nothing."""
        for layer in self.layers:
            layer.eval()
        try:
            yield
        finally:
            for layer in self.layers:
                layer.train()

    def state_dict(self):
        """Copies of the parameters, under the names that a `torch.nn.Module` with a `rnn` and a `readout` gives them."""
        return {f"rnn.{name}": p for name, p in self.rnn.state_dict().items()} | {
            f"readout.{name}": p for name, p in self.readout.state_dict().items()
        }

    def load_state_dict(self, state):
        """Take what `state_dict` gave out of all arrays. KeyError, TypeError or ValueError if names, dtypes or shapes differ."""
        self.rnn.load_state_dict(below("rnn.", state))
        self.readout.load_state_dict(below("readout.", state))


def nonlinearity_of(cell, nonlinearity, usual):
    """Of an RNN the given nonlinearity, or the usual one for None; None of a GRU or LSTM. ValueError if there is no such choice."""
    if not CELLS[cell].gated:
        return _checks.one_of("nonlinearity", usual if nonlinearity is None else nonlinearity, NONLINEARITIES)
    if nonlinearity is not None:
        raise ValueError(f"nonlinearity: only the cell rnn has a choice of it; this is {cell}")
    return None
