"""Helpers that rules share: passing relevance on unchanged, and finding what remains of it."""

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
    """Sums relevance over the dimensions along which an operand was broadcast."""
    if relevance.shape == operand.size:
        return relevance
    return relevance.sum_to_size(operand.size)


def passed_on(operation: Operation, relevance: Tensor) -> Shares:
    """Passes each entry's relevance to the entry that it was made from; several factors share it.

    Operands that divide or shift a signal in a norm get nothing.
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
    """Divides relevance evenly among signals that were made, entry by entry, of one value.

    The operation and those before it form an activation, such as ``x - x * sigmoid(-x)``. None if
    the signals were not made of one value.
    """
    values = [value for _, value in operation.traced()]
    if len(values) < 2 or not works_by_entry(operation) or not are_of_one_entry(*values):
        return None
    return Shares(relevance / len(values) for _ in values)


def require_whole(operation: Operation) -> None:
    """Refuses a product that splits an activation, or is an activation only in places."""
    found = meeting(operation)
    if found is not None and (found.is_split or (found.is_gate and found.lacking)):
        instead = "Multiply by the activation, as by `F.silu(x)`; "
        raise unsupported(operation, found.why_refused, instead)


def of_ids(operation: Operation) -> bool:
    """Returns whether an operation computes token ids from token ids."""
    return all(value.holds_ids for _, value in operation.traced())


def remaining(
    operation: Operation, incoming: Sequence[Tensor | None], shares: Sequence[Tensor | None]
) -> Tensor:
    """Returns how much of the relevance that arrived goes to no operand."""
    arrived = zip(operation.outputs, incoming, strict=False)
    handed = zip((value for _, value in operation.traced()), shares, strict=True)
    parts = [total(value, tensor) for value, tensor in arrived if tensor is not None]
    parts += [-total(value, tensor) for value, tensor in handed if tensor is not None]
    return added_up(parts)


def constants(operation: Operation) -> list[Operand]:
    """Returns the operands that do not depend on inputs, except indices and masks."""
    traced = {id(operand) for operand, _ in operation.traced()}
    return [
        operand
        for operand in operation.operands
        if id(operand) not in traced
        and operand.role is Role.SIGNAL
        and operand.dtype.is_floating_point
    ]
