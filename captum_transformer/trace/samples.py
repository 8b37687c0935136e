"""To which sample of the batch each entry of a value belongs, as far as operations keep them apart.

What is known here is certain. It is asked for where the scores of samples are explained, each of
which must depend on its own sample alone.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from captum_transformer.trace.axis import Axis, View
from captum_transformer.trace.batch import Batch, dimension_of, located, placed, runs_along
from captum_transformer.trace.dimensions import carried
from captum_transformer.trace.kinds import BY_ENTRY, ENTRIES_ALONE, MOVES, Kind
from captum_transformer.trace.mixed_dims import lookup_place, mixed_dims
from captum_transformer.trace.operation import Operand, Operation, Value
from captum_transformer.trace.views import Frozen, frozen_arguments, run_frozen

_MAY_TRANSPOSE = MOVES | {Kind.PRODUCT, Kind.EMBEDDING}


def place_samples(operation: Operation, output: Value, view: View | None) -> None:
    """Fills in which samples are in an output and where, or the operation where that was lost.

    Args:
        operation: the operation.
        output: one of its outputs.
        view: how that lies over the one operand of a view operation.
    """
    output.batch = batch = _batch(operation, output, view)
    if batch is not None:
        output.samples = batch.axis if batch.is_whole else None
        return
    output.samples = _presumed(operation, output, view)
    couplings = (value.coupling for _, value in operation.traced())
    output.coupling = next(filter(None, couplings), operation)


def _batch(operation: Operation, output: Value, view: View | None) -> Batch | None:
    """Which samples are in an output and where; None if the operation may not keep them apart."""
    traced = operation.traced()
    if not traced:
        return None
    batch, kind, shape = traced[0][1].batch, operation.kind, output.shape
    alike = aligned = True
    for _, value in traced:
        other = value.batch
        if batch is None or other is None:
            return None
        if other is not batch and other != batch:
            alike = False
            aligned &= other.first == batch.first and other.axis.size == batch.axis.size
        alike = alike and value.shape == shape
    if batch is None:
        return None
    if alike and kind in ENTRIES_ALONE:
        return batch
    if view is not None:
        return batch.in_view(view)
    if aligned:
        if batch.axis.size == 1:
            return placed(batch, Axis(1, 1, shape.numel()))
        goal = _kept(operation, output)
        if goal is not None:
            return placed(batch, goal)
    if kind not in MOVES:
        return None
    return moved_batch(operation, output, [value.batch for _, value in traced])


def _kept(operation: Operation, output: Value) -> Axis | None:
    """Where samples lie in an output if all operands have them there, and none mixes them."""
    goal: Axis | None = None
    for operand, value in operation.traced():
        axis = value.batch and value.batch.axis
        kept = axis and _carried_apart(operation, operand, axis, output)
        if kept is None or (goal is not None and kept != goal):
            return None
        goal = kept
    return goal


def _carried_apart(
    operation: Operation, operand: Operand, axis: Axis, output: Value
) -> Axis | None:
    """Where an operand's axis lies in an output, if the operation doesn't work along it."""
    shape, out, kind = operand.size, output.shape, operation.kind
    first = axis.outer == 1 and shape[:1] == out[:1] and shape[0] % axis.size == 0
    if first and kind is Kind.PRODUCT and (product := operation.contraction()) is not None:
        # Samples first, before and after, as almost everywhere.
        letters = product.of(operand)
        if letters and letters[0] == product.output[0]:
            return Axis(1, axis.size, out.numel() // axis.size)
    mixed = mixed_dims(operation, operand)
    if first and kind not in _MAY_TRANSPOSE and len(shape) == len(out):
        return None if 0 in mixed else Axis(1, axis.size, out.numel() // axis.size)
    if any(runs_along(axis, shape, dim) for dim in mixed):
        return None
    if kind is Kind.EMBEDDING:
        return _looked_up(operation, operand, axis, output)
    if kind in BY_ENTRY and shape == out:
        return axis
    whole = dimension_of(axis, shape)
    found = whole and carried(operation, operand, whole.axis, output, None)
    return whole.part(found, axis.size) if whole else None


def _looked_up(operation: Operation, ids: Operand, axis: Axis, output: Value) -> Axis | None:
    """Where an axis of token ids lies in what is looked up for them."""
    shape, out = tuple(ids.size), tuple(output.shape)
    whole, ahead = dimension_of(axis, shape), lookup_place(operation, ids)
    dim = None if whole is None else whole.axis.dim(shape)
    if whole is None or dim is None or ahead is None or out[ahead + dim] != shape[dim]:
        return None
    return whole.part(Axis.of(out, ahead + dim), axis.size)


def _presumed(operation: Operation, output: Value, view: View | None) -> Axis | None:
    """Where samples lie if what may have mixed them before has not, from one of the operands."""
    for place, (operand, source) in enumerate(operation.traced()):
        axis = source.samples
        if axis is None:
            continue
        if view is not None:
            return axis.in_view(view)
        if axis.size == 1:
            return Axis(1, 1, output.shape.numel())
        kept = _carried_apart(operation, operand, axis, output)
        if kept is None and operation.kind in MOVES:
            batches: list[Batch | None] = [None] * len(operation.traced())
            batches[place] = Batch(0, axis, axis.size)
            found = moved_batch(operation, output, batches)
            kept = found.axis if found is not None and found.is_whole else None
        if kept is not None:
            return kept
    return None


def moved_batch(
    operation: Operation, output: Value, batches: Sequence[Batch | None]
) -> Batch | None:
    """Where rearranged samples lie in an output, as their numbers in the place of entries tell.

    Args:
        operation: one that moves entries.
        output: one of its outputs.
        batches: which samples are in its operands and where; None for what counts as a constant.
    """
    traced, place = operation.traced(), operation.outputs.index(output)
    if len(operation.operands) == len(traced) == 1 and batches[0] is not None:
        ((_, value),) = traced
        call = operation.call, *frozen_arguments(operation)
        return _moved(*call, tuple(value.shape), batches[0], place)
    numbers, of = [], 1
    for (operand, value), batch in zip(traced, batches, strict=True):
        dtype = torch.promote_types(operand.dtype, torch.float32)
        if batch is None:
            numbers.append(torch.zeros(value.shape, dtype=dtype, device=operand.device))
        else:
            of = batch.of
            numbers.append(batch.numbers(tuple(value.shape), dtype, operand.device))
    with torch.no_grad():
        found = operation.replay(numbers)[place]
        blank = operation.replay([torch.zeros_like(number) for number in numbers])[place]
    return _located(found, blank, of)


# The layers of a model ask the same, so answers are kept.
@lru_cache(maxsize=4096)
def _moved(
    call: Callable[..., Any],
    args: Frozen,
    kwargs: Frozen,
    shape: tuple[int, ...],
    batch: Batch,
    place: int,
) -> Batch | None:
    """The same of an operation for which the shape alone counts."""
    numbers = batch.numbers(shape, torch.float32, torch.device("cpu"))
    with torch.no_grad():
        outs = [run_frozen(call, args, kwargs, x) for x in (numbers, torch.zeros_like(numbers))]
    found, blank = (out[place] if isinstance(out, (tuple, list)) else out for out in outs)
    return _located(found, blank, batch.of)


def _located(found: Tensor, blank: Tensor, of: int) -> Batch | None:
    """Where samples lie; `blank` is what has come of zeros in the place of their numbers."""
    # Memory that nothing was written into may hold anything.
    return located(found, (found == blank) | blank.isnan(), of)
