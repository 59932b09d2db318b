from collections.abc import Sequence
from typing import Self

from typing_extensions import disjoint_base

@disjoint_base
class Borrowed:
    @property
    def shape(self) -> tuple[int, ...]: ...
    def __new__(cls, owner: object, address: int, shape: Sequence[int], itemsize: int) -> Self: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
