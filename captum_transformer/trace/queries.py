"""Which tokens attend in an attention call."""

from collections.abc import Iterable

from captum_transformer.trace.attention import AttentionCall, ExplicitAttention, FusedAttention
from captum_transformer.trace.axis import Axis
from captum_transformer.trace.dimensions import axis_after
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.probabilities import back_to_scores
from captum_transformer.trace.products import factors_of
from captum_transformer.trace.statistics import softmax_dim
from captum_transformer.trace.value import Value, unrepeated
from captum_transformer.trace.views import view_of

# Keys may be joined by further ones, such as attention sinks, or be those with the largest scores.
_RESIZES = frozenset({Kind.CONCATENATE, Kind.PAD, Kind.CHOICE, Kind.MOVE, Kind.SUM_AT_INDICES})


def query_value(call: AttentionCall) -> Value | None:
    """Returns the queries of an attention call, or None if the inputs don't reach them.

    If no product of queries and keys made the probabilities, as in outlook attention, or if it is
    unknown which factor the queries are, the probabilities are returned in place of their queries.
    """
    if isinstance(call, FusedAttention):
        return call.query.value or call.query.tokens
    weights = call.weights.value if isinstance(call, ExplicitAttention) else None
    steps = back_to_scores(weights)
    if not steps:
        return None if weights is None or weights.learned else weights
    scores, output = steps.pop()
    factors = factors_of(scores, output) or []
    held = [factor.value or factor.tokens for factor, _ in factors]
    values = [value and unrepeated(value) for value in held]
    if len(values) == 2 and values[0] is not values[1]:
        for value, (_, lacking) in zip(values, factors, strict=True):
            if _softmax_is_along(steps, output, lacking):
                return value
        if None not in values:
            return weights
    # A layer made the scores of the queries alone.
    return next((value for value in values if value is not None), None)


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
        view = view_of(operation, output)
        operands = [operand for operand, value in operation.carried() if value is before][:1]
        lie = (
            axis_after(operation, o, axis, output, view, _RESIZES)
            for o in operands
            for axis in axes
        )
        axes, before = [axis for axis in lie if axis is not None], output
    return False
