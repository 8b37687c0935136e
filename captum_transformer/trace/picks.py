"""Which rows of an earlier value a value has, where a model picks rows, such as for experts.

Rows are picked by an index, or by a product with a constant matrix of zeros and ones.
"""

from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import NamedTuple

import torch
from torch import Tensor

from captum_transformer.calling.reading import truth
from captum_transformer.trace.axis import Axis
from captum_transformer.trace.dimensions import image, passage
from captum_transformer.trace.kinds import MOVES, Does, Kind, Role
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.value import Value
from captum_transformer.trace.views import view_of

_PICKS = MOVES | {Kind.CHOICE}


class Picked(NamedTuple):
    """The numbers of the picked rows from which a value was made.

    Attributes:
        numbers: the numbers of the rows, or the matrix that picked them.
        are_rows: whether the value still has one row for each number.
        axes: where the rows lie in the value, if a matrix picked them.
    """

    numbers: Tensor
    are_rows: bool
    axes: tuple[Axis, ...] = ()


def picked_rows(operations: Iterable[Operation]) -> dict[Value, list[Picked]]:
    """Returns the numbers of the picked rows from which each value was made.

    Rows that are picked from picked rows keep the original numbers, so rows that are put back into
    their order have their numbers in order. What is written or added at indices belongs to the rows
    that it is written to, and so does a product's sum over the rows that a matrix has picked. A row
    that is looked up in a table belongs to the token that looks it up.
    """
    found: dict[Value, list[Picked]] = {}
    for operation in operations:
        if operation.kind is Kind.EMBEDDING:
            continue
        into = operation.argument("input")
        writes = operation.kind is Kind.SUM_AT_INDICES or "source" in operation.arguments
        for output in operation.outputs:
            if output is None:
                continue
            before = {
                id(rows.numbers): _kept(rows, operation, operand, output)
                for operand, value in operation.traced()
                if not writes or operand is into
                for rows in found.get(value, ())
            }
            after = [rows for rows in before.values() if rows is not None]
            if operation.kind in _PICKS and not writes:
                indices = [_rows(o) for o in operation.operands if _is_index(o)]
                after = _picked(after, indices, into) if indices else after
            if len(after) == len(before):  # otherwise rows are put back in place
                after += _by_matrix(operation, output)
            if after:
                found[output] = after
    return found


def _by_matrix(operation: Operation, output: Value) -> list[Picked]:
    """Returns the rows that a product picks from a signal by constant matrices of 0s and 1s."""
    found = []
    for factor, summed, made in _factors(operation, output):
        if factor.value is None and factor.role is not Role.WEIGHT and summed and made:
            matrix = factor.tensor
            picks = ((matrix == 0) | (matrix == 1)).all() & (matrix.sum(summed) <= 1).all()
            if truth(picks, "whether a constant matrix picks rows"):
                axes = tuple(Axis.of(output.shape, place) for place in made)
                found.append(Picked(matrix, are_rows=False, axes=axes))
    return found


def _factors(operation: Operation, output: Value) -> Iterator[tuple[Operand, list[int], list[int]]]:
    """Yields each factor of a product, its summed dimensions, and the output dimensions it adds.

    The product may also be written as an entrywise product followed by a sum.
    """
    product = operation.contraction()
    if not operation.traced():
        return
    if product is not None:
        signals = {letter for operand, _ in operation.traced() for letter in product.of(operand)}
        for factor in product.factors:
            new = set(product.of(factor)) - signals
            made = [place for place, letter in enumerate(product.output) if letter in new]
            yield factor, product.summed(factor), made
        return
    ((operand, value), *_), ndim = operation.traced(), len(operation.traced()[0][1].shape)
    before, summed = value.operation, operation.along(ndim)
    if (
        operation.kind is not Kind.SUM
        or before is None
        or before.kind is not Kind.MUL
        or not summed
    ):
        return
    to = passage(operation, operand, len(output.shape)).to
    ((signal, _), *_) = before.traced()
    size = (1,) * (ndim - len(signal.size)) + tuple(signal.size)
    for factor in before.operands:
        ahead = ndim - len(factor.size)
        long = [dim for dim, length in enumerate(factor.size, ahead) if length > 1]
        places = [to[dim] for dim in long if dim not in summed and size[dim] == 1]
        made = [place for place in places if place is not None]
        yield factor, [dim - ahead for dim in long if dim in summed], made


def _kept(rows: Picked, operation: Operation, operand: Operand, output: Value) -> Picked | None:
    """Returns the rows after an operation, or None if it sums over rows that a matrix picked."""
    if not rows.axes:
        return rows
    view = view_of(operation, output)
    images = (image(operation, operand, axis, output, view) for axis in rows.axes)
    axes = tuple(filter(None, images))
    sums = operation.contraction() is not None or operation.kind.does is Does.SUMS
    return None if sums and not axes else Picked(rows.numbers, rows.are_rows, axes)


def are_same_rows(some: list[Picked] | None, others: list[Picked] | None) -> bool:
    """Whether two runs picked the same rows."""
    pairs = zip_longest(some or (), others or ())
    return all(one and other and torch.equal(one.numbers, other.numbers) for one, other in pairs)


def _is_index(operand: Operand) -> bool:
    return operand.role is Role.INDEX and operand.value is None and operand.is_kept


def _rows(operand: Operand) -> Tensor:
    index = operand.tensor
    return index.nonzero().flatten() if index.dtype in (torch.bool, torch.uint8) else index


def _picked(rows: list[Picked], indices: list[Tensor], of: Operand) -> list[Picked]:
    """Returns the picked rows after ``indices`` have picked some of the operand's rows."""
    (index, *further) = indices
    plain = not further and index.ndim == 1
    after, new = [], True
    for numbers, are_rows, axes in rows:
        known = plain and are_rows and numbers.shape == of.size[:1]
        after.append(Picked(numbers[index] if known else numbers, known, axes))
        new = new and not known
    return after + [Picked(index, plain) for index in indices if new]
