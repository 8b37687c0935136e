"""Which sample of the batch each entry of a value belongs to, while operations keep them apart.

This is certain as long as no operation may have mixed samples. It is needed where the scores of
samples are explained: each score must depend only on its own sample.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from captum_transformer.trace.axis import Axis, View
from captum_transformer.trace.batch import Batch, located, placed
from captum_transformer.trace.dimensions import carried, passage
from captum_transformer.trace.kinds import ENTRIES_ALONE, MOVES
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.value import Value
from captum_transformer.trace.views import Frozen, frozen_arguments, run_frozen


def place_samples(operation: Operation, output: Value, view: View | None) -> None:
    """Fills in which samples are in an output and where, and the operation that may mix them.

    Args:
        operation: the operation.
        output: one of its outputs.
        view: how the output lies over the operand, if the operation is a view.
    """
    traced = operation.traced()
    batches: list[Batch | None] = []
    for _, value in traced:
        batches.append(value.batch)
        if value.coupling is not None:
            output.coupling = output.coupling or value.coupling
    output.batch = _together(operation, output, view, batches)
    if output.batch is not None or not output.shape.numel():
        return
    output.coupling = output.coupling or operation
    if len(traced) == 1:
        return
    # If the operation has not mixed samples, they lie as in one of the operands.
    for place, batch in enumerate(batches):
        if batch is not None and batch.is_whole:
            alone = [batch if other == place else None for other in range(len(batches))]
            output.batch = _together(operation, output, view, alone)
            if output.batch is not None:
                return


def _together(
    operation: Operation, output: Value, view: View | None, batches: Sequence[Batch | None]
) -> Batch | None:
    """Returns which samples are in an output and where, or None if they may have been mixed.

    Args:
        operation: the operation.
        output: one of its outputs.
        view: how the output lies over the operand, if it is a view.
        batches: which samples are in the operands and where; None for operands that count as
            constants.
    """
    first, alike, aligned, shape = None, True, True, output.shape
    for batch in batches:
        if batch is None:
            continue
        if first is None:
            first = batch
        elif batch is not first and batch != first:
            alike = False
            aligned &= batch.first == first.first and batch.axis.size == first.axis.size
    if first is None:
        return None
    if aligned and first.axis.size == 1:  # everything belongs to the one sample
        return _of_one_sample(first, shape.numel())
    if view is not None:
        return first.in_view(view)
    kind, traced = operation.kind, operation.traced()
    if alike and kind in ENTRIES_ALONE:
        pairs = zip(traced, batches, strict=True)
        if all(batch is None or value.shape == shape for (_, value), batch in pairs):
            return first
    if aligned:
        goals = set()
        for (operand, _), batch in zip(traced, batches, strict=True):
            if batch is not None:
                found = passage(operation, operand, len(shape))
                goals.add(carried(batch.axis, operand.size, found, shape, apart=True))
        if len(goals) == 1 and (goal := goals.pop()) is not None:
            return placed(first, goal)
    return moved_batch(operation, output, batches) if kind in MOVES else None


@lru_cache(maxsize=4096)
def _of_one_sample(batch: Batch, entries: int) -> Batch:
    return placed(batch, Axis(1, 1, entries))


def moved_batch(
    operation: Operation, output: Value, batches: Sequence[Batch | None]
) -> Batch | None:
    """Finds where rearranged samples lie in an output by running the operation on their numbers.

    Args:
        operation: an operation that moves entries.
        output: one of its outputs.
        batches: which samples are in its operands and where; None for operands that count as
            constants.
    """
    traced, place = operation.traced(), operation.outputs.index(output)
    alone = len(operation.operands) == len(traced)
    if alone and len(traced) == 1 and batches[0] is not None:
        ((_, value),) = traced
        call = operation.call, *frozen_arguments(operation)
        return _moved(*call, tuple(value.shape), batches[0], place)
    numbers, of = [], 1
    for (operand, value), batch in zip(traced, batches, strict=True):
        dtype = torch.promote_types(operand.dtype, torch.float32)
        # Without constants of the model, such as indices, the host need not wait for a device.
        device = torch.device("cpu") if alone else operand.device
        if batch is None:
            numbers.append(torch.zeros(value.shape, dtype=dtype, device=device))
        else:
            of = batch.of
            numbers.append(batch.numbers(tuple(value.shape), dtype, device))
    return _found(operation.replay, numbers, place, of)


# The layers of a model ask for the same, so results are cached.
@lru_cache(maxsize=4096)
def _moved(
    call: Callable[..., Any],
    args: Frozen,
    kwargs: Frozen,
    shape: tuple[int, ...],
    batch: Batch,
    place: int,
) -> Batch | None:
    """The same as `moved_batch` for an operation that depends only on the shape."""

    def run(numbers: Sequence[Tensor]) -> Sequence[Tensor]:
        out = run_frozen(call, args, kwargs, numbers[0])
        return out if isinstance(out, (tuple, list)) else (out,)

    numbers = batch.numbers(shape, torch.float32, torch.device("cpu"))
    return _found(run, [numbers], place, batch.of)


def _found(
    run: Callable[[Sequence[Tensor]], Sequence[Tensor]],
    numbers: Sequence[Tensor],
    place: int,
    of: int,
) -> Batch | None:
    """Returns where samples lie in an output of ``run``, which moves their numbers, or None."""
    with torch.no_grad():
        found, blank = run(numbers)[place], run([torch.zeros_like(n) for n in numbers])[place]
    # Zeros stand for constants. Uninitialised memory may hold anything.
    return located(found.masked_fill((found == blank) | blank.isnan(), 0), of)
