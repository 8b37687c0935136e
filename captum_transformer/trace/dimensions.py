"""Where a dimension of an operand lies in the output of its operation."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from captum_transformer.trace.axis import Axis, View
from captum_transformer.trace.indices import moved_dims
from captum_transformer.trace.kinds import CONVOLUTIONS, Kind
from captum_transformer.trace.lookups import features_begin
from captum_transformer.trace.nested import mapped
from captum_transformer.trace.operation import Operand, Operation, Value

_ALWAYS_REDUCES = frozenset({Kind.SUM, Kind.MEAN})
_MAY_REDUCE = frozenset(
    {Kind.MAXIMUM, Kind.SMOOTH_MAXIMUM, Kind.CHOICE, Kind.DISTANCE, Kind.DERIVED}
)


def carried(
    operation: Operation, operand: Operand, axis: Axis, output: Value, view: View | None
) -> Axis | None:
    """An axis of an operand in an output of the operation; None if it is not kept."""
    if view is not None:
        return axis.in_view(view)
    before, after = operand.size, output.shape
    dim = axis.dim(before)
    if dim is None:
        return _kept_within(operation, before, axis, after)
    product = operation.contraction()
    contracted = []
    if operation.kind in CONVOLUTIONS:
        contracted = [len(before) - len(operation.argument("weight").size) + 1]
    if product is not None:
        contracted = product.summed(operand)
    # An axis of length one could be any dimension of length one.
    if any(dim == gone or axis.size == before[gone] == 1 for gone in contracted):
        return None
    moved: int | None = None
    if operation.kind is Kind.EMBEDDING:
        return None if features_begin(operation) is None else axis.kept(before, after)
    if operation.argument("brackets") is not None:
        moved = moved_by_brackets(operation, before, dim)
        if moved is None:
            return None
    elif product is not None:
        moved = product.moved(operand, dim) if product.of(operand) else None
        if moved is None:
            return axis.kept(before, after) if operand is product.addend else None
    elif operation.kind is Kind.STACK:
        at = operation.dim(len(after), 0) or 0
        moved = dim + (at <= dim)
    elif _reduces(operation, before, after):
        gone = _reduced(operation, len(before))
        if dim in gone:
            return None
        if len(after) < len(before):
            moved = dim - sum(d < dim for d in gone)
    elif len(after) > len(before) and operation.kind is not Kind.AS_REAL:
        moved = dim + len(after) - len(before)
    if moved is not None:
        if moved >= len(after):
            return None
        return Axis.of(after, moved, axis.size) if after[moved] == before[dim] else None
    return axis.kept(before, after)


def moved_by_brackets(operation: Operation, before: Sequence[int], dim: int) -> int | None:
    """Where ``tensor[brackets]`` leaves a dimension; None if it picks along it."""

    def shaped(operand: Operand) -> Tensor:
        return torch.empty(operand.size, dtype=operand.dtype, device="meta")

    brackets = mapped(shaped, Operand, operation.argument("brackets"))
    return moved_dims(brackets, len(before))[dim]


def _kept_within(
    operation: Operation, before: Sequence[int], axis: Axis, after: Sequence[int]
) -> Axis | None:
    """An axis that was merged into a dimension behind another one, as (tokens x samples)."""
    features = before[-1]
    rows = operation.kind is Kind.PRODUCT and before[:-1] == after[:-1]
    if rows and axis.inner % features == 0:
        return Axis(axis.outer, axis.size, axis.inner // features * after[-1])
    return None


def _reduces(operation: Operation, before: Sequence[int], after: Sequence[int]) -> bool:
    """Whether dimensions go, or are of length one afterwards."""
    if operation.kind not in _MAY_REDUCE:
        return operation.kind in _ALWAYS_REDUCES
    return len(after) < len(before) or bool(operation.argument("keepdim"))


def _reduced(operation: Operation, ndim: int) -> set[int]:
    """The dimensions that go."""
    dims = operation.argument("dim", -1 if operation.kind is Kind.CHOICE else None)
    if dims is None or dims == ():
        return set(range(ndim))
    return {dim % ndim for dim in (dims if isinstance(dims, Iterable) else [dims])}
