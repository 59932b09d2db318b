"""The classic tasks that need a long memory, as endless streams of random sequences.

A `Task` draws batches and judges answers, so that a training loop needs nothing else:

    x, targets = task.batch(rng, B)
    out, state = layer(x)
    outputs = readout(out[-len(targets) :])     # a task asks at its last step, or at every one
    loss, d_outputs = task.loss(outputs, targets)

Each function below says whose set-up it follows. Where two are in use, the defaults are those of Pascanu, Mikolov and Bengio (2013),
"On the difficulty of training recurrent neural networks" (ICML), with the details of its authors' programs, pascanur/trainingRNNs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from . import _checks
from ._typing import Array, DType, F, Float64s, Int, Seed
from .losses import mean_squared_error, softmax_cross_entropy

__all__ = [
    "TASKS",
    "Baseline",
    "Task",
    "adding",
    "copy_memory",
    "multiplication",
    "noiseless_memorisation",
    "random_permutation",
    "temporal_order",
]

LONGEST = 10**7  # steps: more than anybody needs, and far from overflow

Length: TypeAlias = "Int | tuple[Int, Int] | list[Int]"
Draw: TypeAlias = "Callable[[np.random.Generator, int, int], tuple[Array, Array]]"  # from rng, L and B, inputs and targets


class Baseline(NamedTuple):
    """The best score of answers that depend on the step alone, and not on the input.

    Attributes
    ----------
    loss : float
        The least mean loss of such answers.
    error : float
        The least share of sequences that such answers get wrong; not always by the answer of the least loss.
    formula : str
        How both follow from the definition.
    """

    loss: float
    error: float
    formula: str


@dataclass(frozen=True)
class Task:
    """A task: sequences to read, and what is to be answered. Made by the functions of this module.

    Attributes
    ----------
    name : str
        Its key in `TASKS`.
    lengths : range
        The lengths L that its sequences have. The sequences of a batch are of one length, drawn anew for each batch.
    longest : int
        The most steps T of a batch; some tasks have more steps than L.
    inputs, outputs : int
        I, the input channels or different tokens; N, the outputs.
    tokens : bool
        Whether inputs are tokens.
    tolerance : float or None
        The largest squared error of a right answer; None where the answer is a class, the one of the highest score.
    baseline : Baseline
    """

    name: str
    lengths: range
    longest: int
    inputs: int
    outputs: int
    tokens: bool
    tolerance: float | None
    baseline: Baseline
    _draw: Draw = field(repr=False)

    def batch(self, rng: Seed, size: Int, dtype: DType = np.float64) -> tuple[Array, Array]:
        """Fresh sequences.

        Parameters
        ----------
        rng : numpy.random.Generator, int or None
            What they are drawn from; the same state gives the same sequences, in both precisions.
        size : int
            The number of sequences, B.
        dtype : dtype
            float64 or float32, of inputs and targets that are not integers.

        Returns
        -------
        x : ndarray (T, B, I), or integer ndarray (T, B)
        targets : integer ndarray (S, B), or ndarray (S, B, N)
            The right answers at the last S steps: S is 1, or it is T.

        Examples
        --------
        >>> import fastbptt
        >>> x, targets = fastbptt.tasks.temporal_order(50).batch(0, 20)
        >>> x.shape, targets.shape
        ((50, 20), (1, 20))
        """
        rng, size, dtype = _checks.generator("rng", rng), _checks.axis("size", size), _checks.dtype("dtype", dtype)
        with _checks.Room("size", size * self.longest * (1 if self.tokens else self.inputs)):
            length = self.lengths[0] if len(self.lengths) == 1 else self.lengths[int(rng.integers(len(self.lengths)))]
            x, targets = self._draw(rng, length, size)
        return (x if self.tokens else x.astype(dtype, copy=False)), (
            targets if self.tolerance is None else targets.astype(dtype, copy=False)
        )

    def loss(self, outputs: Array[F], targets: Array) -> tuple[float, Array[F]]:
        """The mean cross-entropy of classes, or the mean squared error of numbers, and its gradient.

        Parameters
        ----------
        outputs : ndarray (S, B, N)
        targets : as from `batch`

        Returns
        -------
        loss : float
        d_outputs : ndarray (S, B, N)

        Raises
        ------
        TypeError, ValueError, IndexError
            If an argument is not what is said above.
        """
        outputs, targets = self._answers(outputs, targets)
        return (softmax_cross_entropy if self.tolerance is None else mean_squared_error)(outputs, targets)

    def wrong(self, outputs: Array, targets: Array) -> int:
        """How many of the B sequences are answered wrongly, at any step. An output that is not finite is wrong.

        Parameters
        ----------
        outputs : ndarray (S, B, N)
        targets : as from `batch`

        Returns
        -------
        int

        Raises
        ------
        TypeError, ValueError
            If an argument is not what is said above.
        """
        outputs, targets = self._answers(outputs, targets)
        if self.tolerance is None:
            right = (outputs.argmax(-1) == targets) & np.isfinite(outputs).all(-1)
        else:
            with np.errstate(over="ignore", invalid="ignore"):
                right = ((outputs - targets) ** 2).sum(-1) <= self.tolerance
        return int(right.shape[1] - right.all(0).sum())

    def _answers(self, outputs: Array, targets: Array) -> tuple[Array, Array]:
        """Both as plain arrays, if they are of one shape and kind."""
        outputs, targets = _checks.require_array("outputs", outputs), _checks.require_array("targets", targets)
        dtype = _checks.require_float("outputs", outputs)
        if outputs.ndim != 3 or outputs.shape[2] != self.outputs:
            raise ValueError(f"outputs: expected shape (S, B, {self.outputs}), got {outputs.shape}")
        if self.tolerance is not None:
            return outputs, _checks.array("targets", targets, outputs.shape, dtype)
        if targets.dtype.kind not in "iu":
            raise TypeError(f"targets: expected integers, got dtype {targets.dtype}")
        return outputs, _checks.require_shape("targets", targets, outputs.shape[:2])


def temporal_order(length: Length = 50, *, symbols: Literal[2, 3] = 2) -> Task:
    """Which symbols came among the distractors, and in which order?

    Each step shows one of six tokens. At two random steps, t_1 in [L/10, 2L/10) and t_2 in [5L/10, 6L/10), it is A or B (0 or 1), at all
    others a distractor, c, d, e or f (2 to 5). The target at the last step is one of four classes, v_1 + 2 v_2. With three symbols they are
    at [L/10, 2L/10), [3L/10, 4L/10), [6L/10, 7L/10), and the class is v_1 + 2 v_2 + 4 v_3.

    Pascanu et al. (2013) and their programs, after experiments 6a and 6b of Hochreiter and Schmidhuber (1997).

    Parameters
    ----------
    length : int or (int, int)
        L, at least 10; or a half-open range (low, high) to draw it from.
    symbols : {2, 3}

    Returns
    -------
    Task
        Tokens (T, B), T = L; classes (1, B). By chance the loss is ln 4 (ln 8), and 3/4 (7/8) are wrong.

    Examples
    --------
    >>> import fastbptt
    >>> task = fastbptt.tasks.temporal_order(20, symbols=3)
    >>> task.inputs, task.outputs, task.baseline.error
    (6, 8, 0.875)
    """
    if _checks.size("symbols", symbols) not in (2, 3):
        raise ValueError(f"symbols: expected 2 or 3, got {_checks.describe(symbols)}")
    lengths = _lengths(length, 10)
    starts = (1, 5) if symbols == 2 else (1, 3, 6)  # in tenths of L
    classes = 2**symbols

    def draw(rng: np.random.Generator, L: int, B: int) -> tuple[Array, Array]:
        x, rows = rng.integers(2, 6, (L, B)), np.arange(B)
        targets = np.zeros((1, B), np.int64)
        for place, start in enumerate(starts):
            value = rng.integers(2, size=B)
            x[start * L // 10 + rng.integers(L // 10, size=B), rows] = value
            targets += value << place
        return x, targets

    name = "temporal-order" if symbols == 2 else "temporal-order-3"
    return Task(name, lengths, lengths[-1], 6, classes, True, None, _guess(classes), draw)


def adding(length: Length = 50, *, version: Literal["pascanu2013", "arjovsky2016"] = "pascanu2013") -> Task:
    """What do the two marked numbers add up to?

    Each step shows a number from [0, 1) and a mark, which is 1 at two steps and 0 at all others. The target at the last step is the sum.

    ``"pascanu2013"``, the paper's programs: a batch has L' steps, from L to 11L/10 - 1; the mark is channel 0, the number channel 1; the
    first mark is in [0, L'/10), the second in [L'/10, 5L'/10); the target is the mean of the two, and an answer wrong if its squared error
    exceeds .04. ``"arjovsky2016"``, the programs of "Unitary evolution recurrent neural networks" (ICML; amarshah/complex_RNN), much used
    since: L steps; the number is channel 0, the mark channel 1; the first mark is in the first half, the second in the second; the target
    is the sum itself. They call no answer wrong; here one is beyond a squared error of .16, which is .04 for the mean.

    Parameters
    ----------
    length : int or (int, int)
        L, at least 10 (2); or a half-open range (low, high) to draw it from.
    version : {"pascanu2013", "arjovsky2016"}

    Returns
    -------
    Task
        Inputs (T, B, 2), targets (1, B, 1). The best constant, which is in the middle, has the loss 1/24 (1/6), and 36 % are wrong.

    Examples
    --------
    >>> import fastbptt
    >>> task = fastbptt.tasks.adding(100)
    >>> x, targets = task.batch(0, 20)
    >>> bool(100 <= len(x) < 110), x.shape[1:], targets.shape, round(task.baseline.loss, 5)
    (True, (20, 2), (1, 20, 1), 0.04167)
    """
    _checks.one_of("version", version, ("pascanu2013", "arjovsky2016"))
    if version == "pascanu2013":
        # S = U_1 + U_2 has the density s below 1: P(|S - 1| > .4) = 2 * .6^2 / 2
        return _two_marked_numbers("adding", length, lambda a, b: (a + b) / 2, Baseline(1 / 24, 0.36, "1/24 and 0.6^2, at 1/2"))
    lengths = _lengths(length, 2)

    def draw(rng: np.random.Generator, L: int, B: int) -> tuple[Array, Array]:
        x = np.zeros((L, B, 2))
        x[..., 0] = rng.random((L, B))
        rows = np.arange(B)
        marked = rng.integers(L // 2, size=B), L // 2 + rng.integers(L // 2, size=B)
        for step in marked:
            x[step, rows, 1] = 1
        return x, sum(x[step, rows, 0] for step in marked).reshape(1, B, 1)

    return Task("adding-arjovsky", lengths, lengths[-1], 2, 1, False, 0.16, Baseline(1 / 6, 0.36, "1/6 and 0.6^2, at 1"), draw)


def multiplication(length: Length = 50) -> Task:
    """What is the product of the two marked numbers? All else is as in `adding` by Pascanu et al. (2013), whose task and program this is.

    Parameters
    ----------
    length : int or (int, int)
        L, at least 10; or a half-open range (low, high) to draw it from.

    Returns
    -------
    Task
        Inputs (T, B, 2), targets (1, B, 1). Of all constants, 1/4 has the least loss, 7/144, with 39 % wrong; 1/5 is wrong least often,
        for 23 %, since P(U_1 U_2 < p) = p - p ln p.

    Examples
    --------
    >>> import fastbptt
    >>> round(fastbptt.tasks.multiplication().baseline.error, 4)
    0.2335
    """
    least = 1 - (0.4 - 0.4 * math.log(0.4))
    return _two_marked_numbers(
        "multiplication", length, np.multiply, Baseline(7 / 144, least, "7/144, at 1/4, and 0.6 + 0.4 ln 0.4, at 1/5")
    )


def random_permutation(length: Length = 50) -> Task:
    """What was the first symbol? L - 1 random ones of 98 others follow.

    The first step shows one of two tokens, 0 or 1, every later one a token from 2 to 99. The target at the last step is the first token, as
    one of 100 classes. The sequences are not permutations: the name is that of the task in Hochreiter and Schmidhuber (1997, experiment 2)
    that it comes from. Pascanu et al. (2013) and their program.

    Parameters
    ----------
    length : int or (int, int)
        L, at least 1; or a half-open range (low, high) to draw it from.

    Returns
    -------
    Task
        Tokens (T, B), T = L; classes (1, B). A guess between the two has the loss ln 2, and 1/2 are wrong.

    Examples
    --------
    >>> import fastbptt
    >>> x, targets = fastbptt.tasks.random_permutation(50).batch(0, 20)
    >>> bool((x[0] == targets[0]).all())
    True
    """
    lengths = _lengths(length, 1)

    def draw(rng: np.random.Generator, L: int, B: int) -> tuple[Array, Array]:
        x = rng.integers(2, 100, (L, B))
        x[0] = rng.integers(2, size=B)
        return x, x[:1].copy()

    return Task("random-permutation", lengths, lengths[-1], 100, 100, True, None, _guess(2), draw)


def noiseless_memorisation(length: Length = 50, *, values: Int = 5, positions: Int = 10) -> Task:
    """Recall the symbols from the beginning, in their order, after a cue.

    The first n = ``positions`` steps show tokens from 0 to v - 1, v = ``values``; then come blanks, v, but for the cue, v + 1, at step
    L + n (counted from 0). The answer is v, "nothing", at the first L + n steps, then the n tokens. Every step counts for the loss, and
    all must be right. Pascanu et al. (2013) and their program; 5 values at 10 positions are more than 20 bits, 2 at 5 are the 5 bits of
    Martens and Sutskever (2011), both after the noiseless memory problem of Hochreiter and Schmidhuber (1997).

    Parameters
    ----------
    length : int or (int, int)
        L, the steps to remember for, at least 1; or a half-open range (low, high) to draw it from.
    values, positions : int

    Returns
    -------
    Task
        Tokens (T, B) and classes (T, B), T = L + 2n. By chance the loss is n ln v / (L + 2n), and 1 - v^-n are wrong.

    Examples
    --------
    >>> import fastbptt
    >>> x, targets = fastbptt.tasks.noiseless_memorisation(3, values=2, positions=2).batch(0, 1)
    >>> x[:, 0], targets[:, 0]
    (array([1, 1, 2, 2, 2, 3, 2]), array([2, 2, 2, 2, 2, 1, 1]))
    """
    lengths = _lengths(length, 1)
    v, n = _checks.size("values", values, 2, LONGEST), _checks.size("positions", positions, 1, LONGEST)

    def draw(rng: np.random.Generator, L: int, B: int) -> tuple[Array, Array]:
        x, targets = np.full((L + 2 * n, B), v), np.full((L + 2 * n, B), v)
        x[:n] = targets[L + n :] = rng.integers(v, size=(n, B))
        x[L + n] = v + 1
        return x, targets

    return Task("noiseless-memorisation", lengths, lengths[-1] + 2 * n, v + 2, v + 1, True, None, _recall(v, n, lengths), draw)


def copy_memory(length: Length = 100) -> Task:
    """Copy ten symbols across a gap.

    Ten tokens from 1 to 8, L - 1 blanks (0), the marker 9, ten blanks: T = L + 20. The answer is 0 at the first L + 10 steps, then the ten
    tokens; every step counts for the loss. Arjovsky, Shah and Bengio (2016), "Unitary evolution recurrent neural networks" (ICML), and
    their program (amarshah/complex_RNN), after the noiseless memory problem of Hochreiter and Schmidhuber (1997).

    Parameters
    ----------
    length : int or (int, int)
        L, the gap, at least 1; or a half-open range (low, high) to draw it from.

    Returns
    -------
    Task
        Tokens (T, B), ten different ones; classes (T, B), nine. By chance the loss is 10 ln 8 / (L + 20), and all but 8^-10 are wrong.

    Examples
    --------
    >>> import fastbptt
    >>> round(fastbptt.tasks.copy_memory(100).baseline.loss, 4)
    0.1733
    """
    lengths = _lengths(length, 1)

    def draw(rng: np.random.Generator, L: int, B: int) -> tuple[Array, Array]:
        x, targets = np.zeros((L + 20, B), np.int64), np.zeros((L + 20, B), np.int64)
        x[:10] = targets[L + 10 :] = rng.integers(1, 9, (10, B))
        x[L + 9] = 9
        return x, targets

    return Task("copy-memory", lengths, lengths[-1] + 20, 10, 9, True, None, _recall(8, 10, lengths), draw)


TASKS: dict[str, Callable[..., Task]] = {
    "temporal-order": temporal_order,
    "temporal-order-3": partial(temporal_order, symbols=3),
    "adding": adding,
    "adding-arjovsky": partial(adding, version="arjovsky2016"),
    "multiplication": multiplication,
    "random-permutation": random_permutation,
    "noiseless-memorisation": noiseless_memorisation,
    "copy-memory": copy_memory,
}


def _lengths(length: Any, least: int) -> range:
    """``length`` as a range, all of it at least ``least``."""
    if not isinstance(length, (tuple, list)):
        low = _checks.size("length", length, least)
        high = low + 1
    elif len(length) != 2:
        raise ValueError(f"length: expected a number, or two, got {len(length)}")
    else:
        low, high = _checks.size("length[0]", length[0], least), _checks.size("length[1]", length[1], least)
        if high <= low:
            raise ValueError(f"length: expected a range, its end above its beginning, got {low} to {high}")
    if high > LONGEST:
        raise ValueError(f"length: expected at most {LONGEST}, got {_checks.quoted(high - 1)}")
    return range(low, high)


def _two_marked_numbers(name: str, length: Length, combine: Callable[[Float64s, Float64s], Float64s], baseline: Baseline) -> Task:
    """Pascanu's adding and multiplication, which differ in how two numbers become one."""
    lengths = _lengths(length, 10)

    def draw(rng: np.random.Generator, L: int, B: int) -> tuple[Array, Array]:
        T = L + int(rng.integers(L // 10))
        x = np.zeros((T, B, 2))
        x[..., 1] = rng.random((T, B))
        rows = np.arange(B)
        first, second = rng.integers(T // 10, size=B), T // 10 + rng.integers(4 * T // 10, size=B)
        x[first, rows, 0] = x[second, rows, 0] = 1
        return x, combine(x[first, rows, 1], x[second, rows, 1]).reshape(1, B, 1)

    return Task(name, lengths, lengths[-1] + lengths[-1] // 10 - 1, 2, 1, False, 0.04, baseline, draw)


def _guess(n: int) -> Baseline:
    """The baseline of one of n equally likely classes."""
    return Baseline(math.log(n), 1 - 1 / n, f"ln {n} and {n - 1}/{n}")


def _recall(v: int, n: int, lengths: range) -> Baseline:
    """The baseline of n symbols, each one of v, at the end of L + 2n steps; averaged over the lengths."""
    loss = float(np.mean(n * math.log(v) / (np.arange(lengths.start, lengths.stop) + 2.0 * n)))
    return Baseline(loss, 1 - float(v) ** -n, f"{n} ln {v} / (L + {2 * n}) and 1 - {v}^-{n}")
