"""Where several tokens become one, as in the mean that many models read their scores from."""

import functools
import math
import operator
from collections.abc import Iterable, Sequence

from captum_transformer.trace.attention import AttentionCall
from captum_transformer.trace.axis import Axis, dimension_of
from captum_transformer.trace.dimensions import passage
from captum_transformer.trace.kinds import BY_ENTRY, CONVOLUTIONS, MOVES, Kind
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.stacked import joins_tokens
from captum_transformer.trace.value import Value
from captum_transformer.trace.views import view_of

# Each entry of their results belongs to a single token, wherever it lies.
_KEEPS_TOKENS = BY_ENTRY | MOVES | {Kind.ASKS, Kind.EMBEDDING}
_MOVE = Kind.MOVE


def pools_tokens(operation: Operation) -> bool:
    """Whether an operation combines several tokens that have attended into its entries.

    Attention combines tokens too but does not count, because its outputs are tokens again.
    """
    kind = operation.kind
    if operation.pattern is not None or (
        kind in _KEEPS_TOKENS and not (kind is _MOVE and _picks_entries(operation))
    ):
        return False
    for operand, value in operation.traced():
        if value.attention and mixes_tokens(operation, operand, value):
            return True
    return False


def _picks_entries(operation: Operation) -> bool:
    """Whether each feature may come from a different token, such as the one where it is largest."""
    if len(operation.operands) == 1:
        return False
    index = operation.argument("index")
    if not isinstance(index, Operand) or operation.argument("source") is not None:
        return False
    return len(index.size) > 1


def mixes_tokens(operation: Operation, operand: Operand, value: Value) -> bool:
    """Whether output entries combine entries of a signal that aren't features of one token."""
    lengths = _lengths_of_tokens(value)
    for dim in passage(operation, operand).mixed:
        if lengths[dim] > 1 and _laid_side_by_side(value) != Axis.of(value.shape, dim):
            return True
    return False


def _lengths_of_tokens(value: Value) -> list[int]:
    """Returns each dimension's length divided by its samples and features: 1 without tokens."""
    samples = samples_in(value)
    axes = value.features or ()
    return _lengths_without(value.shape, axes if samples is None else (*axes, samples[0]))


# The layers of a model ask this for the same shapes, so results are cached.
@functools.lru_cache(maxsize=4096)
def _lengths_without(shape: tuple[int, ...], axes: tuple[Axis, ...]) -> list[int]:
    lengths = list(shape)
    for axis in axes:
        if (part := dimension_of(axis, shape)) is not None:
            lengths[part.dim] //= part.size
    return lengths


def _leaves_one_token(operation: Operation, samples: int) -> bool:
    """Whether only one of several tokens of its one signal is left, picked or made from all.

    If it is not known where samples lie, an output of at most one token for each sample counts.
    """
    output, traced = operation.outputs[0], operation.traced()
    if operation.kind in BY_ENTRY or operation.pattern is not None or len(traced) != 1:
        return False
    ((operand, value),) = traced
    if output is None or not value.attention:
        return False
    width = math.prod(axis.size for axis in value.features or ())
    one_each = output.shape.numel() == samples * width < value.shape.numel()
    if (lie := samples_in(value)) is None:
        # Or of some samples, as where the tokens of all samples are split again.
        few = output.shape.numel() <= samples * width
        return one_each or (few and pools_tokens(operation))
    held = dimension_of(lie[0], value.shape)
    to = passage(operation, operand, len(output.shape)).to
    tokens = [dim for dim, length in enumerate(_lengths_of_tokens(value)) if length > 1]
    if held is not None and [held.dim] == tokens and held.size > 1:
        return one_each and pools_tokens(operation)  # packed, those of all samples
    tokens = [dim for dim in tokens if held is None or held.size == 1 or dim != held.dim]
    left = (place for dim in tokens if (place := to[dim]) is not None)
    return bool(tokens) and all(output.shape[place] == 1 for place in left)


def _laid_side_by_side(value: Value) -> Axis | None:
    """Returns the axis along which signals were joined whose sum adds them and pools nothing."""
    operation = value.operation
    if operation is None:
        return None
    if operation.kind in (Kind.STACK, Kind.CONCATENATE):
        alike = len({operand.size for operand in operation.operands}) == 1
        dim = operation.dim(len(value.shape))
        joined = alike and dim is not None and not joins_tokens(operation)
        return Axis.of(value.shape, dim or 0, len(operation.operands)) if joined else None
    view = view_of(operation, value)
    if view is None or len(operation.traced()) != 1:
        return None
    axis = _laid_side_by_side(operation.traced()[0][1])
    return None if axis is None else axis.in_view(view)


def samples_in(value: Value) -> tuple[Axis, slice] | None:
    """Returns where samples lie in a value and which samples these are, or None if unknown."""
    if (batch := value.batch) is not None:
        return batch.axis, slice(batch.first, batch.last + 1)
    return None if value.samples is None else (value.samples, slice(None))


def read_from(
    operations: Sequence[Operation], calls: Iterable[AttentionCall], samples: int
) -> list[Operation]:
    """Returns the operations that pool the tokens from which a score is read.

    These tokens have attended, don't attend again, and are combined into one token, possibly in
    several steps.

    Args:
        operations: the operations that lead to the score.
        calls: the attention calls among them.
        samples: the number of samples.
    """
    found: list[Operation] = []
    # The values that lead to an attention call, or to an operation that has been found.
    before = functools.reduce(operator.or_, (call.output.ancestors for call in calls), 0)
    for operation in reversed(operations):
        output = operation.outputs[0]
        if output is None or before >> output.index & 1:
            continue
        if not _leaves_one_token(operation, samples):
            continue
        first, value = None, operation.traced()[0][1]
        # One token may be made in several steps, with token-wise layers in between.
        step: Operation | None = operation
        while step is not None and len(step.traced()) == 1 and value.attention:
            ((_, value),) = step.traced()
            if step.edge is not None and pools_tokens(step):
                if step.kind in CONVOLUTIONS and first is not None:
                    break
                first = step
            step = None if step.pattern is not None else value.operation
        if first is not None:
            found.append(first)
            for _, value in operation.traced():
                before |= value.ancestors | 1 << value.index
    return found
