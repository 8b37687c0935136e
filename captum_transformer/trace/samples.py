"""To which sample of the batch each entry of a value belongs, as far as operations keep them apart.

What is known here is certain. It is asked for where the scores of samples are explained, each of
which must depend on its own sample alone.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch

from captum_transformer.trace.axis import Axis, View
from captum_transformer.trace.batch import Batch, dimension_of, located, runs_along
from captum_transformer.trace.dimensions import carried
from captum_transformer.trace.kinds import ENTRIES_ALONE, MOVES, Kind
from captum_transformer.trace.mixed_dims import lookup_place, mixed_dims
from captum_transformer.trace.operation import Operand, Operation, Value
from captum_transformer.trace.views import Frozen, frozen_arguments, run_frozen


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
    batches = [value.batch for _, value in traced if value.batch is not None]
    if not batches or len(batches) < len(traced):
        return None
    batch, kind, shape = batches[0], operation.kind, output.shape
    if view is not None:
        return batch.in_view(view)
    same = all(other == batch for other in batches)
    if same and kind in ENTRIES_ALONE and all(value.shape == shape for _, value in traced):
        return batch
    if all(other.first == batch.first and other.axis.size == batch.axis.size for other in batches):
        if batch.axis.size == 1:
            return Batch(batch.first, Axis(1, 1, shape.numel()), batch.of)
        goal = _kept(operation, output)
        if goal is not None:
            return Batch(batch.first, goal, batch.of)
    return moved_batch(operation, output, batches) if kind in MOVES else None


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
    shape = tuple(operand.size)
    if any(runs_along(axis, shape, dim) for dim in mixed_dims(operation, operand)):
        return None
    if operation.kind is Kind.EMBEDDING:
        return _looked_up(operation, operand, axis, output)
    if operation.kind in ENTRIES_ALONE and operand.size == output.shape:
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
    constant = found == blank
    return None if bool(constant.all()) else located(found, constant, of)


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
    return located(found, found == blank, batch.of)
