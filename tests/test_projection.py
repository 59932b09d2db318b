"""The LSTM with a projection, h_t = W_hr (o tanh c_t): against the reference, complex steps, PyTorch and its own transpose; bits; bad input."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from problems import WEIGHTS, Problem, arrays_of, assert_results_close, assert_results_same_bits, random_problem
from test_gradients import oracle
from test_jvp import run, tangents_of
from test_reference import complex_step, differentiable, gradient_of
from tolerances import DTYPES, TOLERANCES, assert_close, assert_same_bits, bound

import fastbptt
import fastbptt.reference
from fastbptt._kernels import kernels

EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)

# T, B, I, H, P: a few numbers; the least; no steps, no rows; several blocks of time; rows in groups; more rows than a thread's; one and three
# rows of many units, which threads share, with few columns and with many.
SHAPES = [
    (6, 4, 3, 7, 3), (1, 1, 1, 2, 1), (0, 3, 2, 5, 4), (4, 0, 3, 5, 2), (220, 3, 2, 9, 8), (40, 37, 5, 16, 11), (40, 33, 6, 40, 30),
    (30, 1, 4, 150, 70), (30, 3, 4, 190, 5), (20, 2, 3, 65, 64),
]  # fmt: skip
EACH_SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=str)


@dataclass
class Projected(Problem):
    """A problem with a projection."""

    w_hr: np.ndarray = None

    def all_options(self):
        return super().all_options() | {"w_hr": self.w_hr}

    def arrays(self):
        yield from super().arrays()
        yield "w_hr", self.w_hr

    @property
    def H(self):
        return self.w_hr.shape[1]


def projected(T, B, I, H, P, *, seed=0, dtype=np.float64, lengths=False, resets=False, **options):
    """A random problem; with ``lengths`` and ``resets`` random ones."""
    whole = random_problem("lstm", T, B, I, H, seed=seed, dtype=dtype, **options)
    rng = np.random.default_rng([seed, T, B, I, H, P])
    given = {"lengths": rng.integers(0, T + 1, B)} if lengths else {}
    if resets:
        given["resets"] = rng.random((T, B)) < 0.2

    def cut(array):
        return np.ascontiguousarray(array[..., :P])

    return Projected(
        whole.cell,
        whole.x,
        (cut(whole.state[0]), whole.state[1]),
        whole.w_ih,
        cut(whole.w_hh) * np.sqrt(dtype(H) / dtype(P)) if H > 1 else cut(whole.w_hh),
        whole.b_ih,
        whole.b_hh,
        cut(whole.d_out),
        (cut(whole.d_state[0]), whole.d_state[1]),
        options=given,
        w_hr=(2 * rng.standard_normal((P, H)) / np.sqrt(H)).astype(dtype),
    )


@EACH_DTYPE
@pytest.mark.parametrize("what", [{}, {"lengths": True}, {"lengths": True, "resets": True}], ids=["rectangle", "lengths", "both"])
@EACH_SHAPE
def test_against_the_reference(shape, what, dtype, threads):
    """And the same bits at any number of threads."""
    problem = projected(*shape, dtype=dtype.type, **what)
    first = None
    for n in (1, 2, 3, 5):
        threads(n)
        got = problem.results(fastbptt)
        first = first or got
        assert_results_same_bits(got, first)
    assert_results_close(first, oracle(problem), bound(dtype, max(problem.K, shape[3]), shape[0]))


@pytest.mark.one_level
@pytest.mark.parametrize("trial", range(12))
def test_random_configurations(trial):
    """120 of them: tokens, biases that are missing, ragged rows, factors on what is carried, clipping."""
    rng = np.random.default_rng(trial)
    for seed in range(10 * trial, 10 * trial + 10):
        T, B, I, H = (int(n) for n in (rng.integers(0, 12), rng.integers(0, 7), rng.integers(1, 6), rng.integers(2, 20)))
        lengths, resets, tokens, *biases = (bool(rng.integers(2)) for _ in range(5))
        P = int(rng.integers(1, H))
        problem = projected(T, B, I, H, P, seed=seed, lengths=lengths, resets=resets, tokens=tokens, biases=tuple(biases))
        options = {"need_dx": bool(rng.integers(2)), "clip_step": [None, ("value", 0.7), ("norm", 1.5)][rng.integers(3)]}
        if rng.integers(2):
            options["carry"] = rng.integers(0, 3, (T, B)) * 0.7
        assert_results_close(problem.results(fastbptt, **options), problem.results(fastbptt.reference, **options), 1e-12)
        _, _, tape = problem.forward(fastbptt)
        _, _, expected = problem.forward(fastbptt.reference)
        for name in ("h", "c", "gates"):
            np.testing.assert_allclose(getattr(tape, name), getattr(expected, name), rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.one_level
@pytest.mark.parametrize("shape", [(5, 3, 4, 7, 3), (3, 1, 1, 2, 1), (2, 4, 2, 5, 4)], ids=str)
def test_the_reference_by_complex_steps(shape):
    problem = projected(*shape)
    _, _, tape = problem.forward(fastbptt.reference)
    grads = problem.backward(fastbptt.reference, tape)
    keys = differentiable(problem)
    assert {"x", *WEIGHTS, "w_hr", ("state", 0), ("state", 1)} == set(keys)
    for key in keys:
        np.testing.assert_allclose(gradient_of(grads, key), complex_step(problem, key), rtol=1e-12, atol=1e-13, err_msg=str(key))


@pytest.mark.one_level
@pytest.mark.parametrize("shape", [(1, 1, 1, 2, 1), (5, 3, 4, 7, 3), (20, 17, 9, 33, 20), (300, 7, 5, 6, 5), (60, 20, 30, 65, 32)], ids=str)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@EACH_DTYPE
def test_against_torch(shape, dtype, torch):
    problem = projected(*shape, dtype=dtype.type)
    module = torch.nn.LSTM(shape[2], shape[3], proj_size=shape[4], dtype=getattr(torch, dtype.name))
    names = dict(zip(("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "weight_hr_l0"), (*WEIGHTS, "w_hr")))
    module.load_state_dict({key: torch.from_numpy(getattr(problem, name)) for key, name in names.items()})
    x = torch.from_numpy(problem.x).requires_grad_()
    start = tuple(torch.from_numpy(part[None]).requires_grad_() for part in problem.state)
    out, end = module(x, start)
    torch.autograd.backward([out, *end], [torch.from_numpy(array) for array in (problem.d_out, *(d[None] for d in problem.d_state))])
    expected = {"out": out, "d_x": x.grad} | {f"final state {i}": part[0] for i, part in enumerate(end)}
    expected |= {f"d_{name}": getattr(module, key).grad for key, name in names.items()}
    expected |= {f"d_initial_state {i}": part.grad[0] for i, part in enumerate(start)}
    expected = {key: value.detach().numpy() for key, value in expected.items()}
    assert_results_close(problem.results(fastbptt), expected, TOLERANCES[dtype].torch, TOLERANCES[dtype].torch_relative)


@EACH_DTYPE
def test_a_row_in_any_batch(dtype):
    """Its bits are those of its own steps by themselves, however many others there are and however long they are."""
    for T, B, I, H, P in ((40, 9, 5, 33, 17), (40, 5, 3, 150, 70)):
        problem = projected(T, B, I, H, P, dtype=dtype.type, lengths=True)
        lengths, got = problem.options["lengths"], problem.results(fastbptt)
        for b in range(B):
            alone = replace(problem.rows([b]), options={})
            alone = alone.steps(0, lengths[b], alone.state, alone.d_state).results(fastbptt)
            assert_same_bits("out", got["out"][: lengths[b], b], alone["out"][:, 0])
            assert_same_bits("dx", got["d_x"][: lengths[b], b], alone["d_x"][:, 0])
            for name in (name for name in got if "state" in name):
                assert_same_bits(name, got[name][b], alone[name][0])
            assert not got["out"][lengths[b] :, b].any()


def test_what_stands_behind_a_rows_end_is_never_looked_at():
    problem = projected(20, 6, 4, 9, 5, lengths=True)
    expected = problem.results(fastbptt)
    behind = np.arange(20)[:, None] >= problem.options["lengths"]
    x, d_out = problem.x.copy(), problem.d_out.copy()
    x[behind], d_out[behind] = np.nan, np.nan
    for module in (fastbptt, fastbptt.reference):
        got = replace(problem, x=x, d_out=d_out).results(module)
        assert_results_close(got, expected, 1e-13)


@EACH_DTYPE
@pytest.mark.parametrize("kind", ["value", "norm"])
@pytest.mark.parametrize("shape", [(9, 4, 3, 7, 3), (30, 3, 4, 190, 70)], ids=str)
def test_clip_step(shape, kind, dtype, threads):
    """(dh, dc), which are of unequal widths, together."""
    problem = projected(*shape, dtype=dtype.type, gain=2.0)
    clip_step = (kind, 0.5 if kind == "value" else float(np.sqrt(shape[3] + shape[4])) / 2)
    for n in (1, 3):
        threads(n)
        got = problem.results(fastbptt, clip_step=clip_step)
        assert_results_close(got, oracle(problem, clip_step=clip_step), bound(dtype, problem.K, shape[0]))
    assert not np.allclose(got["d_w_hr"], problem.results(fastbptt)["d_w_hr"], rtol=0.01)


@pytest.mark.one_level
@pytest.mark.parametrize("missing", ["state", "d_state", "d_out", "b_ih", "state d_state d_out b_ih b_hh"])
def test_without(missing):
    problem = replace(projected(5, 3, 4, 7, 3), **dict.fromkeys(missing.split()))
    assert_results_close(problem.results(fastbptt), oracle(problem), bound(np.float64, problem.K, 5))


def test_the_early_stop(threads):
    """A gradient that has died ends the pass; inf in what a zero would still meet does not let it die."""
    for shape in ((900, 3, 2, 9, 4), (600, 20, 2, 9, 4), (150, 2, 3, 150, 70)):
        problem = projected(*shape)
        b_ih = problem.b_ih.copy()
        b_ih.reshape(4, -1)[1] = -800  # f is 0
        d_out = np.zeros_like(problem.d_out)
        d_out[-1] = problem.d_out[-1]
        problem = replace(problem, b_ih=b_ih, w_hh=problem.w_hh * 1e-70, d_out=d_out, d_state=None)
        d_out = d_out.copy()
        d_out[0, -1, -1] = -0.0  # a loss at the first step that adds nothing
        for n in (1, 2):
            threads(n)
            got, full = problem.results(fastbptt), replace(problem, d_out=d_out).results(fastbptt)
            assert not got["d_x"][: shape[0] // 2].any()
            assert_results_same_bits(got, full, [name for name in got if not name.startswith(("d_x", "d_initial"))])
            _, _, tape = problem.forward(fastbptt)
            w_hr = problem.w_hr.copy()
            problem.w_hr[-1, -1] = np.inf
            grads = replace(problem, d_out=None).backward(fastbptt, tape, carry=np.zeros(shape[:2]))  # 0 lets no NaN by
            assert np.isnan(grads.x).all()
            problem.w_hr[...] = w_hr


# --- Forward mode -----------------------------------------------------------------------------------------------------


def dots_of(problem, only=None):
    """Random tangents; or only one, where a state's is (name, index)."""
    if only == "w_hr" or only is None:
        w_hr = np.random.default_rng(8).standard_normal(problem.w_hr.shape).astype(problem.w_hr.dtype)
        return {"w_hr": w_hr} | ({} if only else tangents_of(problem))
    return tangents_of(problem, only=only)


ARGUMENTS = [None, "x", *WEIGHTS, "w_hr", ("state", 0), ("state", 1)]


@EACH_DTYPE
@pytest.mark.parametrize("what", [{}, {"lengths": True, "resets": True}], ids=["rectangle", "ragged"])
@EACH_SHAPE
def test_jvp_against_the_reference(shape, what, dtype, threads):
    problem = projected(*shape, dtype=dtype.type, gain=0.6, **what)
    exact = problem.astype(TOLERANCES[dtype].oracle)
    for only in ARGUMENTS if shape[0] < 10 else (None,):
        dots = dots_of(problem, only)
        expected = run(fastbptt.reference, exact, exact.forward(fastbptt.reference)[2], dots)
        first, limit = None, 4 * bound(dtype, max(problem.K, shape[3]), shape[0])
        for n in (1, 2, 3, 5):
            threads(n)
            got = run(fastbptt, problem, problem.forward(fastbptt)[2], dots)
            first = first or got
            for i, (array, right) in enumerate(zip(got, expected, strict=True)):
                assert_same_bits(str(i), array, first[i])
                assert_close(str(i), array, right, limit, max(np.abs(e).max(initial=0) for e in expected))


@pytest.mark.parametrize("what", [{}, {"lengths": True, "resets": True}], ids=["rectangle", "ragged"])
def test_jvp_is_the_transpose_of_the_backward_pass(what):
    """<v, jvp u> = <vjp v, u>, for each argument alone and all together, relative to the sizes of the terms."""
    rng = np.random.default_rng(5)
    for seed in range(20):
        T, B, I, H = (int(rng.integers(low, high)) for low, high in ((1, 40), (1, 25), (1, 20), (2, 50)))
        problem = projected(T, B, I, H, int(rng.integers(1, H)), seed=seed, **what)
        _, _, tape = problem.forward(fastbptt)
        grads = problem.backward(fastbptt, tape)
        for only in ARGUMENTS:
            dots = dots_of(problem, only)
            left = [v * u for v, u in zip((problem.d_out, *problem.d_state), run(fastbptt, problem, tape, dots))]
            right = [getattr(grads, name) * dot for name, dot in dots.items() if name != "state"]
            right += [v * u for v, u in zip(arrays_of(grads.state), dots.get("state", ())) if u is not None]
            size = sum(np.abs(term).sum() for term in (*left, *right))
            difference = sum(term.sum() for term in left) - sum(term.sum() for term in right)
            assert abs(difference) <= 1e-12 * size, (T, B, I, H, only)


# --- The tape, and bad input ------------------------------------------------------------------------------------------


@pytest.mark.one_level
def test_the_tape():
    problem = projected(6, 3, 4, 7, 2)
    out, (h_n, c_n), tape = problem.forward(fastbptt)
    assert out.shape == (6, 3, 2) and h_n.shape == (3, 2) and c_n.shape == (3, 7)
    assert tape.h.shape == (7, 3, 2) and tape.c.shape == (7, 3, 7) and tape.gates.shape == (6, 3, 28)
    assert tape.w_hr is problem.w_hr and tape.shape == (6, 3, 7)
    assert repr(tape) == "<lstm tape: 6 steps, 3 rows, 7 units projected to 2, float64>"
    whole = problem.backward(fastbptt, tape)
    late = problem.steps(4, 6, (tape.h[4], tape.c[4]), problem.d_state)
    assert_same_bits("dx", late.backward(fastbptt, tape.last(2)).x, whole.x[4:])
    row = problem.rows([1])
    assert_same_bits("dx", row.backward(fastbptt, tape.row(1)).x[:, 0], whole.x[:, 1])
    assert whole.w_hr.shape == (2, 7)
    plain = random_problem("lstm")
    assert plain.backward(fastbptt, plain.forward(fastbptt)[2]).w_hr is None
    assert fastbptt.total_norm(whole) > fastbptt.total_norm(whole._replace(w_hr=None))


@pytest.mark.one_level
@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"w_hr": [[1.0]]}, TypeError, r"^w_hr: expected a NumPy array, got list$"),
        ({"w_hr": np.ones(7)}, ValueError, r"^w_hr: expected shape \(P, H\) with 1 <= P < H, got \(7,\)$"),
        ({"w_hr": np.ones((7, 3))}, ValueError, r"^w_hr: expected shape \(P, H\) with 1 <= P < H, got \(7, 3\)$"),
        ({"w_hr": np.ones((7, 7))}, ValueError, r"^w_hr: expected shape \(P, H\) with 1 <= P < H, got \(7, 7\)$"),
        ({"w_hr": np.ones((0, 7))}, ValueError, r"^w_hr: expected shape \(P, H\) with 1 <= P < H, got \(0, 7\)$"),
        ({"w_hr": np.ones((3, 7), np.float32)}, TypeError, r"^w_hr: expected dtype float64.*got float32$"),
        ({"w_hr": np.ones((3, 7), int)}, TypeError, r"^w_hr: expected dtype float64.*got int64$"),
        ({"w_hr": np.ones((2, 7))}, ValueError, r"^w_hh: expected shape \(28, 2\), \(4\*H, P\) to go with w_hr \(2, 7\), got \(28, 3\)$"),
        ({"w_hr": np.ones((3, 8))}, ValueError, r"^w_hh: expected shape \(32, 3\), \(4\*H, P\) to go with w_hr \(3, 8\), got \(28, 3\)$"),
        ({"w_hh": np.ones((28, 7))}, ValueError, r"^w_hh: expected shape \(28, 3\), \(4\*H, P\) to go with w_hr \(3, 7\), got \(28, 7\)$"),
        ({"w_hh": np.ones(3)}, ValueError, r"^w_hh: expected shape \(28, 3\), \(4\*H, P\) to go with w_hr \(3, 7\), got \(3,\)$"),
        ({"w_ih": np.ones((12, 4))}, ValueError, r"^w_ih: expected shape \(28, I\) with I >= 1 to go with w_hh \(28, 3\), got \(12, 4\)$"),
        ({"state": (np.ones((3, 7)), None)}, ValueError, r"^state\[0\]: expected shape \(3, 3\), got \(3, 7\)$"),
        ({"state": (None, np.ones((3, 3)))}, ValueError, r"^state\[1\]: expected shape \(3, 7\), got \(3, 3\)$"),
        ({"d_out": np.ones((5, 3, 7))}, ValueError, r"^d_out: expected shape \(5, 3, 3\), got \(5, 3, 7\)$"),
        ({"d_state": (np.ones((3, 7)), None)}, ValueError, r"^d_state\[0\]: expected shape \(3, 3\), got \(3, 7\)$"),
    ],
)
def test_bad_input(changed, error, message):
    with pytest.raises(error, match=message):
        replace(projected(5, 3, 4, 7, 3), **changed).results(fastbptt)


@pytest.mark.one_level
def test_bad_tangents():
    problem = projected(5, 3, 4, 7, 3)
    _, _, tape = problem.forward(fastbptt)
    with pytest.raises(ValueError, match=r"^w_hr: expected shape \(3, 7\), got \(7, 3\)$"):
        fastbptt.lstm_jvp(tape, w_hr=np.ones((7, 3)))
    with pytest.raises(ValueError, match=r"^state\[0\]: expected shape \(3, 3\), got \(3, 7\)$"):
        fastbptt.lstm_jvp(tape, state=(np.ones((3, 7)), None))
    _, _, tape = random_problem("lstm").forward(fastbptt)
    with pytest.raises(ValueError, match=r"^w_hr: expected None, as the forward pass had no such projection, got ndarray of shape"):
        fastbptt.lstm_jvp(tape, w_hr=np.ones((3, 7)))


@pytest.mark.one_level
@pytest.mark.parametrize("name", ["w_hr", "w_hh"])
def test_a_tape_whose_arrays_were_resized(name):
    problem = projected(5, 3, 4, 7, 3)
    array = getattr(problem, name).copy()
    problem = replace(problem, **{name: array})
    _, _, tape = problem.forward(fastbptt)
    array.resize((2, 7), refcheck=False)
    for call in (lambda: problem.backward(fastbptt, tape), lambda: fastbptt.lstm_jvp(tape)):
        with pytest.raises(RuntimeError, match=r"^tape: an array of the forward pass was reshaped or resized"):
            call()


def test_packed_weights():
    """Once for many calls; not for a net without the projection, nor for one of other sizes."""
    problem = projected(5, 3, 4, 7, 3)
    _, _, tape = problem.forward(fastbptt)
    kernel, p = kernels[np.dtype(np.float64)], problem
    h, c = np.zeros((6, 3, 3)), np.zeros((6, 3, 7))
    h[0], c[0] = p.state
    arrays = (p.x, None, p.w_ih, p.w_hh, None, None, None, h, c, np.zeros((5, 3, 28)), None, None)
    kernel.forward(2, 0, *arrays, kernel.pack(p.w_ih, p.w_hh, p.b_ih, p.b_hh, 7, 0, False, p.w_hr), p.w_hr).run()
    assert_same_bits("h", h, tape.h)
    with pytest.raises(ValueError, match="weights: packed for another layer"):
        kernel.forward(2, 0, *arrays, kernel.pack(p.w_ih, np.ones((28, 7)), None, None, 7, 0, False), p.w_hr)
    with pytest.raises(ValueError, match=r"^w_hr: expected shape \(3, 7\), the first below the second, got \(2, 7\)$"):
        kernel.pack(p.w_ih, p.w_hh, None, None, 7, 0, False, p.w_hr[:2])


# --- Seeing gradients -------------------------------------------------------------------------------------------------


def jacobians(problem):
    """Of each step, (T, B, N, N) with N = P + H, column by column from tangents of the reference."""
    (T, B), (P, H) = problem.x.shape[:2], problem.w_hr.shape
    _, _, tape = problem.forward(fastbptt.reference)
    matrices = np.empty((T, B, P + H, P + H))
    for t in range(T):
        step = problem.steps(t, t + 1, (tape.h[t], tape.c[t]))
        _, _, of_step = step.forward(fastbptt.reference)
        for j in range(P + H):
            dot = np.zeros((B, P + H))
            dot[:, j] = 1
            _, after = fastbptt.reference.lstm_jvp(of_step, state=(dot[:, :P], dot[:, P:]))
            matrices[t, :, :, j] = np.hstack(after)
    return matrices


@pytest.mark.one_level
def test_gradient_flow():
    problem = projected(40, 3, 4, 9, 4)
    _, _, tape = problem.forward(fastbptt)
    flow = fastbptt.gradient_flow(tape, problem.d_out, problem.d_state)
    for t in (0, 17, 40):
        late = problem.steps(t, 40, (tape.h[t], tape.c[t]), problem.d_state)
        state = late.results(fastbptt.reference)
        d = np.hstack([state["d_initial_state 0"] + (problem.d_out[t - 1] if t else 0), state["d_initial_state 1"]])
        np.testing.assert_allclose(flow.log10_state_norm[t], np.log10(np.linalg.norm(d, axis=-1)), rtol=0, atol=1e-11)
    d_w_hh = problem.backward(fastbptt, tape).w_hh
    np.testing.assert_allclose(flow.lag_gradients().sum(axis=0), d_w_hh, rtol=0, atol=1e-11 * np.abs(d_w_hh).max())
    np.testing.assert_allclose(flow.by_lag, np.linalg.norm(flow.lag_gradients(), axis=(1, 2)), rtol=1e-9)
    assert "40 steps, 3 rows, 9 units projected to 4" in str(flow) and flow.reason is None
    problem.w_hr[0, 0] = np.nan
    assert fastbptt.gradient_flow(tape, problem.d_out).reason == "w_hr[0, 0] is nan"


@pytest.mark.one_level
def test_gradients_far_below_the_floating_range():
    """By exponents of their own, which the kernels' pass has not."""
    problem = projected(300, 2, 3, 9, 4)
    b_ih = problem.b_ih.copy()
    b_ih.reshape(4, -1)[1] = -40
    d_out = np.zeros_like(problem.d_out)
    d_out[-1] = 1
    problem = replace(problem, b_ih=b_ih, w_hh=problem.w_hh * 1e-4, d_out=d_out, d_state=None)
    _, _, tape = problem.forward(fastbptt)
    flow = fastbptt.gradient_flow(tape, d_out)
    assert (flow.log10_state_norm[0] < -700).all() and np.isfinite(flow.log10_state_norm).all()
    pair = jacobians(problem)[200:202]
    gain = flow.log10_state_norm[200] - flow.log10_state_norm[202]
    assert (gain <= np.log10([np.linalg.norm(pair[1, b] @ pair[0, b], 2) for b in range(2)]) + 1e-9).all()


@pytest.mark.one_level
def test_omega():
    """Against its definition: the ratio of squared norms, step by step."""
    problem = projected(12, 3, 4, 7, 3)
    _, _, tape = problem.forward(fastbptt)
    value, d_w_hh = fastbptt.omega(tape, problem.d_out, problem.d_state)
    matrices, terms = jacobians(problem), []
    d = np.hstack(problem.d_state)
    for t in reversed(range(12)):
        d[:, :3] += problem.d_out[t]
        back = np.einsum("bij,bi->bj", matrices[t], d)
        terms.append(((back**2).sum(axis=-1) / (d**2).sum(axis=-1) - 1) ** 2)
        d = back
    np.testing.assert_allclose(value, np.mean(terms), rtol=1e-12)
    assert d_w_hh.shape == problem.w_hh.shape and np.isfinite(d_w_hh).all()


@pytest.mark.one_level
@pytest.mark.parametrize("shut", [None, 3, 1], ids=["open", "output gates nearly shut", "forget gates nearly shut"])
def test_singular_values_and_lyapunov_exponents(shut):
    """Of products of Jacobians; where gates are nearly shut, with small ones that rounding would take."""
    problem = projected(6, 2, 3, 5, 2)
    if shut is not None:
        b_ih = problem.b_ih.copy()
        b_ih.reshape(4, -1)[shut, :3] -= 30
        problem = replace(problem, b_ih=b_ih)
    _, _, tape = problem.forward(fastbptt)
    matrices = jacobians(problem)
    norms = fastbptt.jacobian_product_norms(tape, since=1)
    values = fastbptt.log_singular_values(tape, 1, 6)
    np.testing.assert_allclose(fastbptt.jacobian_product_norms(tape, until=6)[1], norms[-1], rtol=0, atol=1e-12)
    mpmath = pytest.importorskip("mpmath")
    spectrum = fastbptt.lyapunov_spectrum(tape)
    for b in range(2):
        with mpmath.workdps(120):
            product = mpmath.matrix(exact_jacobian(problem, tape, 1, b))
            for t in range(2, 6):
                product = mpmath.matrix(exact_jacobian(problem, tape, t, b)) * product
            exact = sorted((float(mpmath.log(value)) for value in mpmath.svd_r(product, compute_uv=False)), reverse=True)
            whole = product * mpmath.matrix(exact_jacobian(problem, tape, 0, b))
            log_det = float(mpmath.log(abs(mpmath.det(whole))))
        np.testing.assert_allclose(values[b], exact, rtol=0, atol=1e-10)
        np.testing.assert_allclose(norms[-1, b], exact[0], rtol=0, atol=1e-12)
        np.testing.assert_allclose(spectrum.exponents[b].sum() * 6, log_det, rtol=0, atol=1e-9)
        assert_close("one step", fastbptt.gradients.linearised.linearise(tape).jacobian(2)[b], matrices[2, b], 1e-13)


def exact_jacobian(problem, tape, t, b):
    """Of one step of a row, from the state on the tape, in mpmath's precision."""
    from mpmath import exp, matrix, mpf, tanh

    P, H = problem.w_hr.shape

    def exactly(array):
        return matrix([[mpf(float(value)) for value in row] for row in np.atleast_2d(array)])

    w_hh, w_hr = exactly(problem.w_hh), exactly(problem.w_hr)
    a = exactly(problem.w_ih) * exactly(problem.x[t, b]).T + w_hh * exactly(tape.h[t, b]).T
    a += exactly(problem.b_ih).T + exactly(problem.b_hh).T

    def sigmoid(k, j):
        return 1 / (1 + exp(-a[k * H + j]))

    J, shown = matrix(P + H, P + H), matrix(H, P + H)
    for j in range(H):
        i, f, g, o = sigmoid(0, j), sigmoid(1, j), tanh(a[2 * H + j]), sigmoid(3, j)
        before = mpf(float(tape.c[t, b, j]))
        c = f * before + i * g
        slopes = g * i * (1 - i), before * f * (1 - f), i * (1 - g**2)
        for p in range(P):
            J[P + j, p] = sum(slope * w_hh[k * H + j, p] for k, slope in enumerate(slopes))
            shown[j, p] = o * (1 - tanh(c) ** 2) * J[P + j, p] + tanh(c) * o * (1 - o) * w_hh[3 * H + j, p]
        J[P + j, P + j] = f
        shown[j, P + j] = o * (1 - tanh(c) ** 2) * f
    for p in range(P):
        for q in range(P + H):
            J[p, q] = sum(w_hr[p, j] * shown[j, q] for j in range(H))
    return J
