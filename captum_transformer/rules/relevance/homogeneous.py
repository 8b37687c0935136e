"""The z-rule, exact for homogeneous functions: ``sum x df/dx`` is ``f`` times the degree.

That holds for sums, products, lengths and moments (Euler's theorem on homogeneous functions).
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from captum_transformer.account import Reason
from captum_transformer.rules.ledger import added_up, total
from captum_transformer.rules.propagate import Shares, growth, pullback, unsupported
from captum_transformer.rules.relevance.totals import constants, remaining
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.numeric import in_full, ratio
from captum_transformer.trace.operation import Operand, Operation


def z_rule(
    operation: Operation,
    relevance: Tensor,
    *,
    degree: int | None = 1,
    among: Sequence[Operand] | None = None,
) -> Shares:
    """``R_x = x * J^T (R / f(x))``, divided by the degree.

    Args:
        operation: the operation.
        relevance: the relevance of its output.
        degree: the degree of the function; that of a product is the number of its factors. None if
            it differs from entry to entry: it is then computed from the derivative.
        among: the operands that get relevance; all by default.
    """
    operands = [operand for operand, _ in operation.traced()]
    points = [in_full(operand) for operand in operands]
    outputs, back = pullback(operation, points)
    grown = growth(operation, points)[0] if degree is None else outputs[0] * degree
    quotient = ratio(relevance, grown)
    shares: list[Tensor | None] = []
    for operand, point, slope in zip(operands, points, back([quotient]), strict=True):
        if slope is None or (among is not None and operand not in among):
            shares.append(None)
            continue
        share = point * slope
        if operation.kind is Kind.DISTANCE:  # masks may leave out entries by making them infinite
            share.masked_fill_(slope == 0, 0.0)
        shares.append(share)
    if all(share is None for share in shares):
        raise unsupported(operation, "it depends on the inputs without passing anything on")
    lost = total(operation.outputs[0], torch.addcmul(relevance, quotient, grown, value=-1))
    found = Shares(shares, {Reason.EPSILON: lost})
    bias = operation.argument("bias")
    return found if bias is None else _with_rest(found, operation, relevance, Reason.BIAS)


# Products and variances of entries.
moment = partial(z_rule, degree=None)


def terms(operation: Operation, relevance: Tensor) -> Shares:
    """The z-rule for operations whose constants are terms like signals, and take a share."""
    shares = z_rule(operation, relevance)
    if not constants(operation):
        return shares
    return _with_rest(shares, operation, relevance, Reason.CONSTANT)


def added_at(operation: Operation, relevance: Tensor) -> Shares:
    """Sums at indices; refuses a constant that is added to a signal, as it may be a bias."""
    signal, added = operation.arguments["input"], operation.arguments["source"]
    if signal.value is not None and isinstance(added, Operand) and added.value is None:
        raise unsupported(
            operation,
            "it adds a constant at indices, and whether that is a bias is not known",
            "Add it by `+`; ",
        )
    return terms(operation, relevance)


def length(operation: Operation, relevance: Tensor) -> Shares:
    """Norms and distances."""
    if operation.argument("p", operation.argument("ord")) == 0:
        raise unsupported(operation, "it counts entries, whatever they are")
    return terms(operation, relevance)


def _with_rest(shares: Shares, operation: Operation, relevance: Tensor, reason: Reason) -> Shares:
    """Returns the same shares and attributes the rest, except what is lost, to a constant."""
    lost = shares.taken[Reason.EPSILON]
    rest = added_up([remaining(operation, [relevance], shares), -lost])
    return Shares(shares, {Reason.EPSILON: lost, reason: rest})
