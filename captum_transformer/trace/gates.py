"""Activations written in Python: functions of one signal that work on each entry separately."""

from typing import NamedTuple

import torch
from torch import Tensor

from captum_transformer.trace.along import ends_of_softmax, is_of_one_number
from captum_transformer.trace.axis import View
from captum_transformer.trace.kinds import AS_OTHERS, ENTRIES_ALONE, MOVES, Form, Kind
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.statistics import takes_number
from captum_transformer.trace.value import Value
from captum_transformer.trace.views import view_of

_PIECES = frozenset({Form.STEP, Form.PIECES, Form.POWER})
# The kinds that move entries or write them at indices.
MOVED = (MOVES - AS_OTHERS) | {Kind.SUM_AT_INDICES}
_ACTIVATIONS = frozenset({Kind.ENTRYWISE, Kind.RECIPROCAL})


class OfEntry(NamedTuple):
    """An entry-wise function of one value, in any number of operations.

    Attributes:
        source: the value.
        operations: the operations, the last one first.
        moves: whether entries were moved, masked or written in between.
    """

    source: Value
    operations: list[Operation]
    moves: bool = False


def of_one_entry(*values: Value, moved: bool = False) -> OfEntry | None:
    """Returns the entry-wise function that made all values from a single value, or None.

    Args:
        values: the results of the function.
        moved: whether entries may have been moved, with constants next to them.
    """
    source_of = (lambda value: value) if moved else unjoined
    frontier, operations, moves = set(map(source_of, values)), list[Operation](), False
    while len(frontier) > 1:
        latest = max(frontier, key=lambda value: value.index)
        frontier.remove(latest)
        operation = latest.operation
        if operation is None:
            return None
        sources = [source for _, source in operation.traced()]
        alike = all(source.shape == latest.shape for source in sources)
        if not (alike and works_by_entry(operation)):
            if not moved or operation.kind not in MOVED or latest.dtype.is_complex:
                return None
            moves = True
        operations.append(operation)
        frontier.update(map(source_of, sources))
    return OfEntry(frontier.pop(), operations, moves)


def are_of_one_entry(*values: Value) -> bool:
    """Whether all values are entry-wise functions of a single value."""
    return of_one_entry(*values) is not None


def may_be_step(operation: Operation) -> OfEntry | None:
    """Returns the entry-wise function that an operation of several signals completes.

    The result is None if there is none or if it is smooth. A function made only of smooth functions
    is never a step function. One made of other functions may be, even if each of them has a slope:
    ``x - x % 1`` rounds down, and ``x / x.abs()`` is the sign.
    """
    values = [value for _, value in operation.traced()]
    if len(values) < 2 or not works_by_entry(operation) or values[0].dtype.is_complex:
        return None
    found = of_one_entry(*values, moved=True)
    return found if found is not None and any(map(_has_pieces, found.operations)) else None


def _has_pieces(operation: Operation) -> bool:
    exponent = operation.argument("exponent")
    if isinstance(exponent, (int, float)) and exponent == int(exponent):
        return False
    return operation.form in _PIECES


def unjoined(value: Value) -> Value:
    """Returns the value before it was joined to others and cut out again, or the value itself."""
    while (cut := value.operation) is not None and cut.kind is Kind.MOVE:
        view = view_of(cut, value)
        whole = cut.traced()[0][1]
        join = whole.operation
        if view is None or join is None or join.kind not in (Kind.CONCATENATE, Kind.STACK):
            break
        part = next((v for o, v in join.traced() if _place(join, o, whole) == view), None)
        if part is None:
            break
        value = part
    return value


def _place(join: Operation, part: Operand, whole: Value) -> View | None:
    """Returns how one of the joined operands lies in the joined value."""
    dim = join.dim(len(whole.shape))
    if dim is None:
        return None
    joined = torch.empty(whole.shape, device="meta")
    place = join.operands.index(part)
    if join.kind is Kind.STACK:
        return View.of(joined.select(dim, place))
    # One-dimensional empty tensors can be joined to tensors of any shape.
    sizes = (operand.size for operand in join.operands[:place])
    ahead = sum(size[dim] for size in sizes if len(size) == len(whole.shape))
    if len(part.size) != len(whole.shape):
        return None
    return View.of(joined.narrow(dim, ahead, part.size[dim]))


def is_of_one_entry(operation: Operation) -> bool:
    """Whether a softmax or similar function is of one entry and constants: ``softmax([x, 0])``.

    Then it is an activation such as a sigmoid. The scores of a single key joined with an attention
    sink don't count: they are made of queries and keys.
    """
    ends = ends_of_softmax(operation)
    return ends is not None and is_of_one_number(ends)


def works_by_entry(operation: Operation) -> bool:
    """Whether each entry of the output depends only on the signals' entries at its position."""
    if operation.kind in ENTRIES_ALONE:
        return True
    if operation.kind is Kind.MAXIMUM:  # of two tensors
        return operation.along(len(operation.traced()[0][1].shape)) == ()
    product = operation.contraction()
    return product is not None and all(
        product.of(operand) == product.output or operand is product.addend
        for operand, _ in operation.traced()
    )


def is_activated(value: Value) -> bool:
    """Whether a value is the output of a rule for activations, up to numbers and moved entries."""
    while (operation := value.operation) is not None:
        if operation.activates and operation.kind in _ACTIVATIONS:
            return True
        passes = operation.kind in MOVES or operation.kind in (Kind.COPY, Kind.HOMOGENEOUS)
        if len(operation.traced()) != 1 or not (passes or takes_number(operation)):
            return False
        ((_, value),) = operation.traced()
    return False


def steps_with_numbers(value: Value) -> list[Operation]:
    """Returns the steps before an activation that scale or add numbers, as in ``log(1 + x)``."""
    operation = value.operation
    if operation is None or not takes_number(operation) or is_activated(value):
        return []
    ((_, source),) = operation.traced()
    return [*steps_with_numbers(source), operation]


def constant_term(steps: list[Operation]) -> Tensor | None:
    """Returns the result of some steps for an input of zero, or None if they add nothing."""
    if not any(operation.kind in (Kind.ADD, Kind.SUB) for operation in steps):
        return None
    number = torch.zeros((), dtype=torch.float64)
    for operation in steps:
        (number,) = operation.replay([number])
    return number
