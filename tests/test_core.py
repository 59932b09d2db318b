"""What the kernels can do and no public function asks of them yet: rows of different lengths, as `_kernels/time.pxi` lays them out; weights
that were packed before the call; states with more numbers than units. They are called as `functional.py` calls them.
"""

import re

import numpy as np
import pytest
from problems import ONE_OF_EACH, WEIGHTS, arrays_of, random_problem
from remembered import remembered
from tolerances import DTYPES, TOLERANCES, assert_close, assert_same_bits, bound

import fastbptt
import fastbptt.reference
from fastbptt._kernels import kernels
from fastbptt.cells import CELLS as ROWS
from fastbptt.cells import NONLINEARITIES

EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
EACH_CELL = pytest.mark.parametrize("cell", ONE_OF_EACH)

# I, H, and lengths, longest first: equal ones, all different, some of nothing; few rows and many units, for threads by units; several
# blocks of time, in which rows begin; long tails of one row.
RAGGED = {
    "one row": (3, 7, [5]),
    "equal": (4, 9, [6, 6, 6]),
    "a staircase": (4, 17, range(9, 0, -1)),
    "empty rows": (3, 8, [7, 7, 2, 0, 0]),
    "one long row": (2, 5, [600, 3, 3, 2]),
    "few rows, many units": (5, 140, [60, 41, 7]),
    "several blocks, few rows and many units": (3, 136, [220, 219, 150, 2]),
    "many rows": (6, 33, [60] * 3 + [59] * 20 + [31] * 17 + [7] * 29 + [0]),
    "many blocks": (20, 40, [90] * 9 + [64] * 16 + [63] * 2 + [1] * 13),
}
EACH_SHAPE = pytest.mark.parametrize("ragged", RAGGED.values(), ids=RAGGED)


class Ragged:
    """A problem whose row b has lengths[b] steps, and what the kernels make of it."""

    def __init__(self, cell, I, H, lengths, dtype, tokens=False):
        self.lengths = np.array(list(lengths))
        self.problem = random_problem(cell, self.lengths[0], len(self.lengths), I, H, dtype=dtype, tokens=tokens, gain=0.6)
        counts = [(self.lengths > t).sum() for t in range(self.lengths[0])]
        self.there = np.arange(self.lengths[0])[:, None] < self.lengths  # (T, B)
        self.first = np.concatenate([[0], np.cumsum(counts)]).astype(np.intp)

    def packed(self, array):
        """What a (T, B, ...) array has for the rows that are active, step by step."""
        return np.ascontiguousarray(array[self.there])

    def results(self, weights=None):
        """By name: h and c behind slot 0, and all gradients, packed."""
        p, dtype, (B, H) = self.problem, self.problem.w_hh.dtype, self.problem.state[0].shape
        cell, R, N = ROWS[p.cell.prefix], self.first[-1], len(self.problem.w_hh)
        tokens, x = p.x.ndim == 2, self.packed(p.x)
        leak = None if p.leak is None else np.full(H, p.leak, dtype)
        histories = [np.concatenate([s, np.full((R, H), np.nan, dtype)])[:, None] for s in p.state]
        gates = np.full((R, 1, N), np.nan, dtype) if cell.tape_gates or leak is not None else None
        common = {
            "cell": cell.number,
            "activation": NONLINEARITIES[p.cell.options.get("nonlinearity", "tanh")].number,
            "x": None if tokens else x[:, None],
            "tokens": x[:, None] if tokens else None,
            "w_ih": p.w_ih,
            "w_hh": p.w_hh,
            "leak": leak,
            "h": histories[0],
            "c": histories[1] if len(histories) == 2 else None,
            "a": gates,
            "m": np.full((R, 1, H), np.nan, dtype) if cell.reset_after else None,
            "first": self.first,
        }
        kernels[dtype].forward(b_ih=p.b_ih, b_hh=p.b_hh, weights=weights, **common).run()
        d_state = [s.copy() for s in p.d_state]
        dx = None if tokens else np.full((R, 1, p.x.shape[2]), np.nan, dtype)
        sums = {f"d{name}": np.zeros_like(getattr(p, name)) for name in WEIGHTS}
        apart = sums if cell.reset_after else sums | {"db_hh": None}
        d_out = self.packed(p.d_out)[:, None]
        dh, dc = (*d_state, None)[:2]
        kernels[dtype].backward(d_out=d_out, dh=dh, dc=dc, dx=dx, **apart, **common).run()
        if not cell.reset_after:
            sums["db_hh"] = sums["db_ih"]
        named = {f"state {i}": history[B:, 0] for i, history in enumerate(histories)} | sums
        named |= {f"d_initial {i}": d for i, d in enumerate(d_state)}
        return named | ({} if tokens else {"dx": dx[:, 0]})

    def alone(self, rows):
        """The problem of rows of one length alone."""
        alone = self.problem.rows(rows)
        return alone.steps(0, self.lengths[rows[0]], alone.state, alone.d_state)

    @remembered
    def expected(self):
        """The same from the reference, for the rows of each length by themselves."""
        wide = TOLERANCES[self.problem.w_hh.dtype].oracle
        T, B = self.there.shape
        H, tokens = self.problem.w_hh.shape[1], self.problem.x.ndim == 2
        states = [np.zeros((T, B, H), wide) for _ in self.problem.state]
        d_states = [np.zeros((B, H), wide) for _ in self.problem.state]
        dx = None if tokens else np.zeros(self.problem.x.shape, wide)
        sums = {f"d{name}": np.zeros(getattr(self.problem, name).shape, wide) for name in WEIGHTS}
        for length in set(self.lengths):
            rows = np.flatnonzero(self.lengths == length)
            alone = self.alone(rows).astype(wide)
            if not length:
                for d, end in zip(d_states, alone.d_state):
                    d[rows] = end
                continue
            with np.errstate(over="ignore"):
                _, _, tape = alone.forward(fastbptt.reference)
                grads = alone.backward(fastbptt.reference, tape)
            for history, array in zip(states, (tape.h, tape.c)):
                history[:length, rows] = np.array(array)[1:]
            for d, start in zip(d_states, arrays_of(grads.state)):
                d[rows] = start
            for name in WEIGHTS:
                sums[f"d{name}"] += getattr(grads, name)
            if not tokens:
                dx[:length, rows] = grads.x
        named = {f"state {i}": self.packed(history) for i, history in enumerate(states)} | sums
        named |= {f"d_initial {i}": d for i, d in enumerate(d_states)}
        return named | ({} if tokens else {"dx": self.packed(dx)})


def assert_right(ragged, got):
    dtype, T = ragged.problem.w_hh.dtype, ragged.lengths[0]
    expected = ragged.expected()
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert_close(name, got[name], array, bound(dtype, ragged.problem.K, T), max(1e-3, np.abs(array).max(initial=0)))


@EACH_DTYPE
@EACH_CELL
@pytest.mark.parametrize("tokens", [False, True], ids=["vectors", "tokens"])
def test_from_the_end_to_the_start_between_gaps(cell, dtype, tokens, threads):
    """x read backwards, outputs and their gradients as one half of two, and dx added to what is there: as on turned copies."""
    p = random_problem(cell, 70, 9, 5, 12, dtype=dtype, tokens=tokens)
    (T, B, H), row, N = p.d_out.shape, ROWS[p.cell.prefix], len(p.w_hh)
    leak = None if p.leak is None else np.full(H, p.leak, dtype)
    numbers = row.number, NONLINEARITIES[p.cell.options.get("nonlinearity", "tanh")].number

    def results(turned):
        histories = [np.concatenate([s[None], np.full((T, B, H), np.nan, dtype)]) for s in p.state]
        h, c = (*histories, None)[:2]
        a = np.full((T, B, N), np.nan, dtype) if row.tape_gates or leak is not None else None
        m = np.full((T, B, H), np.nan, dtype) if row.reset_after else None
        x, dx = p.x[::-1].copy(), None if tokens else np.ones(p.x.shape, dtype)
        both, d_both = np.full((T, B, 2 * H + 1), 7, dtype), np.full((T, B, 2 * H + 1), np.nan, dtype)
        out, d_out = both[..., H : 2 * H], d_both[..., 1 : H + 1]
        d_out[...] = p.d_out
        forward, backward = {}, {}
        if turned:
            forward, backward = {"out": out, "turned": True}, {"turned": True, "adds": True}
            if not tokens:
                x, forward["given"] = np.full_like(p.x, np.nan), p.x
        else:
            d_out = d_out[::-1].copy()
        vectors, tokens_of = (None, x) if tokens else (x, None)
        arrays = vectors, tokens_of, p.w_ih, p.w_hh
        kernels[dtype].forward(*numbers, *arrays, p.b_ih, p.b_hh, leak, h, c, a, m, **forward).run()
        sums = [np.empty_like(getattr(p, name)) for name in WEIGHTS]
        own_db_hh = sums[3] if row.reset_after else None
        dh, dc = (*(s.copy() for s in p.d_state), None)[:2]
        if not turned and dx is not None:
            dx = np.empty_like(dx)
        results = dh, dc, dx, *sums[:3], own_db_hh
        kernels[dtype].backward(*numbers, *arrays, leak, h, c, a, m, d_out, *results, **backward).run()
        if turned:
            assert (both[..., :H] == 7).all() and (both[..., -1] == 7).all()
        else:
            out = h[:0:-1]
            dx = None if dx is None else 1 + dx[::-1]
        return dict(zip(("h", "c", "gates", "m", "out", "dh", "dc", "dx", *WEIGHTS[:3]), (h, c, a, m, out, *results[:2], dx, *sums[:3])))

    expected = results(False)
    for n in (1, 2, 3):
        threads(n)
        for name, array in results(True).items():
            if array is not None:
                assert_same_bits(name, array, expected[name])


def test_rows_that_have_no_such_place():
    h, x, w = np.zeros((3, 2, 4)), np.zeros((2, 2, 4)), np.ones((4, 4))
    arrays = x, None, w, w, None, None, None, h, None, None, None
    for options, message in (
        ({"given": x}, "given: expected None where rows have no other place"),
        ({"turned": True, "first": np.array([0, 1, 1])}, "turned: expected False of a ragged batch"),
        ({"turned": True, "place": np.arange(4)}, "turned: expected False of a ragged batch"),
        ({"out": np.zeros((2, 2, 8))[..., ::2]}, "out: expected rows in one piece each"),
        ({"out": np.zeros((2, 3, 4))[:, :2]}, "out: expected rows in one piece each"),
    ):
        with pytest.raises(ValueError, match=message):
            kernels[h.dtype].forward(0, 0, *arrays, **options)


def test_weights_that_do_not_fit():
    """The kernels look for themselves: no address is made of what does not go together."""
    h, x, w, b = np.zeros((3, 2, 4)), np.zeros((2, 2, 5)), np.ones((4, 5)), np.zeros(4)
    good = {"x": x, "w_ih": w, "w_hh": np.ones((4, 4)), "b_ih": b, "b_hh": b, "h": h}
    rest = dict.fromkeys(("tokens", "leak", "c", "a", "m"))
    for name, wrong, message in (
        ("w_ih", np.ones((5, 5)), "w_ih: expected 4 rows for each gate, got 5"),
        ("h", np.zeros((3, 2, 0)), "w_ih: expected 0 rows for each gate, got 4"),
        ("w_hh", np.ones((4, 3)), "w_hh: expected shape (4, 4), got shape (4, 3)"),
        ("b_ih", np.ones(3), "b_ih: expected 4 numbers, got shape (3,)"),
        ("b_hh", np.ones(5), "b_hh: expected 4 numbers, got shape (5,)"),
        ("x", np.zeros((2, 2, 4)), "x: expected rows of 5 numbers, got shape (2, 2, 4)"),
        ("a", np.zeros((2, 2, 3)), "a: expected rows of 4 numbers, got shape (2, 2, 3)"),
        ("leak", np.ones(3), "leak: expected 4 numbers, got shape (3,)"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            kernels[h.dtype].forward(0, 0, **(good | rest | {name: wrong}))
    del good["b_ih"], good["b_hh"]
    sums = {"dw_ih": w.copy(), "dw_hh": np.ones((4, 4)), "db_ih": b.copy(), "db_hh": None}
    others = {"d_out": np.zeros((2, 2, 4)), "dh": np.zeros((2, 4)), "dc": None, "dx": x.copy()}
    for name, wrong, message in (
        ("dw_ih", np.ones((4, 4)), "dw_ih: expected shape (4, 5), got shape (4, 4)"),
        ("dw_hh", np.ones((3, 4)), "dw_hh: expected shape (4, 4), got shape (3, 4)"),
        ("db_ih", np.ones(5), "db_ih: expected 4 numbers, got shape (5,)"),
        ("dh", np.ones((2, 3)), "dh: expected rows of 4 numbers, got shape (2, 3)"),
        ("dx", np.ones((2, 2, 4)), "dx: expected rows of 5 numbers, got shape (2, 2, 4)"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            kernels[h.dtype].backward(0, 0, **(good | rest | others | sums | {name: wrong}))


@EACH_DTYPE
@EACH_SHAPE
@EACH_CELL
def test_against_the_reference(cell, ragged, dtype, threads):
    problem, first = Ragged(cell, *ragged, dtype), None
    for n in (1, 2, 3):
        threads(n)
        got = problem.results()
        first = first or got
        for name, array in got.items():
            assert_same_bits(f"{name}, {n} threads", array, first[name])
    assert_right(problem, first)


@EACH_DTYPE
@pytest.mark.parametrize("row", range(3))
def test_the_early_stop_looks_at_all_initial_states(row, dtype):
    """No loss but in the last block of time, and an infinite initial state, which a gradient of 0 meets in dW_hh."""
    ragged = Ragged("rnn-tanh", 3, 9, [600, 580, 3], dtype)
    p = ragged.problem
    p.w_hh[...] *= dtype.type(1e-70 if dtype == np.float64 else 1e-9)
    p.d_out[:-2], p.d_state[0][...] = 0, 0
    assert np.isfinite(ragged.results()["dw_hh"]).all()
    p.state[0][row, 4] = np.inf
    got = ragged.results()
    assert np.isfinite(got["state 0"]).all() and np.isnan(got["dw_hh"][:, 4]).any()


@EACH_DTYPE
@EACH_CELL
def test_tokens(cell, dtype, threads):
    problem = Ragged(cell, 11, 17, [30, 30, 12, 5, 0], dtype, tokens=True)
    for n in (1, 2):
        threads(n)
        assert_right(problem, problem.results())


@EACH_DTYPE
@EACH_CELL
def test_a_row_has_the_bits_that_it_has_alone(cell, dtype, threads):
    problem = Ragged(cell, *RAGGED["many rows"], dtype)
    threads(2)
    got = problem.results()
    for b in (0, 17, 40):
        alone = problem.alone([b])
        _, _, tape = alone.forward(fastbptt)
        for i, history in enumerate((tape.h,) if tape.c is None else (tape.h, tape.c)):
            everywhere = np.zeros((*problem.there.shape, history.shape[2]), dtype)
            everywhere[problem.there] = got[f"state {i}"]
            assert_same_bits("state", everywhere[: problem.lengths[b], b], history[1:, 0])


@EACH_DTYPE
@EACH_CELL
def test_equal_lengths_are_a_rectangle(cell, dtype):
    """To the bit, where rows are not grouped: groups of ragged rows are not written."""
    problem = Ragged(cell, 300, 230, [9] * 5, dtype)
    got, whole = problem.results(), problem.problem
    _, _, tape = whole.forward(fastbptt)
    grads = whole.backward(fastbptt, tape)
    assert_same_bits("h", got["state 0"], tape.h[1:].reshape(-1, 230))
    assert_same_bits("dx", got["dx"], grads.x.reshape(-1, 300))
    for name in WEIGHTS:
        assert_same_bits(name, got[f"d{name}"], getattr(grads, name))


@EACH_DTYPE
@EACH_CELL
def test_the_early_stop_of_ragged_rows(cell, dtype, threads):
    """No loss but at the last step of the longest row, and weights through which nothing comes back."""
    problem = Ragged(cell, 3, 9, [1100, 2, 1], dtype)
    p = problem.problem
    p.w_hh[...], p.d_out[...], p.b_ih[...] = 0, 0, -800 if p.cell.gates > 1 else 0
    p.d_out[-1, 0] = 1
    for d in p.d_state:
        d[...] = 0
    p.leak = None if p.leak is None else 1.0
    got = problem.results()
    assert_right(problem, got)
    p.d_out[0, 2] = -0.0  # a loss, which changes nothing but where the pass ends
    for name, array in problem.results().items():
        np.testing.assert_array_equal(array, got[name], err_msg=name)
    p.x[0, 0, 0] = np.inf
    assert np.isnan(problem.results()["dw_ih"]).any()


@EACH_DTYPE
@pytest.mark.parametrize("tokens", [False, True])
@EACH_CELL
def test_weights_packed_once(cell, tokens, dtype, threads):
    """For any number of calls, of any length."""
    problem = Ragged(cell, 11, 17, [30, 12, 5, 1], dtype, tokens)
    p = problem.problem
    weights = kernels[np.dtype(dtype)].pack(p.w_ih, p.w_hh, p.b_ih, p.b_hh, 17, ROWS[p.cell.prefix].reset_after, tokens)
    for n in (1, 2):
        threads(n)
        got, expected = problem.results(weights), problem.results()
        for name, array in expected.items():
            assert_same_bits(name, got[name], array)


def test_packed_weights_of_another_layer_are_refused():
    problem = Ragged("gru", 3, 8, [4, 2], np.float64)
    p = problem.problem
    pack = kernels[np.dtype(np.float64)].pack
    for wrong in [pack(p.w_ih[:, :2].copy(), p.w_hh, None, None, 8, 1, 0), pack(p.w_ih, p.w_hh, None, None, 8, 1, 1)]:
        with pytest.raises(ValueError, match="weights: packed for another layer"):
            problem.results(wrong)
    for wrong in [(p.w_ih, p.w_hh, None, None, 7), (p.w_ih, p.w_hh[:8].copy(), None, None, 8), (p.w_ih, p.w_hh, None, None, 0)]:
        with pytest.raises(ValueError, match=r"^w_hh: expected 24 rows, as w_ih has, \d for each gate, got \d+$"):
            pack(*wrong, 1, 0)
    with pytest.raises(ValueError, match=r"^b_ih, b_hh: expected 24 numbers each$"):
        pack(p.w_ih, p.w_hh, np.ones(2), None, 8, 1, 0)


def test_states_with_fewer_numbers_than_units_are_refused():
    h, c, a, w_ih, w_hh = (np.zeros(shape) for shape in ((3, 2, 3), (3, 2, 6), (2, 2, 24), (24, 4), (24, 3)))
    with pytest.raises(ValueError, match=r"^h: expected at least 6 numbers, as there are units, got 3$"):
        kernels[h.dtype].forward(2, 0, np.zeros((2, 2, 4)), None, w_ih, w_hh, None, None, None, h, c, a, None)


@EACH_DTYPE
@pytest.mark.parametrize("shape", [(7, 3, 4, 9), (300, 2, 3, 8), (40, 3, 2, 136), (30, 33, 2, 40)], ids=str)
def test_states_with_more_numbers_than_units(shape, dtype, threads):
    """Those that no unit writes are inputs by another name: the next step reads them, through their own columns of w_hh."""
    T, B, I, H = shape
    extra, row = 3, ROWS["lstm"]
    whole = random_problem("lstm", T, B, I + extra, H, dtype=dtype, gain=0.6)
    x, more = np.ascontiguousarray(whole.x[..., :I]), whole.x[..., I:]
    w_ih, w_hh = np.ascontiguousarray(whole.w_ih[:, :I]), np.hstack([whole.w_hh, whole.w_ih[:, I:]])

    def wide(array):
        """With room for numbers that no unit writes."""
        return np.concatenate([array, np.zeros((*array.shape[:-1], extra), dtype)], axis=-1)

    results = []
    for n in (1, 2, 3):
        threads(n)
        h, c = (np.zeros((T + 1, B, width), dtype) for width in (H + extra, H))
        h[0, :, :H], c[0] = whole.state
        h[:T, :, H:] = more
        a, dx = np.zeros((T, B, 4 * H), dtype), np.zeros_like(x)
        kernels[np.dtype(dtype)].forward(row.number, 0, x, None, w_ih, w_hh, whole.b_ih, whole.b_hh, None, h, c, a, None).run()
        dh, dc = wide(whole.d_state[0]), whole.d_state[1].copy()
        dw_ih, dw_hh, db = np.zeros_like(w_ih), np.zeros_like(w_hh), np.zeros_like(whole.b_ih)
        arrays = (w_ih, w_hh, None, h, c, a, None, wide(whole.d_out), dh, dc, dx, dw_ih, dw_hh, db, None)
        kernels[np.dtype(dtype)].backward(row.number, 0, x, None, *arrays).run()
        results.append((h[1:, :, :H], c[1:], dx, dh[:, :H], dc, np.hstack([dw_ih, dw_hh[:, H:]]), dw_hh[:, :H], db))
    oracle = whole.astype(TOLERANCES[np.dtype(dtype)].oracle)
    out, _, tape = oracle.forward(fastbptt.reference)
    grads = oracle.backward(fastbptt.reference, tape)
    expected = (out, tape.c[1:], grads.x[..., :I], *grads.state, grads.w_ih, grads.w_hh, grads.b_ih)
    for got in results:
        for i, array in enumerate(expected):
            assert_close(f"result {i}", got[i], array, bound(dtype, whole.K, T))
            assert_same_bits(f"result {i}", got[i], results[0][i])
