# The types of reference.py, apart from it: the lesson is shorter without them. `mypy.stubtest` compares the two.

from collections.abc import Callable

from ._typing import Array, F, Integers, Nonlinearity, OptionalPair, Pair
from .results import Gradients

NONLINEARITIES: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]]

def rnn_forward(
    x: Array[F] | Integers,
    h0: Array[F] | None,
    w_ih: Array[F],
    w_hh: Array[F],
    b_ih: Array[F] | None = None,
    b_hh: Array[F] | None = None,
    *,
    nonlinearity: Nonlinearity = "tanh",
    leak: float | Array[F] | None = None,
) -> tuple[Array[F], Array[F], Tape]: ...
def rnn_backward(
    tape: Tape, d_out: Array[F] | None, d_state: Array[F] | None = None, *, need_dx: bool = True
) -> Gradients[F, Array[F]]: ...
def gru_forward(
    x: Array[F] | Integers,
    h0: Array[F] | None,
    w_ih: Array[F],
    w_hh: Array[F],
    b_ih: Array[F] | None = None,
    b_hh: Array[F] | None = None,
) -> tuple[Array[F], Array[F], Tape]: ...
def gru_backward(
    tape: Tape, d_out: Array[F] | None, d_state: Array[F] | None = None, *, need_dx: bool = True
) -> Gradients[F, Array[F]]: ...
def lstm_forward(
    x: Array[F] | Integers,
    state: OptionalPair[F] | None,
    w_ih: Array[F],
    w_hh: Array[F],
    b_ih: Array[F] | None = None,
    b_hh: Array[F] | None = None,
) -> tuple[Array[F], Pair[F], Tape]: ...
def lstm_backward(
    tape: Tape, d_out: Array[F] | None, d_state: OptionalPair[F] | None = None, *, need_dx: bool = True
) -> Gradients[F, Pair[F]]: ...

class Tape:
    x: Array
    w_ih: Array
    w_hh: Array
    b_ih: Array | None
    b_hh: Array | None
    nonlinearity: Nonlinearity
    leak: float | Array | None
    h: Array
    c: Array | None
    gates: Array
    m: Array | None
    def __init__(
        self,
        x: Array,
        w_ih: Array,
        w_hh: Array,
        b_ih: Array | None,
        b_hh: Array | None,
        *,
        h: Array,
        gates: list[Array],
        c: Array | None = None,
        m: list[Array] | None = None,
        nonlinearity: Nonlinearity = "tanh",
        leak: float | Array | None = None,
    ) -> None: ...

class Sums:
    tape: Tape
    x: Array
    dx: Array
    dw_ih: Array
    dw_hh: Array
    db_ih: Array
    db_hh: Array
    def __init__(self, tape: Tape) -> None: ...
    def add(self, t: int, da_x: Array, da_h: Array) -> None: ...
    def result(self, d_state: Array | Pair, need_dx: bool) -> Gradients: ...

def sigmoid(a: Array) -> Array: ...
def zero_if_none(bias: Array | None) -> int | Array: ...
def one_hot(x: Array, w_ih: Array) -> Array: ...
def initial_state(h0: Array | None, x: Array, w_hh: Array) -> Array: ...
