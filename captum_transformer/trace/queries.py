"""Which tokens attend in an attention call."""

from collections.abc import Iterable

from captum_transformer.trace.attention import AttentionCall, ExplicitAttention, FusedAttention
from captum_transformer.trace.axis import Axis
from captum_transformer.trace.dimensions import image
from captum_transformer.trace.kinds import BY_ENTRY, Kind
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.probabilities import back_to_scores
from captum_transformer.trace.statistics import softmax_dim
from captum_transformer.trace.value import Value
from captum_transformer.trace.views import view_of


def query_value(call: AttentionCall) -> Value | None:
    """Returns the queries of an attention call, or None if the inputs don't reach them.

    If no product of queries and keys made the probabilities, as in outlook attention, the
    probabilities are returned in place of their queries.
    """
    if isinstance(call, FusedAttention):
        return call.query.value or call.query.tokens
    weights = call.weights.value if isinstance(call, ExplicitAttention) else None
    queries = _queries(weights)
    if queries is not None:
        return queries.value or queries.tokens
    return None if weights is None or weights.learned else weights


def _queries(weights: Value | None) -> Operand | None:
    """Returns the factor of the scores whose tokens attend, or None if no product made them.

    The softmax runs along a dimension that only the keys have.
    """
    steps = back_to_scores(weights)
    if not steps:
        return None
    scores, output = steps.pop()
    product = scores.contraction()
    if product is None:
        raise RuntimeError("scores are a product")
    factors = product.factors
    if len(factors) == 2 and factors[0].value is not factors[1].value:
        for factor in factors:
            if _softmax_is_along(steps, output, product.made(factor)):
                return factor
    # A layer made the scores of the queries alone.
    return next((factor for factor in factors if factor.value or factor.tokens), factors[0])


def _softmax_is_along(
    steps: Iterable[tuple[Operation, Value]], scores: Value, dims: Iterable[int]
) -> bool:
    """Whether the softmax after some scores runs along one of their dimensions.

    Args:
        steps: operations after the scores, the last one first, with what they made.
        scores: the scores.
        dims: dimensions of the scores.
    """
    axes, before = [Axis.of(scores.shape, dim) for dim in dims], scores
    for operation, output in reversed([*steps]):
        if (dim := softmax_dim(operation)) is not None:
            return Axis.of(output.shape, dim) in axes
        axes = [after for axis in axes if (after := axis_after(operation, before, axis, output))]
        before = output
    return False


def axis_after(operation: Operation, before: Value, axis: Axis, output: Value) -> Axis | None:
    """Returns where an axis of an operand lies in an output, or None if it is not preserved.

    Args:
        operation: the operation.
        before: the value of one of its operands.
        axis: an axis of the value.
        output: one of the operation's outputs.
    """
    if operation.kind in BY_ENTRY and before.shape == output.shape:
        return axis
    if operation.kind is Kind.CONCATENATE:
        # Keys may be joined by further ones, such as attention sinks.
        dim = axis.dim(before.shape)
        if dim is not None and dim == operation.dim(len(output.shape)):
            return Axis.of(output.shape, dim)
    for operand, value in operation.carried():
        if value is before:
            return image(operation, operand, axis, output, view_of(operation, output))
    return None
