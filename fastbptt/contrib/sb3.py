"""RecurrentPPO of sb3-contrib, with one call of the LSTM for a minibatch.

Its policies walk through time in Python whenever an episode starts anywhere in a minibatch, and one does in every minibatch: the buffer cuts
its sequences there.
"""

from __future__ import annotations

from typing import Any

from .. import torch as modules  # isort: skip  # first, since it says what to install

import torch
from torch.nn.utils.rnn import PackedSequence

__all__ = ["accelerate", "restore"]


def accelerate(model: Any) -> modules.Changed:
    """Let a RecurrentPPO call its LSTMs once for a minibatch, on our kernels.

    Parameters, optimiser, buffers and what is saved stay as they are. Outputs and gradients are those of the loop, to rounding.

    Parameters
    ----------
    model : sb3_contrib.RecurrentPPO
        Or its policy.

    Returns
    -------
    fastbptt.torch.Changed
        How many LSTMs were changed.

    Raises
    ------
    TypeError
        If it is no recurrent policy, and has none.

    See Also
    --------
    restore, fastbptt.torch.accelerate

    Examples
    --------
    ::

        model = sb3_contrib.RecurrentPPO("MlpLstmPolicy", "CartPole-v1")
        fastbptt.contrib.sb3.accelerate(model)
        model.learn(10_000)
    """
    policy = _policy(model)
    policy._process_sequence = process_sequence
    return modules.accelerate(policy)


def restore(model: Any) -> modules.Changed:
    """Take `accelerate` back.

    Parameters
    ----------
    model : sb3_contrib.RecurrentPPO
        Or its policy.

    Returns
    -------
    fastbptt.torch.Changed

    Raises
    ------
    TypeError
        If it is no recurrent policy, and has none.

    Examples
    --------
    ::

        fastbptt.contrib.sb3.restore(model)
    """
    policy = _policy(model)
    policy.__dict__.pop("_process_sequence", None)
    return modules.restore(policy)


def process_sequence(
    features: torch.Tensor, lstm_states: tuple[torch.Tensor, torch.Tensor], episode_starts: torch.Tensor, lstm: Any
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """In place of `RecurrentActorCriticPolicy._process_sequence`.

    Parameters
    ----------
    features : Tensor (n*T, I)
        n rows of T steps, one row after the other.
    lstm_states : (Tensor (layers, n, H), Tensor (layers, n, H))
    episode_starts : Tensor (n*T,)
        1 where the state is set to zero before the step.
    lstm : torch.nn.LSTM

    Returns
    -------
    out : Tensor (n*T, H)
    lstm_states : (Tensor (layers, n, H), Tensor (layers, n, H))
        After the last step.

    Examples
    --------
    >>> import torch
    >>> from fastbptt.contrib.sb3 import process_sequence
    >>> state = torch.zeros(1, 2, 8), torch.zeros(1, 2, 8)
    >>> out, _ = process_sequence(torch.randn(10, 3), state, torch.zeros(10), torch.nn.LSTM(3, 8))
    >>> out.shape
    torch.Size([10, 8])
    """
    n = lstm_states[0].shape[1]
    x = features.reshape(n, -1, lstm.input_size).swapaxes(0, 1)
    starts = episode_starts.reshape(n, -1).swapaxes(0, 1)
    h, c = ((1.0 - starts[0]).view(1, n, 1) * state for state in lstm_states)
    out, states = _in_pieces(x, (h, c), starts, lstm) if starts[1:].any() else lstm(x, (h, c))
    return out.transpose(0, 1).flatten(0, 1), states


def _in_pieces(
    x: torch.Tensor, states: tuple[torch.Tensor, torch.Tensor], starts: torch.Tensor, lstm: Any
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """One call, too, where states are set to zero on the way: rows are cut there, and the pieces make one PackedSequence."""
    T, n = starts.shape
    begins = starts != 0
    begins[0] = True
    step = torch.arange(T, device=x.device)[:, None]
    since = step - torch.where(begins, step, 0).cummax(0).values
    piece = (begins.T.flatten().cumsum(0) - 1).view(n, T).T  # row after row, so that a row's first and last pieces are easily told
    longest_first = piece.flatten().bincount().argsort(descending=True, stable=True)
    rank = longest_first.argsort()[piece]
    order = (since * len(longest_first) + rank).flatten().argsort()  # the order of a PackedSequence: by step of a piece, then by piece

    first, last = rank[0], rank[-1]
    initial = [state.new_zeros(len(state), len(longest_first), state.shape[-1]).index_copy(1, first, state) for state in states]
    packed = PackedSequence(x.flatten(0, 1)[order], since.flatten().bincount().cpu())
    out, ends = lstm(packed, tuple(initial))
    h_n, c_n = (end[:, last] for end in ends)
    return out.data[order.argsort()].view(T, n, -1), (h_n, c_n)


def _policy(model: Any) -> Any:
    policy = getattr(model, "policy", model)
    if not isinstance(policy, torch.nn.Module) or not hasattr(policy, "_process_sequence"):
        raise TypeError(f"model: expected a RecurrentPPO or its policy, got {type(model).__name__}")
    return policy
