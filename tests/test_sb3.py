"""`fastbptt.contrib.sb3`: the values and gradients of sb3-contrib's loop over time, in one call."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import fastbptt.torch  # noqa: E402
from fastbptt.contrib import sb3  # noqa: E402

pytestmark = [pytest.mark.one_level, pytest.mark.filterwarnings("ignore")]


def loop(features, states, episode_starts, lstm):
    """What sb3-contrib does, step by step."""
    n, outs = states[0].shape[1], []
    for x, start in zip(features.reshape(n, -1, lstm.input_size).swapaxes(0, 1), episode_starts.reshape(n, -1).T, strict=True):
        out, states = lstm(x[None], tuple((1.0 - start).view(1, n, 1) * state for state in states))
        outs.append(out)
    return torch.cat(outs).transpose(0, 1).flatten(0, 1), states


def cases():
    rng = np.random.default_rng(0)
    for n, T in ((1, 1), (3, 1), (1, 9), (4, 7), (6, 20)):
        yield n, np.zeros((n, T))
        first = np.zeros((n, T))
        first[::2, 0] = 1
        yield n, first
        yield n, np.ones((n, T))
        yield n, rng.random((n, T)) < 0.2


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"proj_size": 2}], ids=str)
def test_one_call_for_the_loop(options):
    torch.manual_seed(0)
    lstm = fastbptt.torch.LSTM(3, 5, dtype=torch.float64, **options)
    calls = []
    lstm.register_forward_hook(lambda *_: calls.append(1))
    for n, starts in cases():
        starts = torch.from_numpy(starts.astype(float)).flatten()
        features = torch.randn(len(starts), 3, dtype=torch.float64, requires_grad=True)
        states = [torch.randn(lstm.num_layers, n, width, dtype=torch.float64, requires_grad=True) for width in (lstm.proj_size or 5, 5)]
        inputs, weighting, results = [features, *states, *lstm.parameters()], torch.randn(1, lstm.proj_size or 5).double(), []
        for way in (sb3.process_sequence, loop):
            calls.clear()
            out, ends = way(features, tuple(states), starts, lstm)
            loss = (out * weighting).sin().sum() + sum(end.sum() for end in ends)
            results.append([out, *ends, *torch.autograd.grad(loss, inputs)])
            assert way is loop or len(calls) == 1
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert not lstm.fallbacks


@pytest.fixture
def model():
    contrib, gymnasium = pytest.importorskip("sb3_contrib"), pytest.importorskip("gymnasium")
    torch.manual_seed(0)
    return lambda **options: contrib.RecurrentPPO(
        "MlpLstmPolicy", gymnasium.make("CartPole-v1"), n_steps=32, batch_size=32, n_epochs=2, seed=1, device="cpu",
        policy_kwargs={"lstm_hidden_size": 16, **options},
    )  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"enable_critic_lstm": False}, {"n_lstm_layers": 2}], ids=str)
def test_evaluate_actions(model, options):
    """One minibatch, values and gradients, before and after; and once more restored."""
    from sb3_contrib.common.recurrent.type_aliases import RNNStates

    policy = model(**options).policy
    n, T, layers = 5, 12, policy.lstm_actor.num_layers
    starts = (torch.rand(n, T) < 0.2).float().flatten()
    states = [torch.randn(layers, n, 16) for _ in range(4)]
    given = torch.randn(n * T, 4), torch.randint(2, (n * T,)), RNNStates(tuple(states[:2]), tuple(states[2:])), starts
    results = []
    for change in (lambda _: 0, sb3.accelerate, sb3.restore):
        assert change(policy) == (0 if not results else 2 if policy.lstm_critic is not None else 1)
        policy.zero_grad()
        values, log_prob, entropy = policy.evaluate_actions(*given)
        (values.pow(2).sum() + log_prob.sum() + entropy.sin().sum()).backward()
        results.append([values, log_prob, entropy, *(p.grad for p in policy.parameters())])
    for got in results[1:]:
        torch.testing.assert_close(got, results[0])
    assert "_process_sequence" not in vars(policy)


def test_training_is_the_same(model, tmp_path):
    weights = []
    for change in (lambda _: 0, sb3.accelerate):
        learner = model()
        change(learner)
        learner.learn(128)
        weights.append([p.detach().clone() for p in learner.policy.parameters()])
        learner.save(tmp_path / "model")
        type(learner).load(tmp_path / "model")
    assert isinstance(learner.policy.lstm_actor, fastbptt.torch.LSTM) and not learner.policy.lstm_actor.fallbacks
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-4)


def test_what_is_no_recurrent_policy():
    for wrong in (None, "model", torch.nn.LSTM(2, 2)):
        for call in (sb3.accelerate, sb3.restore):
            with pytest.raises(TypeError, match="model: expected a RecurrentPPO or its policy, got"):
                call(wrong)
