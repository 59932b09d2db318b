"""A recurrent net that reads characters and predicts the next one."""

import numpy as np

from ..layers import GRU, LSTM, RNN, Linear
from ..losses import softmax_cross_entropy

CELLS = {"rnn": RNN, "gru": GRU, "lstm": LSTM}
EVALUATION_STEPS = 4096  # characters evaluated in one call: what bounds the memory


class CharacterModel:
    """A recurrent layer on character tokens, and a linear layer that turns its states into scores of the next character.

    Parameters
    ----------
    vocabulary_size, hidden : int
        V and H.
    cell : {"rnn", "gru", "lstm"}
    nonlinearity : {"tanh", "relu", "sigmoid", "identity"} or None
        Of an RNN; None means tanh. The others have no choice.
    dtype : dtype
        float64 or float32.
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
    >>> model = CharacterModel(vocabulary_size=10, hidden=7, rng=0)
    >>> bool(model.loss(np.arange(10)) > 2)                                             # log(10) = 2.3 is a guess
    True
    """

    def __init__(self, vocabulary_size, hidden, *, cell="rnn", nonlinearity=None, dtype=np.float64, rng=None):
        rng = np.random.default_rng(rng)
        choice = {} if nonlinearity is None else {"nonlinearity": nonlinearity}
        self.rnn = CELLS[cell](vocabulary_size, hidden, dtype=dtype, rng=rng, **choice)
        self.readout = Linear(hidden, vocabulary_size, dtype=dtype, rng=rng)
        self.layers = [self.rnn, self.readout]

    @property
    def parameters(self):
        """How many numbers are learned."""
        return sum(layer.flat_params.size for layer in self.layers)

    def initial_state(self, batch):
        """The state to begin with: zeros (1, B, H), of an LSTM two of them."""
        zeros = np.zeros((1, batch, self.rnn.hidden_size), self.rnn.dtype)
        return (zeros, zeros.copy()) if isinstance(self.rnn, LSTM) else zeros

    def zero_grad(self):
        for layer in self.layers:
            layer.zero_grad()

    def loss(self, tokens):
        """The mean cross-entropy, in nats, of every token (N,) but the first, each predicted from all that stand before it."""
        total, state = 0.0, None
        with _Evaluation(self.layers):
            for start in range(0, len(tokens) - 1, EVALUATION_STEPS):
                piece = tokens[start : start + EVALUATION_STEPS + 1, None]
                out, state = self.rnn(piece[:-1], state)
                loss, _ = softmax_cross_entropy(self.readout(out), piece[1:])
                total += loss * (len(piece) - 1)
        return total / (len(tokens) - 1)

    def generate(self, first, length, *, temperature=1.0, rng=None):
        """Tokens drawn one by one, each from the prediction that follows the ones before.

        Parameters
        ----------
        first : int
            The token to start after; it is not part of the result.
        length : int
        temperature : float
            The scores are divided by it: below 1 is more cautious, and 0 always takes the likeliest token.
        rng : None, int or numpy.random.Generator

        Returns
        -------
        ndarray (length,) of int64
        """
        rng = np.random.default_rng(rng)
        tokens, state = np.empty(length + 1, np.int64), None
        tokens[0] = first
        with _Evaluation(self.layers):
            for t in range(length):
                out, state = self.rnn(tokens[t : t + 1, None], state)
                tokens[t + 1] = _draw(self.readout(out)[0, 0], temperature, rng)
        return tokens[1:]

    def state_dict(self):
        """Copies of the parameters, under the names that a `torch.nn.Module` with a `rnn` and a `readout` gives them."""
        return {f"rnn.{name}": p for name, p in self.rnn.state_dict().items()} | {
            f"readout.{name}": p for name, p in self.readout.state_dict().items()
        }

    def load_state_dict(self, state):
        """Take back what `state_dict` gave. KeyError, TypeError or ValueError if names, dtypes or shapes differ."""
        for prefix, layer in (("rnn.", self.rnn), ("readout.", self.readout)):
            layer.load_state_dict({name.removeprefix(prefix): p for name, p in state.items() if name.startswith(prefix)})


class _Evaluation:
    """Within it, layers keep nothing for a backward pass."""

    def __init__(self, layers):
        self.layers = layers

    def __enter__(self):
        for layer in self.layers:
            layer.eval()

    def __exit__(self, *_):
        for layer in self.layers:
            layer.train()


def _draw(scores, temperature, rng):
    """A token, with the probabilities softmax(scores / temperature)."""
    u = rng.random()
    if temperature == 0:
        return scores.argmax()
    scores = scores.astype(np.float64)
    with np.errstate(over="ignore"):
        cumulative = np.exp((scores - scores.max()) / temperature).cumsum()
    return min(np.searchsorted(cumulative, u * cumulative[-1], side="right"), len(scores) - 1)
