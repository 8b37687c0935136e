"""Operations that only move entries: views, parts of tensors, and tensors made of parts."""

from collections.abc import Sequence

import torch
from torch.fx import Node

from captum_transformer.captured.rows.letters import ONE, Letters
from captum_transformer.captured.rows.rule import Emit, Rule, Supports, shape_of
from captum_transformer.captured.rows.windows import (
    Box,
    Window,
    between,
    hull,
    lengths,
    meet,
    regroup,
    size_of,
    whole,
)

_ATEN = torch.ops.aten


class Item(Rule):
    """One of the results of an operation that has several."""

    def __init__(self, node: Node, source: Letters, number: int) -> None:
        super().__init__(node)
        self._source, self._letters = source, source.made[number]

    def of(self, box: Box) -> Box:
        """Returns the part of this result, from that of all."""
        windows = {ONE: (), **dict(zip(self._source.letters, box, strict=True))}
        return tuple(windows[letter] for letter in self._letters)

    def support(self, supports: Supports) -> Box | None:
        support = supports[self._source.node]
        return None if support is None else self.of(support)

    def needs(self, box: Box, supports: Supports) -> tuple[Box, list[tuple[Node, Box]]]:
        del supports
        windows = dict(zip(self._letters, box, strict=True))
        every = zip(self._source.letters, whole(self._source.sizes), strict=True)
        return box, [(self._source.node, tuple(windows.get(one, all_) for one, all_ in every))]


class View(Rule):
    """The same entries in the same order, in another shape."""

    moves = True

    def __init__(self, node: Node, source: Node) -> None:
        super().__init__(node)
        self._source = source
        self._shape = shape_of(source)

    def support(self, supports: Supports) -> Box | None:
        support = supports[self._source]
        return None if support is None else regroup(support, self.sizes) or whole(self.sizes)

    def needs(self, box: Box, supports: Supports) -> tuple[Box, list[tuple[Node, Box]]]:
        del supports
        # Both are rounded up until they are the same entries.
        for _ in range(3):
            read = regroup(box, self._shape)
            again = None if read is None else regroup(read, self.sizes)
            if read is None or again is None:
                break
            if again == box:
                return box, [(self._source, read)]
            box = again
        return whole(self.sizes), [(self._source, whole(self._shape))]

    def build(self, box: Box, given: Sequence[Node], emit: Emit) -> Node:
        return emit(_ATEN.view.default, (given[0], lengths(box)))


class Part(Rule):
    """The indices of one dimension from a place on, or one of them, without its dimension."""

    moves = True

    def __init__(self, node: Node, source: Node, dim: int, start: int, *, one: bool) -> None:
        super().__init__(node)
        self._source, self._shape = source, shape_of(source)
        self._dim, self._one = dim % len(self._shape), one
        size = self._shape[self._dim]
        self._start = min(max(start + size if start < 0 else start, 0), size)

    def support(self, supports: Supports) -> Box | None:
        support = supports[self._source]
        if support is None:
            return None
        length = 1 if self._one else self.sizes[self._dim]
        size, start = self._shape[self._dim], self._start
        met = meet((support[self._dim],), (between(size, start, start + length),))
        if met is None:
            return None
        window = () if self._one else (_shifted(met[0], -start, length),)
        return support[: self._dim] + window + support[self._dim + 1 :]

    def needs(self, box: Box, supports: Supports) -> tuple[Box, list[tuple[Node, Box]]]:
        del supports
        size, start, dim = self._shape[self._dim], self._start, self._dim
        if self._one:
            return box, [(self._source, (*box[:dim], between(size, start, start + 1), *box[dim:]))]
        window = _shifted(box[dim], start, size)
        box = (*box[:dim], _shifted(window, -start, self.sizes[dim]), *box[dim + 1 :])
        return box, [(self._source, (*box[:dim], window, *box[dim + 1 :]))]

    def build(self, box: Box, given: Sequence[Node], emit: Emit) -> Node:
        del box
        return emit(_ATEN.select.int, (given[0], self._dim, 0)) if self._one else given[0]


class Joined(Rule):
    """Several tensors next to each other along a dimension."""

    moves = True

    def __init__(self, node: Node, parts: Sequence[Node], dim: int) -> None:
        super().__init__(node)
        self._dim, self._parts = dim % len(self.sizes), parts
        ends = [0]
        for part in parts:
            ends.append(ends[-1] + shape_of(part)[self._dim])
        self._starts = ends[:-1]

    def _placed(self, box: Box, start: int) -> Box:
        dim = self._dim
        return (*box[:dim], _shifted(box[dim], start, self.sizes[dim]), *box[dim + 1 :])

    def support(self, supports: Supports) -> Box | None:
        found: Box | None = None
        for part, start in zip(self._parts, self._starts, strict=True):
            support = supports[part]
            if support is not None:
                placed = self._placed(support, start)
                found = placed if found is None else hull(found, placed)
        return found

    def needs(self, box: Box, supports: Supports) -> tuple[Box, list[tuple[Node, Box]]]:
        del supports
        dim, size, read = self._dim, self.sizes[self._dim], []
        box = (*box[:dim], _shifted(box[dim], 0, size), *box[dim + 1 :])
        for part, start in zip(self._parts, self._starts, strict=True):
            length = shape_of(part)[dim]
            met = meet((box[dim],), (between(size, start, start + length),))
            if met is not None:
                window = _shifted(met[0], -start, length)
                read.append((part, (*box[:dim], window, *box[dim + 1 :])))
        return box, read

    def build(self, box: Box, given: Sequence[Node], emit: Emit) -> Node:
        del box
        return given[0] if len(given) == 1 else emit(_ATEN.cat.default, (list(given), self._dim))


class Written(Rule):
    """A tensor with another one in the place of the indices of a dimension from a place on."""

    moves = True

    def __init__(
        self, node: Node, base: Node, source: Node, dim: int, start: int, *, one: bool
    ) -> None:
        super().__init__(node)
        self._base, self._source = base, source
        self._dim, self._one = dim % len(self.sizes), one
        size = self.sizes[self._dim]
        self._start = min(max(start + size if start < 0 else start, 0), size)
        self._length = 1 if one else shape_of(self._source)[self._dim]

    def support(self, supports: Supports) -> Box | None:
        base, source = supports[self._base], supports[self._source]
        if source is None:
            return base
        placed = self._placed(source)
        return placed if base is None else hull(base, placed)

    def _placed(self, box: Box) -> Box:
        dim, size, start = self._dim, self.sizes[self._dim], self._start
        if self._one:
            return (*box[:dim], between(size, start, start + 1), *box[dim:])
        return (*box[:dim], _shifted(box[dim], start, size), *box[dim + 1 :])

    def needs(self, box: Box, supports: Supports) -> tuple[Box, list[tuple[Node, Box]]]:
        del supports
        dim, size, start = self._dim, self.sizes[self._dim], self._start
        box = (*box[:dim], _shifted(box[dim], 0, size), *box[dim + 1 :])
        written = between(size, start, start + self._length)
        met = meet((box[dim],), (written,))
        if met is None:
            return box, [(self._base, box)]
        rest = () if self._one else (_shifted(met[0], -start, self._length),)
        source = (self._source, (*box[:dim], *rest, *box[dim + 1 :]))
        return box, [source] if met[0] == box[dim] else [(self._base, box), source]

    def build(self, box: Box, given: Sequence[Node], emit: Emit) -> Node:
        dim = self._dim
        if len(given) == 2:  # the base, and what is written into it
            first = box[dim][0].start if box[dim] else 0
            start = max(self._start - first, 0)
            if self._one:
                return emit(_ATEN.select_scatter.default, (*given, dim, start))
            length = given[1].meta["val"].shape[dim]
            return emit(_ATEN.slice_scatter.default, (*given, dim, start, start + length))
        inserted = self._one and len(shape_of(given[0])) < len(box)
        return emit(_ATEN.unsqueeze.default, (given[0], dim)) if inserted else given[0]


class Filled(Rule):
    """A tensor of equal numbers."""

    moves = True

    def __init__(self, node: Node, place: int) -> None:
        super().__init__(node)
        self._number = node.args[place]

    def support(self, supports: Supports) -> Box | None:
        del supports
        return None if self._number == 0 else whole(self.sizes)

    def needs(self, box: Box, supports: Supports) -> tuple[Box, list[tuple[Node, Box]]]:
        del supports
        return box, []

    def build(self, box: Box, given: Sequence[Node], emit: Emit) -> Node:
        del given
        return emit(_ATEN.full.default, (lengths(box), self._number), dict(self.node.kwargs))


def _shifted(window: Window, by: int, size: int) -> Window:
    """Returns the same indices in a smaller or larger dimension, which starts elsewhere."""
    # Products of factors are rounded up.
    start, stop = window[0][1:] if len(window) == 1 else (0, size_of(window))
    return between(size, start + by, stop + by)
