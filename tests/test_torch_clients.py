"""`fastbptt.torch` in other people's training loops: convolutional nets, and skorch's grid search."""

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import fastbptt.torch as ours  # noqa: E402

pytestmark = [pytest.mark.one_level, pytest.mark.filterwarnings("ignore")]


class Convolutional(torch.nn.Module):
    """Features of a one-dimensional convolution, in time a GRU's, one answer for a row."""

    def __init__(self, width=6):
        super().__init__()
        self.features = torch.nn.Sequential(
            torch.nn.Conv1d(3, 5, 3, padding=1), torch.nn.BatchNorm1d(5), torch.nn.ReLU(), torch.nn.MaxPool1d(2)
        )
        self.gru = torch.nn.GRU(5, width, num_layers=2, batch_first=True, bidirectional=True)
        self.answer = torch.nn.Linear(2 * width, 2)

    def forward(self, x):
        out, _ = self.gru(self.features(x).transpose(1, 2))
        return self.answer(out[:, -1])


def test_a_convolutional_net():
    """It trains to the same losses and weights, in float64, whose inputs of the GRU are no contiguous tensors."""
    results = []
    for change in (lambda model: 0, ours.accelerate):
        torch.manual_seed(0)
        model = Convolutional().double()
        assert change(model) == len(results)
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
        x, y = torch.randn(8, 3, 20, dtype=torch.float64), torch.randint(2, (8,))
        losses = []
        for _ in range(5):
            optimiser.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
        with torch.no_grad():
            results.append([*losses, model.eval()(x), *model.state_dict().values()])
    assert not model.gru.fallbacks
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)


class Tokens(torch.nn.Module):
    """A class for each row of tokens. Every one starts the same, in whatever process it is made."""

    def __init__(self, width=4, accelerated=False):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(7, 5)
        self.lstm = torch.nn.LSTM(5, width, num_layers=2, batch_first=True)
        self.answer = torch.nn.Linear(width, 2)
        if accelerated:
            ours.accelerate(self)

    def forward(self, tokens):
        out, _ = self.lstm(self.embedding(tokens))
        return self.answer(out[:, -1]).softmax(-1)


def test_grid_search_of_skorch():
    """Nets are cloned, and pickled to two processes and back; the scores are PyTorch's."""
    skorch, selection = pytest.importorskip("skorch"), pytest.importorskip("sklearn.model_selection")
    rng = np.random.default_rng(0)
    tokens = rng.integers(7, size=(24, 6))
    classes = (tokens[:, -1] > 3).astype(np.int64)
    scores = []
    for accelerated in (False, True):
        options = {"max_epochs": 3, "lr": 0.1, "verbose": 0, "train_split": None, "optimizer": torch.optim.Adam}
        net = skorch.NeuralNetClassifier(Tokens, module__accelerated=accelerated, **options)
        search = selection.GridSearchCV(net, {"module__width": [3, 5]}, cv=2, n_jobs=2, scoring="neg_log_loss")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            search.fit(tokens, classes)
        assert isinstance(search.best_estimator_.module_.lstm, ours.LSTM) == accelerated
        scores.append(search.cv_results_["mean_test_score"])
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(*scores, rtol=1e-4)
