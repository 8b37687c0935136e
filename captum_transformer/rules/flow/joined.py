"""The axes along which joined signals lie, such as heads or samples that attend in a loop."""

from collections.abc import Sequence
from typing import TypeAlias

from captum_transformer.trace.axis import Axis, axes_in_view, runs_along
from captum_transformer.trace.dimensions import image, passage
from captum_transformer.trace.features import feature_dims
from captum_transformer.trace.indices import picked
from captum_transformer.trace.kinds import Kind, Role
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.value import Value
from captum_transformer.trace.views import views_of

# None if they are not known.
Axes: TypeAlias = tuple[Axis, ...] | None


def joined_along(operation: Operation, output: Value, before: Sequence[Axes]) -> Axes:
    """Returns the axes along which an operation joins signals, or None if they are not known."""
    shape, dim = output.shape, operation.dim(len(output.shape)) or 0
    if operation.kind is Kind.STACK:
        return (Axis.of(shape, dim),)
    if operation.kind is Kind.CONCATENATE:
        values = [value for _, value in operation.traced()]
        pairs = zip(values, before, strict=True)
        if any(Axis.of(value.shape, dim) in (axes or ()) for value, axes in pairs):
            return (Axis.of(shape, dim),)  # one more in a stack, as in a cache
        alike = len({operand.size for operand in operation.operands}) == 1
        return (Axis.of(shape, dim, len(operation.operands)),) if alike else None
    traced = operation.traced()
    if len(traced) == 1 and traced[0][0] is not operation.argument("source"):
        return ()
    along: set[int] = set()
    for operand, _ in traced:
        to = passage(operation, operand, len(shape)).to
        lengths = {place: operand.size[dim] for dim, place in enumerate(to) if place is not None}
        apart = {dim for dim, length in enumerate(shape) if lengths.get(dim, 1) != length}
        masked = any(other.role is Role.MASK for other in operation.operands)
        if masked or not lengths or any(lengths.get(dim, 1) != 1 for dim in apart):
            return None
        along |= apart
    return tuple(Axis.of(shape, dim) for dim in sorted(along))


def carried(
    operation: Operation, operand: Operand, axes: Axes, output: Value, *, stacked: bool
) -> Axes:
    """Returns the axes of a rearranged signal as axes of an output, or None if unknown.

    Args:
        operation: the operation that rearranges the signal.
        operand: the signal.
        axes: the axes along which the signals lie that it was joined from.
        output: the output of the operation.
        stacked: whether each index of an axis is one of these signals.
    """
    if axes is None:
        return None
    views = views_of(operation)
    if views is not None:
        return axes_in_view(axes, views[operation.outputs.index(output)])
    ndim = len(output.shape)
    to, mixed = passage(operation, operand, ndim)
    found: list[Axis] = []
    for axis in axes:
        dims = [dim for dim in range(len(to)) if runs_along(axis, operand.size, dim)]
        kept = set(dims).isdisjoint(mixed) and image(operation, operand, axis, output, None)
        if kept:
            found.append(kept)
        elif operation.kind is not Kind.CONCATENATE or dims != [operation.dim(ndim)]:
            # Signals that are picked or moved along a dimension lie along it, in other places.
            places = _places(operation, to, dims)
            if places is None or not stacked:
                return None
            found += [Axis.of(output.shape, place) for place in places]
    return tuple(found)


def _places(
    operation: Operation, to: Sequence[int | None], dims: Sequence[int]
) -> list[int] | None:
    """Returns what dimensions become if index tensors may pick along them; None if unknown."""
    brackets, left = operation.argument("brackets"), [p for d in dims if (p := to[d]) is not None]
    if len(left) == len(dims) or brackets is None:
        return left if len(left) == len(dims) else None
    front, new = picked(brackets, len(to))[2:]
    return [*left, *range(front, front + new)]


def along_features(axes: Sequence[Axis], value: Value) -> bool:
    """Returns whether signals were joined along features of tokens, as heads are in a loop."""
    dims = feature_dims(value)
    return any(runs_along(axis, value.shape, dim) for axis in axes for dim in dims)
