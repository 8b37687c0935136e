"""Operations that mix tokens but are not recognized as attention."""

from collections.abc import Sequence

from captum_transformer.trace.applied_weights import applied_weights, held_weights
from captum_transformer.trace.attention import ExplicitAttention
from captum_transformer.trace.features import sums_over_features
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.probabilities import back_to_scores
from captum_transformer.trace.queries import query_value
from captum_transformer.trace.value import Value


def unread_mixing(operations: Sequence[Operation]) -> list[Operation]:
    """Returns the operations that mix tokens and are not a part of an attention call.

    Products of queries and keys are a part of one. Similarities of two towers don't mix tokens.
    """
    read = 0
    for operation in operations:
        call = operation.attention
        if call is not None:
            found = earlier = 0
            for _, value in operation.traced():
                found |= value.mixtures
            # Mixing in the history of queries and values came earlier, and isn't part of this call.
            for made in filter(None, (query_value(call), call.value.value)):
                earlier |= made.mixtures
            read |= found & ~earlier
            if isinstance(call, ExplicitAttention):
                for step, _ in back_to_scores(call.weights.value):
                    read |= 1 << step.index
            if operation.pattern is not None and operation.pattern.product is not None:
                read |= 1 << operation.pattern.product.index
    return [
        operation
        for operation in operations
        if operation.attention is None
        and _mixes(operation)
        and not read >> operation.index & 1
        and not sums_over_features(operation)
    ]


def _mixes(operation: Operation) -> bool:
    output = operation.outputs[0] if operation.outputs else None
    return output is not None and bool(output.mixtures >> operation.index & 1)


def of_unknown_weights(operations: Sequence[Operation]) -> list[Operation]:
    """Returns the operations that mix tokens by weights that are not known.

    Nothing that known weights were made from counts, such as their scores: weights are held.

    Args:
        operations: the operations that lead to a score, in order.
    """
    consumed, reached = set[Value](), set[Value]()
    for operation in reversed(operations):
        outputs = {output for output in operation.outputs if output is not None}
        if reached & outputs or not consumed & outputs:
            held = held_weights(operation)
            reached |= {value for operand, value in operation.carried() if operand not in held}
            reached |= outputs
        consumed.update(value for _, value in operation.carried())
    return [
        operation
        for operation in unread_mixing(operations)
        if operation.outputs[0] in reached and not _has_known_weights(operation)
    ]


def _has_known_weights(operation: Operation) -> bool:
    """Whether the weights that mix tokens are known, so that they can be held constant.

    These are softmax weights, applied entry-wise, in parts or to constants, and those of a Fourier
    transform.
    """
    return operation.kind is Kind.TRANSFORM or bool(applied_weights(operation))


def named(operations: Sequence[Operation]) -> list[str]:
    """Returns distinct descriptions of operations, by name and shapes."""
    names = [
        f"`{operation.name}` on {[tuple(value.shape) for _, value in operation.traced()]}"
        for operation in operations
    ]
    return list(dict.fromkeys(names))
