"""The relevance pass of Chefer et al. (CVPR 2021): layer-wise relevance propagation.

Linear maps follow the alpha-beta rule with alpha = 1, beta = 0, additions are normalised
(eq. 9-10), products of two signals follow the z-rule and share the relevance in halves, and
softmax, norms and activations pass it on unchanged.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.rules.propagate import rearranged, transposed, unsupported
from captum_transformer.rules.relevance.attention import attention_rule
from captum_transformer.rules.relevance.linear import (
    alpha_beta_rule,
    is_first_convolution,
    linear_rule,
    z_box_rule,
)
from captum_transformer.rules.relevance.places import ANYWHERE, Places
from captum_transformer.rules.relevance.samples import Numbered, samples_of
from captum_transformer.rules.relevance.weights import weighting
from captum_transformer.trace.axis import Axis
from captum_transformer.trace.kinds import BY_ENTRY, CONVOLUTIONS, MOVES, Does, Kind
from captum_transformer.trace.numeric import in_full, ratio
from captum_transformer.trace.operation import Operand, Operation, Value
from captum_transformer.trace.statistics import signal_of

# The kinds of operation whose operands these rules need to see.
KEEP = (
    CONVOLUTIONS
    | {Kind.ADD, Kind.SUB, Kind.PRODUCT, Kind.SAMPLE, Kind.DISTANCE, Kind.DERIVED}
    | {kind for kind in Kind if kind.does in (Does.SUMS, Does.SELECTS)}
)
_UNKNOWN: Mapping[Value, Places] = {}
_PASSED_ON = BY_ENTRY - {Kind.ADD, Kind.SUB, Kind.MUL, Kind.DIV}


def relevance_rule(
    operation: Operation,
    incoming: list[Tensor | None],
    places: Mapping[Value, Places] = _UNKNOWN,
) -> list[Tensor | None]:
    """What each traced operand gets of the relevance of an operation's outputs.

    Args:
        operation: the operation.
        incoming: the relevance of each output; None for those that it does not reach.
        places: see `places_from`.
    """
    kind, count = operation.kind, len(operation.traced())
    if kind in MOVES:
        return rearranged(operation, incoming)
    if kind is Kind.UNKNOWN:
        raise unsupported(operation, "it is not in the table of operations")
    if kind.does is Does.SELECTS:
        return transposed(operation, [in_full(o) for o, _ in operation.traced()], incoming)
    relevance = incoming[0]
    if relevance is None:
        raise unsupported(operation, "only a side output is used")
    if operation.attention is not None:
        return attention_rule(operation, relevance)
    if all(value.holds_ids for _, value in operation.traced()) and kind is not Kind.EMBEDDING:
        # Token ids that are hashed, or shifted to their part of a table.
        return [_fitted(relevance / count, operand) for operand, _ in operation.traced()]
    if kind in _PASSED_ON:
        return [_fitted(relevance, o) for o, _ in operation.traced()[:1]] + [None] * (count - 1)
    if kind in (Kind.ADD, Kind.SUB):
        return _addition(operation, relevance)
    if kind in (Kind.MUL, Kind.DIV):
        return _product(operation, relevance)
    if kind is Kind.TRANSFORM:
        raise unsupported(operation, "it ties tokens, and relevance of spectra has no rule")
    if kind is Kind.EMBEDDING:
        ids = next(o for o, _ in operation.traced())
        return [relevance.flatten(len(ids.size)).sum(-1)]
    if count == 1 and kind in CONVOLUTIONS and is_first_convolution(operation):
        return [z_box_rule(operation, relevance)]
    if (rows := weighting(operation)) is not None:
        output = operation.outputs[0]
        known = ANYWHERE if output is None else places.get(output, ANYWHERE)
        return [linear_rule(operation, rows, relevance, known)]
    if count == 1 and (kind is Kind.PRODUCT or kind in CONVOLUTIONS):
        return [alpha_beta_rule(operation, relevance)]
    return _z_rule(operation, incoming)


def _fitted(relevance: Tensor, operand: Operand) -> Tensor:
    """Sums over what was broadcast."""
    if relevance.shape == operand.size:
        return relevance
    return relevance.sum_to_size(operand.size)


def _z_rule(operation: Operation, incoming: list[Tensor | None]) -> list[Tensor | None]:
    """``R_x = x * J^T (R / f(x))``; an operation on several signals shares R evenly among them.

    Sums at indices, as of the experts that a token is routed to, share it by their terms.
    """
    points = [in_full(operand) for operand, _ in operation.traced()]
    with torch.no_grad():
        outputs = operation.replay(points)
    quotients = [
        None if relevance is None else ratio(relevance, output)
        for relevance, output in zip(incoming, outputs, strict=False)
    ]
    shares = transposed(operation, points, quotients)
    factors = 1 if operation.kind is Kind.SUM_AT_INDICES else len(points)
    return [
        None if share is None else point * share / factors
        for point, share in zip(points, shares, strict=True)
    ]


def _addition(operation: Operation, relevance: Tensor) -> list[Tensor | None]:
    """Eq. 9-10: the z-rule, then each operand's share is rescaled sample by sample.

    The share of an operand that no input reaches is dropped.
    """
    signal = signal_of(operation)
    if signal is not None:
        return [
            _fitted(relevance, o) if is_signal else None
            for (o, _), is_signal in zip(operation.traced(), signal, strict=True)
        ]
    if len(operation.operands) == 1 or any(
        o.value is None and o.size.numel() == 1 for o in operation.operands
    ):
        return [_fitted(relevance, o) for o, _ in operation.traced()]
    operands = [operation.arguments["input"], operation.arguments["other"]]
    left, right = map(in_full, operands)
    factor = operation.argument("alpha", 1)
    right = right * (-factor if operation.kind is Kind.SUB else factor)
    quotient = ratio(relevance, left + right)
    shares = [left * quotient, right * quotient]
    if not _is_skip(operation):
        shares = _beside_a_mask(left, right, shares, quotient, relevance)
    samples = _samples(operation, relevance.device)
    totals = [samples.total(share) for share in shares]
    goal = samples.total(relevance)
    magnitude = totals[0].abs() + totals[1].abs()
    received: dict[int, Tensor] = {}
    for operand, share, total in zip(operands, shares, totals, strict=True):
        scale = ratio(ratio(total.abs(), magnitude) * goal, total)
        share.mul_(samples.spread(scale, share.shape))
        received[id(operand)] = _fitted(share, operand)
    return [received[id(operand)] for operand, _ in operation.traced()]


def _is_skip(operation: Operation) -> bool:
    """Whether one operand of an addition was made from the other one."""
    values = [value for _, value in operation.traced()]
    pairs = (values, values[::-1])
    return len(values) == 2 and any(a.descends_from(b.origin) for a, b in pairs)


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
        raise UnsupportedOperationError(
            f"Can't tell which entries belong to which sample in an addition of shape "
            f"{None if output is None else tuple(output.shape)}. Explain the samples one by one."
        )
    return samples


def _product(operation: Operation, relevance: Tensor) -> list[Tensor | None]:
    """A constant factor passes the relevance on; two signals get half each."""
    signal = signal_of(operation)
    traced = operation.traced()
    if len(traced) == 1:
        return [_fitted(relevance, traced[0][0])]
    if signal is None:
        return [_fitted(relevance / 2, operand) for operand, _ in traced]
    return [_fitted(relevance, o) if s else None for (o, _), s in zip(traced, signal, strict=True)]
