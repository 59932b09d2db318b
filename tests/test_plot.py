"""Pictures: whatever the numbers, a picture comes out, without a warning."""

import math

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from fastbptt.app.train.plot import plot_training

CASES = {
    "an ordinary run": (np.linspace(4, 1, 1000), np.linspace(0.5, 2, 1000), 1.0, 1.1),
    "few updates": ([4.0, 3.0], [1.0, 0.5], 1.0, 2.0),
    "one update": ([4.0], [1.0], 1.0, 2.0),
    "none": ([], [], 1.0, None),
    "nothing to learn": (np.zeros(700), np.zeros(700), 1.0, 0.0),
    "a bound that is not reached": ([4.0, 1e3, 1e250], [1.0, 1e50, 1e250], 1e300, 1e290),
    "an explosion": ([4.0, 1e3, 1e20, 1e308], [1.0, 1e100, 1e300, 1.7e308], math.inf, 1e10),
    "a vanishing gradient": ([4.0, 4.0, 4.0], [1.0, 1e-200, 5e-324], 1e-300, 4.0),
}


@pytest.mark.parametrize("case", CASES)
def test_a_picture(tmp_path, case):
    losses, norms, clip, level = CASES[case]
    level = None if level is None else (level, "held-out $text")
    one, same = (drawn(tmp_path / "picture.png", losses, norms, clip=clip, level=level, perplexities=True) for _ in range(2))
    assert one == same


@pytest.mark.parametrize(
    "options",
    [
        {"errors": []},
        {"errors": [(500, 1.0), (1000, 0.0)], "solved": 0.01, "level": (1.386, "by chance")},
        {"errors": [(3, 0.5)], "omegas": np.geomspace(1, 1e-9, 1000)},
        {"omegas": np.zeros(1000)},
    ],
    ids=str,
)
def test_pictures_with_more_to_show(tmp_path, options):
    losses, norms, clip, _ = CASES["an ordinary run"]
    assert drawn(tmp_path / "picture.png", losses, norms, clip=clip, **options)


def drawn(path, *curves, **options):
    """The picture's bytes."""
    plot_training(path, *curves, title="100 % of $x_1", **options)
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) > 10_000
    return content


def test_a_directory_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        plot_training(tmp_path / "missing" / "picture.png", [1.0], [1.0])
