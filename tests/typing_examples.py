"""What users write, for type checkers: `mypy --strict` accepts all of it and finds the types that it says (`test_types.py`).

Lines that it must not accept are marked ``type: ignore``, which is an error itself where there is nothing to ignore.
"""

from pathlib import Path
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import fastbptt
from fastbptt import (
    ARTBP,
    GRU,
    LSTM,
    RNN,
    SGD,
    Adam,
    GradientFlow,
    Gradients,
    Linear,
    RMSprop,
    Tape,
    TruncatedBPTT,
    pictures,
    reference,
    tasks,
)

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


def the_dtype_that_comes_goes(x: F64, w_ih: F64, w_hh: F64, x32: F32, w32: F32) -> None:
    out, _, tape = fastbptt.rnn_forward(x, None, w_ih, w_hh, nonlinearity="relu", leak=0.5)
    assert_type(out, F64)
    assert_type(tape, Tape[np.float64])
    grads = fastbptt.rnn_backward(tape, np.ones_like(out), need_dx=False)
    assert_type(grads.w_hh, F64)
    assert_type(grads.x, F64 | None)
    assert_type(grads.state, F64)

    out32, (h, c), tape32 = fastbptt.lstm_forward(x32, None, w32, w32, b_ih=None)
    assert_type(c, F32)
    grads32 = fastbptt.lstm_backward(tape32, out32, (h, None))
    assert_type(grads32.state[1], F32)
    _, _, tape32 = fastbptt.lstm_forward(x32, None, w32, w32, w_hr=w32)
    assert_type(fastbptt.lstm_backward(tape32, None).w_hr, F32 | None)
    fastbptt.lstm_jvp(tape32, w_hr=w32)
    assert_type(fastbptt.gru_backward(fastbptt.gru_forward(x32, None, w32, w32)[2], None).w_ih, F32)


def fleets(x32: F32, w32: F32, x: F64) -> None:
    out, (_, c), tape = fastbptt.fleet.lstm_forward(x32, None, w32, w32, lengths=np.array([3, 2]))
    assert_type(out, F32)
    assert_type(tape, fastbptt.fleet.Tape[np.float32])
    assert_type(tape.shape, tuple[int, int, int, int])
    grads = fastbptt.fleet.lstm_backward(tape, out, (None, c), clip_step=("norm", 1.0))
    assert_type(grads.state[0], F32)
    assert_type(fastbptt.fleet.clip_grad_norm_(grads, 1.0), F64)
    fastbptt.fleet.Adam({"w": w32}, lr=np.array([0.1, 0.2])).step({"w": grads.w_hh})
    fastbptt.fleet.rnn_forward(x, None, w32, w32)  # type: ignore[type-var]
    fastbptt.lstm_backward(tape, out)  # type: ignore[arg-type]


def tokens(x: NDArray[np.int64], w_ih: F32, w_hh: F32) -> None:
    out, _, tape = fastbptt.gru_forward(x, None, w_ih, w_hh)
    assert_type(out, F32)
    assert_type(tape.x, NDArray[Any])
    layer = GRU(4, 7, dtype="float32")
    out_of_layer, _ = layer(x)
    assert_type(out_of_layer, NDArray[Any])


def what_is_refused(x: F64, x32: F32, w: F64) -> None:
    fastbptt.rnn_forward(x32, None, w, w)  # type: ignore[type-var]
    fastbptt.rnn_forward(x, None, w.astype(np.float16), w.astype(np.float16))  # type: ignore[type-var]
    fastbptt.rnn_forward(x, None, w, w, nonlinearity="tanhh")  # type: ignore[arg-type]
    fastbptt.lstm_forward(x, x, w, w)  # type: ignore[arg-type]
    fastbptt.lstm_forward(x, None, w, w, w_hr=x32)  # type: ignore[type-var]
    fastbptt.gru_forward(x, None, w, w, w_hr=w)  # type: ignore[call-arg]
    layer = LSTM(4, 7)
    layer(x, state=x)  # type: ignore[call-overload]
    layer.hidden_size = 8  # type: ignore[assignment]
    layer.training = False
    fastbptt.softmax_cross_entropy(x, x)  # type: ignore[arg-type]
    fastbptt.pictures.plot_flow(x, "flow.png")  # type: ignore[arg-type]


def a_tape_of_any_dtype(tape: Tape, grads: Gradients) -> float:
    return fastbptt.total_norm(grads) + len(tape.last(np.int64(3)).row(0))


def train(x: F64, size: np.int64) -> float:
    layer, readout = LSTM(8, size, bias=True, rng=0), Linear(64, 2, rng=np.random.default_rng(1))
    optimiser = Adam([layer, readout], lr=1e-3, betas=(0.9, 0.99))
    out, (h, c) = layer(x)
    assert_type(out, F64)
    assert_type(h, NDArray[Any])
    out, _ = layer.forward(x, (h, c), memory_budget=10**8)
    y = readout(out)
    loss, d_y = fastbptt.mean_squared_error(y, np.zeros_like(y))
    d_out = readout.backward(d_y)
    assert d_out is not None
    dx, (dh, _) = layer.backward(d_out, None, need_dx=True)
    assert_type(dh, NDArray[Any])
    assert_type(dx, F64 | None)
    norm = fastbptt.clip_grad_norm_([layer, readout], max_norm=1.0, nonfinite="skip")
    optimiser.step()
    optimiser.zero_grad()
    assert_type(optimiser.lr, float)
    optimiser.lr = optimiser.lr / 2
    optimiser.load_state_dict(optimiser.state_dict())
    layer.train().eval().load_state_dict(layer.state_dict())
    assert_type(layer.params["weight_hh_l0"], NDArray[Any])
    assert_type(layer.hidden_size, int)
    layer.flat_params *= 2
    return norm + loss


def arrays_without_layers(w: F64, g: F64) -> None:
    SGD(w, lr=0.1, momentum=0.9, nesterov=True).step(g)
    SGD([w, w]).step([g, g])
    RMSprop({"w": w}).step({"w": g})
    fastbptt.clip_grad_value_({"w": g}, 1)
    fastbptt.clip_grad_norm_(g, np.float64(1), np.inf)


def truncated(x: F64) -> None:
    layer = RNN(4, 7, nonlinearity="tanh", leak=np.full(7, 0.5))
    layer.nonlinearity = "relu"
    reader = TruncatedBPTT(layer, h=10, h_prime=5)
    out = reader.forward(x)
    reader.backward(np.ones_like(out))
    reader.reset()
    fastbptt.init.orthogonal(layer, rng=0)
    fastbptt.init.STARTS["identity"].draw(layer, None, 0)


def stacks(x: F64) -> None:
    layer = LSTM(4, 7, 2, dropout=0.5, bidirectional=True)
    RNN(4, 7, np.int64(3), nonlinearity="relu", bias=False)
    out, (h, _) = layer(x)
    assert_type(out, F64)
    assert_type(layer.dropout, float)
    assert_type(layer.num_layers, int)
    layer.dropout = 0.25
    layer.num_layers = 3  # type: ignore[assignment]
    LSTM(4, 7, 2, True)  # type: ignore[call-arg]
    layer.backward(out, (h, h))
    for tape in layer.take_tape():
        fastbptt.gradient_flow(tape, np.ones_like(tape.h[1:]))


def ragged_batches(x: F32, w: F32, lengths: NDArray[np.int64], resets: NDArray[np.bool_]) -> None:
    out, _, tape = fastbptt.gru_forward(x, None, w, w, lengths=lengths, resets=resets)
    assert_type(out, F32)
    assert tape.ragged
    assert tape.lengths is not None
    grads = fastbptt.gru_backward(tape, out, clip_step=("norm", 1), carry=np.ones(resets.shape, np.float32))
    assert_type(grads.w_hh, F32)
    layer = LSTM(4, 7, batch_first=True, dtype=np.float32)
    out_of_layer, (h, _) = layer(x, lengths=lengths, resets=resets)
    assert_type(out_of_layer, F32)
    layer.backward(out_of_layer, (h, h), clip_step=("value", np.float32(0.1)))
    fastbptt.gru_forward(x, None, w, w, lengths=[3, 2])  # type: ignore[arg-type]
    fastbptt.gru_backward(tape, out, clip_step=("max", 1.0))  # type: ignore[arg-type]


def truncated_at_random(x: F64) -> None:
    reader = ARTBP(LSTM(4, 7), np.array([0.0, 0.1]), rng=0)
    reader.backward(reader.forward(x), clip_step=("norm", 1.0))
    assert_type(reader.probability, F64)
    reader.probability = 0.5  # type: ignore[assignment]


def forward_mode(tape: Tape[np.float32], x: F32) -> None:
    out_dot, state_dot = fastbptt.rnn_jvp(tape, x=x)
    assert_type(out_dot, F32)
    assert_type(state_dot, F32)
    _, state_dot_of_two = fastbptt.lstm_jvp(tape, state=(None, x))
    assert_type(state_dot_of_two[1], F32)
    fastbptt.gru_jvp(tape, x=x.astype(np.float64))  # type: ignore[misc]


def seeing(tape: Tape[np.float32], d_out: F32, path: Path) -> str:
    flow = fastbptt.gradient_flow(tape, d_out)
    assert_type(flow, GradientFlow)
    assert_type(flow.log10_state_norm, F64)
    assert_type(flow.half_life, float)
    flow.plot(path / "flow.svg", title=None)
    pictures.plot_comparison({"ours": flow}, "flows.png")
    _, d_w_hh = fastbptt.omega(tape, d_out)
    assert_type(d_w_hh, F32)
    assert_type(fastbptt.lyapunov_spectrum(tape, burn_in=5).exponents, F64)
    assert_type(fastbptt.log_singular_values(tape, 0, 5), F64)
    _, grads = fastbptt.gradient_flossing(tape, k=2)
    condition = fastbptt.vanishing_condition(grads.w_hh)
    return flow.verdict + str(condition.must_vanish)


def tasks_and_the_rest(x: F64, w: F64) -> None:
    task = tasks.adding((50, 100), version="pascanu2013")
    inputs, targets = task.batch(0, 20, np.float32)
    assert_type(task.loss(inputs, targets)[0], float)
    assert_type(task.wrong(inputs, targets), int)
    out, _, tape = reference.rnn_forward(x, None, w, w)
    assert_type(out, F64)
    assert_type(reference.rnn_backward(tape, out).w_hh, F64)
    assert_type(fastbptt.show_config("dicts"), dict[str, Any])
    fastbptt.show_config()
    fastbptt.set_num_threads(fastbptt.get_num_threads())
    assert_type(fastbptt.softmax_cross_entropy(x, np.zeros((5, 3), int), mask=np.ones((5, 3), bool))[1], F64)
    assert_type(fastbptt.perplexity(np.float32(1)), float)
