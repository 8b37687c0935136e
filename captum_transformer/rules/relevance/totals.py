"""What rules have in common: relevance that is passed on, and what is left of it."""

from collections.abc import Sequence

from torch import Tensor

from captum_transformer.rules.ledger import added_up, total
from captum_transformer.rules.propagate import Shares, unsupported
from captum_transformer.trace.gates import are_of_one_entry, works_by_entry
from captum_transformer.trace.kinds import Kind, Role
from captum_transformer.trace.meetings import meeting
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.statistics import signal_of


def fitted(relevance: Tensor, operand: Operand) -> Tensor:
    """Sums over what was broadcast."""
    if relevance.shape == operand.size:
        return relevance
    return relevance.sum_to_size(operand.size)


def passed_on(operation: Operation, relevance: Tensor) -> Shares:
    """Each entry's relevance to the entry that it was made from; several factors share it.

    What divides or shifts a signal in a norm takes nothing.
    """
    traced = operation.traced()
    if len(traced) == 1:
        return Shares([fitted(relevance, traced[0][0])])
    are_signals = None if of_ids(operation) else signal_of(operation)
    if are_signals is None:
        if operation.kind not in (Kind.MUL, Kind.DIV) and not of_ids(operation):
            raise unsupported(operation, "it depends on several signals")
        if not of_ids(operation):
            require_whole(operation)
        return Shares(fitted(relevance / len(traced), operand) for operand, _ in traced)
    pairs = zip(traced, are_signals, strict=True)
    return Shares(fitted(relevance, o) if is_signal else None for (o, _), is_signal in pairs)


def evenly(operation: Operation, relevance: Tensor) -> Shares | None:
    """Even parts for signals that were made, entry by entry, of one value: they meet there again.

    With what is before it, it is an activation, as ``x - x * sigmoid(-x)``.
    """
    values = [value for _, value in operation.traced()]
    if len(values) < 2 or not works_by_entry(operation) or not are_of_one_entry(*values):
        return None
    return Shares(relevance / len(values) for _ in values)


def require_whole(operation: Operation) -> None:
    """Refuses a product that takes an activation apart, or is one only in places."""
    found = meeting(operation)
    if found is not None and (found.is_split or (found.is_gate and found.lacking)):
        instead = "Multiply by the activation, as by `F.silu(x)`; "
        raise unsupported(operation, found.why_refused, instead)


def of_ids(operation: Operation) -> bool:
    """Whether it computes token ids from token ids."""
    return all(value.holds_ids for _, value in operation.traced())


def remaining(
    operation: Operation, incoming: Sequence[Tensor | None], shares: Sequence[Tensor | None]
) -> Tensor:
    """What of the relevance that arrived goes to no operand."""
    arrived = zip(operation.outputs, incoming, strict=False)
    handed = zip((value for _, value in operation.traced()), shares, strict=True)
    parts = [total(value, tensor) for value, tensor in arrived if tensor is not None]
    parts += [-total(value, tensor) for value, tensor in handed if tensor is not None]
    return added_up(parts)


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
