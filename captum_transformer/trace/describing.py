"""Describes a call before it runs: its kind, and an operand in place of each of its tensors."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket

from captum_transformer.trace.functions import Function
from captum_transformer.trace.kinds import Kind, Role
from captum_transformer.trace.nested import leaves, mapped
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.tape import Tape
from captum_transformer.trace.value import Value

_MAY_HOLD_TENSORS = (tuple, list, dict)
_HOLD_NONE = frozenset({int, float, bool, str, type(None), slice})
_ATTENTIONS = frozenset({Kind.SOFTMAX, Kind.ATTENTION})


def described(
    tape: Tape, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Operation:
    """Returns the operation for a call that has not run yet.

    Args:
        tape: the tape, which knows what the call's tensors hold.
        function: what is known about the function.
        args: its arguments by position.
        kwargs: its arguments by name.
    """
    operands: list[Operand] = []
    find = tape.find if torch.is_grad_enabled() else tape.find_without_gradient
    by_place, by_name, roles = list(args), kwargs, function.roles
    last = len(roles) - 1
    for place, argument in enumerate(args):
        if type(argument) in _HOLD_NONE:
            continue
        role = roles[place if place < last else last]
        if isinstance(argument, Tensor):
            by_place[place] = operand = Operand(argument, find(argument), role)
            operands.append(operand)
        elif isinstance(argument, tuple) and _HOLD_NONE.issuperset(map(type, argument)):
            continue  # most shapes; a list is copied, as the model may change it
        elif isinstance(argument, _MAY_HOLD_TENSORS):
            by_place[place] = _with_operands(argument, role, find, operands)
    if kwargs:
        by_name = kwargs.copy()
        for name, argument in kwargs.items():
            if type(argument) not in _HOLD_NONE:
                by_name[name] = _with_operands(argument, function.role_of(name), find, operands)
    given, kind, bound = tuple(by_place), function.kind, None
    if function.kind_by is not None:
        bound = function.bind(given, by_name)
        kind = function.kind_by(bound)
    if len(operands) > 1:
        _leave_out_constants(operands)
    return Operation(len(tape.operations), function, kind, given, by_name, operands, bound)


def _with_operands(
    argument: Any,
    role: Role,
    find: Callable[[Tensor], Value | None],
    operands: list[Operand],
) -> Any:
    """Replaces each tensor in an argument by an operand, and appends these to ``operands``."""

    def operand(tensor: Tensor) -> Operand:
        new = Operand(tensor, find(tensor), role)
        operands.append(new)
        return new

    return mapped(operand, Tensor, argument)


def _leave_out_constants(operands: list[Operand]) -> None:
    """Leaves out operands that are constants next to a signal: ids, indices and learned tokens."""
    from_inputs = learned = ids = False
    for operand in operands:
        if (value := operand.value) is None:
            continue
        if value.holds_ids:
            ids = True
        elif value.learned:
            learned = True
        else:
            from_inputs = True
    if not learned and not (ids and from_inputs):
        return
    for operand in operands:
        value = operand.value
        if value is None or not (value.holds_ids or (from_inputs and value.learned)):
            continue
        if value.learned and value.keys is None:
            operand.tokens = value
        operand.value = None


def written_by(
    operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Sequence[Tensor]:
    """The tensors that a call writes into."""
    in_place = operation.function.inplace or operation.asks_to_write
    if not (in_place or "out" in kwargs):
        return ()
    written = list(leaves(Tensor, kwargs["out"])) if "out" in kwargs else []
    first = args[0] if args else kwargs.get("input")
    if in_place and isinstance(first, Tensor):
        written.insert(0, first)
    return written


def declared_writes(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[Tensor]:
    """Yields the tensors that a kernel writes into according to its schema, whatever its name."""
    for place, name in _declared_by(func):
        given = args[place] if place < len(args) else kwargs.get(name)
        yield from leaves(Tensor, given)


@cache
def _declared_by(func: Callable[..., Any]) -> tuple[tuple[int, str], ...]:
    """Returns the places and names of the arguments that a kernel writes into."""
    kernel: Any = func
    if inspect.isbuiltin(func):
        kernel = getattr(torch.ops.aten, func.__name__, None)
    if not isinstance(kernel, (OpOverload, OpOverloadPacket)):
        return ()
    overloads: list[Any] = [kernel]
    if isinstance(kernel, OpOverloadPacket):
        names: Any = kernel.overloads()  # type: ignore[no-untyped-call]
        overloads = [getattr(kernel, name) for name in names]
    return tuple(
        {
            (place, argument.name): None
            for overload in overloads
            for place, argument in enumerate(overload._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        }
    )


def attends_learned(operation: Operation) -> bool:
    """Whether learned queries attend to each other (as in DETR)."""
    operands = operation.operands
    if operation.function.kind not in _ATTENTIONS or not torch.is_grad_enabled():
        return False
    if any(torch._C._functorch.is_batchedtensor(operand.given) for operand in operands):
        # Tensors inside `torch.vmap` differ from those outside, where the result is refused.
        return False
    return bool(operands) and operands[0].dtype.is_floating_point and len(operands[0].size) > 1
