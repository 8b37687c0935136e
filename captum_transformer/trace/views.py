"""How the outputs of view operations lie over their input.

The layers of a model ask for the same shapes, so results are cached.
"""

import operator
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from captum_transformer.trace.axis import View
from captum_transformer.trace.kinds import COPIES, Kind, Role
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.value import Value

# An argument in a form that can be a key: its type, and its parts.
Frozen = tuple[Any, ...]
# Most arguments have these types and can be keys as they are.
_ATOMS = frozenset({int, bool, float, type(None)})
_NOTHING: Frozen = (tuple,)
_MOVE, _EXTENT = Kind.MOVE, Role.EXTENT


def views_of(operation: Operation) -> tuple[View, ...] | None:
    """Returns how the outputs of a view operation lie over its operand, or None if not a view."""
    if operation.kind is not _MOVE:
        return None
    if operation.views is None:
        operation.views = _views_of(operation) or ()
    return operation.views or None


def view_of(operation: Operation, output: Value) -> View | None:
    """Returns how an output lies over a view operation's operand, or None if it isn't a view."""
    views = views_of(operation)
    return None if views is None else views[operation.outputs.index(output)]


def _views_of(operation: Operation) -> tuple[View, ...] | None:
    traced = operation.traced()
    if len(traced) != 1:
        return None
    ((signal, value),) = traced
    for operand in operation.operands:
        if operand is not signal and operand.role is not _EXTENT:
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


Steps = tuple[tuple[Operation, Value], ...]


def ways_back(value: Value) -> dict[Value, Steps]:
    """Returns the values that a value shows some entries of, each with the steps that lead from it.

    The steps are moves and copies of a single signal, each with its output.
    """
    steps: Steps = ()
    found = {value: steps}
    while (operation := value.operation) is not None and operation.kind in COPIES:
        traced = operation.traced()
        if len(traced) != 1:
            break
        steps = ((operation, value), *steps)
        ((_, value),) = traced
        found[value] = steps
    return found


def view_through(shape: tuple[int, ...], steps: Sequence[tuple[Operation, Value]]) -> View | None:
    """Returns how what several steps make lies over a contiguous tensor, or None if not a view."""
    source = shown = torch.empty(shape, device="meta")
    for operation, output in steps:
        if operation.kind is Kind.COPY:
            continue
        if views_of(operation) is None:
            return None
        shown = run_frozen(operation.call, *frozen_arguments(operation), shown)
        shown = (
            shown[operation.outputs.index(output)] if isinstance(shown, (tuple, list)) else shown
        )
    same = shown.untyped_storage()._cdata == source.untyped_storage()._cdata
    return View.of(shown) if same else None


def part_in_brackets(signal: Operand, brackets: Any) -> View | None:
    """Returns the part of a tensor that an index picks, or None if that is not a view."""
    views = _lie(operator.getitem, tuple(signal.size), _frozen((signal, brackets)), _frozen(()))
    return None if views is None else views[0]


def frozen_arguments(operation: Operation) -> tuple[Frozen, Frozen]:
    """Returns the arguments of an operation on one tensor, in a form that can be a key."""
    kwargs = operation.kwargs
    return _frozen(operation.args), _frozen(tuple(kwargs.items())) if kwargs else _NOTHING


def run_frozen(call: Callable[..., Any], args: Frozen, kwargs: Frozen, source: Tensor) -> Any:
    """Runs an operation on another tensor, with arguments from `frozen_arguments`."""
    return call(*_thawed(args, source), **dict(_thawed(kwargs, source)))


def _frozen(argument: Any) -> Frozen:
    kind = type(argument)
    if kind in _ATOMS:
        return (kind, argument)
    if kind is Operand:
        # torch has already read such a number, too, when it ran the operation.
        return _frozen(argument.tensor.tolist()) if argument.role is _EXTENT else (Operand,)
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
