"""Recognising attention: a fused call, or probabilities that are applied to values by a product."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from captum_transformer.trace.attention import ExplicitAttention, FusedAttention
from captum_transformer.trace.axis import Axis
from captum_transformer.trace.functions import CASTS, Function, Kind
from captum_transformer.trace.operation import Operand, Operation, Value

CUT_PROBABILITIES = (
    "applies softmax probabilities that were cut up or rearranged, as of sliding windows in "
    "chunks, so which tokens each of them ties can't be read off"
)
Order = tuple[int, ...] | None


class Pattern(NamedTuple):
    """How an operation attends.

    Attributes:
        held: the identities of the tensors that the attention probabilities are made of.
        weights: for a product, the place of the probabilities among its two operands.
        weights_order: how to permute the probabilities to ``(..., Q, K)``; None if they lie so.
        value_order: the same for the values, to ``(..., K, D)``.
        output_order: the same for the output, to ``(..., Q, D)``.
    """

    held: frozenset[int]
    weights: int = 0
    weights_order: Order = None
    value_order: Order = None
    output_order: Order = None


def recognise(
    function: Function, args: tuple[Any, ...], kwargs: dict[str, Any], operands: Sequence[Operand]
) -> Pattern | None:
    """How an operation attends, of which all operands are at hand; None if it does not."""
    if function.kind is Kind.ATTENTION:
        held = (v for k, v in kwargs.items() if k != "value" and isinstance(v, Tensor))
        return Pattern(frozenset(map(id, held)))
    if function.kind is not Kind.MATMUL or function.name == "rmatmul" or len(operands) != 2:
        return None
    for weights in (0, 1):
        pattern = _applies(function, args, weights, operands)
        if pattern is not None:
            return pattern
    return None


def _applies(
    function: Function, args: tuple[Any, ...], weights: int, operands: Sequence[Operand]
) -> Pattern | None:
    """The pattern if one operand is a softmax over keys and the product applies it to the other."""
    applied, other = operands[weights], operands[1 - weights]
    probabilities, signal = applied.value, other.value
    if probabilities is None or probabilities.keys is None:
        return None
    if not probabilities.learned if signal is None else signal.keys is not None:
        return None
    orders: tuple[Order, Order, Order] | None = (None, None, None)
    keys = len(probabilities.shape) - 1
    if function.name == "einsum":
        orders = parse_einsum(args[0], weights)
        keys = orders[0][-1] if orders is not None and orders[0] is not None else -1
    elif weights == 1:
        dims = len(applied.size), len(other.size)
        orders = _swapped(dims[0]), _swapped(dims[1]), _swapped(max(dims))
        keys -= 1
    if orders is None or keys < 0 or len(other.size) < 2:
        return None
    if probabilities.keys != Axis.of(probabilities.shape, keys):
        return None
    return Pattern(frozenset({id(applied.tensor)}), weights, *orders)


def are_probabilities(value: Value) -> bool:
    """Whether a value holds the entries of a softmax over tokens, however they are arranged."""
    while value.operation is not None:
        operation = value.operation
        if operation.kind is Kind.SOFTMAX:
            return value.weighs_tokens
        traced = operation.traced()
        if len(traced) != 1 or not (operation.kind is Kind.SHAPE or operation.name in CASTS):
            return False
        ((_, value),) = traced
    return False


def applies_cut_probabilities(operation: Operation) -> bool:
    """Whether it multiplies a signal with probabilities that are no attention as they lie."""
    if operation.kind is not Kind.MATMUL or operation.attention is not None:
        return False
    return {are_probabilities(value) for _, value in operation.traced()} == {True, False}


def _swapped(ndim: int) -> tuple[int, ...]:
    return (*range(ndim - 2), ndim - 1, ndim - 2)


def fused_attention(layer: int, module: str, operation: Operation) -> FusedAttention:
    """The attention call that an operation of fused attention is."""
    kwargs = operation.kwargs
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


def parse_einsum(equation: Any, weights: int = 0) -> tuple[Order, Order, Order] | None:
    """How to permute an einsum's operands and output to `AttentionCall`'s layout.

    None if the equation is no product of probabilities and values.

    >>> parse_einsum("bhqk,bkhd->bqhd")
    ((0, 1, 2, 3), (0, 2, 1, 3), (0, 2, 1, 3))
    """
    if not isinstance(equation, str) or "." in equation:
        return None
    left, arrow, out = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or len(terms) != 2:
        return None
    a, v = terms[weights], terms[1 - weights]
    keys = [c for c in a if c in v and c not in out]
    queries = [c for c in a if c not in v and c in out]
    features = [c for c in v if c not in a and c in out]
    batch = [c for c in a if c in v and c in out]
    if len(keys) != 1 or len(queries) != 1 or len(features) != 1 or len(batch) + 2 != len(a):
        return None
    if len(v) != len(a) or len(out) != len(a):
        return None

    def order(term: str, last: list[str]) -> tuple[int, ...]:
        return tuple(term.index(c) for c in (*batch, *last))

    return order(a, queries + keys), order(v, keys + features), order(out, queries + features)
