"""Where several tokens become one, as in the mean that many models read their scores from."""

import math
from collections.abc import Iterable

from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.operation import Operation, Value

_ALONG_DIMENSIONS = frozenset({Kind.MEAN, Kind.SUM, Kind.MAXIMUM})
_POOLING = _ALONG_DIMENSIONS | {Kind.POOL, Kind.PRODUCT}


def pools_tokens(operation: Operation) -> bool:
    """Whether an operation makes one of several tokens of the one signal that it has."""
    traced = operation.traced()
    if operation.kind not in _POOLING or len(traced) != 1 or operation.pattern is not None:
        return False
    ((operand, value),) = traced
    if value.samples is None or not value.features:
        return False
    gone: list[int] = []
    if operation.kind is Kind.PRODUCT:
        product = operation.contraction()
        gone = product.summed(operand) if product is not None else []
    elif operation.kind is Kind.POOL or "kernel_size" in operation.arguments:
        gone = list(range(2, len(value.shape)))
    else:
        given = operation.argument("dim")
        dims = given if isinstance(given, (tuple, list)) else [given]
        gone = [dim % len(value.shape) for dim in dims if isinstance(dim, int)]
    kept = [axis.dim(value.shape) for axis in (value.samples, *value.features)]
    if None in kept:
        return False
    return kept[0] not in gone and any(value.shape[d] > 1 for d in gone if d not in kept)


def read_from(operations: Iterable[Operation], calls: Iterable[AttentionCall]) -> list[Operation]:
    """The operations that pool the tokens that a score is read from.

    They make one token of all, which have attended; it attends no more and is not pooled again.

    Args:
        operations: what leads to the score.
        calls: the attention calls among it.
    """
    found: list[tuple[Operation, Value, Value]] = []
    for operation in operations:
        output = operation.outputs[0]
        if operation.edge is None or output is None or not pools_tokens(operation):
            continue
        ((_, value),) = operation.traced()
        attends = any(call.output.descends_from(output) for call in calls)
        if value.attention and not attends and _is_one_token(output, value):
            found.append((operation, value, output))
    return [
        operation
        for operation, _, output in found
        if not any(value.descends_from(output) or value is output for _, value, _ in found)
    ]


def _is_one_token(output: Value, pooled: Value) -> bool:
    """Whether what was made of tokens has but the samples and features of one."""
    axes = [axis for axis in (pooled.samples, *(pooled.features or ())) if axis is not None]
    return output.shape.numel() == math.prod(axis.size for axis in axes)
