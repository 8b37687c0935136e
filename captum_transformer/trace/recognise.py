"""Recognising attention: a fused call, or probabilities that are applied to values by a product."""

from typing import NamedTuple

from captum_transformer.trace.attention import ExplicitAttention, FusedAttention
from captum_transformer.trace.axis import Axis
from captum_transformer.trace.contraction import Contraction
from captum_transformer.trace.kinds import MOVES, Kind
from captum_transformer.trace.operation import Operand, Operation, Value

CUT_PROBABILITIES = (
    "applies softmax probabilities that were cut up or rearranged, as of sliding windows in "
    "chunks, so which tokens each of them ties can't be read off"
)
Order = tuple[int, ...] | None


class Pattern(NamedTuple):
    """How an operation attends.

    Attributes:
        held: the operands that the attention probabilities are made of.
        weights: for a product, the place of the probabilities among its two operands.
        weights_order: how to permute the probabilities to ``(..., Q, K)``; None if they lie so.
        value_order: the same for the values, to ``(..., K, D)``.
        output_order: the same for the output, to ``(..., Q, D)``.
    """

    held: tuple[Operand, ...]
    weights: int = 0
    weights_order: Order = None
    value_order: Order = None
    output_order: Order = None


def recognise(operation: Operation) -> Pattern | None:
    """How an operation attends, of which all operands are at hand; None if it does not."""
    if operation.kind is Kind.ATTENTION:
        values = operation.arguments["value"]
        return Pattern(tuple(o for o in operation.operands if o is not values))
    product = operation.contraction()
    if product is None or len(product.factors) != 2 or len(operation.operands) != 2:
        return None
    for weights in (0, 1):
        pattern = _applies(product, weights)
        if pattern is not None:
            return pattern
    return None


def _applies(product: Contraction, weights: int) -> Pattern | None:
    """The pattern if one factor is a softmax over keys and the product applies it to the other."""
    applied, other = product.factors[weights], product.factors[1 - weights]
    probabilities, signal = applied.value, other.value
    if probabilities is None or probabilities.keys is None:
        return None
    if not probabilities.learned if signal is None else signal.keys is not None:
        return None
    orders = _orders(product, weights)
    if orders is None:
        return None
    if probabilities.keys != Axis.of(probabilities.shape, orders[0][-1]):
        return None
    plain = (_unless_plain(order) for order in orders)
    return Pattern((applied,), weights, *plain)


def _unless_plain(order: tuple[int, ...]) -> Order:
    return None if order == tuple(range(len(order))) else order


def are_probabilities(value: Value) -> bool:
    """Whether a value holds the entries of a softmax over tokens, however they are arranged."""
    while value.operation is not None:
        operation = value.operation
        if operation.kind is Kind.SOFTMAX:
            return value.weighs_tokens
        traced = operation.traced()
        if len(traced) != 1 or not (operation.kind in MOVES or operation.kind is Kind.COPY):
            return False
        ((_, value),) = traced
    return False


def applies_cut_probabilities(operation: Operation) -> bool:
    """Whether it multiplies a signal with probabilities that are no attention as they lie."""
    if operation.kind is not Kind.PRODUCT or operation.attention is not None:
        return False
    return {are_probabilities(value) for _, value in operation.traced()} == {True, False}


def fused_attention(layer: int, module: str, operation: Operation) -> FusedAttention:
    """The attention call that an operation of fused attention is."""
    kwargs = operation.arguments
    query: Operand = kwargs["query"]
    scale = kwargs.get("scale")
    return FusedAttention(
        layer=layer,
        module=module,
        operation=operation,
        value=kwargs["value"],
        value_order=None,
        query=query,
        key=kwargs["key"],
        mask=kwargs.get("attn_mask"),
        is_causal=bool(kwargs.get("is_causal", False)),
        scale=query.size[-1] ** -0.5 if scale is None else float(scale),
    )


def explicit_attention(
    layer: int, module: str, operation: Operation, pattern: Pattern
) -> ExplicitAttention:
    """The attention call that a product of probabilities and values is."""
    return ExplicitAttention(
        layer=layer,
        module=module,
        operation=operation,
        value=operation.operands[1 - pattern.weights],
        weights=operation.operands[pattern.weights],
        weights_order=pattern.weights_order,
        value_order=pattern.value_order,
        output_order=pattern.output_order,
    )


def _orders(
    product: Contraction, weights: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None:
    """How to permute factors and output of a product to `AttentionCall`'s layout.

    None if it is no product of probabilities and values.
    """
    a, v, out = product.letters[weights], product.letters[1 - weights], product.output
    keys = [c for c in a if c in v and c not in out]
    queries = [c for c in a if c not in v and c in out]
    features = [c for c in v if c not in a and c in out]
    batch = [c for c in out if c not in (*queries, *features)]
    if len(keys) != 1 or len(queries) != 1 or len(features) != 1:
        return None

    def order(term: str, last: list[str]) -> tuple[int, ...]:
        return tuple(term.index(c) for c in (*batch, *last) if c in term)

    return order(a, queries + keys), order(v, keys + features), order(out, queries + features)
