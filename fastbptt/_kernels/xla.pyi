from collections.abc import Sequence

MADE_FOR: tuple[int, int]
handler: object
numbers: dict[str, int]

def describe(
    backward: bool,
    itemsize: int,
    cell: int,
    activation: int,
    sizes: Sequence[int],
    arguments: Sequence[str],
    results: Sequence[str],
) -> tuple[int, ...]: ...
def shape_of(numbers_of_problem: Sequence[int], name: str) -> tuple[int, ...]: ...
def version() -> tuple[int, int] | None: ...
