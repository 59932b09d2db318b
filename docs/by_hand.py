import numpy as np

from fastbptt import RNN, SGD, Linear, init, tasks


def learn(clip, *, reach=30, updates=4000, seed=0):
    """Train a ReLU RNN with identity start on temporal order, 30 steps; the share of wrong answers to 10,000 fresh sequences."""
    rng, task = np.random.default_rng(seed), tasks.temporal_order(30)
    rnn, readout = RNN(task.inputs, 50, nonlinearity="relu"), Linear(50, task.outputs)
    init.identity(rnn, readout, rng)
    net, optimiser = [rnn, readout], SGD([rnn, readout], lr=0.01)
    for _ in range(updates):
        x, targets = task.batch(rng, 20)
        out, _ = rnn(x)
        _, d_answers = task.loss(readout(out[-1:]), targets)  # asked at the last step only
        for layer in net:
            layer.zero_grad()
        d_state = readout.backward(d_answers)[0]
        grads = rnn.gradients_through(rnn.take_tape().last(reach), None, d_state, need_dx=False)  # the last `reach` steps
        for total, grad in zip(rnn.grads.values(), grads[2:6], strict=True):
            total += grad
        clip(net)
        optimiser.step()
    x, targets = task.batch(rng, 10_000)
    return task.wrong(readout(rnn(x)[0][-1:]), targets) / 10_000
