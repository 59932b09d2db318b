"""Pictures of gradient flows: they show the numbers, whatever these are, and nothing on them covers anything else."""

import itertools
import math

import numpy as np
import pytest
from problems import random_problem
from processes import run_python

import fastbptt
from fastbptt.app.flow.described import DescribedNet, compared
from fastbptt.gradients.portrait import BINS, Portrait

pytest.importorskip("matplotlib")

from matplotlib.axes import Axes

from fastbptt import _figures, cells, pictures

MAGIC = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
SMALL = {"hidden": 12, "steps": 30}
LINEAR = {"nonlinearity": "identity", "init": "orthogonal"}


def leaky():
    problem = random_problem("leaky-tanh", T=12)
    return fastbptt.gradient_flow(problem.forward(fastbptt)[2], problem.d_out)


def without_losses():
    tape = DescribedNet(**SMALL).tape()
    return fastbptt.gradient_flow(tape, np.zeros(tape.shape))


def with_few_losses():
    tape = DescribedNet(**SMALL).tape()
    d_out = np.zeros(tape.shape)
    d_out[[7, 20]] = 1
    return fastbptt.gradient_flow(tape, d_out)


FLOWS = {
    "tanh": DescribedNet(**SMALL).flow,
    **{f"{name}, float32": DescribedNet(cell=name, dtype="float32", **SMALL).flow for name, row in cells.CELLS.items() if row.gated},
    "leaky": leaky,
    "relu": DescribedNet(nonlinearity="relu", **SMALL).flow,
    "a loss at the last step": DescribedNet(loss="last", **SMALL).flow,
    "a few losses": with_few_losses,
    "no loss": without_losses,
    "vanishing to 1e-400": DescribedNet(radius=0.01, hidden=3, steps=200, **LINEAR).flow,
    "exploding to 1e+400": DescribedNet(radius=100.0, gain=0.0, hidden=3, steps=200, loss="last", **LINEAR).flow,
    "neither": DescribedNet(radius=1.0, hidden=3, steps=20, **LINEAR).flow,
    "nothing left": DescribedNet(radius=0.0, hidden=5, steps=9).flow,
    "not finite": DescribedNet(nonlinearity="relu", radius=1e6, hidden=12, steps=80).flow,
    "one unit, one step": DescribedNet(hidden=1, steps=1, batch=1).flow,
    "two units, two steps": DescribedNet(hidden=2, steps=2, batch=1).flow,
}


@pytest.fixture
def drawn(monkeypatch):
    """What `fastbptt.pictures` would have saved, after its layout."""
    figures = []
    monkeypatch.setattr(pictures, "save", lambda figure, path: figures.append(figure) or figure.draw_without_rendering())

    def draw(plot, *arguments, **options):
        plot(*arguments, "picture.png", **options)
        return figures[-1]

    return draw


def panels(figure):
    """The panels by their headings; those below a heading of a row by the row's."""
    found = {axes.get_title("left") or axes.get_title(): axes for axes in figure.axes}
    for row in figure.subfigs:
        if row.get_suptitle():
            found[row.get_suptitle()] = row.axes
    return found


def texts(figure):
    """All that is written on it, with where it stands, in pixels."""
    from matplotlib.text import Text

    beyond = {text for axes in figure.findobj(Axes) for axis in (axes.xaxis, axes.yaxis) for text in labels_beyond(axis)}
    shown = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip() and text not in beyond]
    return [(text.get_text(), text.get_window_extent()) for text in shown if text.get_window_extent().width > 1]


def labels_beyond(axis):
    """Those of ticks beyond the axis's ends, which exist but are not drawn."""
    low, high = sorted(axis.get_view_interval())
    margin = 1e-6 * (high - low)
    return [tick.label1 for tick in axis.get_major_ticks() if not low - margin <= tick.get_loc() <= high + margin]


def assert_legible(figure):
    width, height = figure.get_size_inches() * figure.dpi
    written = texts(figure)
    assert len(written) > 20
    for text, box in written:
        assert min(box.x0, box.y0) >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, f"{text!r} is cut off"
    for (one, a), (other, b) in itertools.combinations(written, 2):
        overlap = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(overlap) <= 1.5, f"{one!r} and {other!r} overlap by {overlap}"


@pytest.mark.parametrize("name", FLOWS)
def test_a_picture_of_anything(name, drawn):
    figure = drawn(pictures.plot_flow, FLOWS[name]())
    assert_legible(figure)
    for axes in figure.axes:
        for line in axes.get_lines():
            assert not np.isinf(np.asarray(line.get_ydata(), float)).any()


@pytest.mark.parametrize("kind", MAGIC)
def test_a_file(tmp_path, kind):
    flow = DescribedNet(hidden=3, steps=5).flow()
    paths = tmp_path / f"picture.{kind.upper()}", tmp_path / f"again.{kind}"
    for path in paths:
        flow.plot(path, title="100 % of $x_1")
    content = paths[0].read_bytes()
    assert content.startswith(MAGIC[kind]) and len(content) > 10_000
    assert content == paths[1].read_bytes()
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_it_shows_the_decay_and_its_theory(drawn):
    flow = DescribedNet(radius=0.9, hidden=10, steps=50, **LINEAR).flow()
    lines = panels(drawn(pictures.plot_flow, flow))["How much of the gradient is left"].get_lines()
    assert [line.get_label().split(":")[0] for line in lines] == ["measured", "largest Lyapunov exponent", "bound"]
    np.testing.assert_array_equal(lines[0].get_ydata(), flow.log10_decay)
    for line in lines[1:]:
        np.testing.assert_allclose(line.get_ydata(), [0, 50 * math.log10(0.9)], rtol=1e-12)


def test_it_shows_the_contributions(drawn):
    flow = DescribedNet(**SMALL).flow()
    grey, image = panels(drawn(pictures.plot_flow, flow))["What each loss owes to each step"].get_images()
    shown = image.get_array()
    np.testing.assert_array_equal(shown.mask, np.triu(np.ones((30, 30), bool), 1))
    np.testing.assert_array_equal(shown.compressed(), flow.log10_contributions[np.tril_indices(30)])
    assert np.isnan(np.asarray(grey.get_array().filled(np.nan))).all()


def test_it_shows_where_nothing_is_owed(drawn):
    flow = FLOWS["nothing left"]()
    grey, _ = panels(drawn(pictures.plot_flow, flow))["What each loss owes to each step"].get_images()
    np.testing.assert_array_equal(np.isfinite(grey.get_array().filled(np.nan)), np.tri(9, k=-1, dtype=bool))


def test_side_by_side(drawn, tmp_path):
    flows = {name: net.flow() for name, net in compared(**SMALL).items()}
    figure = drawn(pictures.plot_comparison, flows, title="four of them")
    assert_legible(figure)
    found = panels(figure)
    decay = found["How much of the gradient is left"].get_lines()
    assert [line.get_label() for line in decay] == list(flows) == ["tanh", "ReLU, identity start", "GRU", "LSTM"]
    assert len({line.get_color() for line in decay}) == len({line.get_linestyle() for line in decay}) == 4
    for line, flow in zip(decay, flows.values()):
        np.testing.assert_array_equal(line.get_ydata(), flow.log10_decay)
    maps = [axes for axes in found["What each loss owes to each step"] if axes.get_images()]
    assert len({axes.get_images()[-1].get_clim() for axes in maps}) == 1 and len(maps) == 4
    assert_legible(drawn(pictures.plot_comparison, {"no gradient": without_losses(), "not finite": FLOWS["not finite"]()}))


@pytest.mark.parametrize("count", [0, 5])
def test_as_many_as_there_are_colours(count):
    flow = DescribedNet(**SMALL).flow()
    with pytest.raises(ValueError, match=f"^flows: expected 1 to 4 of them, got {count}$"):
        pictures.plot_comparison({str(i): flow for i in range(count)}, "picture.png")


def test_nothing_to_draw():
    empty = DescribedNet(**SMALL).tape().last(0)
    with pytest.raises(ValueError, match=r"^tape: expected at least one step and one row to draw, got 0 and 4$"):
        fastbptt.gradient_flow(empty, None).plot("picture.png")


def test_unwritable_pictures(tmp_path):
    flow = DescribedNet(**SMALL).flow()
    with pytest.raises(FileNotFoundError):
        flow.plot(tmp_path / "missing" / "picture.png")
    with pytest.raises(ValueError, match=r"picture\.gif: expected a name that ends in \.png, \.svg, \.pdf, got 'gif'"):
        flow.plot(tmp_path / "picture.gif")
    before = tmp_path / "picture.png"
    before.write_bytes(b"before")
    with pytest.raises(ValueError, match="picture: expected a name"):
        flow.plot(tmp_path / "picture")
    assert before.read_bytes() == b"before" and list(tmp_path.iterdir()) == [before]


def test_no_state_is_left_behind(tmp_path):
    run_python(
        """
        import sys, fastbptt
        from fastbptt.app.flow.described import DescribedNet
        assert "matplotlib" not in sys.modules
        DescribedNet(hidden=3, steps=5).flow().plot(sys.argv[1])
        assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
        """.replace("\n        ", "\n"),
        tmp_path / "picture.png",
    )


# --- The numbers behind it --------------------------------------------------------------------------------------------


def test_the_portrait_of_an_orthogonal_net():
    portrait = Portrait(DescribedNet(radius=0.9, hidden=20, steps=60, **LINEAR).flow())
    lags, log10 = portrait.singular_values
    assert lags[0] == 0 and lags[-1] == 60 and log10.shape == (len(lags), 20)
    np.testing.assert_allclose(log10, np.outer(lags * math.log10(0.9), np.ones(20)), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(portrait.lyapunov.exponents, math.log(0.9), rtol=1e-12)
    assert [rate.log10 for rate in portrait.rates] == pytest.approx([math.log10(0.9)] * 2, rel=1e-12)
    np.testing.assert_array_equal(portrait.slopes["h"], np.arange(BINS) == BINS - 1)


def test_the_portrait_is_of_the_first_row():
    flow = DescribedNet(cell="lstm", hidden=5, steps=20).flow()
    portrait = Portrait(flow)
    np.testing.assert_allclose(portrait.singular_values[1][-1] * math.log(10), fastbptt.log_singular_values(flow.tape)[0], atol=1e-9)
    np.testing.assert_allclose(portrait.lyapunov.exponents, fastbptt.lyapunov_spectrum(flow.tape, burn_in=4).exponents[0])
    few = Portrait(flow, exponents=1)
    assert few.lyapunov.exponents.shape == (1,)


@pytest.mark.parametrize("cell", cells.CELLS)
def test_the_shares_of_derivatives(cell):
    flow = DescribedNet(cell=cell, gain=4.0, hidden=8, steps=15).flow()
    shares = Portrait(flow).slopes
    assert list(shares) == list(flow.saturated_gates)
    for gate, share in shares.items():
        assert share.sum() == pytest.approx(1) and share[0] >= flow.saturated_gates[gate]


def test_no_jacobians():
    portrait = Portrait(FLOWS["not finite"]())
    assert portrait.lyapunov is None and portrait.singular_values is None
    assert [rate.name for rate in portrait.rates] == ["bound"]


# --- Axes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "some"),
    [
        (-400, 0, {"1", "$10^{-400}$"}),
        (0, 3010, {"1", "$10^{3000}$"}),
        (-1, 1, {"0.1", "1", "10"}),
        (-0.5, 0.6, {"0.5", "1", "2"}),
        (-0.01, 0.01, {"0.99", "1", "1.01"}),
        (-400.01, -399.9, {r"$1.2\cdot10^{-400}$"}),
        (-17.7, -16.9, {r"$2\cdot10^{-18}$", r"$1\cdot10^{-17}$"}),
    ],
)
def test_ticks(low, high, some):
    axes = _figures.new_figure(4, 4).subplots()
    axes.set_ylim(low, high)
    _figures.powers_of_ten(axes.yaxis, low, high)
    ticks = axes.yaxis.get_majorticklocs()
    labels = axes.yaxis.get_major_formatter().format_ticks(ticks)
    assert some <= set(labels)
    assert 3 <= sum(low <= tick <= high for tick in ticks) <= 9
