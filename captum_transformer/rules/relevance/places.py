"""Where relevance is zero for certain, because the score is read from one token or class.

Between there and the attention call before it, linear layers have relevance in one row of many, or
in one column: the others need no products.
"""

from collections.abc import Iterator
from types import EllipsisType
from typing import NamedTuple

from torch import Tensor

from captum_transformer.rules.relevance.weights import weighting
from captum_transformer.trace.axis import Axis
from captum_transformer.trace.functions import ENTRY_WISE
from captum_transformer.trace.operation import Operation, Value
from captum_transformer.trace.tape import Tape

_SAME_ORDER = frozenset("reshape view flatten unflatten squeeze unsqueeze contiguous clone".split())


class Place(NamedTuple):
    """One index of an axis, outside of which all is zero.

    >>> import torch
    >>> first = Place(Axis.of((2, 3, 4), dim=1), 0)
    >>> first.of(torch.arange(24).view(2, 3, 4)).tolist()
    [[0, 1, 2, 3], [12, 13, 14, 15]]
    """

    axis: Axis
    at: int

    def of(self, tensor: Tensor) -> Tensor:
        """The entries there: ``(outer, inner)``."""
        return tensor.reshape(self.axis)[:, self.at]

    def filled(self, entries: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A tensor with these entries there, and zeros elsewhere."""
        outer, size, inner = self.axis
        result = entries.new_zeros(outer, size, inner)
        result[:, self.at] = entries.reshape(outer, inner)
        return result.reshape(shape)

    def is_of_rows(self, length: int) -> bool:
        """Whether it is some rows of this length, and not within a row."""
        return self.axis.inner % length == 0

    def among_rows(self, before: int, after: int) -> "Place":
        """The same where rows have another length."""
        outer, size, inner = self.axis
        return Place(Axis(outer, size, inner // before * after), self.at)


Places = frozenset[Place]
ANYWHERE: Places = frozenset()


def places_from(start: Value, tape: Tape) -> dict[Value, Places]:
    """For each value that relevance from a start can reach, the places where it can be.

    It is zero outside of each of them.
    """
    found = {start: ANYWHERE}
    last = -1 if start.operation is None else start.operation.index
    for operation in reversed(tape.operations[: last + 1]):
        reached = [found[value] for value in operation.outputs if value in found]
        for _, value in operation.traced() if reached else ():
            single = len(operation.outputs) == 1
            places = _before(operation, value, reached[0]) if single else ANYWHERE
            found[value] = places & found.get(value, places)
    return found


def _before(operation: Operation, value: Value, places: Places) -> Places:
    """The places in an operand of an operation, from those in its output."""
    output = operation.outputs[0]
    if output is None:
        return ANYWHERE
    if operation.kind in ENTRY_WISE and value.shape == output.shape:
        return places
    if operation.name in _SAME_ORDER and value.shape.numel() == output.shape.numel():
        return places
    if operation.name in ("getitem", "select"):
        return frozenset(_picked(operation, value))
    if weighting(operation) is None:
        return ANYWHERE
    lengths = output.shape[-1], value.shape[-1]
    return frozenset(p.among_rows(*lengths) for p in places if p.is_of_rows(lengths[0]))


def _picked(operation: Operation, value: Value) -> Iterator[Place]:
    """Where the entries are that an operation picks by plain numbers."""
    shape = value.shape
    if operation.name == "select":
        numbers = {operation.argument(1, "dim"): operation.argument(2, "index")}
    else:
        given = operation.args[1]
        index = [i for i in (given if isinstance(given, tuple) else (given,)) if i is not None]
        if not all(type(i) in (int, slice, EllipsisType) for i in index):
            return
        behind = index[index.index(...) + 1 :] if ... in index else []
        before = index[: len(index) - len(behind)]
        numbers = dict(enumerate(before)) | {i - len(behind): n for i, n in enumerate(behind)}
    for dim, number in numbers.items():
        if type(number) is int:
            dim %= len(shape)
            if shape[dim] > 1:
                yield Place(Axis.of(shape, dim), number % shape[dim])
