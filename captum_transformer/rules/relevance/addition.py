"""Relevance through additions: normalised sample by sample (CVPR 2021, eq. 9-10)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from captum_transformer.account import Reason
from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.rules.ledger import added_up
from captum_transformer.rules.propagate import Shares, unsupported
from captum_transformer.rules.relevance.bias import adds_bias
from captum_transformer.rules.relevance.homogeneous import terms
from captum_transformer.rules.relevance.totals import evenly, fitted, of_ids, passed_on
from captum_transformer.trace.axis import Axis
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.numeric import in_full, ratio
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.statistics import signal_of, subtracts_unknown
from captum_transformer.trace.value import Value


def addition(operation: Operation, relevance: Tensor) -> Shares:
    """Distributes relevance to two terms; a constant tensor's is dropped, a bias takes nothing.

    An added number takes nothing either. Token ids that are shifted to their part of a table stay
    ids.
    """
    traced, shift = operation.traced(), operation.shift
    if of_ids(operation) or signal_of(operation) is not None:
        return passed_on(operation, relevance)
    if shift is not None or (len(traced) == 1 and adds_bias(operation)):
        return Shares(None if o is shift else fitted(relevance, o) for o, _ in traced)
    if (shares := evenly(operation, relevance)) is not None:
        return shares
    if subtracts_unknown(operation):
        raise unsupported(
            operation,
            "what it subtracts is made of the whole rows of the signal, as in a softmax or a norm "
            "written by hand, and the rule is for the whole",
            "Call `torch.softmax`, `torch.log_softmax` or `F.layer_norm`; ",
        )
    operands = [operation.arguments["input"], operation.arguments["other"]]
    values = [value for _, value in traced]
    left, right = map(in_full, operands)
    factor = operation.argument("alpha", 1)
    factor = -factor if operation.kind is Kind.SUB else factor
    right = right if factor == 1 else right * factor
    parts, totals, lost = divided(operation, left, right, relevance, values)
    received = {id(o): fitted(part, o) for o, part in zip(operands, parts, strict=True)}
    reached = {id(operand) for operand, _ in traced}
    dropped = [t for o, t in zip(operands, totals, strict=True) if id(o) not in reached]
    taken = {Reason.EPSILON: lost} | ({Reason.ADDED: added_up(dropped)} if dropped else {})
    return Shares((received[id(operand)] for operand, _ in traced), taken)


def summed(operation: Operation, relevance: Tensor) -> Shares:
    """Treats the sum of a stack as additions from left to right, other sums by the z-rule."""
    ((operand, value),) = operation.traced()
    stack, dim = value.operation, operation.dim(len(value.shape))
    stacked = stack is not None and stack.kind is Kind.STACK
    if stack is None or not stacked or dim is None or dim != stack.dim(len(value.shape)):
        return terms(operation, relevance)
    values = [value for _, value in stack.traced()]
    addends = in_full(operand).unbind(dim)
    arriving, lost = relevance.reshape(addends[0].shape), relevance.new_zeros(())
    shares: list[Tensor] = []
    for last in range(len(addends) - 1, 0, -1):
        known = values[: last + 1] if len(values) == len(addends) else []
        before = torch.stack(addends[:last]).sum(0)
        parts, _, of_this = divided(operation, before, addends[last], arriving, known)
        arriving, share = parts
        shares.insert(0, share)
        lost = lost + of_this
    return Shares([torch.stack([arriving, *shares], dim)], {Reason.EPSILON: lost})


def divided(
    operation: Operation, left: Tensor, right: Tensor, relevance: Tensor, values: Sequence[Value]
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Returns the share of each of two terms, its sums for each sample, and what is lost.

    Args:
        operation: the addition.
        left: a term.
        right: the other term.
        relevance: the relevance of the sum.
        values: the values that the terms are made of, if both are signals.
    """
    shares = parts_of_sum(left, right, relevance, skip=_is_skip(values))
    samples = _samples(operation)
    goal = samples.total(relevance)
    totals = torch.stack([samples.total(share) for share in shares])
    parts = scales(totals, goal)
    for share, part in zip(shares, parts, strict=True):
        share.mul_(samples.spread(part, share.shape))
    received = list(totals * parts)
    return shares, received, goal - received[0] - received[1]


def parts_of_sum(left: Tensor, right: Tensor, relevance: Tensor, *, skip: bool) -> list[Tensor]:
    """The z-rule for two terms.

    Where a mask is zero, scores get exactly all; where it hides them by minus infinity, they get
    nothing, as the relevance is zero there. A skip and its branch are not scores and a mask.
    """
    quotient = ratio(relevance, left + right)
    shares = [left * quotient, right * quotient]
    if skip:
        return shares
    hidden = quotient == 0
    return [
        torch.where((other == 0) & (part != 0), relevance, share).masked_fill_(hidden, 0.0)
        for part, other, share in ((left, right, shares[0]), (right, left, shares[1]))
    ]


def scales(totals: Tensor, goal: Tensor) -> Tensor:
    """Returns factors for the parts of a sum that divide the goal by the parts' sizes (eq. 10)."""
    sizes = totals.abs()
    return ratio(ratio(sizes, sizes.sum(0)) * goal, totals)


def _is_skip(values: Sequence[Value]) -> bool:
    """Returns whether the last addend, or those before it, were made from the other side."""
    if len(values) < 2:
        return False
    *left, right = values
    from_left = len(left) == 1 and right.descends_from(left[0].origin)
    return from_left or any(value.descends_from(right.origin) for value in left)


def _samples(operation: Operation) -> Axis:
    output = operation.outputs[0]
    if output is not None and output.samples is not None:
        return output.samples
    lost = None if output is None else output.coupling
    if lost is not None and lost.kind is Kind.UNKNOWN:
        raise unsupported(lost, "whether it keeps samples apart is not known")
    raise UnsupportedOperationError(
        f"It is unknown which entries belong to which sample in an addition of shape "
        f"{None if output is None else tuple(output.shape)}. Explain the samples one by one."
    )
