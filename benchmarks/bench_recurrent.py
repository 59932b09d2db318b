"""The recurrent layers side by side, by pytest-benchmark: ``python -m pytest benchmarks/``.

A group for every case. The bare call is timed, and its result is then held against the reference's. For the ratios in
RESULTS.md, contestants must take turns: that is ``compare.py``.
"""

from functools import lru_cache

import peers
import pytest
from grid import grid

agreed = lru_cache(maxsize=1)(peers.agreed)


@pytest.fixture(params=grid(), ids=str)
def case(request):
    return request.param


@pytest.fixture(params=peers.CONTESTANTS)
def contestant(request, case):
    built = peers.build(request.param, case)
    if built is None:
        pytest.skip(f"{request.param} is not installed or has no {case.cell}")
    for call in built:
        if call is not None:
            call()  # what is compiled at the first call is compiled now
    return built


def test_forward(benchmark, case, contestant):
    benchmark.group = f"{case}, forward"
    out = benchmark(contestant.forward)
    assert peers.disagreement([out], agreed(case)[:1]) <= peers.TOLERANCE[case.dtype]


def test_forward_backward(benchmark, case, contestant):
    if contestant.forward_backward is None:
        pytest.skip("forward only")
    benchmark.group = f"{case}, forward + backward"
    result = benchmark(contestant.forward_backward)
    assert peers.disagreement(result, agreed(case)) <= peers.TOLERANCE[case.dtype]
