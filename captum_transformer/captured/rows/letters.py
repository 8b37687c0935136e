"""Operations that are described by a letter for each dimension, as in `einsum`."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch.fx import Node

from captum_transformer.captured.rows.rule import Emit, Rule, Supports, shape_of
from captum_transformer.captured.rows.windows import (
    Box,
    Window,
    hull,
    length_of,
    lengths,
    meet,
    whole,
    worth_it,
)

# A dimension of size 1 that is broadcast, or left of a reduced one.
ONE = "."


class Letters(Rule):
    """An operation that treats entries with different indices of some letters separately.

    Args:
        node: the operation.
        read: the letters of the dimensions of its tensors, by their places or names as arguments.
        made: those of its result, or of each of its results.
        free: the letters whose indices it treats separately.
        summed: letters over which products are summed: only where no factor is zero.
        terms: the result is zero where a factor of each of these products is, which are given by
            the places of the factors; None if it isn't known where.
        product: whether it multiplies for each combination of indices.
        moves: whether it only moves entries.

    Raises:
        ValueError: if the letters don't fit the shapes.
    """

    def __init__(
        self,
        node: Node,
        read: Mapping[Any, str],
        made: str | Sequence[str],
        *,
        free: str,
        summed: str = "",
        terms: Sequence[Sequence[int | str]] | None = None,
        product: bool = False,
        moves: bool = False,
    ) -> None:
        super().__init__(node)
        self.made = made
        self._read, self._free, self._summed, self._terms = read, free, summed, terms
        self._product, self.moves = product, moves
        every = {ONE: 1}
        given = [(letters, shape_of(self._at(place))) for place, letters in read.items()]
        value = node.meta["val"]
        made, values = ([made], [value]) if isinstance(made, str) else (made, value)
        given += [(one, tuple(value.shape)) for one, value in zip(made, values, strict=True)]
        for letters, shape in given:
            for letter, size in zip(letters, shape, strict=True):
                if every.setdefault(letter, size) != size or not size:
                    raise ValueError(letters, shape)
        self._whole: dict[str, Window] = dict(zip(every, whole(every.values()), strict=True))
        # What its boxes are of.
        self.letters = made[0] if len(made) == 1 else "".join(dict.fromkeys("".join(made)))

    @property
    def sizes(self) -> Sequence[int]:
        return lengths(self._box({}))

    def _at(self, place: int | str) -> Node:
        known: Any = self.node.kwargs if isinstance(place, str) else self.node.args
        found: Node = known[place]
        return found

    def _box(self, windows: Mapping[str, Window]) -> Box:
        """Returns a box of the result from windows of letters: all of those that are not free."""
        free = {letter: window for letter, window in windows.items() if letter in self._free}
        return tuple(free.get(letter, self._whole[letter]) for letter in self.letters)

    def _windows(self, place: int | str, supports: Supports) -> dict[str, Window] | None:
        support = supports[self._at(place)]
        return None if support is None else dict(zip(self._read[place], support, strict=True))

    def _inner(self, supports: Supports) -> dict[str, Window] | None:
        """Returns the indices that are summed over, or None if all products are zero."""
        found: dict[str, Window] = {}
        for place in (place for place, read in self._read.items() if set(self._summed) & set(read)):
            windows = self._windows(place, supports)
            if windows is None:
                return None
            for letter in set(self._summed) & windows.keys():
                both = meet((found.get(letter, windows[letter]),), (windows[letter],))
                if both is None:
                    return None
                (found[letter],) = both
        return found

    def support(self, supports: Supports) -> Box | None:
        if self._terms is None:
            return whole(self.sizes)
        found: Box | None = None
        for term in self._terms:
            box = self._support_of(term, supports)
            if box is not None:
                found = box if found is None else hull(found, box)
        return found

    def _support_of(self, term: Sequence[int | str], supports: Supports) -> Box | None:
        summed = any(set(self._summed) & set(self._read[place]) for place in term)
        box = whole(self.sizes)
        if summed and self._inner(supports) is None:
            return None
        for windows in (self._windows(place, supports) for place in term):
            both = None if windows is None else meet(box, self._box(windows))
            if both is None:
                return None
            box = both
        return box

    def needs(self, box: Box, supports: Supports) -> tuple[Box, list[tuple[Node, Box]]]:
        box = self._box(dict(zip(self.letters, box, strict=True)))
        windows = self._all_windows(box, supports)
        read = self._read.items()
        return box, [(self._at(p), tuple(windows[one] for one in letters)) for p, letters in read]

    def build(self, box: Box, given: Sequence[Node], emit: Emit) -> Node:
        args, kwargs = list(self.node.args), dict(self.node.kwargs)
        for place, node in zip(self._read, given, strict=True):
            if isinstance(place, str):
                kwargs[place] = node
            else:
                args[place] = node
        if self.node.target is torch.ops.aten.expand.default:
            args[1] = lengths(box)
        return emit(self.node.target, tuple(args), kwargs)

    def cost(self, box: Box, supports: Supports) -> int:
        if not self._product:
            return 0
        return prod(map(length_of, self._all_windows(box, supports).values()))

    def _all_windows(self, box: Box, supports: Supports) -> dict[str, Window]:
        """Returns the indices of all letters that a box is computed from."""
        windows = {**self._whole, **dict(zip(self.letters, box, strict=True))}
        for letter, window in (self._inner(supports) or {}).items():
            (windows[letter],) = worth_it((window,))
        return windows
