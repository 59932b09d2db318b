"""What a backward pass returns."""

from typing import NamedTuple

import numpy as np


class Gradients(NamedTuple):
    """What a backward pass returns; ``None`` where there is nothing (``need_dx=False``, tokens, no bias).

    Attributes
    ----------
    x : ndarray (T, B, I) or None
    state : ndarray (B, H), or two of them
        The gradient of the initial state: dL/dh_0, or of an LSTM (dL/dh_0, dL/dc_0).
    w_ih, w_hh : ndarray (G*H, I), (G*H, H)
    b_ih, b_hh : ndarray (G*H,) or None
    """

    x: np.ndarray | None
    state: np.ndarray | tuple[np.ndarray, np.ndarray]
    w_ih: np.ndarray
    w_hh: np.ndarray
    b_ih: np.ndarray | None
    b_hh: np.ndarray | None
