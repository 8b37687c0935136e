"""The z-rule, exact for what grows as its operands do: ``sum x df/dx`` is ``f`` times the degree.

That holds for sums, products, lengths and moments (Euler's theorem on homogeneous functions).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from captum_transformer.account import Reason
from captum_transformer.rules.ledger import added_up, total
from captum_transformer.rules.propagate import Shares, transposed, unsupported
from captum_transformer.rules.relevance.totals import constants, remaining
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.numeric import in_full, ratio
from captum_transformer.trace.operation import Operand, Operation


def z_rule(
    operation: Operation,
    relevance: Tensor,
    *,
    degree: int = 1,
    among: Sequence[Operand] | None = None,
) -> Shares:
    """``R_x = x * J^T (R / f(x))``, divided by the degree.

    Args:
        operation: the operation.
        relevance: what arrives at its output.
        degree: with which power the output grows; that of a product is the number of its factors.
        among: the operands that get something; all by default.
    """
    points = [in_full(operand) for operand, _ in operation.traced()]
    with torch.no_grad():
        growth = operation.replay(points)[0]
    shares = _shared(operation, relevance, points, growth.mul_(degree), among)
    bias = operation.argument("bias")
    return shares if bias is None else _with_rest(shares, operation, relevance, Reason.BIAS)


def terms(operation: Operation, relevance: Tensor) -> Shares:
    """The z-rule where constants among the operands are terms as signals are, and take a share."""
    shares = z_rule(operation, relevance)
    if not constants(operation):
        return shares
    return _with_rest(shares, operation, relevance, Reason.CONSTANT)


def length(operation: Operation, relevance: Tensor) -> Shares:
    """Norms and distances."""
    if operation.argument("p", operation.argument("ord")) == 0:
        raise unsupported(operation, "it counts entries, whatever they are")
    return terms(operation, relevance)


def moment(operation: Operation, relevance: Tensor) -> Shares:
    """Products and variances of entries, of a degree that the output's derivative tells."""
    points = [in_full(operand) for operand, _ in operation.traced()]
    with torch.no_grad(), forward_ad.dual_level():
        points_and_slopes = [forward_ad.make_dual(x, x) for x in points]  # type: ignore[no-untyped-call]
        output = operation.replay(points_and_slopes)[0]
        growth = forward_ad.unpack_dual(output).tangent  # type: ignore[no-untyped-call]
    return _shared(operation, relevance, points, growth, None)


def _shared(
    operation: Operation,
    relevance: Tensor,
    points: list[Tensor],
    growth: Tensor,
    among: Sequence[Operand] | None,
) -> Shares:
    quotient = ratio(relevance, growth)
    slopes = transposed(operation, points, [quotient])
    operands = [operand for operand, _ in operation.traced()]
    shares = [
        point * slope if slope is not None and (among is None or operand in among) else None
        for operand, point, slope in zip(operands, points, slopes, strict=True)
    ]
    if operation.kind is Kind.DISTANCE:  # from which a mask leaves entries out as infinite ones
        pairs = zip(shares, slopes, strict=True)
        shares = [None if s is None or d is None else s.masked_fill(d == 0, 0.0) for s, d in pairs]
    if all(share is None for share in shares):
        raise unsupported(operation, "it depends on the inputs in a way that hands nothing on")
    lost = torch.addcmul(relevance, quotient, growth, value=-1)
    return Shares(shares, {Reason.EPSILON: total(operation.outputs[0], lost)})


def _with_rest(shares: Shares, operation: Operation, relevance: Tensor, reason: Reason) -> Shares:
    """The same shares, where what is not lost goes to a constant."""
    (rest,) = remaining(operation, [relevance], shares, reason).values()
    lost = shares.taken[Reason.EPSILON]
    return Shares(shares, {Reason.EPSILON: lost, reason: added_up([rest, -lost])})
