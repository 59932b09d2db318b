from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from typing_extensions import disjoint_base

from fastbptt._typing import Array

@disjoint_base
class Block:
    def __new__(cls, size: int) -> Self: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

def empty(shape: Sequence[int], dtype: np.dtype[Any]) -> Array: ...
def zeros(shape: Sequence[int], dtype: np.dtype[Any]) -> Array: ...
