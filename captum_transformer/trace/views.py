"""How the results of operations that only look at a tensor in another way lie over it.

The layers of a model ask the same of the same shapes, so answers are kept.
"""

import operator
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from captum_transformer.trace.axis import View
from captum_transformer.trace.kinds import Kind, Role
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.value import Value

# An argument that can be a key: its type, and what it consists of.
Frozen = tuple[Any, ...]
# Most arguments are such; they are keys as they are.
_ATOMS = frozenset({int, bool, float, type(None)})
_NOTHING: Frozen = (tuple,)


def views_of(operation: Operation) -> tuple[View, ...] | None:
    """The outputs of a view operation over its one operand; None if it is none."""
    if operation.kind is not Kind.MOVE:
        return None
    if operation.views is None:
        operation.views = _views_of(operation) or ()
    return operation.views or None


def view_of(operation: Operation, output: Value) -> View | None:
    """How an output lies over the one operand of a view operation; None if it is none."""
    views = views_of(operation) if operation.kind is Kind.MOVE else None
    return None if views is None else views[operation.outputs.index(output)]


def _views_of(operation: Operation) -> tuple[View, ...] | None:
    traced = operation.traced()
    if len(traced) != 1:
        return None
    ((signal, value),) = traced
    for operand in operation.operands:
        if operand is not signal and operand.role is not Role.EXTENT:
            return None
    return _lie(operation.call, tuple(value.shape), *frozen_arguments(operation))


@lru_cache(maxsize=4096)
def _lie(
    call: Callable[..., Any], shape: tuple[int, ...], args: Frozen, kwargs: Frozen
) -> tuple[View, ...] | None:
    """Runs the operation on a contiguous tensor without data."""
    source = torch.empty(shape, device="meta")
    out = run_frozen(call, args, kwargs, source)
    views: list[Tensor] = list(out) if isinstance(out, (tuple, list)) else [out]
    storage = source.untyped_storage()._cdata
    if any(view.untyped_storage()._cdata != storage for view in views):
        return None
    return tuple(View.of(view) for view in views)


def part_in_brackets(signal: Operand, brackets: Any) -> View | None:
    """The part of a tensor that an index picks; None if that is no view."""
    views = _lie(operator.getitem, tuple(signal.size), _frozen((signal, brackets)), _frozen(()))
    return None if views is None else views[0]


def frozen_arguments(operation: Operation) -> tuple[Frozen, Frozen]:
    """The arguments of an operation on one tensor, as keys."""
    kwargs = operation.kwargs
    return _frozen(operation.args), _frozen(tuple(kwargs.items())) if kwargs else _NOTHING


def run_frozen(call: Callable[..., Any], args: Frozen, kwargs: Frozen, source: Tensor) -> Any:
    """Runs an operation on another tensor, with arguments that were keys."""
    return call(*_thawed(args, source), **dict(_thawed(kwargs, source)))


def _frozen(argument: Any) -> Frozen:
    kind = type(argument)
    if kind in _ATOMS:
        return (kind, argument)
    if kind is Operand:
        # torch has read a number of the model's own by now, too.
        return _frozen(argument.tensor.tolist()) if argument.role is Role.EXTENT else (Operand,)
    if isinstance(argument, (tuple, list)):
        parts = [(type(p), p) if type(p) in _ATOMS else _frozen(p) for p in argument]
        return (list if isinstance(argument, list) else tuple, *parts)
    if kind is slice:
        return (slice, argument.start, argument.stop, argument.step)
    return (kind, argument)


def _thawed(frozen: Frozen, source: Tensor) -> Any:
    kind, *parts = frozen
    if kind is Operand:
        return source
    if kind is slice:
        return slice(*parts)
    if kind in (tuple, list):
        return kind(_thawed(part, source) for part in parts)
    return parts[0]
