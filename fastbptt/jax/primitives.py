"""What JAX must know of a forward and a backward pass: shapes, how to run it, to differentiate it, and to batch it.

`forward` has results only until it is differentiated: then it is bound once more, and keeps a tape. Its tangents are those of a linear
primitive, `tangents`, which exists to be transposed: that gives `backward`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from .._kernels import xla
from ..cells import CELLS, NONLINEARITIES
from .target import NAME, require_known

WEIGHTS = "w_ih", "w_hh", "b_ih", "b_hh", "w_hr", "leak"
READ_BACKWARD = "x", "tokens", "lengths", "resets", "w_ih", "w_hh", "w_hr", "leak"
BATCH_AXIS = {"lengths": 0, "h0": 0, "c0": 0, "h_n": 0, "c_n": 0}  # of all other arrays that have one, 1
DIFFERENTIABLE = "x", "w_ih", "w_hh", "b_ih", "b_hh", "w_hr", "h0", "c0"


class Call(NamedTuple):
    """What a forward pass is, but for its arrays."""

    cell: str
    nonlinearity: str
    names: tuple[str, ...]  # of its arguments
    keep: bool = False  # a tape

    @property
    def ragged(self) -> bool:
        """Whether the layout of the tape is the kernels' own."""
        return "lengths" in self.names or "resets" in self.names

    @property
    def outputs(self) -> tuple[str, ...]:
        return "out", *[f"{state}_n" for state in CELLS[self.cell].states]

    @property
    def results(self) -> tuple[str, ...]:
        """What the primitive returns. Outputs are in the tape, too, but JAX's arrays cannot share memory."""
        return self.outputs + self.tape

    @property
    def tape(self) -> tuple[str, ...]:
        cell = CELLS[self.cell]
        if not self.keep:
            return ()
        return (
            *cell.states,
            *(["gates"] if cell.tape_gates or "leak" in self.names else []),
            *(["m"] if cell.reset_after else []),
        )

    @property
    def read_backward(self) -> tuple[str, ...]:
        return (*[name for name in self.names if name in READ_BACKWARD], *self.tape)


class Back(NamedTuple):
    """What a backward pass is, but for its arrays."""

    call: Call
    given: tuple[str, ...]  # outputs that have a gradient
    wanted: tuple[str, ...]  # arguments whose gradients are wanted

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.call.read_backward, *[f"d_{name}" for name in self.given])

    @property
    def results(self) -> tuple[str, ...]:
        """The kernels write gradients of the matrices in any case."""
        always = [name for name in ("w_ih", "w_hh", "w_hr") if name in self.call.names and name not in self.wanted]
        return tuple(f"d{name}" for name in (*self.wanted, *always))


class Linear(NamedTuple):
    """The tangents of a forward pass that has kept its tape."""

    call: Call
    moving: tuple[str, ...]  # arguments that have one

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.call.read_backward, *[f"{name}_dot" for name in self.moving])


# --- Shapes, and the call itself --------------------------------------------------------------------------------------


def described(run: Call | Back, shapes: Sequence[Any]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """The problem in integers, for the handler; and the dtype."""
    call = run if isinstance(run, Call) else run.call
    by_name = dict(zip(run.names, shapes))
    dtype = np.dtype(by_name["w_hh"].dtype)
    T, B = by_name["x" if "x" in by_name else "tokens"].shape[:2]
    I, (N, P) = by_name["w_ih"].shape[1], by_name["w_hh"].shape
    cell = CELLS[call.cell]
    sizes = T, B, I, N // len(cell.gates), P
    activation = NONLINEARITIES[call.nonlinearity].number
    results = (*run.results, "workspace")
    return xla.describe(isinstance(run, Back), dtype.itemsize, cell.number, activation, sizes, run.names, results), dtype


def result_shapes(*shapes: Any, run: Call | Back) -> list[Any]:
    numbers, dtype = described(run, shapes)
    return [jax.core.ShapedArray(xla.shape_of(numbers, name), dtype) for name in run.results]


def run_handler(*arrays: Any, run: Call | Back) -> list[Any]:
    require_known(xla.version())
    numbers, dtype = described(run, arrays)
    shapes = [jax.ShapeDtypeStruct(xla.shape_of(numbers, name), dtype) for name in run.results]
    workspace = jax.ShapeDtypeStruct(xla.shape_of(numbers, "workspace"), np.uint8)
    return jax.ffi.ffi_call(NAME, [*shapes, workspace])(*arrays, problem=np.array(numbers, np.int64))[:-1]


def shapes_of_tangents(*shapes: Any, run: Linear) -> list[Any]:
    known = shapes[: len(run.call.read_backward)]
    by_name = dict(zip(run.call.read_backward, known))
    rows = by_name["x" if "x" in by_name else "tokens"].shape[:2]
    N, P = by_name["w_hh"].shape
    widths = {"out": (*rows, P), "h_n": (rows[1], P), "c_n": (rows[1], N // len(CELLS[run.call.cell].gates))}
    return [jax.core.ShapedArray(widths[name], by_name["w_hh"].dtype) for name in run.call.outputs]


def refused(what: str) -> Callable[..., Any]:
    def refuse(*_: Any, run: Any, **__: Any) -> Any:
        call = run if isinstance(run, Call) else run.call
        raise NotImplementedError(f"fastbptt.jax.{call.cell}: {what}")

    return refuse


def refused_lowering(what: str) -> Callable[..., Any]:
    refuse = refused(what)

    def refuse_lowering(context: Any, *_: Any, run: Any) -> Any:
        platforms = context.platforms or context.module_context.platforms
        return refuse(run=run) if "%s" not in what else refused(what % ", ".join(platforms))(run=run)

    return refuse_lowering


FORWARD_MODE = "there is no forward mode (jvp, jacfwd, linearize that is called): expected jax.grad, vjp or jacrev"
SECOND_ORDER = "there are no second derivatives (grad of grad, hessian, jvp of a gradient)"
OTHER_PLATFORM = 'it runs on the CPU alone, got platform %s: expected jax.jit under jax.default_device(jax.devices("cpu")[0])'


def primitive(name: str, shapes: Callable[..., list[Any]]) -> Primitive:
    made = Primitive(f"fastbptt_{name}")
    made.multiple_results = True
    made.def_abstract_eval(shapes)
    compiled = jax.jit(lambda *arrays, run: made.bind(*arrays, run=run), static_argnames="run")

    @made.def_impl
    def run_now(*arrays: Any, run: Any) -> Any:
        with jax.disable_jit(False):  # there is no other way to run it
            return compiled(*arrays, run=run)

    return made


forward = primitive("forward", result_shapes)
backward = primitive("backward", result_shapes)
tangents = primitive("tangents", shapes_of_tangents)

for each in (forward, backward):
    mlir.register_lowering(each, refused_lowering(OTHER_PLATFORM))
    mlir.register_lowering(each, mlir.lower_fun(run_handler, multiple_results=True), platform="cpu")
mlir.register_lowering(tangents, refused_lowering(FORWARD_MODE))


# --- Derivatives ------------------------------------------------------------------------------------------------------


def differentiate(primals: Sequence[Any], dots: Sequence[Any], *, run: Call) -> tuple[list[Any], list[Any]]:
    if run.keep:
        refused(SECOND_ORDER)(run=run)
    kept = run._replace(keep=True)
    arrays = dict(zip(run.names, primals)) | dict(zip(kept.results, forward.bind(*primals, run=kept)))
    moving = {name: dot for name, dot in zip(run.names, dots) if type(dot) is not ad.Zero}
    if "leak" in moving:
        raise NotImplementedError("leak: there is no gradient of it; expected a constant, as jax.lax.stop_gradient makes one")
    moving = {name: dot for name, dot in moving.items() if name in DIFFERENTIABLE}
    linear = Linear(kept, tuple(moving))
    outputs = [arrays[name] for name in run.outputs]
    return outputs, tangents.bind(*[arrays[name] for name in kept.read_backward], *moving.values(), run=linear)


def transpose(cotangents: Sequence[Any], *operands: Any, run: Linear) -> list[Any]:
    known, moving = operands[: len(run.call.read_backward)], operands[len(run.call.read_backward) :]
    given = {name: d for name, d in zip(run.call.outputs, cotangents) if type(d) is not ad.Zero}
    if not given:
        return [None] * len(known) + [ad.Zero(dot.aval) for dot in moving]
    back = Back(run.call, tuple(given), run.moving)
    return [None] * len(known) + list(backward.bind(*known, *given.values(), run=back))[: len(moving)]


def refuse_second_order(primals: Sequence[Any], dots: Sequence[Any], *, run: Any) -> Any:
    refused(SECOND_ORDER)(run=run)


ad.primitive_jvps[forward] = differentiate
ad.primitive_jvps[tangents] = refuse_second_order
ad.primitive_jvps[backward] = refuse_second_order
ad.primitive_transposes[tangents] = transpose


# --- Batches of batches -----------------------------------------------------------------------------------------------


def one_by_one(made: Primitive, arrays: Sequence[Any], axes: Sequence[int | None], *, run: Any) -> tuple[list[Any], list[int]]:
    """A call for each of the mapped axis."""
    mapped = [jnp.moveaxis(array, axis, 0) for array, axis in zip(arrays, axes) if axis is not None]

    def one(each: Iterable[Any]) -> Any:
        each = iter(each)
        return made.bind(*[array if axis is None else next(each) for array, axis in zip(arrays, axes)], run=run)

    results = jax.lax.map(one, mapped)
    return results, [0] * len(results)


def batch_forward(arrays: Sequence[Any], axes: Sequence[int | None], *, run: Call) -> tuple[list[Any], list[int]]:
    """One call with all rows, where all have the same weights; a call has at least one."""
    (size,) = {array.shape[axis] for array, axis in zip(arrays, axes) if axis is not None}
    if any(axis is not None for name, axis in zip(run.names, axes) if name in WEIGHTS) or (run.keep and run.ragged) or not size:
        return one_by_one(forward, arrays, axes, run=run)

    def fold(name: str, array: Any, axis: int | None) -> Any:
        if name in WEIGHTS:
            return array
        at = BATCH_AXIS.get(name, 1)
        array = jnp.moveaxis(jnp.broadcast_to(array, (size, *array.shape)) if axis is None else array, axis or 0, at)
        return array.reshape(*array.shape[:at], size * array.shape[at + 1], *array.shape[at + 2 :])

    results = forward.bind(*[fold(*each) for each in zip(run.names, arrays, axes)], run=run)
    places = [BATCH_AXIS.get(name, 1) for name in run.results]
    unfolded = [
        result.reshape(*result.shape[:at], size, result.shape[at] // size, *result.shape[at + 1 :]) for result, at in zip(results, places)
    ]
    return unfolded, places


batching.primitive_batchers[forward] = batch_forward
batching.primitive_batchers[backward] = partial(one_by_one, backward)
batching.primitive_batchers[tangents] = partial(one_by_one, tangents)
