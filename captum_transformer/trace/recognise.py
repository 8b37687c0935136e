"""Recognising attention: a fused call, or probabilities that are applied to values by a product."""

from typing import NamedTuple

import torch
from torch import Tensor

from captum_transformer.calling.reading import truth
from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.trace.along import is_of_one_token, weights_of_tokens
from captum_transformer.trace.attention import FusedAttention, Order
from captum_transformer.trace.axis import Axis
from captum_transformer.trace.contraction import Contraction
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.probabilities import is_weighted_signal
from captum_transformer.trace.products import as_product, summed_product
from captum_transformer.trace.scoring import INSTEAD
from captum_transformer.trace.value import Value, lengths_of, unrepeated

_ATTENTION = Kind.ATTENTION


class Pattern(NamedTuple):
    """How an operation attends.

    Attributes:
        held: the operands that the attention probabilities are made of.
        weights: for a product, the index of the probabilities among its two operands.
        weights_order: how to permute the probabilities to ``(..., Q, K)``; None if not needed.
        value_order: the same for the values, to ``(..., K, D)``.
        output_order: the same for the output, to ``(..., Q, D)``.
        product: the entrywise product that is summed, if the probabilities are applied that way.
        in_tokens: whether each token has weights, which are features of it, for values of its own:
            those of a router for experts, which are applied like attention and are none.
    """

    held: tuple[Operand, ...]
    weights: int = 0
    weights_order: Order = None
    value_order: Order = None
    output_order: Order = None
    product: Operation | None = None
    in_tokens: bool = False


def recognise(operation: Operation) -> Pattern | None:
    """Returns how an operation attends, or None if it does not."""
    if operation.kind is _ATTENTION:
        values = operation.arguments["value"]
        for operand in operation.argument("captured", ()):
            if operand.value is not None:
                operation.refusal = UnsupportedOperationError(
                    "`flex_attention`'s score_mod reads a tensor of shape "
                    f"{tuple(operand.size)} that depends on the inputs, and its share of the "
                    f"scores is undefined. {INSTEAD}"
                )
        return Pattern(tuple(o for o in operation.operands if o is not values))
    product = operation.contraction()
    if product is None or len(product.factors) != 2 or len(operation.operands) != 2:
        return None
    for weights in (0, 1):
        pattern = _applies(product, weights)
        if pattern is not None:
            return pattern
    return None


def weighted_sum(operation: Operation, ndim: int) -> Operation | None:
    """Returns a sum of softmax weights times a signal as a product, or None for other sums.

    An example is the pooling ``(weights * tokens).sum(1)``.

    Args:
        operation: the sum.
        ndim: the number of dimensions of its output.
    """
    product = operation.traced()[0][1].operation if operation.kind is Kind.SUM else None
    if product is None or not is_weighted(product):
        return None
    found = summed_product(operation, ndim, lambda factor: _once(factor).size)
    if found is None:
        return None
    _, (factors, letters, output, _) = found
    weights, signal = map(_once, factors)
    if weights_of_tokens(product)[0][0] is product.operands[1]:
        weights, signal, letters = signal, weights, letters[::-1]
    pattern = _applies(Contraction((weights, signal), letters, output), 0)
    if pattern is None:
        return None

    return as_product(
        operation,
        product,
        (weights, signal),
        f"{','.join(letters)}->{output}",
        pattern=Pattern((weights,), 0, *pattern[2:5], product),
    )


def _once(factor: Operand) -> Operand:
    """Returns a factor as it was before it was repeated, as weights for each feature are."""
    value, tensor = factor.value, factor.tensor
    if value is None or (source := unrepeated(value)) is value:
        return factor
    if source.shape != (lengths := lengths_of(value)):
        return factor
    for dim, length in enumerate(lengths):
        tensor = tensor.narrow(dim, 0, length)
    return Operand(tensor, source)


def is_weighted(operation: Operation) -> bool:
    """Whether it multiplies a signal, entry by entry, with softmax weights of its tokens."""
    both = operation.kind is Kind.MUL and len(operation.operands) == len(operation.traced()) == 2
    return both and len(weights_of_tokens(operation)) == 1


def _applies(product: Contraction, weights: int) -> Pattern | None:
    """Returns the pattern if one factor is a softmax over keys that is applied to the other."""
    applied, other = product.factors[weights], product.factors[1 - weights]
    probabilities, signal = applied.value, other.value
    if probabilities is None or probabilities.keys is None:
        return None
    if (
        not probabilities.learned
        if signal is None
        else (signal.keys is not None and not is_weighted_signal(signal))
    ):
        return None
    heads = _heads(product.letters[weights], probabilities)
    orders = _orders(product, weights, heads)
    if orders is None:
        return None
    keys = orders[0][-1]
    if keys is None or probabilities.keys != Axis.of(probabilities.shape, keys):
        return None
    letters, others = product.letters[weights], product.letters[1 - weights]
    of_weights, of_values, of_output = map(_unless_plain, orders, (letters, others, product.output))
    rows = {letter for letter, n in zip(letters, applied.size, strict=True) if n > 1}
    # Weights of each token, of which it may have several, and not of channels, which tokens share.
    own = {*others} - {letters[keys]} - (_heads(others, signal) if signal is not None else set())
    if own <= {*letters}:
        rows -= heads
    in_tokens = (
        not probabilities.weighs_tokens
        and rows <= {*others}
        # They may also be other tokens, such as neighbours, as in a convolution.
        and (signal is None or is_of_one_token(signal, others.index(letters[keys])))
    )
    return Pattern((applied,), weights, of_weights, of_values, of_output, in_tokens=in_tokens)


def _heads(letters: str, probabilities: Value) -> set[str]:
    """Returns the letters of the heads of probabilities, which are features of the queries."""
    dims = (axis.dim(probabilities.shape) for axis in probabilities.features or ())
    return {letters[dim] for dim in dims if dim is not None}


def _unless_plain(order: tuple[int | None, ...], letters: str) -> Order:
    return None if order == tuple(range(len(letters))) else order


def require_described(call: FusedAttention, output: Tensor) -> None:
    """Checks that a function of the user's computes attention as it was described to do.

    Raises:
        UnsupportedOperationError: if its output differs from the probabilities times the values.
    """
    name, known = call.operation.name, call.output.dtype
    shapes = [tuple(o.size) for o in (call.query, call.key, call.value)]
    tolerance = max(1e-3, 8 * torch.finfo(known).eps)
    try:
        values = call.values()
        for rows in call.blocks():
            expected = call.probabilities(rows) @ values
            off = torch.linalg.vector_norm(output[..., rows, :] - expected)
            close = off <= tolerance * torch.linalg.vector_norm(expected)
            if not truth(close, "whether a described function computes attention"):
                break
        else:
            return
    except RuntimeError:
        pass  # the shapes don't match
    raise UnsupportedOperationError(
        f"`{name}` is described as attention, but from queries, keys and values of shapes {shapes} "
        "it makes something else than softmax(scale * query @ key.T + attn_mask) @ value. Are "
        "these (..., heads, tokens, features)? If not, pass their layout as `layout` of "
        "`captum_transformer.extend.operation`. Are its scale, its mask and whether it is causal "
        "declared by their canonical names, `scale`, `attn_mask` and `is_causal`? Windows, caps of "
        "scores and sequences in one tensor have no description."
    )


def _orders(
    product: Contraction, weights: int, heads: set[str]
) -> list[tuple[int | None, ...]] | None:
    """Returns how to permute a product's factors and output to the layout of `AttentionCall`.

    None if it is not a product of probabilities and values. A single query may have no axis, each
    feature may have its own weights, and heads may share their values.
    """
    a, v, out = product.letters[weights], product.letters[1 - weights], product.output
    keys = [c for c in a if c in v and c not in out]
    sizes = {
        c: n
        for letters, factor in zip(product.letters, product.factors, strict=True)
        for c, n in zip(letters, factor.size, strict=True)
    }
    # Dimensions of size one that only one factor has may be there for broadcasting.
    single = {c for c in (*a, *v, *out) if sizes.get(c, 1) == 1 and not (c in a and c in v)}
    queries = [c for c in dict.fromkeys(a + out) if c not in v and (c in out or c not in single)]
    if len(queries) > 1:
        queries = [c for c in queries if c not in heads and c not in single]
    features = [c for c in v if c not in a and c in out]
    if len(features) > 1:
        features = [c for c in features if c not in single]
    batch = [c for c in out if c not in (*queries, *features) and c not in single]
    if len(keys) != 1 or len(queries) > 1 or len(features) > 1:
        return None
    lasts = (queries, keys), (keys, features), (queries, features)
    orders: list[tuple[int | None, ...]] = []
    for term, last in zip((a, v, out), lasts, strict=True):
        lead = [term.index(c) if c in term else None for c in batch]
        while lead[:1] == [None]:
            del lead[0]
        order = (
            *lead,
            *(term.index(c) if c in term else None for (c,) in (x or " " for x in last)),
        )
        if not single.issuperset(c for dim, c in enumerate(term) if dim not in order):
            return None
        orders.append(order)
    return orders
