"""Relevance through additions: normalised sample by sample (CVPR 2021, eq. 9-10)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from captum_transformer.account import Reason
from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.rules.ledger import added_up
from captum_transformer.rules.propagate import Shares, transposed, unsupported
from captum_transformer.rules.relevance.bias import adds_bias
from captum_transformer.rules.relevance.homogeneous import terms
from captum_transformer.rules.relevance.samples import Numbered, samples_of
from captum_transformer.rules.relevance.totals import fitted
from captum_transformer.rules.relevance.weights import exchanged
from captum_transformer.trace.axis import Axis
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.numeric import in_full, ratio
from captum_transformer.trace.operation import Operand, Operation, Value
from captum_transformer.trace.statistics import signal_of


def addition(operation: Operation, relevance: Tensor) -> Shares:
    """The share of a constant tensor is dropped; a bias or a number that is added takes nothing."""
    traced, signal = operation.traced(), signal_of(operation)
    if signal is not None:
        pairs = zip(traced, signal, strict=True)
        return Shares(fitted(relevance, o) if is_signal else None for (o, _), is_signal in pairs)
    if (shift := operation.shift) is not None or (len(traced) == 1 and adds_bias(operation)):
        return Shares(None if o is shift else fitted(relevance, o) for o, _ in traced)
    operands = [operation.arguments["input"], operation.arguments["other"]]
    left, right = map(in_full, operands)
    factor = operation.argument("alpha", 1)
    factor = -factor if operation.kind is Kind.SUB else factor
    right = right if factor == 1 else right * factor
    values = [value for _, value in traced]
    parts, totals, lost = _divided(operation, left, right, relevance, values)
    received = {id(o): fitted(part, o) for o, part in zip(operands, parts, strict=True)}
    reached = {id(operand) for operand, _ in traced}
    dropped = [t for o, t in zip(operands, totals, strict=True) if id(o) not in reached]
    taken = {Reason.EPSILON: lost} | ({Reason.ADDED: added_up(dropped)} if dropped else {})
    return Shares((received[id(operand)] for operand, _ in traced), taken)


def with_addend(
    operation: Operation, relevance: Tensor, rule: Callable[[Operation, Tensor], Shares]
) -> Shares:
    """A product with something added in the same function: an addition, and a product behind it.

    Args:
        operation: both together.
        relevance: what arrives.
        rule: what is to be done with the product.
    """
    addend = operation.arguments["bias"]
    alone = without_addend(operation)
    traced = [operand for operand, _ in operation.traced()]
    points = [in_full(operand) for operand in traced]
    factors = [
        point for operand, point in zip(traced, points, strict=True) if operand is not addend
    ]
    with torch.no_grad():
        product = alone.replay(factors)[0] if factors else alone.run(in_full)
        term = operation.replay(points)[0] - product
    values = [value for _, value in operation.traced()] if len(traced) == 2 else []
    (onto_term, onto_product), totals, lost = _divided(operation, term, product, relevance, values)
    of_product = rule(alone, onto_product) if factors else Shares([], {Reason.ADDED: totals[1]})
    shares: list[Tensor | None] = list(of_product)
    taken = {Reason.EPSILON: torch.zeros_like(lost), **of_product.taken}
    taken[Reason.EPSILON] = added_up([lost, taken[Reason.EPSILON]])
    if addend not in traced:
        return Shares(shares, taken | {Reason.ADDED: totals[0]})
    place = traced.index(addend)
    slope = transposed(operation, points, [ratio(onto_term, term)])[place]
    shares.insert(place, None if slope is None else points[place] * slope)
    return Shares(shares, taken)


def without_addend(operation: Operation) -> Operation:
    """The operation with zeros added to its product."""
    addend = operation.arguments["bias"]
    zeros = Operand(torch.zeros(addend.size, dtype=addend.dtype, device=addend.device), None)
    alone = exchanged(operation, lambda operand: zeros if operand is addend else operand)
    alone.result = None
    return alone


def summed(operation: Operation, relevance: Tensor) -> Shares:
    """Sums of what was stacked are additions, from the left to the right; others are z-rules."""
    ((operand, value),) = operation.traced()
    stack, dim = value.operation, operation.dim(len(value.shape))
    stacked = stack is not None and stack.kind is Kind.STACK
    if stack is None or not stacked or dim is None or dim != stack.dim(len(value.shape), 0):
        return terms(operation, relevance)
    values = [value for _, value in stack.traced()]
    addends = in_full(operand).unbind(dim)
    arriving, lost = relevance.reshape(addends[0].shape), relevance.new_zeros(())
    shares: list[Tensor] = []
    for last in range(len(addends) - 1, 0, -1):
        known = values[: last + 1] if len(values) == len(addends) else []
        before = torch.stack(addends[:last]).sum(0)
        parts, _, of_this = _divided(operation, before, addends[last], arriving, known)
        arriving, share = parts
        shares.insert(0, share)
        lost = lost + of_this
    return Shares([torch.stack([arriving, *shares], dim)], {Reason.EPSILON: lost})


def _divided(
    operation: Operation, left: Tensor, right: Tensor, relevance: Tensor, values: Sequence[Value]
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """What each of two terms gets, the sums of that for each sample, and what is lost."""
    quotient = ratio(relevance, left + right)
    shares = [left * quotient, right * quotient]
    if not _is_skip(values):
        shares = _beside_a_mask(left, right, shares, quotient, relevance)
    samples = _samples(operation, relevance.device)
    goal = samples.total(relevance)
    totals = [samples.total(share) for share in shares]
    magnitude = totals[0].abs() + totals[1].abs()
    received = []
    for share, total in zip(shares, totals, strict=True):
        scale = ratio(ratio(total.abs(), magnitude) * goal, total)
        share.mul_(samples.spread(scale, share.shape))
        received.append(total * scale)
    return shares, received, goal - received[0] - received[1]


def _is_skip(values: Sequence[Value]) -> bool:
    """Whether the last addend or those before it were made from the other side."""
    if len(values) < 2:
        return False
    *left, right = values
    from_left = len(left) == 1 and right.descends_from(left[0].origin)
    return from_left or any(value.descends_from(right.origin) for value in left)


def _beside_a_mask(
    left: Tensor, right: Tensor, shares: list[Tensor], quotient: Tensor, relevance: Tensor
) -> list[Tensor]:
    """Where a mask is zero, scores take all, to the last digit; where it hides them, nothing.

    Masks are minus infinity there, and the relevance is zero.
    """
    hidden = quotient == 0
    return [
        torch.where((other == 0) & (part != 0), relevance, share).masked_fill_(hidden, 0.0)
        for part, other, share in ((left, right, shares[0]), (right, left, shares[1]))
    ]


def _samples(operation: Operation, device: torch.device) -> Axis | Numbered:
    output = operation.outputs[0]
    samples = None if output is None else samples_of(output, device)
    if samples is None:
        lost = None if output is None else output.coupling
        if lost is not None and lost.kind is Kind.UNKNOWN:
            raise unsupported(lost, "whether it keeps samples apart is not known")
        raise UnsupportedOperationError(
            f"Can't tell which entries belong to which sample in an addition of shape "
            f"{None if output is None else tuple(output.shape)}. Explain the samples one by one."
        )
    return samples
