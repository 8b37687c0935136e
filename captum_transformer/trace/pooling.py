"""Where several tokens become one, as in the mean that many models read their scores from."""

import math
from collections.abc import Iterable

from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.axis import Axis, dimension_of
from captum_transformer.trace.dimensions import passage
from captum_transformer.trace.kinds import BY_ENTRY, MOVES, Kind
from captum_transformer.trace.operation import Operand, Operation, Value
from captum_transformer.trace.views import view_of

# Entries of these are entries of one token each, wherever they are.
_KEEPS_TOKENS = BY_ENTRY | MOVES | {Kind.ASKS, Kind.EMBEDDING}


def pools_tokens(operation: Operation) -> bool:
    """Whether an operation makes entries of several tokens that have attended.

    Attention does so, too, but is none: what it makes are tokens again.
    """
    if operation.pattern is not None or (
        operation.kind in _KEEPS_TOKENS and not _picks_entries(operation)
    ):
        return False
    return any(value.attention and _mixes(operation, o, value) for o, value in operation.traced())


def _picks_entries(operation: Operation) -> bool:
    """Whether each feature may be of another token, as of the largest ones."""
    index = operation.argument("index")
    whole = isinstance(index, Operand) and operation.argument("source") is None
    return operation.kind is Kind.MOVE and whole and len(index.size) > 1


def _mixes(operation: Operation, operand: Operand, value: Value) -> bool:
    """Whether entries are made of several ones of a signal that are no features of one token."""
    samples = samples_in(value)
    axes = (*(value.features or ()), *(() if samples is None else samples[:1]))
    parts = [part for axis in axes if (part := dimension_of(axis, operand.size)) is not None]
    return any(
        operand.size[dim] > math.prod(part.size for part in parts if part.dim == dim)
        for dim in passage(operation, operand).mixed
        if _laid_side_by_side(value) != Axis.of(value.shape, dim)
    )


def _laid_side_by_side(value: Value) -> Axis | None:
    """Along which axis signals were joined whose sum is an addition, and pools nothing."""
    operation = value.operation
    if operation is None:
        return None
    if operation.kind in (Kind.STACK, Kind.CONCATENATE):
        alike = len({operand.size for operand in operation.operands}) == 1
        dim = operation.dim(len(value.shape))
        joined = alike and dim is not None
        return Axis.of(value.shape, dim or 0, len(operation.operands)) if joined else None
    view = view_of(operation, value)
    if view is None or len(operation.traced()) != 1:
        return None
    axis = _laid_side_by_side(operation.traced()[0][1])
    return None if axis is None else axis.in_view(view)


def samples_in(value: Value) -> tuple[Axis, slice] | None:
    """Where samples lie in a value, and which of all they are; None if that is not known."""
    if (batch := value.batch) is not None:
        return batch.axis, slice(batch.first, batch.last + 1)
    return None if value.samples is None else (value.samples, slice(None))


def read_from(operations: Iterable[Operation], calls: Iterable[AttentionCall]) -> list[Operation]:
    """The operations that pool the tokens that a score is read from.

    Their tokens have attended, attend no more and were not pooled before.

    Args:
        operations: what leads to the score.
        calls: the attention calls among it.
    """
    found: list[Operation] = []
    outputs: list[Value] = []
    for operation in operations:
        output = operation.outputs[0]
        if operation.edge is None or output is None or not pools_tokens(operation):
            continue
        values = [value for _, value in operation.traced()]
        attends = any(call.output.descends_from(output) for call in calls)
        pooled = any(v is one or v.descends_from(one) for v in values for one in outputs)
        if not attends and not pooled:
            found.append(operation)
            outputs.append(output)
    return found
