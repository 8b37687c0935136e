"""What an operation does to each dimension of its operands, and where axes lie in its outputs.

All code that follows samples, features or keys through operations uses this module.
"""

from collections.abc import Callable, Collection
from functools import lru_cache
from typing import NamedTuple

from captum_transformer.trace.axis import Axis, View, dimension_of, runs_along
from captum_transformer.trace.indices import picked
from captum_transformer.trace.kinds import BY_ENTRY, CONVOLUTIONS, Kind
from captum_transformer.trace.lookups import ahead_of_ids
from captum_transformer.trace.norms import normalisation
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.value import Value


class Passage(NamedTuple):
    """What an operation that is not a view does to the dimensions of an operand.

    Attributes:
        to: for each dimension of the operand, the corresponding dimension of the output; None if
            there is none or if it is unknown.
        mixed: the dimensions along which entries are combined or moved. Along all other dimensions,
            each entry of the output is made of entries at the same position.
    """

    to: tuple[int | None, ...]
    mixed: tuple[int, ...]


def passage(operation: Operation, operand: Operand, ndim: int | None = None) -> Passage:
    """Returns what an operation does to the dimensions of an operand.

    Args:
        operation: the operation.
        operand: one of its operands.
        ndim: the number of dimensions of the output. Default: that of the operand.

    >>> import torch
    >>> from captum_transformer.trace.mode import Trace
    >>> x = torch.randn(2, 3, 4, requires_grad=True)
    >>> with Trace() as trace:
    ...     value = trace.enter_input(x)
    ...     out = x.clone().sum(1)
    >>> total = trace.tape.operations[-1]
    >>> passage(total, total.operands[0], ndim=2)
    Passage(to=(0, None, 1), mixed=(1,))
    """
    before = len(operand.size)
    after = before if ndim is None else ndim
    of_kind = _OF_KINDS.get(operation.kind)
    found = of_kind(operation, operand, after) if of_kind is not None else None
    if found is not None:
        return found
    dims = operation.along(before)
    return _unknown(before) if dims is None else _along(before, after, dims)


@lru_cache(maxsize=4096)
def _along(before: int, after: int, mixed: tuple[int, ...]) -> Passage:
    """Mixes along some dimensions, and removes them if the output has that many fewer."""
    dims = range(before)
    to: tuple[int | None, ...] = (None,) * before
    if before == after:
        to = tuple(dims)
    elif before == after + len(mixed):
        to = tuple(None if d in mixed else d - sum(m < d for m in mixed) for d in dims)
    elif before < after and not mixed:
        to = tuple(d + after - before for d in dims)  # broadcast
    return Passage(to, mixed)


@lru_cache(maxsize=4096)
def _moved(to: tuple[int | None, ...]) -> Passage:
    """Moves dimensions, and mixes along those that are not in the output."""
    return Passage(to, tuple(d for d, place in enumerate(to) if place is None))


def _unknown(before: int) -> Passage:
    return _moved((None,) * before)


def _multiplied(operation: Operation, operand: Operand, after: int) -> Passage:
    product, before = operation.contraction(), len(operand.size)
    if product is None:
        return _unknown(before)
    letters = product.of(operand)
    if letters:
        return _by_letters(letters, product.output)
    return _along(before, after, ()) if operand is product.addend else _unknown(before)


@lru_cache(maxsize=4096)
def _by_letters(letters: str, output: str) -> Passage:
    return _moved(tuple(output.index(c) if c in output else None for c in letters))


def _convolved(operation: Operation, operand: Operand, _: int) -> Passage:
    """Mixes the channels and, unless the kernel has size and stride one, the positions."""
    before, kernel = len(operand.size), operation.argument("weight").size[2:]
    if operand is not operation.argument("input"):
        return _unknown(before)
    channels = before - len(kernel) - 1
    to = tuple(None if dim == channels else dim for dim in range(before))
    alone = set(kernel) == {1} and operation.argument("stride", 1) in (1, (1,) * len(kernel))
    return Passage(to, (channels,) if alone else tuple(range(channels, before)))


def _attended(operation: Operation, operand: Operand, after: int) -> Passage:
    for name, ends in _ATTENDED.items():
        if operand is operation.arguments.get(name):
            return _with_ends(len(operand.size), after, ends)
    return _unknown(len(operand.size))


# Where the last two dimensions of attention's operands are in the output.
_ATTENDED = {"query": (-2, None), "key": (None, None), "value": (None, -1), "attn_mask": (-2, None)}


@lru_cache(maxsize=4096)
def _with_ends(before: int, after: int, ends: tuple[int | None, ...]) -> Passage:
    lead = (dim + after - before for dim in range(before - 2))
    return _moved((*lead, *(end if end is None else after + end for end in ends)))


def _normalised(operation: Operation, operand: Operand, after: int) -> Passage:
    how, before = normalisation(operation), len(operand.size)
    if how is None or operand is not operation.argument("input"):
        return _unknown(before)
    if how.by_constants:
        return _along(before, after, ())
    if how.over_samples:
        return _along(before, after, (0, *range(2, before)))
    apart = how.rows[:-1]
    cut = (d for d, (n, row) in enumerate(zip(operand.size, apart, strict=False)) if n != row)
    first = next(cut, len(apart))
    return _along(before, after, tuple(range(first, before)))


def _rearranged(operation: Operation, operand: Operand, after: int) -> Passage | None:
    """Indexing with brackets, and writes into what brackets or a strided view select."""
    known, before = operation.arguments, len(operand.size)
    brackets, source, strides = known.get("brackets"), known.get("source"), known.get("stride", ())
    if brackets is None and not (source and strides):
        return _in_slice(operation, operand, after) if source else None
    if operand is operation.argument("input"):
        is_read = source is None
        return _moved(picked(brackets, before).to) if is_read else _along(before, after, ())
    if operand is not source:
        return _unknown(before)
    if brackets is None:
        written = operation.outputs[0]
        steps = () if written is None else written.stride
        return _moved(tuple(steps.index(step) if step in steps else None for step in strides))
    places = picked(brackets, after)
    shift = places.ndim - before
    return _moved(
        tuple(
            places.to.index(dim + shift) if dim + shift in places.to else None
            for dim in range(before)
        )
    )


def _in_slice(operation: Operation, operand: Operand, after: int) -> Passage | None:
    """Writes into a slice, or into a single position, along a dimension."""
    if operation.function.entry.along is not None or not isinstance(operation.argument("dim"), int):
        return None
    if operand is operation.argument("input"):
        return _along(after, after, ())
    before, (dim,) = len(operand.size), (operation.argument("dim") % after,)
    return _along(after, after, (dim,)) if before == after else _inserted(before, dim)


def _looked_up(operation: Operation, ids: Operand, _: int) -> Passage:
    ahead, before = ahead_of_ids(operation, ids), len(ids.size)
    return _unknown(before) if ahead is None else _moved(tuple(range(ahead, ahead + before)))


def _stacked(operation: Operation, operand: Operand, after: int) -> Passage:
    (at,) = operation.along(after) or (0,)
    return _inserted(len(operand.size), at)


def _inserted(before: int, at: int) -> Passage:
    return _moved(tuple(dim + (at <= dim) for dim in range(before)))


def _padded(operation: Operation, operand: Operand, after: int) -> Passage:
    before = len(operand.size)
    padded = {before - 1 - place // 2 for place, n in enumerate(operation.argument("pad")) if n}
    return _along(before, after, tuple(sorted(padded)))


def _compared(operation: Operation, operand: Operand, after: int) -> Passage | None:
    """Compares rows with rows; the rows of the second operand become columns of the output."""
    columns = operation.argument("columns")
    if columns is None:
        return None
    rows = [dim + after - len(operand.size) for dim in range(len(operand.size) - 1)]
    if operand is columns:
        rows[-1] += 1
    return _moved((*rows, None))


def _read_at(operation: Operation, operand: Operand, _: int) -> Passage | None:
    """Maps the grid of positions to the output, whose second dimension is the channels."""
    if operand is not operation.argument("grid"):
        return None
    places = range(2, len(operand.size))
    return _moved((0, *places, None))


def _solved(operation: Operation, operand: Operand, after: int) -> Passage | None:
    if operand is operation.argument("other"):
        return None
    return _with_ends(len(operand.size), after, (None, None))


# Kinds that need more than their `dim`. The functions return None if `dim` is enough.
_OF_KINDS: dict[Kind, Callable[[Operation, Operand, int], Passage | None]] = {
    **dict.fromkeys(CONVOLUTIONS, _convolved),
    Kind.PRODUCT: _multiplied,
    Kind.ATTENTION: _attended,
    Kind.NORM: _normalised,
    Kind.MOVE: _rearranged,
    Kind.EMBEDDING: _looked_up,
    Kind.STACK: _stacked,
    Kind.PAD: _padded,
    Kind.DISTANCE: _compared,
    Kind.SAMPLE: _read_at,
    Kind.SOLVE: _solved,
    Kind.AS_REAL: lambda _, operand, __: _moved(tuple(range(len(operand.size)))),
}


def image(
    operation: Operation, operand: Operand, axis: Axis, output: Value, view: View | None
) -> Axis | None:
    """Returns where an axis of an operand lies in an output, or None if it is not preserved.

    Args:
        operation: the operation.
        operand: one of its operands.
        axis: an axis of the operand.
        output: one of the operation's outputs.
        view: how the output lies over the operand, if it is a view; otherwise None.
    """
    if view is not None:
        return axis.in_view(view)
    found = passage(operation, operand, len(output.shape))
    return carried(axis, operand.size, found, output.shape)


@lru_cache(maxsize=4096)
def carried(
    axis: Axis,
    before: tuple[int, ...],
    found: Passage,
    after: tuple[int, ...],
    *,
    apart: bool = False,
) -> Axis | None:
    """Returns where an axis lies after a passage from one shape to another; see `image`.

    With `apart`, returns None if the passage combines entries of several indices of the axis.
    """
    if apart and any(runs_along(axis, before, dim) for dim in found.mixed):
        return None
    if before == after and found.to == tuple(range(len(after))):
        return axis
    if axis.size == 1:
        # The axis could be any dimension of size one at this position.
        dims = [d for d, n in enumerate(before) if n == 1 and Axis.of(before, d) == axis]
        places = {found.to[dim] for dim in dims}
        known = [place for place in places if place is not None and after[place] == 1]
        return Axis.of(after, known[0]) if known and None not in places else None
    part = dimension_of(axis, before)
    place = None if part is None else found.to[part.dim]
    if part is None or place is None or after[place] != before[part.dim]:
        return None
    return part.of(after, place)


def axis_after(
    operation: Operation,
    operand: Operand,
    axis: Axis,
    output: Value,
    view: View | None,
    resizes: Collection[Kind] = (),
) -> Axis | None:
    """Returns where an axis lies in an output as `image` does, but also if some indices are left.

    Args:
        operation: the operation.
        operand: one of its operands.
        axis: an axis of the operand.
        output: one of the operation's outputs.
        view: how the output lies over the operand, if it is a view; otherwise None.
        resizes: the kinds of operations after which the axis may have other indices, such as those
            that it was joined with.
    """
    before, after = operand.size, output.shape
    if operation.kind in BY_ENTRY and before == after:
        return axis
    if view is not None:
        seen = axis.seen_in(view)
        return None if seen is None or seen[1].size == 1 < axis.size else seen[1]
    found, dim = passage(operation, operand, len(after)), axis.dim(before)
    if operation.kind in resizes and dim in found.mixed and axis.size == before[dim]:
        place = found.to[dim]
        if place is not None:
            return Axis.of(after, place)
    return carried(axis, before, found, after)


def source_of(
    operation: Operation, operand: Operand, axis: Axis, output: Value, view: View | None
) -> Axis | None:
    """Returns the axis of an operand that becomes a given axis of the output; reverses `image`."""
    parts = Axis.parts(operand.size, axis.size)
    return next((p for p in parts if image(operation, operand, p, output, view) == axis), None)
