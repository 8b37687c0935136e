"""Sums of relevance, sample by sample where the samples are known."""

from collections.abc import Sequence

from torch import Tensor

from captum_transformer.account import Reason
from captum_transformer.trace.axis import Axis
from captum_transformer.trace.kinds import Role
from captum_transformer.trace.operation import Operand, Operation, Value


def fitted(relevance: Tensor, operand: Operand) -> Tensor:
    """Sums over what was broadcast."""
    if relevance.shape == operand.size:
        return relevance
    return relevance.sum_to_size(operand.size)


def total(value: Value | None, relevance: Tensor) -> Tensor:
    """The sum of a value's relevance: ``(samples,)``; of all together where they aren't known."""
    if value is None or value.samples is None:
        return relevance.sum()
    return value.samples.total(relevance)


def total_of_rows(value: Value | None, sums: Tensor) -> Tensor:
    """The same from the sum of each row of features, ``(..., 1)``."""
    samples = None if value is None else value.samples
    if value is None or samples is None or samples.inner % value.shape[-1]:
        return sums.sum()
    return Axis(samples.outer, samples.size, samples.inner // value.shape[-1]).total(sums)


def added_up(totals: Sequence[Tensor]) -> Tensor:
    """The sum of several totals, of which some may be of all samples together."""
    by_sample = all(one.ndim for one in totals)
    first, *others = totals if by_sample else [one.sum() for one in totals]
    for other in others:
        first = first + other
    return first


def remaining(
    operation: Operation,
    incoming: Sequence[Tensor | None],
    shares: Sequence[Tensor | None],
    reason: Reason,
) -> dict[Reason, Tensor]:
    """What of the relevance that arrived goes to no operand, with the reason for that."""
    arrived = zip(operation.outputs, incoming, strict=False)
    handed = zip((value for _, value in operation.traced()), shares, strict=True)
    parts = [total(value, tensor) for value, tensor in arrived if tensor is not None]
    parts += [-total(value, tensor) for value, tensor in handed if tensor is not None]
    return {reason: added_up(parts)}


def constants(operation: Operation) -> list[Operand]:
    """The operands that no input reaches, indices and masks aside."""
    traced = {id(operand) for operand, _ in operation.traced()}
    return [
        operand
        for operand in operation.operands
        if id(operand) not in traced
        and operand.role is Role.SIGNAL
        and operand.dtype.is_floating_point
    ]
