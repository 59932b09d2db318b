# The types of reference.py, apart from it: the lesson is shorter without them. `mypy.stubtest` compares the two.

from collections.abc import Callable

from ._typing import Array, Bools, ClipStep, F, Integers, Nonlinearity, OptionalPair, Pair
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
    lengths: Integers | None = None,
    resets: Bools | None = None,
    memory_budget: int | None = None,
    tape: bool = True,
    last_only: bool = False,
) -> tuple[Array[F], Array[F], Tape]: ...
def rnn_backward(
    tape: Tape,
    d_out: Array[F] | None,
    d_state: Array[F] | None = None,
    *,
    need_dx: bool = True,
    clip_step: ClipStep | None = None,
    carry: Array[F] | None = None,
) -> Gradients[F, Array[F]]: ...
def gru_forward(
    x: Array[F] | Integers,
    h0: Array[F] | None,
    w_ih: Array[F],
    w_hh: Array[F],
    b_ih: Array[F] | None = None,
    b_hh: Array[F] | None = None,
    *,
    lengths: Integers | None = None,
    resets: Bools | None = None,
    memory_budget: int | None = None,
    tape: bool = True,
    last_only: bool = False,
) -> tuple[Array[F], Array[F], Tape]: ...
def gru_backward(
    tape: Tape,
    d_out: Array[F] | None,
    d_state: Array[F] | None = None,
    *,
    need_dx: bool = True,
    clip_step: ClipStep | None = None,
    carry: Array[F] | None = None,
) -> Gradients[F, Array[F]]: ...
def lstm_forward(
    x: Array[F] | Integers,
    state: OptionalPair[F] | None,
    w_ih: Array[F],
    w_hh: Array[F],
    b_ih: Array[F] | None = None,
    b_hh: Array[F] | None = None,
    *,
    w_hr: Array[F] | None = None,
    lengths: Integers | None = None,
    resets: Bools | None = None,
    memory_budget: int | None = None,
    tape: bool = True,
    last_only: bool = False,
) -> tuple[Array[F], Pair[F], Tape]: ...
def lstm_backward(
    tape: Tape,
    d_out: Array[F] | None,
    d_state: OptionalPair[F] | None = None,
    *,
    need_dx: bool = True,
    clip_step: ClipStep | None = None,
    carry: Array[F] | None = None,
) -> Gradients[F, Pair[F]]: ...

class Rows:
    there: Bools | None
    reset: Bools | None
    inputs: Array
    def __init__(self, x: Array, lengths: Integers | None, resets: Bools | None) -> None: ...
    def enter(self, t: int, state: Array) -> Array: ...
    def leave(self, t: int, new: Array, old: Array | int) -> Array: ...
    def back(self, t: int, d_before: Array, d_after: Array) -> Array: ...

def parts(a: Array, gates: int) -> list[Array]: ...
def kept(out: Array, state: Array | Pair, whole: Tape, tape: bool, last_only: bool) -> tuple[Array | None, Array | Pair, Tape | None]: ...
def clipped(clip_step: ClipStep | None, *d_state: Array) -> tuple[Array, ...]: ...
def handed_on(carry: Array | None, t: int, *d_state: Array) -> tuple[Array, ...]: ...
def rnn_jvp(
    tape: Tape,
    *,
    x: Array[F] | None = None,
    state: Array[F] | None = None,
    w_ih: Array[F] | None = None,
    w_hh: Array[F] | None = None,
    b_ih: Array[F] | None = None,
    b_hh: Array[F] | None = None,
) -> tuple[Array[F], Array[F]]: ...
def gru_jvp(
    tape: Tape,
    *,
    x: Array[F] | None = None,
    state: Array[F] | None = None,
    w_ih: Array[F] | None = None,
    w_hh: Array[F] | None = None,
    b_ih: Array[F] | None = None,
    b_hh: Array[F] | None = None,
) -> tuple[Array[F], Array[F]]: ...
def lstm_jvp(
    tape: Tape,
    *,
    x: Array[F] | None = None,
    state: OptionalPair[F] | None = None,
    w_ih: Array[F] | None = None,
    w_hh: Array[F] | None = None,
    b_ih: Array[F] | None = None,
    b_hh: Array[F] | None = None,
    w_hr: Array[F] | None = None,
) -> tuple[Array[F], Pair[F]]: ...
def projected(w_hr: Array | None, shown: Array) -> Array: ...
def tangents_of_halves(
    tape: Tape,
    t: int,
    h_dot: Array,
    x: Array | None,
    w_ih: Array | None,
    w_hh: Array | None,
    b_ih: Array | None,
    b_hh: Array | None,
) -> Pair: ...

class Tape:
    rows: Rows
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
    w_hr: Array | None
    def __init__(
        self,
        rows: Rows,
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
        w_hr: Array | None = None,
    ) -> None: ...

class Sums:
    tape: Tape
    x: Array
    dx: Array
    dw_ih: Array
    dw_hh: Array
    db_ih: Array
    db_hh: Array
    dw_hr: Array | None
    def __init__(self, tape: Tape) -> None: ...
    def add(self, t: int, da_x: Array, da_h: Array, h_before: Array) -> None: ...
    def result(self, d_state: Array | Pair, need_dx: bool) -> Gradients: ...

def sigmoid(a: Array) -> Array: ...
def zero_if_none(bias: Array | None) -> int | Array: ...
def zeros_if_none(tangent: Array | None, value: Array) -> Array: ...
def one_hot(x: Array, w_ih: Array) -> Array: ...
def initial_state(h0: Array | None, x: Array, w_hh: Array) -> Array: ...
