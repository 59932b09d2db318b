"""Passes that have come as far as the kernels: one of them alone, or two side by side.

A pass (`functional.begin_forward`, `begin_backward`) is three things: what the kernels are to do, bound to its arrays, or None if that is done
or nothing; the outputs that this fills step by step, or None if they are put together afterwards; and a function that, when it is done,
returns what the caller gets, the outputs first.

Of two passes, the second is what a function prepares and returns while a helper is at work on the first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._typing import Array

Pass = tuple[Any, Any, Callable[[], Any]]


def alone(bound: Any, _: Any, finish: Callable[[], Any]) -> Any:
    """What a pass returns."""
    if bound is not None:
        bound.run()
    return finish()


def both(first: Pass, second: Callable[[], Pass], *, behind: bool = False) -> tuple[Any, Any]:
    """What two passes of the same sizes return: two that have nothing to do with each other, or the second reads what the first fills."""
    bound, _, finish = first
    if bound is None:
        return finish(), alone(*second())
    with bound.with_another(behind) as pair:
        other, _, finish_other = second()
        pair.run(other)
    return finish(), finish_other()


def one_behind(first: Pass, second: Callable[[Array], Pass]) -> tuple[Any, Any]:
    """What two passes return of which the second reads the outputs of the first."""
    bound, out, _ = first
    if bound is None or out is None:
        result = alone(*first)
        return result, alone(*second(result[0]))
    return both(first, lambda: second(out), behind=True)
