"""Where several tokens become one, as in the mean that many models read their scores from."""

import math
from collections.abc import Iterable

from captum_transformer.errors import UnsupportedOperationError
from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.axis import Axis
from captum_transformer.trace.dimensions import passage
from captum_transformer.trace.features import feature_dims
from captum_transformer.trace.kinds import Kind
from captum_transformer.trace.operation import Operation, Value

_POOLING = frozenset({Kind.MEAN, Kind.SUM, Kind.MAXIMUM, Kind.POOL, Kind.PRODUCT})


def pools_tokens(operation: Operation) -> bool:
    """Whether an operation makes one of several tokens of the one signal that it has."""
    traced = operation.traced()
    if operation.kind not in _POOLING or len(traced) != 1 or operation.pattern is not None:
        return False
    ((_, value),) = traced
    samples, gone = samples_in(value), _gone(operation)
    if samples is None or not value.features:
        return False
    kept = [axis.dim(value.shape) for axis in (samples[0], *value.features)]
    if None in kept:
        return False
    return kept[0] not in gone and any(value.shape[d] > 1 for d in gone if d not in kept)


def samples_in(value: Value) -> tuple[Axis, slice] | None:
    """Where samples lie in a value, and which of all they are; None if that is not known."""
    if (batch := value.batch) is not None:
        return batch.axis, slice(batch.first, batch.last + 1)
    return None if value.samples is None else (value.samples, slice(None))


def _gone(operation: Operation) -> tuple[int, ...]:
    """The dimensions of its one signal along which an operation makes one entry of several."""
    ((operand, _),) = operation.traced()
    return passage(operation, operand).mixed


def read_from(operations: Iterable[Operation], calls: Iterable[AttentionCall]) -> list[Operation]:
    """The operations that pool the tokens that a score is read from.

    They make one token of all, which have attended; it attends no more and was not pooled before.

    Args:
        operations: what leads to the score.
        calls: the attention calls among it.
    """
    found: list[Operation] = []
    outputs: list[Value] = []
    for operation in operations:
        output = operation.outputs[0]
        if operation.edge is None or output is None or not pools_tokens(operation):
            continue
        ((_, value),) = operation.traced()
        attends = any(call.output.descends_from(output) for call in calls)
        pooled = any(value is one or value.descends_from(one) for one in outputs)
        if value.attention and not attends and not pooled and _is_one_token(output, value):
            found.append(operation)
            outputs.append(output)
    return found


def require_known(
    operations: Iterable[Operation], calls: Iterable[AttentionCall], samples: int
) -> None:
    """Refuses if an operation behind all attention may pool tokens of unknown samples.

    Args:
        operations: what leads to the score.
        calls: the attention calls among it.
        samples: how many there are.

    Raises:
        UnsupportedOperationError: if there is one.
    """
    for operation in operations:
        output, traced = operation.outputs[0], operation.traced()
        if operation.kind not in _POOLING or len(traced) != 1 or output is None:
            continue
        ((_, value),) = traced
        if samples_in(value) is not None or not value.attention or operation.pattern is not None:
            continue
        mixed = set(_gone(operation)) - set(feature_dims(value))
        one_token = samples * math.prod(axis.size for axis in value.features or ())
        if (
            any(value.shape[dim] > 1 for dim in mixed)
            and output.shape.numel() == one_token
            and not any(call.output.descends_from(output) for call in calls)
        ):
            raise UnsupportedOperationError(
                f"{operation.described} may pool tokens that the score is read from, but where "
                "samples lie in them is not known. Explain the samples one by one "
                "(`internal_batch_size=1`), or without what pooled tokens say by themselves "
                "(`pooled_evidence=False`)."
            )


def _is_one_token(output: Value, pooled: Value) -> bool:
    """Whether what was made of tokens has but the samples and features of one."""
    sizes = [axis.size for axis in pooled.features or ()]
    if (samples := samples_in(pooled)) is not None:
        sizes.append(samples[0].size)
    return output.shape.numel() == math.prod(sizes)
