"""Models on our kernels and back: in place, with the same parameters, by another class of each recurrent module."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from torch.nn.utils import parametrize

from .modules import GRU, LSTM, OPTIONS, OURS, RNN, Recurrent, native_class

KINDS = {torch.nn.RNN: RNN, torch.nn.GRU: GRU, torch.nn.LSTM: LSTM}
_made: dict[type, type] = {}  # ours, by the user's class
_unpatched = torch.nn.RNNBase.__init__
_patches, _lock = 0, Lock()  # how many contexts of `patch` there are


class Changed(int):
    """How many modules were changed.

    Attributes
    ----------
    skipped : dict of str to str
        Recurrent modules that were left as they were, by name, and why.
    """

    skipped: dict[str, str]

    def __new__(cls, count: int, skipped: dict[str, str]) -> Changed:
        changed = super().__new__(cls, count)
        changed.skipped = skipped
        return changed

    def __getnewargs__(self) -> tuple[int, dict[str, str]]:  # type: ignore[override]  # int itself has one argument
        return int(self), self.skipped

    def __repr__(self) -> str:
        modules = f"{int(self)} module{'' if self == 1 else 's'} changed"
        return "; ".join([modules, *(f"{name or 'the model'} skipped: {why}" for name, why in self.skipped.items())])


def accelerate(model: torch.nn.Module) -> Changed:
    """Let the recurrent modules of a model run on our kernels from now on: `torch.nn.RNN`, `GRU`, `LSTM` and their subclasses.

    Only their class becomes another. Parameters, hooks, names and state_dict stay; a copy stays accelerated, and what is pickled is as
    before. Do it last: what looks for modules by ``type(module) is torch.nn.LSTM``, as quantisation does, does not find them any more.

    Parameters
    ----------
    model : torch.nn.Module
        Or a recurrent module itself.

    Returns
    -------
    Changed
        An int, how many modules were changed, whose ``skipped`` says of the others why not.

    Raises
    ------
    TypeError
        If ``model`` is no module.

    See Also
    --------
    restore, patch

    Examples
    --------
    >>> import torch, fastbptt.torch
    >>> model = torch.nn.Sequential(torch.nn.GRU(3, 8, batch_first=True))
    >>> fastbptt.torch.accelerate(model)
    1 module changed
    >>> out, h_n = model(torch.randn(4, 10, 3))
    >>> model[0].fallbacks                                               # why calls took PyTorch's own path: none did
    Counter()
    """
    count, skipped = 0, {}
    for name, module in _modules(model):
        if isinstance(module, torch.nn.RNNBase) and not isinstance(module, Recurrent):
            why = _why_not(module)
            if why is None:
                module.__class__ = _on(type(module), _ours)
                count += 1
            else:
                skipped[name] = why
    return Changed(count, skipped)


def restore(model: torch.nn.Module) -> Changed:
    """Make the recurrent modules of a model PyTorch's own again, or the user's subclasses of them: the reverse of `accelerate`.

    Parameters
    ----------
    model : torch.nn.Module

    Returns
    -------
    Changed

    Raises
    ------
    TypeError
        If ``model`` is no module.

    Examples
    --------
    >>> import torch, fastbptt.torch
    >>> model = fastbptt.torch.GRU(3, 8)
    >>> fastbptt.torch.restore(model)
    1 module changed
    >>> type(model) is torch.nn.GRU
    True
    """
    count = 0
    for _, module in _modules(model):
        if isinstance(module, Recurrent):
            module.__class__ = _on(type(module), native_class)
            for name in (*OURS, *OPTIONS):
                module.__dict__.pop(name, None)
            count += 1
    return Changed(count, {})


@contextmanager
def patch() -> Iterator[None]:
    """Accelerate every recurrent module that is made while the context lasts, by whatever code; they stay so.

    For the whole process, in all its threads.

    Examples
    --------
    >>> import torch, fastbptt.torch
    >>> with fastbptt.torch.patch():
    ...     model = torch.nn.Sequential(torch.nn.GRU(3, 8))
    >>> isinstance(model[0], fastbptt.torch.GRU)
    True
    """
    _count_patches(1)
    try:
        yield
    finally:
        _count_patches(-1)


def _count_patches(change: int) -> None:
    """The first context that is entered patches the constructor, and the last one that is left, which need not be the same, restores it."""
    global _patches
    with _lock:
        _patches += change
        torch.nn.RNNBase.__init__ = _patched if _patches else _unpatched


def _patched(self: Any, *arguments: Any, **options: Any) -> None:
    _unpatched(self, *arguments, **options)
    accelerate(self)


def _modules(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    return model.named_modules()


def _why_not(module: torch.nn.RNNBase) -> str | None:
    """Why another class would not do, or None."""
    if not isinstance(module, tuple(KINDS)):
        return f"{type(module).__name__} is a subclass of none of RNN, GRU and LSTM"
    if "forward" in module.__dict__:
        return "its forward was replaced on the module itself"
    for kind in type(module).__mro__:
        if kind in KINDS:
            break
        forward = vars(kind).get("forward")
        if forward is not None and not _calls_super(forward):
            return f"{kind.__qualname__}.forward does not call super().forward"
    return None


def _calls_super(function: Any) -> bool:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code is not None and "super" in code.co_names


def _on(kind: type, base_of: Any) -> type:
    """A module's class in place of ours or PyTorch's. A parametrized module has a class of its own, made by PyTorch, to be made anew."""
    if kind.__module__ != parametrize.__name__:
        return base_of(kind)
    members = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    base = base_of(kind.__bases__[0])
    if not hasattr(base, "__deepcopy__"):
        members.setdefault("__deepcopy__", Recurrent.__deepcopy__)
    return type(kind.__name__, (base,), members)


def _ours(kind: type) -> type:
    """Our class in place of PyTorch's, or below the user's, where ``super().forward`` reaches it."""
    if kind in KINDS:
        return KINDS[kind]
    if kind not in _made:
        base = next(KINDS[parent] for parent in kind.__mro__ if parent in KINDS)
        _made[kind] = type(
            kind.__name__, (kind, base), {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
        )
    return _made[kind]
