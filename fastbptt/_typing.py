"""Short names for the types in signatures, so that `help` shows the arguments rather than how they are typed.

Annotations are for type checkers and readers: nothing evaluates them at run time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike
    from typing import Generic as Generic
    from typing import Literal, Never

    import numpy as np
    import numpy.typing as npt
    from typing_extensions import TypeVar

    F = TypeVar("F", np.float32, np.float64)  # the element type of a call: of all its float arrays
    D = TypeVar("D", bound=np.generic, default=Any)  # that of an object; `Tape` and `Array` without brackets mean any
    S = TypeVar("S", default=Any)  # a state: an array, or of an LSTM a pair of them
    V = TypeVar("V")

    class Attribute(Generic[V]):
        """An attribute that is checked when it is set, and kept as a V."""

        def __get__(self, instance: object, owner: object) -> V: ...
        def __set__(self, instance: object, value: Any) -> None: ...

    class Fixed(Generic[V]):
        """An attribute that cannot be set."""

        def __get__(self, instance: object, owner: object) -> V: ...
        def __set__(self, instance: object, value: Never) -> None: ...
else:
    from typing import TypeVar

    F, D, S = TypeVar("F"), TypeVar("D"), TypeVar("S")

    class Generic:
        """In `typing.Generic`'s place: `Tape[np.float32]` is `Tape`."""

        __slots__ = ()

        def __class_getitem__(cls, _):
            return cls


# As strings, since to build them would take a quarter of a millisecond, and load NumPy's generators.
Array: TypeAlias = "np.ndarray[tuple[Any, ...], np.dtype[D]]"
Pair: TypeAlias = "tuple[Array[D], Array[D]]"
OptionalPair: TypeAlias = "tuple[Array[D] | None, Array[D] | None]"
Float64s: TypeAlias = "np.ndarray[tuple[Any, ...], np.dtype[np.float64]]"
Integers: TypeAlias = "np.ndarray[tuple[Any, ...], np.dtype[np.integer[Any]]]"
Bools: TypeAlias = "np.ndarray[tuple[Any, ...], np.dtype[np.bool_]]"

Int: TypeAlias = "int | np.integer[Any]"
Real: TypeAlias = "float | np.floating[Any] | np.integer[Any]"
Bool: TypeAlias = "bool | np.bool_"
FilePath: TypeAlias = "str | PathLike[str]"
DType: TypeAlias = "npt.DTypeLike"
Seed: TypeAlias = (
    "Int | Sequence[Int] | Integers | np.random.Generator | np.random.BitGenerator | np.random.SeedSequence | np.random.RandomState | None"
)

ClipStep: TypeAlias = "tuple[Literal['value', 'norm'], Real]"
CellName: TypeAlias = "Literal['rnn', 'gru', 'lstm']"
Nonlinearity: TypeAlias = "Literal['tanh', 'relu', 'sigmoid', 'identity']"
