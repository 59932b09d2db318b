"""Backpropagation through time, and forward mode, in plain NumPy: the lesson, the specification, and one of the two oracles of the tests.

The functions have the names, the arguments and the results of the fast ones, and their tapes the same arrays; a plain RNN's tape also has
its gates, which are its states. Nothing here is fast, and nothing is shared with the kernels.
"""

import numpy as np

from .results import Gradients


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


# Each nonlinearity f, and its derivative written in terms of h = f(a).
NONLINEARITIES = {
    "tanh": (np.tanh, lambda h: 1 - h**2),
    "relu": (lambda a: np.where(a < 0, 0, a), lambda h: np.where(h <= 0, 0, 1).astype(h.dtype)),
    "sigmoid": (sigmoid, lambda h: h * (1 - h)),
    "identity": (lambda a: a, lambda h: np.ones_like(h)),
}


def rnn_forward(
    x,
    h0,
    w_ih,
    w_hh,
    b_ih=None,
    b_hh=None,
    *,
    nonlinearity="tanh",
    leak=None,
    lengths=None,
    resets=None,
    memory_budget=None,
    tape=True,
    last_only=False,
):
    """h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh), for t = 1..T; with a leak, h_t = (1 - leak) h_{t-1} + leak f(...).

    The rows of a batch are the rows of x_t and h_t, so that W h for a column h reads h @ W.T for rows. A ``memory_budget`` changes nothing
    but memory, and so nothing here; `kept` says what ``tape`` and ``last_only`` do.
    """
    f, _ = NONLINEARITIES[nonlinearity]
    bias_x, bias_h = zero_if_none(b_ih), zero_if_none(b_hh)
    rows = Rows(x, lengths, resets)
    state = initial_state(h0, x, w_hh)
    h, gates = [state], []
    for t, x_t in enumerate(one_hot(rows.inputs, w_ih)):
        before = rows.enter(t, state)
        unit = f(x_t @ w_ih.T + bias_x + before @ w_hh.T + bias_h)
        after = unit if leak is None else (1 - leak) * before + leak * unit
        state = rows.leave(t, after, state)
        h.append(rows.leave(t, after, 0))
        gates.append(rows.leave(t, unit, 0))

    h = np.array(h)
    whole = Tape(rows, w_ih, w_hh, b_ih, b_hh, h=h, gates=gates, nonlinearity=nonlinearity, leak=leak)
    return kept(h[1:], state, whole, tape, last_only)


def rnn_backward(tape, d_out, d_state=None, *, need_dx=True, clip_step=None, carry=None):
    """The gradients of a loss L with respect to everything, from dL/d out and dL/d h_n.

    One step back, the gradient of the state passes through the transposed Jacobian of h_t with respect to h_{t-1}, which is
    diag(f'(a_t)) W_hh; over many steps it has passed through their product. That product is what vanishes or explodes. The weights are
    the same at every step, so their gradient is the sum over time. `clipped` and `handed_on` say what ``clip_step`` and ``carry`` do.
    """
    _, derivative = NONLINEARITIES[tape.nonlinearity]
    h, rows, grads = tape.h, tape.rows, Sums(tape)
    d_end = np.zeros_like(h[0]) if d_state is None else d_state
    for t in reversed(range(len(h) - 1)):  # h[t] is the state before this step, h[t + 1] the one after it
        before, dh = rows.enter(t, h[t]), d_end if d_out is None else d_end + d_out[t]
        (dh,) = clipped(clip_step, dh)
        # h_t = (1 - leak) h_{t-1} + leak f(a), with a = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh
        past, into = (0, 1) if tape.leak is None else (1 - tape.leak, tape.leak)
        da = rows.leave(t, dh * into * derivative(tape.gates[t]), 0)
        (dh,) = handed_on(carry, t, dh * past + da @ tape.w_hh)
        d_end = rows.back(t, dh, d_end)
        grads.add(t, da, da, before)
    return grads.result(d_end, need_dx)


def gru_forward(x, h0, w_ih, w_hh, b_ih=None, b_hh=None, *, lengths=None, resets=None, memory_budget=None, tape=True, last_only=False):
    """r and z open between 0 and 1; n is the candidate; h_t = (1 - z) n + z h_{t-1}.

    The reset is applied after the product, n = tanh(W_in x_t + b_in + r (W_hn h_{t-1} + b_hn)), so that one product serves all three.
    """
    bias_x, bias_h = zero_if_none(b_ih), zero_if_none(b_hh)
    rows = Rows(x, lengths, resets)
    state = initial_state(h0, x, w_hh)
    h, gates, recurrent = [state], [], []
    for t, x_t in enumerate(one_hot(rows.inputs, w_ih)):
        before = rows.enter(t, state)
        a_r, a_z, a_n = parts(x_t @ w_ih.T + bias_x, 3)
        m_r, m_z, m_n = parts(before @ w_hh.T + bias_h, 3)
        r, z = sigmoid(a_r + m_r), sigmoid(a_z + m_z)
        n = np.tanh(a_n + r * m_n)
        after = (1 - z) * n + z * before
        state = rows.leave(t, after, state)
        h.append(rows.leave(t, after, 0))
        gates.append(rows.leave(t, np.hstack([r, z, n]), 0))
        recurrent.append(rows.leave(t, m_n, 0))

    h = np.array(h)
    return kept(h[1:], state, Tape(rows, w_ih, w_hh, b_ih, b_hh, h=h, gates=gates, m=recurrent), tape, last_only)


def gru_backward(tape, d_out, d_state=None, *, need_dx=True, clip_step=None, carry=None):
    """As `rnn_backward`; the state's gradient also takes the direct way from h_t to h_{t-1}, as z dh."""
    h, rows, grads = tape.h, tape.rows, Sums(tape)
    d_end = np.zeros_like(h[0]) if d_state is None else d_state
    for t in reversed(range(len(h) - 1)):
        before, dh = rows.enter(t, h[t]), d_end if d_out is None else d_end + d_out[t]
        (dh,) = clipped(clip_step, dh)
        r, z, n = parts(tape.gates[t], 3)
        # h_t = (1 - z) n + z h_{t-1}
        da_z = dh * (before - n) * z * (1 - z)
        da_n = dh * (1 - z) * (1 - n**2)
        # n = tanh(a_n + r m_n)
        da_r = da_n * tape.m[t] * r * (1 - r)
        da_x = rows.leave(t, np.hstack([da_r, da_z, da_n]), 0)
        da_h = rows.leave(t, np.hstack([da_r, da_z, da_n * r]), 0)
        (dh,) = handed_on(carry, t, dh * z + da_h @ tape.w_hh)
        d_end = rows.back(t, dh, d_end)
        grads.add(t, da_x, da_h, before)
    return grads.result(d_end, need_dx)


def lstm_forward(
    x, state, w_ih, w_hh, b_ih=None, b_hh=None, *, w_hr=None, lengths=None, resets=None, memory_budget=None, tape=True, last_only=False
):
    """c_t = f c_{t-1} + i g keeps, forgets and adds; h_t = o tanh(c_t) shows, or with a projection h_t = W_hr (o tanh(c_t))."""
    bias_x, bias_h = zero_if_none(b_ih), zero_if_none(b_hh)
    rows = Rows(x, lengths, resets)
    h_0, c_0 = (None, None) if state is None else state
    h_t, c_t = initial_state(h_0, x, w_hh), initial_state(c_0, x, w_hh if w_hr is None else w_hr)
    h, c, gates = [h_t], [c_t], []
    for t, x_t in enumerate(one_hot(rows.inputs, w_ih)):
        h_before, c_before = rows.enter(t, h_t), rows.enter(t, c_t)
        a_i, a_f, a_g, a_o = parts(x_t @ w_ih.T + bias_x + h_before @ w_hh.T + bias_h, 4)
        i, f, g, o = sigmoid(a_i), sigmoid(a_f), np.tanh(a_g), sigmoid(a_o)
        c_after = f * c_before + i * g
        h_after = projected(w_hr, o * np.tanh(c_after))
        h_t, c_t = rows.leave(t, h_after, h_t), rows.leave(t, c_after, c_t)
        h.append(rows.leave(t, h_after, 0))
        c.append(rows.leave(t, c_after, 0))
        gates.append(rows.leave(t, np.hstack([i, f, g, o]), 0))

    h, c = np.array(h), np.array(c)
    return kept(h[1:], (h_t, c_t), Tape(rows, w_ih, w_hh, b_ih, b_hh, h=h, c=c, gates=gates, w_hr=w_hr), tape, last_only)


def lstm_backward(tape, d_out, d_state=None, *, need_dx=True, clip_step=None, carry=None):
    """As `rnn_backward`, with a state of two parts. Along c the Jacobian is diag(f): where f stays near 1, gradients last."""
    h, c, rows, grads = tape.h, tape.c, tape.rows, Sums(tape)
    dh_end, dc_end = map(zeros_if_none, (None, None) if d_state is None else d_state, (h[0], c[0]))
    for t in reversed(range(len(h) - 1)):
        h_before, c_before = rows.enter(t, h[t]), rows.enter(t, c[t])
        dh, dc = clipped(clip_step, dh_end if d_out is None else dh_end + d_out[t], dc_end)
        i, f, g, o = parts(tape.gates[t], 4)
        shown, d_shown = o * np.tanh(c[t + 1]), dh
        if tape.w_hr is not None:
            # h_t = W_hr shown
            d_shown = dh @ tape.w_hr
            grads.dw_hr += rows.leave(t, dh, 0).T @ shown
        # shown = o tanh(c_t)
        da_o = d_shown * np.tanh(c[t + 1]) * o * (1 - o)
        dc = dc + d_shown * o * (1 - np.tanh(c[t + 1]) ** 2)
        # c_t = f c_{t-1} + i g
        da_i = dc * g * i * (1 - i)
        da_f = dc * c_before * f * (1 - f)
        da_g = dc * i * (1 - g**2)
        da = rows.leave(t, np.hstack([da_i, da_f, da_g, da_o]), 0)
        dh, dc = handed_on(carry, t, da @ tape.w_hh, dc * f)
        dh_end, dc_end = rows.back(t, dh, dh_end), rows.back(t, dc, dc_end)
        grads.add(t, da, da, h_before)
    return grads.result((dh_end, dc_end), need_dx)


class Rows:
    """The rows of a batch, of which some may end early, and some may be set to zero on their way.

    ``lengths`` (B,) is the number of steps of each row; where ``resets`` (T, B) is True, the state is set to zero before the step.
    """

    def __init__(self, x, lengths, resets):
        self.there = None if lengths is None else np.arange(len(x))[:, None] < lengths
        self.reset = resets
        # whatever stands behind a row's end
        self.inputs = x if lengths is None else np.where(self.there if x.ndim == 2 else self.there[..., None], x, 0)

    def enter(self, t, state):
        """The state that step t starts from."""
        return state if self.reset is None else np.where(self.reset[t][:, None], 0, state)

    def leave(self, t, new, old):
        """What step t makes of the rows that have it; of the others, what they had before."""
        return new if self.there is None else np.where(self.there[t][:, None], new, old)

    def back(self, t, d_before, d_after):
        """The gradient of the state before step t; none comes through a reset, and a row without this step keeps what it has."""
        return self.leave(t, self.enter(t, d_before), d_after)


def parts(a, gates):
    """Of rows that have the gates side by side, one gate after the other."""
    H = a.shape[1] // gates
    return [a[:, k * H : (k + 1) * H] for k in range(gates)]


def kept(out, state, whole, tape, last_only):
    """What a forward pass returns: no outputs with ``last_only``, and no tape without ``tape``."""
    return None if last_only else out, state, whole if tape else None


def clipped(clip_step, *d_state):
    """The gradient of the state, (dh,) or (dh, dc), before it goes through a step: each element, or each row's norm, is at most c."""
    if clip_step is None:
        return d_state
    kind, c = clip_step
    if kind == "value":
        return tuple(np.clip(part, -c, c) for part in d_state)
    rows = np.hstack(d_state)
    largest = np.abs(rows).max(axis=1, keepdims=True)
    unit = np.where((largest > 0) & (largest < np.inf), largest, 1)  # in which squares do not overflow
    norm = np.sqrt(((rows / unit) ** 2).sum(axis=1, keepdims=True))
    too_long = (norm > c / unit) & (norm < np.inf)
    return tuple(np.where(too_long, part / unit / norm * c, part) for part in d_state)


def handed_on(carry, t, *d_state):
    """What step t hands to the state before it, each row multiplied by its factor; 0 times anything is 0."""
    if carry is None:
        return d_state
    factor = carry[t][:, None]
    return tuple(np.where(factor == 0, 0, factor * part) for part in d_state)


def rnn_jvp(tape, *, x=None, state=None, w_ih=None, w_hh=None, b_ih=None, b_hh=None):
    """Forward mode: the changes of out and h_n, to first order, if inputs, weights and initial state are changed by what is given.

    A tangent goes through the same Jacobians as a gradient, but forward through time, and not transposed.
    """
    _, derivative = NONLINEARITIES[tape.nonlinearity]
    rows, h_dot, out_dot = tape.rows, zeros_if_none(state, tape.h[0]), np.zeros_like(tape.h[1:])
    for t in range(len(tape.h) - 1):
        before = rows.enter(t, h_dot)
        a_x, a_h = tangents_of_halves(tape, t, before, x, w_ih, w_hh, b_ih, b_hh)
        # h_t = (1 - leak) h_{t-1} + leak f(a)
        f_dot = derivative(tape.gates[t]) * (a_x + a_h)
        after = f_dot if tape.leak is None else (1 - tape.leak) * before + tape.leak * f_dot
        h_dot, out_dot[t] = rows.leave(t, after, h_dot), rows.leave(t, after, 0)
    return out_dot, h_dot


def gru_jvp(tape, *, x=None, state=None, w_ih=None, w_hh=None, b_ih=None, b_hh=None):
    """As `rnn_jvp`, by the product rule."""
    rows, h_dot, out_dot = tape.rows, zeros_if_none(state, tape.h[0]), np.zeros_like(tape.h[1:])
    for t in range(len(out_dot)):
        r, z, n = parts(tape.gates[t], 3)
        h, before = rows.enter(t, tape.h[t]), rows.enter(t, h_dot)
        a_x, a_h = tangents_of_halves(tape, t, before, x, w_ih, w_hh, b_ih, b_hh)
        (r_x, z_x, n_x), (r_h, z_h, m_dot) = parts(a_x, 3), parts(a_h, 3)
        r_dot, z_dot = r * (1 - r) * (r_x + r_h), z * (1 - z) * (z_x + z_h)
        # n = tanh(a_n + r m_n)
        n_dot = (1 - n**2) * (n_x + r_dot * tape.m[t] + r * m_dot)
        # h_t = (1 - z) n + z h_{t-1}
        after = (1 - z) * n_dot + z * before + z_dot * (h - n)
        h_dot, out_dot[t] = rows.leave(t, after, h_dot), rows.leave(t, after, 0)
    return out_dot, h_dot


def lstm_jvp(tape, *, x=None, state=None, w_ih=None, w_hh=None, b_ih=None, b_hh=None, w_hr=None):
    """As `rnn_jvp`, with a state of two parts."""
    h_dot, c_dot = map(zeros_if_none, (None, None) if state is None else state, (tape.h[0], tape.c[0]))
    rows, c, out_dot = tape.rows, tape.c, np.zeros_like(tape.h[1:])
    for t in range(len(out_dot)):
        i, f, g, o = parts(tape.gates[t], 4)
        h_before, c_before = rows.enter(t, h_dot), rows.enter(t, c_dot)
        i_dot, f_dot, g_dot, o_dot = parts(sum(tangents_of_halves(tape, t, h_before, x, w_ih, w_hh, b_ih, b_hh)), 4)
        i_dot, f_dot, g_dot, o_dot = i * (1 - i) * i_dot, f * (1 - f) * f_dot, (1 - g**2) * g_dot, o * (1 - o) * o_dot
        # c_t = f c_{t-1} + i g
        c_after = f * c_before + f_dot * rows.enter(t, c[t]) + i * g_dot + i_dot * g
        # h_t = W_hr (o tanh(c_t))
        h_after = projected(tape.w_hr, o_dot * np.tanh(c[t + 1]) + o * (1 - np.tanh(c[t + 1]) ** 2) * c_after)
        if w_hr is not None:
            h_after = h_after + projected(w_hr, o * np.tanh(c[t + 1]))
        h_dot, c_dot, out_dot[t] = rows.leave(t, h_after, h_dot), rows.leave(t, c_after, c_dot), rows.leave(t, h_after, 0)
    return out_dot, (h_dot, c_dot)


def projected(w_hr, shown):
    """W_hr shown, of an LSTM with a projection; without one, what is shown."""
    return shown if w_hr is None else shown @ w_hr.T


def tangents_of_halves(tape, t, h_dot, x, w_ih, w_hh, b_ih, b_hh):
    """Of W_ih x_t + b_ih and of W_hh h_{t-1} + b_hh; tangents that are None are zero."""
    a_x = np.zeros_like(h_dot, shape=(len(h_dot), len(tape.w_hh))) + zero_if_none(b_ih)
    a_h = h_dot @ tape.w_hh.T + zero_if_none(b_hh)
    if w_ih is not None:
        a_x = a_x + one_hot(tape.x[t : t + 1], tape.w_ih)[0] @ w_ih.T
    if x is not None:
        a_x = a_x + x[t] @ tape.w_ih.T
    if w_hh is not None:
        a_h = a_h + tape.rows.enter(t, tape.h[t]) @ w_hh.T
    return a_x, a_h


class Tape:
    """What forward leaves for backward, under the names of the equations."""

    def __init__(self, rows, w_ih, w_hh, b_ih, b_hh, *, h, gates, c=None, m=None, nonlinearity="tanh", leak=None, w_hr=None):
        self.rows, self.x, self.w_ih, self.w_hh, self.nonlinearity, self.leak = rows, rows.inputs, w_ih, w_hh, nonlinearity, leak
        self.b_ih, self.b_hh, self.w_hr = b_ih, b_hh, w_hr
        T, B, H = len(h) - 1, h.shape[1], h.shape[2]
        self.h, self.c = h, c
        self.gates = np.reshape(gates, (T, B, len(w_hh)))
        self.m = None if m is None else np.reshape(m, (T, B, H))


class Sums:
    """The gradients that are sums over time, and those of the inputs.

    All cells have a = W_ih x_t + b_ih on one side and W_hh h_{t-1} + b_hh on the other; ``da_x`` and ``da_h`` are the gradients of the two.
    """

    def __init__(self, tape):
        self.tape, self.x = tape, one_hot(tape.x, tape.w_ih)
        self.dx, self.dw_ih, self.dw_hh = np.zeros_like(self.x), np.zeros_like(tape.w_ih), np.zeros_like(tape.w_hh)
        self.db_ih, self.db_hh = np.zeros_like(tape.w_hh[:, 0]), np.zeros_like(tape.w_hh[:, 0])
        self.dw_hr = None if tape.w_hr is None else np.zeros_like(tape.w_hr)

    def add(self, t, da_x, da_h, h_before):
        self.dx[t] = da_x @ self.tape.w_ih
        self.dw_ih += da_x.T @ self.x[t]
        self.dw_hh += da_h.T @ h_before
        self.db_ih += da_x.sum(axis=0)
        self.db_hh += da_h.sum(axis=0)

    def result(self, d_state, need_dx):
        """No gradient of tokens, nor of a bias that there was not."""
        wanted = need_dx and self.tape.x.ndim == 3
        return Gradients(
            self.dx if wanted else None,
            d_state,
            self.dw_ih,
            self.dw_hh,
            None if self.tape.b_ih is None else self.db_ih,
            None if self.tape.b_hh is None else self.db_hh,
            self.dw_hr,
        )


def zero_if_none(bias):
    return 0 if bias is None else bias


def zeros_if_none(tangent, value):
    return np.zeros_like(value) if tangent is None else tangent


def one_hot(x, w_ih):
    """Tokens (T, B) as the one-hot rows (T, B, I) that they mean; other inputs as they are."""
    return np.eye(w_ih.shape[1], dtype=w_ih.dtype)[x] if x.ndim == 2 else x


def initial_state(h0, x, w_hh):
    return np.zeros((x.shape[1], w_hh.shape[1]), w_hh.dtype) if h0 is None else h0
