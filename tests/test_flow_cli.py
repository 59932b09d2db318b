"""`fastbptt flow`: what it reports and draws of nets that are described or saved, and how it refuses."""

import functools
import io
import math
import os
import re
import sys

import numpy as np
import pytest
from commands import assert_fails
from problems import GATED
from processes import run_python

import fastbptt
from fastbptt import cells
from fastbptt.app import cli
from fastbptt.app.flow.described import DescribedNet, compared
from fastbptt.gradients import portrait
from fastbptt.init import MATRICES

pytest.importorskip("matplotlib")

from fastbptt.app.flow.saved import load_net
from fastbptt.app.train.checkpoint import load_checkpoint, save_checkpoint
from fastbptt.app.train.text import read_corpus

QUICK = ["--hidden", "10", "--steps", "20"]
TRAIN = ["--hidden", "7", "--batch", "3", "--seq-len", "10", "--updates", "5", "--no-plot", "--sample", "0", "--quiet"]


@pytest.fixture
def run(run, tmp_path, monkeypatch):
    """``fastbptt flow`` in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return functools.partial(run, "flow")


def assert_refuses(result, complaint):
    assert_fails(2, complaint, result)


def lines(result):
    """The report by its headings, after a run that succeeded."""
    assert (result.status, result.err) == (0, "")
    return {line[:11].strip(): line[12:] for line in result.out.splitlines() if line[:11].strip()}


# --- While it works ---------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """Standard error; what is to be seen on it, and was erased since."""

    def isatty(self):
        return True

    def seen(self):
        return [line.rstrip() for line in self.getvalue().split("\r") if line.strip()]


def test_a_terminal_is_told_what_is_being_computed(run, monkeypatch):
    piped = run("--out", "a.png", *QUICK)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert run("--out", "a.png", *QUICK).out == piped.out
    steps = ["the net, forwards and back", "gradients by lag", "the weights alone", "Lyapunov exponents", "singular values", "the picture"]
    assert terminal.seen() == [f"working     {step} ..." for step in steps]
    assert re.fullmatch(r"(working [^\r]*\r *\r)+", terminal.getvalue())


def test_a_comparison_tells_it_too(run, monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert run("--compare", *QUICK).status == 0
    assert "working     LSTM, singular values ..." in terminal.seen() and terminal.seen()[-1] == "working     the picture ..."


def test_an_error_stands_alone_on_its_line(run, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(DescribedNet, "tape", fail)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert run(*QUICK).status == 2
    assert re.fullmatch(r"working [^\r]*\r *\rfastbptt: error: not enough memory: --hidden .*\n", terminal.getvalue())


@pytest.mark.parametrize("gone", ["none", "closed", "hung up"])
def test_no_terminal_stops_no_work(run, monkeypatch, gone):
    terminal = None if gone == "none" else Terminal()
    if gone == "closed":
        terminal.close()
    if gone == "hung up":
        monkeypatch.setattr(Terminal, "write", lambda self, text: os.write(-1, b""))
    monkeypatch.setattr(sys, "stderr", terminal)
    assert run("--no-picture", *QUICK).status == 0


def test_report_and_picture_share_their_numbers(run, monkeypatch):
    """Singular values take longest: they are computed once."""
    asked = []
    monkeypatch.setattr(portrait, "log_singular_values", lambda *span: asked.append(span[1:]) or fastbptt.log_singular_values(*span))
    assert run(*QUICK).status == 0
    assert asked and len(set(asked)) == len(asked)


# --- Nets that are described ------------------------------------------------------------------------------------------


def test_the_report_of_a_net_whose_numbers_are_known(run, tmp_path):
    options = "--nonlinearity identity --init orthogonal --radius 0.5 --steps 40 --hidden 20 --loss last --out half.png"
    report = lines(run(*options.split()))
    assert report["net"] == "identity RNN, 20 units, orthogonal start of radius 0.5, input gain 0.3"
    assert report["gradient"] == "vanishing: half-life 1 steps; after 40 steps 9.1e-13 of the gradient is left"
    assert report["weights"] == "gradients must vanish: sigma_max 0.5 < 1/gamma 1 (spectral radius 0.5)"
    assert report["Lyapunov"].startswith("largest exponent -0.6931 +- ")
    assert report["Lyapunov"].endswith(" nats per step, x 0.5 a step, mean -0.6931; 0 are positive")
    assert report["singular"] == "values of the 40 Jacobians' product: largest 9.1e-13, median 9.1e-13, smallest 9.1e-13"
    assert report["picture"] == "half.png"
    assert [path.name for path in tmp_path.iterdir()] == ["half.png"]


def test_beyond_the_floating_range(run):
    options = "--nonlinearity identity --init identity --radius 0.01 --steps 200 --hidden 2 --no-picture"
    report = lines(run(*options.split()))
    assert "after 200 steps 1e-400 of the gradient is left" in report["gradient"]
    assert "smallest 1e-400" in report["singular"]


def test_the_default_picture(run, tmp_path):
    assert lines(run("--cell", "lstm", *QUICK))["picture"] == "fastbptt-flow.png"
    assert (tmp_path / "fastbptt-flow.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("cell", cells.CELLS)
def test_no_picture(run, tmp_path, cell):
    report = lines(run("--cell", cell, "--no-picture", *QUICK))
    assert set(report) == {"net", "gradient", "Lyapunov", "singular"} | ({"weights"} if cell == "rnn" else set())
    assert not list(tmp_path.iterdir())


def test_a_comparison(run, tmp_path):
    result = run("--compare", "--gate-bias", "2", "--dtype", "float32", *QUICK, "--out", "four.svg")
    assert result.status == 0 and (tmp_path / "four.svg").read_bytes().startswith(b"<?xml")
    nets = [line[12:] for line in result.out.splitlines() if line.startswith("net ")]
    assert [net.partition(",")[0] for net in nets] == ["tanh RNN", "relu RNN", "GRU", "LSTM"]
    assert "identity start of radius 1," in nets[1] and "bias 2 of the z gate" in nets[2] and "bias 2 of the f gate" in nets[3]


def test_a_net_that_is_not_finite(run):
    options = "--nonlinearity relu --radius 1e6 --steps 80 --hidden 12 --no-picture"
    report = lines(run(*options.split()))
    assert re.match(r"nonfinite: h\[\d+, \d, \d+\] is inf", report["gradient"])
    assert not {"Lyapunov", "singular"} & set(report)


@pytest.mark.parametrize("cell", cells.CELLS)
@pytest.mark.parametrize("init", MATRICES)
def test_what_is_described_is_made(cell, init):
    net = DescribedNet(cell=cell, init=init, radius=1.3, hidden=8, steps=500, gain=0.7, seed=3)
    tape = net.tape()
    for w in np.split(tape.w_hh, len(tape.w_hh) // 8):
        assert np.abs(np.linalg.eigvals(w)).max() == pytest.approx(1.3, rel=1e-12)
        if init in ("orthogonal", "identity"):
            np.testing.assert_allclose(w @ w.T, 1.3**2 * np.eye(8), atol=1e-12)
    assert np.std(tape.x @ tape.w_ih.T) == pytest.approx(0.7, rel=0.25)
    again = net.tape()
    assert again.h.tobytes() == tape.h.tobytes()
    row = cells.CELLS[cell]
    if row.keeper:  # z of r z n, f of i f g o
        bias = tape.b_ih.reshape(-1, 8)
        assert np.abs(bias).sum() == 8 and (bias[row.gates.index(row.keeper)] == row.keeper.keeps).all()
    assert DescribedNet(cell=cell, dtype="float32", hidden=3, steps=2).tape().h.dtype == np.float32


def test_where_its_losses_are():
    every, last = (DescribedNet(hidden=4, steps=6, loss=loss).flow() for loss in ("every", "last"))
    assert np.isfinite(every.log10_contributions[np.tril_indices(6)]).all()
    assert np.isneginf(last.log10_contributions[:5]).all()
    np.testing.assert_array_equal(last.log10_contributions[5], every.log10_contributions[5])


def test_what_is_compared():
    nets = compared(hidden=9, seed=4, radius=1.2)
    assert {(net.hidden, net.seed) for net in nets.values()} == {(9, 4)}
    assert [(net.cell, net.nonlinearity, net.init, net.radius) for net in nets.values()] == [
        ("rnn", "tanh", "gaussian", 1.2),
        ("rnn", "relu", "identity", 1.0),
        ("gru", None, "gaussian", 1.2),
        ("lstm", None, "gaussian", 1.2),
    ]


# --- Nets that are saved ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "some.txt"
    corpus = read_corpus()
    path.write_bytes("".join(map(chr, corpus.vocabulary[corpus.tokens[:700]])).encode())
    return path


@pytest.fixture(scope="module", params=cells.CELLS)
def checkpoint(request, text, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    assert cli.main(["train", str(text), "--cell", request.param, *TRAIN, "--out", str(out)]) == 0
    return out / "checkpoint.safetensors"


@pytest.fixture
def copy(checkpoint, tmp_path):
    """A checkpoint to be damaged."""
    path = tmp_path / "copy.safetensors"
    path.write_bytes(checkpoint.read_bytes())
    return path


def test_the_loss_is_the_real_one(run, text, checkpoint):
    """Against the reference, with the state that the text before leaves."""
    arrays, metadata = load_checkpoint(checkpoint)
    w = {name: array.astype(float) for name, array in arrays.items() if array.dtype.kind == "f"}
    tokens = np.searchsorted(arrays["vocabulary"], read_corpus(text).vocabulary)[read_corpus(text).tokens]
    cell = metadata["settings"]["cell"]
    weights = [w[f"rnn.{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    at = np.arange(20)[:, None] + 349 * np.arange(2)
    out, _, _ = getattr(fastbptt.reference, f"{cell}_forward")(tokens[at], None, *weights)
    logits = out[10:] @ w["readout.weight"].T + w["readout.bias"]
    right = np.take_along_axis(logits, tokens[at[10:] + 1][..., None], axis=-1)[..., 0]
    expected = (np.log(np.exp(logits).sum(axis=-1)) - right).mean()

    net = load_net(checkpoint)
    flow, loss = net.flow(net.tokens()[0], batch=2)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert flow.tape.shape == (10, 2, 7)
    np.testing.assert_allclose(flow.tape.h[1:], out[10:], rtol=1e-4, atol=1e-6)
    report = lines(run(checkpoint, "--batch", 2, "--no-picture"))
    assert report["text"] == f"{text}: loss {loss:.4f} nats per character, perplexity {math.exp(loss):.2f}"
    assert report["net"].endswith(f", 7 units, float32, of {checkpoint}")
    assert report["gradient"] == str(flow).splitlines()[0]


def test_other_texts_and_lengths(run, tmp_path, checkpoint):
    (tmp_path / "other").write_text("the assertion \N{SNOWMAN} " * 20)
    report = lines(run(checkpoint, "--text", "other", "--steps", 30, "--batch", 5, "--no-picture"))
    assert report["text"].endswith("20 characters that the net does not know are left out")
    assert "after 30 steps" in report["gradient"]
    assert_refuses(run(checkpoint, "--text", "other", "--steps", 400), "text: 300 characters are too few for 4 rows of 400 steps; .*1601.*")
    assert_refuses(run(checkpoint, "--text", "missing"), "missing: No such file or directory")
    assert_refuses(run(checkpoint, "--text", "."), ".: expected a text file, got a directory")
    (tmp_path / "wide").write_text((tmp_path / "other").read_text(), encoding="utf-16")
    assert_refuses(run(checkpoint, "--text", "wide"), "wide: not a text file in UTF-8: .*: --encoding utf-16")
    wide = lines(run(checkpoint, "--text", "wide", "--encoding", "utf-16", "--steps", 30, "--batch", 5, "--no-picture"))
    assert wide == report | {"text": report["text"].replace("other", "wide")}
    assert_refuses(run(checkpoint, "--text", "other", "--encoding", ""), "encoding: expected one that Python knows, .*, got ''")
    assert_refuses(run(checkpoint, "--seed", 1), "seed: nothing is random about a net that reads a text")


def test_a_text_that_has_changed_or_gone(run, text, tmp_path, copy):
    arrays, metadata = load_checkpoint(copy)
    metadata["description"]["source"] = str(tmp_path / "moved.txt")
    save_checkpoint(copy, arrays, metadata)
    assert_refuses(run(copy), ".*moved.txt: .* was trained on this text, which cannot be read; give one with --text")
    (tmp_path / "moved.txt").write_text(text.read_text() + "more")
    assert_refuses(run(copy), ".*moved.txt: has changed since .* was trained on it; --text .*moved.txt takes it as it is")
    assert run(copy, "--text", "moved.txt", "--no-picture").status == 0


@pytest.mark.parametrize("task", ["temporal-order", "adding", "copy-memory"])
def test_a_net_that_was_trained_on_a_task(run, capsys, tmp_path, task):
    out = tmp_path / "run"
    options = "--length 20:30 --hidden 9 --updates 2 --no-plot --quiet --seed 1"
    assert cli.main(["train", "--task", task, *options.split(), "--out", str(out)]) == 0
    checkpoint = out / "checkpoint.safetensors"
    capsys.readouterr()
    report = lines(run(checkpoint, "--seed", 3, "--steps", 25, "--no-picture"))
    assert re.fullmatch(rf"{task}: loss [\d.e-]+; by chance [\d.e-]+", report["task"])
    assert report["net"] == f"tanh RNN, 9 units, float64, of {checkpoint}"
    least = 45 if task == "copy-memory" else 25
    assert least <= int(re.search(r"after (\d+) steps", report["gradient"])[1]) <= 1.1 * least
    assert lines(run(checkpoint, "--seed", 3, "--steps", 25, "--no-picture")) == report
    assert 20 <= int(re.search(r"after (\d+) steps", lines(run(checkpoint, "--no-picture"))["gradient"])[1]) < 50
    assert_refuses(run(checkpoint, "--text", "some"), f"text: .* was trained on the task {task}, not on a text")
    assert_refuses(run(checkpoint, "--steps", 0), "length: expected .*, got 0")
    assert_refuses(run(checkpoint, "--batch", 10**20), "batch: expected a number at least 1 and at most 1e.06, got 10{20}")


def test_the_losses_of_a_task(tmp_path):
    """Those at the last steps that the task asks at, as in training."""
    assert (
        cli.main(
            [
                *[
                    "train",
                    "--task",
                    "temporal-order",
                    "--length",
                    "12",
                    "--hidden",
                    "5",
                    "--updates",
                    "2",
                    "--no-plot",
                    "--quiet",
                    "--out",
                ],
                str(tmp_path),
            ]
        )
        == 0
    )
    net = load_net(tmp_path / "checkpoint.safetensors")
    flow, loss = net.flow(batch=6, seed=8)
    x, targets = net.task.batch(8, 6)
    out, _ = net.model.rnn(x)
    expected, d_outputs = net.task.loss(net.model.readout(out[-1:]), targets)
    assert loss == expected
    np.testing.assert_allclose(flow.log10_state_norm[-1], np.log10(np.linalg.norm(net.model.readout.backward(d_outputs)[0], axis=-1)))
    assert np.isneginf(flow.log10_contributions[:-1]).all()


def test_a_net_with_dropout_is_looked_at_whole(text, tmp_path):
    """Also while it reads what stands before the steps that are recorded."""
    train = ["train", str(text), "--layers", "2", "--dropout", "0.5", *TRAIN, "--out", str(tmp_path)]
    assert cli.main(train) == 0
    net = load_net(tmp_path / "checkpoint.safetensors")
    tokens = net.tokens()[0]
    losses = [net.flow(tokens, batch=2)[1] for _ in range(3)]
    with net.model.evaluating():
        at = np.arange(20)[:, None] + (len(tokens) - 1) // 2 * np.arange(2)
        out, _ = net.model.rnn(tokens[at])
        expected, _ = fastbptt.softmax_cross_entropy(net.model.readout(out[10:]), tokens[at[10:] + 1])
    assert losses == pytest.approx([expected] * 3, rel=1e-12)


@pytest.mark.parametrize("length", [0, 5, 100, 2000, -1])
def test_truncated_checkpoints(run, copy, length):
    copy.write_bytes(copy.read_bytes()[:length])
    assert_refuses(run(copy), f"{copy}: (not a checkpoint of fastbptt|damaged checkpoint: .+)")


DAMAGE = {
    "another format": lambda arrays, metadata: metadata.update(format="fastbptt train 2"),
    "another kind": lambda arrays, metadata: metadata.update(kind="cube"),
    "a task without a name": lambda arrays, metadata: metadata.update(kind="task"),
    "no description": lambda arrays, metadata: metadata.pop("description"),
    "a readout of another dtype": lambda arrays, metadata: arrays.update({"readout.weight": arrays["readout.weight"].astype(float)}),
    "another cell": lambda arrays, metadata: metadata["settings"].update(cell="cube"),
    "no settings": lambda arrays, metadata: metadata.pop("settings"),
    "settings in words": lambda arrays, metadata: metadata.update(settings="few"),
    "a size in words": lambda arrays, metadata: metadata["settings"].update(seq_len="ten"),
    "no weights": lambda arrays, metadata: arrays.pop("rnn.weight_hh_l0"),
    "no readout": lambda arrays, metadata: arrays.pop("readout.weight"),
    "a readout of another size": lambda arrays, metadata: arrays.update({"readout.weight": np.zeros((3, 7))}),
    "a vector for a matrix": lambda arrays, metadata: arrays.update({"rnn.weight_hh_l0": np.zeros(49)}),
    "a number for a matrix": lambda arrays, metadata: arrays.update({"rnn.weight_hh_l0": np.zeros(())}),
    "weights that are too short": lambda arrays, metadata: arrays.update({"rnn.weight_ih_l0": arrays["rnn.weight_ih_l0"][:1]}),
    "a bias too long": lambda arrays, metadata: arrays.update({"rnn.bias_hh_l0": np.zeros(99)}),
    "integers for weights": lambda arrays, metadata: arrays.update({"rnn.weight_hh_l0": np.zeros((7, 7), np.int64)}),
    "another vocabulary": lambda arrays, metadata: arrays.update({"vocabulary": np.arange(3, dtype=np.uint32)}),
    "a vocabulary in disorder": lambda arrays, metadata: arrays.update({"vocabulary": arrays["vocabulary"][::-1].copy()}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_checkpoints(run, copy, damage):
    arrays, metadata = load_checkpoint(copy)
    DAMAGE[damage](arrays, metadata)
    save_checkpoint(copy, arrays, metadata)
    assert_refuses(run(copy), f"{copy}: damaged checkpoint: .+")


def test_alien_files(run, tmp_path):
    fastbptt.RNN(3, 4).save(tmp_path / "alien.safetensors")
    (tmp_path / "text").write_text("no checkpoint at all")
    assert_refuses(run("alien.safetensors"), "alien.safetensors: not a checkpoint of fastbptt")
    assert_refuses(run("text"), "text: not a checkpoint of fastbptt")
    assert_refuses(run("."), ".: expected a checkpoint, got a directory or device")
    assert_refuses(run("missing"), "missing: No such file or directory")


# --- What it refuses --------------------------------------------------------------------------------------------------

BAD_OPTIONS = {
    "--hidden 0": "hidden: expected an integer of at least 1, got 0",
    "--hidden 2.5": "argument --hidden: invalid int value: '2.5' .*",
    "--hidden 1000001": "hidden: expected a number at least 1 and at most 1e.06, got 1000001",
    "--steps 0": "steps: expected an integer of at least 1, got 0",
    "--batch -1": "batch: expected an integer of at least 1, got -1",
    "--seed -1": "seed: expected an integer of at least 0, got -1",
    "--radius nan": "radius: expected a number at least 0 .*, got nan",
    "--radius -1": "radius: expected a number at least 0 .*, got -1.0",
    "--radius inf": "radius: expected a number at least 0 .*, got inf",
    "--radius big": "argument --radius: invalid float value: 'big' .*",
    "--gain nan": "gain: expected a number .*, got nan",
    "--cell cube": "argument --cell: invalid choice: 'cube' .*",
    "--cell gru --nonlinearity tanh": "nonlinearity: only the cell rnn has a choice of it; this is gru",
    "--gate-bias 1": f"gate-bias: an rnn has no gates; only {' and '.join(GATED)} have",
    "--cell lstm --gate-bias nan": "gate-bias: expected a number .*, got nan",
    "--init random": "argument --init: invalid choice: 'random' .*",
    "--loss first": "argument --loss: invalid choice: 'first' .*",
    "--dtype float16": "argument --dtype: invalid choice: 'float16' .*",
    "--compare --cell gru": "cell: a comparison has its own",
    "--compare --nonlinearity relu": "nonlinearity: a comparison has its own",
    "--compare --serve": "argument --serve: not allowed with argument --compare .*",
    "--text some.txt": "text: only a saved net reads text; which checkpoint.",
    "--encoding utf-8": "encoding: only a saved net reads text; which checkpoint.",
    "some.safetensors --radius 1": "radius: a saved net has its own",
    "some.safetensors --compare": "some.safetensors: --compare takes no checkpoint",
    "some.safetensors --serve": "some.safetensors: --serve takes no checkpoint",
    "--port 3": "port: only --serve has one",
    "--serve --out x.png": "out: --serve draws no picture",
    "--serve --no-picture": "no-picture: --serve draws none anyway",
    "--out x.png --no-picture": "out: not together with --no-picture",
    "--out x.gif": r"x.gif: expected a name that ends in \.png, \.svg, \.pdf, got 'gif'",
    "--out picture": r"picture: expected a name that ends in .*, got ''",
    "--out missing/x.png": "missing/x.png: No such file or directory",
    "--out file/x.png": "file/x.png: Not a directory",
    "--out directory.png": "directory.png: expected a file, got a directory",
}


@pytest.mark.parametrize("options", BAD_OPTIONS)
def test_bad_options(run, tmp_path, options):
    (tmp_path / "file").touch()
    (tmp_path / "directory.png").mkdir()
    result = run(*options.split())
    assert_refuses(result, BAD_OPTIONS[options])
    assert result.out == "" and sorted(path.name for path in tmp_path.iterdir()) == ["directory.png", "file"]


def test_a_net_that_does_not_fit_the_memory(run, monkeypatch):
    def fail(*_, **__):
        raise MemoryError("Unable to allocate 7 TiB")

    monkeypatch.setattr(DescribedNet, "tape", fail)
    assert_refuses(run(), "not enough memory: Unable to allocate 7 TiB")
    sizes = "--hidden 900000", "--steps 7", "--batch 3"
    assert_refuses(run(*" ".join(sizes).split()), f"not enough memory: Unable to allocate 7 TiB; with {', '.join(sizes)}")


@pytest.mark.parametrize(
    ("package", "extra", "options"),
    [
        ("matplotlib", "train", ()),
        ("matplotlib", "train", ("--compare",)),
        ("plotly", "serve", ("--serve",)),
        ("werkzeug", "serve", ("--serve",)),
    ],
)
def test_missing_extras(run, monkeypatch, package, extra, options):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert_refuses(run(*options), re.escape(f'{package} missing: pip install "fastbptt[{extra}]"'))


def test_the_command_line_imports_none_of_the_extras():
    run_python(
        "import sys\nfrom fastbptt.app import cli\ncli.build_parser()\n"
        "assert not {'rich', 'matplotlib', 'safetensors', 'plotly', 'werkzeug'} & set(sys.modules)"
    )


def test_a_start_means_the_same_to_flow_and_to_train():
    """Kind and radius of the recurrent weights, size of the input weights where the start draws them, and the nonlinearity."""
    from fastbptt.app.train.model import Model
    from fastbptt.app.train.settings import TaskSettings

    for init, start in MATRICES.items():
        net, settings = DescribedNet(init=init, hidden=200), TaskSettings(task="adding", init=init, hidden=200)
        assert net.nonlinearity == settings.nonlinearity, init
        params = Model(300, 200, 1, nonlinearity=settings.nonlinearity, init=init, rng=0).rnn.params
        own = np.abs(np.linalg.eigvals(params["weight_hh_l0"])).max()
        assert net.radius == pytest.approx(own, rel=0.1), init
        gain = 0.3 if start.weights is None else params["weight_ih_l0"].std() * 200**0.5
        assert net.gain == pytest.approx(gain, rel=0.05), init
    assert (DescribedNet().init, DescribedNet().radius, DescribedNet().gain) == ("gaussian", 0.9, 0.3)
    assert DescribedNet(init="identity", radius=0.5, gain=2.0, nonlinearity="tanh").radius == 0.5
