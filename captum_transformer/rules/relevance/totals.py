"""Sums of relevance, sample by sample where the samples are known."""

from collections.abc import Sequence

from torch import Tensor

from captum_transformer.account import Reason
from captum_transformer.rules.ledger import added_up, total
from captum_transformer.trace.kinds import Role
from captum_transformer.trace.operation import Operand, Operation


def fitted(relevance: Tensor, operand: Operand) -> Tensor:
    """Sums over what was broadcast."""
    if relevance.shape == operand.size:
        return relevance
    return relevance.sum_to_size(operand.size)


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
