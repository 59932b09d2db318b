"""RNN, GRU and LSTM for JAX on our kernels: `rnn`, `gru` and `lstm` run inside ``jax.jit``, and `jax.grad` goes back through them.

Registered with XLA when this is imported; to build fastbptt, JAX is not needed.
"""

try:
    import jax as _jax  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "jax":
        raise
    raise ImportError('fastbptt.jax needs JAX, which is not installed: pip install "fastbptt[jax]"') from error

from .functions import gru, lstm, rnn

__all__ = ["gru", "lstm", "rnn"]
