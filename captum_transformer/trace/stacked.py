"""Parts of each token's features that are stacked, as heads or rotated pairs of features are."""

import math
from collections.abc import Sequence

from captum_transformer.trace.axis import Axis
from captum_transformer.trace.dimensions import passage
from captum_transformer.trace.kinds import BY_ENTRY, MOVES, Kind
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.value import Value
from captum_transformer.trace.views import view_of
from captum_transformer.trace.walks import found_behind

_MIXES = frozenset({Kind.PRODUCT, Kind.SUM, Kind.MEAN})


def of_stacked_parts(operation: Operation, output: Value) -> Axis | None:
    """Returns the axis along which parts of each token's features were stacked, or None."""
    if operation.kind is Kind.AS_REAL:  # real and imaginary parts
        return Axis.of(output.shape, len(output.shape) - 1)
    dim = operation.dim(len(output.shape))
    if operation.kind is not Kind.STACK or dim is None or len(operation.traced()) < 2:
        return None
    return None if _common_whole(operation) is None else Axis.of(output.shape, dim)


def _common_whole(operation: Operation) -> Value | None:
    """Returns the value whose features all operands hold a part of, or None."""
    wholes = set[Value | None]()
    for _, value in operation.traced():
        wholes.add(whole_of(value))
        if len(wholes) > 1:
            return None
    return wholes.pop()


def whole_of(value: Value) -> Value | None:
    """Returns the value whose features a value holds a part of, or None if there is none."""
    wholes = set(found_behind(value, _whole_or_sources))
    return wholes.pop() if len(wholes) == 1 else None


def _whole_or_sources(part: Value) -> list[Value] | Value | None:
    operation = part.operation
    if operation is None:
        return None
    sources = [value for _, value in operation.traced()]
    if part.features is None or any(source.features is None for source in sources):
        return None
    if any(count_of_tokens(source) != count_of_tokens(part) for source in sources):
        return None  # parts may be of different tokens, such as pages of a cache
    fewer = len(sources) == 1 and _count(sources[0].features or ()) > _count(part.features)
    if operation.kind in MOVES or operation.kind in BY_ENTRY:
        return sources[0] if fewer else sources
    # A number for each token, which weights make of its features.
    number = fewer and not part.features and operation.kind in _MIXES
    return _unweighted(sources[0]) if number else None


def _unweighted(value: Value) -> Value:
    """Returns a value before constants multiplied its entries."""
    while (operation := value.operation) is not None and operation.kind in (Kind.MUL, Kind.DIV):
        traced = operation.traced()
        if len(traced) > 1 or traced[0][1].shape != value.shape:
            break
        ((_, value),) = traced
    return value


def _count(features: Sequence[Axis]) -> int:
    return math.prod(axis.size for axis in features)


def count_of_tokens(value: Value) -> int:
    """Returns the number of tokens of all samples."""
    return value.shape.numel() // max(_count(value.features or ()), 1)


def joins_tokens(operation: Operation) -> bool:
    """Whether it joins single tokens that a model has worked on one by one.

    Their dimension is what was left of one that held several tokens. Signals that are joined along
    a dimension of their own, as in a stack, are branches.
    """
    traced = operation.traced()
    return operation.kind is Kind.CONCATENATE and all(
        _was_cut(value, operation.dim(len(value.shape))) for _, value in traced
    )


def _was_cut(value: Value, dim: int | None) -> bool:
    """Whether a dimension of one entry had several ones before, other than features."""
    if dim is None or value.shape[dim] > 1:
        return False
    while value.shape[dim] == 1:
        found = None if value.operation is None else _before(value.operation, value, dim)
        if found is None:
            return False
        value, dim = found
    return Axis.of(value.shape, dim) not in (value.features or ())


def _before(operation: Operation, output: Value, dim: int) -> tuple[Value, int] | None:
    """Returns an operand and its dimension that has become one of an output, or None."""
    for operand, source in operation.traced():
        view = view_of(operation, output)
        if view is None:
            to = passage(operation, operand, len(output.shape)).to
            if dim in to:
                return source, to.index(dim)
        elif len(view.shape) == len(source.shape):
            before, after = list(source.shape), list(view.shape)
            del before[dim], after[dim]
            if before == after:
                return source, dim
    return None
