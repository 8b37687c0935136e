"""What an operation does to each dimension of its operands, and where axes lie because of it.

Whatever asks where samples, features or keys lie before or after an operation reads this.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from captum_transformer.trace.axis import Axis, View, dimension_of, runs_along
from captum_transformer.trace.indices import picked
from captum_transformer.trace.kinds import CONVOLUTIONS, Kind
from captum_transformer.trace.norms import normalisation
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.value import Value


class Passage(NamedTuple):
    """What an operation that is no view does to the dimensions of an operand.

    Attributes:
        to: for each dimension of the operand its place in the output; None if it is gone, or if
            it is not known what becomes of it.
        mixed: the dimensions along which one entry is made of several, or entries move. Along the
            others each entry of the output is made of entries at its own place.
    """

    to: tuple[int | None, ...]
    mixed: tuple[int, ...]


def passage(operation: Operation, operand: Operand, ndim: int | None = None) -> Passage:
    """What an operation does to the dimensions of an operand.

    Args:
        operation: the operation.
        operand: one of its operands.
        ndim: how many dimensions the output has; as many as the operand if that is left out.

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
    """Works along some dimensions, which are gone where that many are missing afterwards."""
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
    """Moves dimensions, and works along those that are gone."""
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
    """Channels become others, and places see their neighbours, if kernels reach that far."""
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


# What becomes of the last two dimensions of what attention is made of.
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
    """What brackets read, and what they or a view write where they would read."""
    known, before = operation.arguments, len(operand.size)
    brackets, source, strides = known.get("brackets"), known.get("source"), known.get("stride", ())
    if brackets is None and not (source and strides):
        return None
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


def _looked_up(operation: Operation, ids: Operand, _: int) -> Passage:
    ahead, before = ahead_of_ids(operation, ids), len(ids.size)
    return _unknown(before) if ahead is None else _moved(tuple(range(ahead, ahead + before)))


def ahead_of_ids(operation: Operation, ids: Operand) -> int | None:
    """How many dimensions a lookup's output has before those of the ids."""
    if "weight" in operation.arguments:
        return 0 if ids is operation.arguments["index"] else None
    table, brackets = operation.arguments["input"], operation.argument("brackets")
    if ids is table:
        return None
    if brackets is not None:
        places = picked(brackets, len(table.size))
        return places.front + places.new - len(ids.size)
    # What is taken without a dimension, or beside others of its length, has the ids' own shape.
    dims = operation.along(len(table.size))
    whole = not dims or len(dims) > 1 or len(ids.size) == len(table.size)
    return dims[0] if dims and not whole else 0


def features_begin(operation: Operation) -> int | None:
    """The first dimension of looked up features; None if the ids' dimensions are not in front.

    ``table[ids]`` has the ids' dimensions first and the table's features behind them. Where ids
    are broadcast to the features, as for ``torch.gather``, there are no dimensions of features
    alone, and the number is that of all dimensions.
    """
    ((ids, _), *_) = operation.traced()
    return len(ids.size) if ahead_of_ids(operation, ids) == 0 else None


def _stacked(operation: Operation, operand: Operand, after: int) -> Passage:
    (at,) = operation.along(after) or (0,)
    return _moved(tuple(dim + (at <= dim) for dim in range(len(operand.size))))


def _padded(operation: Operation, operand: Operand, after: int) -> Passage:
    before = len(operand.size)
    padded = {before - 1 - place // 2 for place, n in enumerate(operation.argument("pad")) if n}
    return _along(before, after, tuple(sorted(padded)))


def _compared(operation: Operation, operand: Operand, after: int) -> Passage | None:
    """Rows with rows; those of the second become columns."""
    columns = operation.argument("columns")
    if columns is None:
        return None
    rows = [dim + after - len(operand.size) for dim in range(len(operand.size) - 1)]
    if operand is columns:
        rows[-1] += 1
    return _moved((*rows, None))


def _read_at(operation: Operation, operand: Operand, _: int) -> Passage | None:
    """The grid of places has no channels, which come second."""
    if operand is not operation.argument("grid"):
        return None
    places = range(2, len(operand.size))
    return _moved((0, *places, None))


def _solved(operation: Operation, operand: Operand, after: int) -> Passage | None:
    if operand is operation.argument("other"):
        return None
    return _with_ends(len(operand.size), after, (None, None))


# Those that their `dim` does not tell of; None if it does.
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
    """Where an axis of an operand lies in an output; None if it is not kept as it is.

    Args:
        operation: the operation.
        operand: one of its operands.
        axis: where something lies in it.
        output: one of the operation's outputs.
        view: how that lies over the operand, if it is a view.
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
    """An axis after a passage from one shape to another, as `image` has it.

    With `apart` it is lost where entries are made of several of its indices.
    """
    if apart and any(runs_along(axis, before, dim) for dim in found.mixed):
        return None
    if before == after and found.to == tuple(range(len(after))):
        return axis
    if axis.size == 1:
        # It could be any dimension of length one at its place.
        dims = [d for d, n in enumerate(before) if n == 1 and Axis.of(before, d) == axis]
        places = {found.to[dim] for dim in dims}
        known = [place for place in places if place is not None and after[place] == 1]
        return Axis.of(after, known[0]) if known and None not in places else None
    part = dimension_of(axis, before)
    place = None if part is None else found.to[part.dim]
    if part is None or place is None or after[place] != before[part.dim]:
        return None
    return part.of(after, place)


def source_of(
    operation: Operation, operand: Operand, axis: Axis, output: Value, view: View | None
) -> Axis | None:
    """The way back: which axis of an operand lies where an axis of the output does."""
    parts = Axis.parts(operand.size, axis.size)
    return next((p for p in parts if image(operation, operand, p, output, view) == axis), None)
