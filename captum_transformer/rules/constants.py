"""The part that constants have of gradient x value, where an operation adds or joins them."""

import torch
from torch import Tensor

from captum_transformer.account import Reason
from captum_transformer.rules.gradient.gamma import Favoured
from captum_transformer.rules.ledger import Taken, total
from captum_transformer.rules.propagate import transposed
from captum_transformer.rules.relevance.bias import adds_bias, adds_term
from captum_transformer.rules.relevance.totals import constants
from captum_transformer.trace.kinds import AS_OTHERS, CONVOLUTIONS, MOVES, Kind, Role
from captum_transformer.trace.numeric import in_full
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.views import views_of

_AFFINE = CONVOLUTIONS | {Kind.PRODUCT, Kind.NORM}


def of_constants(operation: Operation, slope: Tensor) -> list[Taken]:
    """Returns the part of constants that an operation adds to signals, or puts beside them.

    Args:
        operation: the operation.
        slope: the gradient at its output.
    """
    found = constant_part(operation, slope)
    return (
        [] if found is None else [Taken(operation, found[0], total(operation.outputs[0], found[1]))]
    )


def constant_part(operation: Operation, slope: Tensor) -> tuple[Reason, Tensor] | None:
    """Returns the constants' part of each output entry and the reason, or None if there is none.

    The constants are the output of the operation for signals of zero.
    """
    reason = _reason(operation)
    if reason is None or operation.outputs[0] is None or operation.activates:
        return None
    with torch.no_grad():
        zeros = [slope.new_zeros(value.shape) for _, value in operation.traced()]
        constant = operation.replay(zeros)[0]
    if isinstance(operation.note, Favoured):  # more or less than the gradient says
        constant = operation.note.of_bias(constant)
    # A mask of minus infinity has a gradient of zero.
    return reason, torch.where(slope == 0, torch.zeros_like(slope), constant * slope)


def of_activation(operation: Operation, slope: Tensor) -> list[Taken]:
    """Returns what is lost at an activation that is not linear: ``(f(x) - x f'(x)) g``."""
    output, traced = operation.outputs[0], operation.traced()
    if operation.kind is not Kind.ENTRYWISE or output is None or len(traced) > 1:
        return []
    x = in_full(traced[0][0])
    with torch.no_grad():
        result = operation.replay([x])[0]
    (onto_signal,) = transposed(operation, [x], [slope])
    handed = torch.zeros_like(x) if onto_signal is None else x * onto_signal
    amount = result * slope - handed
    return [Taken(operation, Reason.ACTIVATION, total(output, amount))]


def _reason(operation: Operation) -> Reason | None:
    kind = operation.kind
    if kind in (Kind.ADD, Kind.SUB):
        if len(operation.traced()) > 1:
            return None
        bias = len(operation.operands) > 1 and adds_bias(operation)
        return Reason.BIAS if bias else Reason.ADDED
    if kind in _AFFINE:
        adds = any(operand.role in (Role.BIAS, Role.STATISTIC) for operand in operation.operands)
        return (Reason.ADDED if adds_term(operation) else Reason.BIAS) if adds else None
    if kind in MOVES - AS_OTHERS and views_of(operation) is None:
        return Reason.JOINED if constants(operation) else Reason.FILLED
    return None
