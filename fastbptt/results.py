"""What a backward pass returns."""

from __future__ import annotations

from typing import Generic, NamedTuple

from ._typing import Array, D, S


class Gradients(NamedTuple, Generic[D, S]):
    """What a backward pass returns; ``None`` where there is nothing (``need_dx=False``, tokens, no bias).

    Attributes
    ----------
    x : ndarray (T, B, I) or None
    state : ndarray (B, H), or two of them
        The gradient of the initial state: dL/dh_0, or of an LSTM (dL/dh_0, dL/dc_0).
    w_ih, w_hh : ndarray (G*H, I), (G*H, H)
    b_ih, b_hh : ndarray (G*H,) or None
    w_hr : ndarray (P, H) or None
        Of an LSTM's projection; ``state`` and ``w_hh`` are then (B, P) and (B, H), and (4*H, P).
    """

    x: Array[D] | None
    state: S  # Array[D], or of an LSTM Pair[D]
    w_ih: Array[D]
    w_hh: Array[D]
    b_ih: Array[D] | None
    b_hh: Array[D] | None
    w_hr: Array[D] | None = None
