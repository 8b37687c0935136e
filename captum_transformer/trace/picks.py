"""Which rows of what went before a value has, where a model picks some, as for experts."""

from collections.abc import Iterable
from itertools import zip_longest
from typing import NamedTuple

import torch
from torch import Tensor

from captum_transformer.trace.kinds import MOVES, Kind, Role
from captum_transformer.trace.operation import Operand, Operation
from captum_transformer.trace.value import Value

_PICKS = MOVES | {Kind.CHOICE}


class Picked(NamedTuple):
    """The numbers of the rows that a value was made of.

    Attributes:
        numbers: the rows' numbers.
        are_rows: whether they are still its rows, one for each.
    """

    numbers: Tensor
    are_rows: bool


def picked_rows(operations: Iterable[Operation]) -> dict[Value, list[Picked]]:
    """The numbers of the rows that values were made of, as far as indices have picked them.

    What is picked from what was picked has the numbers of the first rows, so rows that are put back
    into their order have them in order. What is written or added at indices lies where it is
    written. A row that is looked up in a table is of the token that looks it up.
    """
    found: dict[Value, list[Picked]] = {}
    for operation in operations:
        if operation.kind is Kind.EMBEDDING:
            continue
        into = operation.argument("input")
        writes = operation.kind is Kind.SUM_AT_INDICES or "source" in operation.arguments
        sources = [value for operand, value in operation.traced() if not writes or operand is into]
        before = {id(rows): rows for value in sources for rows in found.get(value, ())}
        after = list(before.values())
        if operation.kind in _PICKS and not writes:
            indices = [_rows(o) for o in operation.operands if _is_index(o)]
            after = _picked(after, indices, len(into.size) and into.size[0]) if indices else after
        if after:
            found |= {value: after for value in operation.outputs if value is not None}
    return found


def are_same_rows(some: list[Picked] | None, others: list[Picked] | None) -> bool:
    """Whether two runs have picked the same."""
    pairs = zip_longest(some or (), others or ())
    return all(one and other and torch.equal(one.numbers, other.numbers) for one, other in pairs)


def _is_index(operand: Operand) -> bool:
    return operand.role is Role.INDEX and operand.value is None and operand.is_kept


def _rows(operand: Operand) -> Tensor:
    index = operand.tensor
    return index.nonzero().flatten() if index.dtype in (torch.bool, torch.uint8) else index


def _picked(rows: list[Picked], indices: list[Tensor], length: int) -> list[Picked]:
    """The rows after some were picked, of as many as there were."""
    (index, *further) = indices
    plain = not further and index.ndim == 1
    after, new = [], True
    for numbers, are_rows in rows:
        known = plain and are_rows and numbers.shape == (length,)
        after.append(Picked(numbers[index] if known else numbers, known))
        new = new and not known
    return after + [Picked(index, plain) for index in indices if new]
