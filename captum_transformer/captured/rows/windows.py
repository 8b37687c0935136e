"""Which part of a tensor is meant: a window of each dimension."""

from collections.abc import Iterable, Sequence
from math import prod
from typing import NamedTuple, TypeAlias


class Factor(NamedTuple):
    """The indices from `start` to `stop` of `size`."""

    size: int
    start: int
    stop: int

    @property
    def is_whole(self) -> bool:
        """Whether it is all indices."""
        return self.stop - self.start == self.size


# The indices of a dimension, as a product: a dimension that samples and tokens were flattened to
# has a factor for the samples and one for the tokens. A dimension of size 1 has none.
Window: TypeAlias = tuple[Factor, ...]
# A window for each dimension.
Box: TypeAlias = tuple[Window, ...]


def between(size: int, start: int, stop: int) -> Window:
    """Returns the window from `start` to `stop`."""
    return () if size == 1 else (Factor(size, start, stop),)


def whole(sizes: Iterable[int]) -> Box:
    """Returns the box of everything.

    >>> whole([1, 3])
    ((), (Factor(size=3, start=0, stop=3),))
    """
    return tuple(between(size, 0, size) for size in sizes)


def size_of(window: Window) -> int:
    """Returns the size of the dimension."""
    return prod(factor.size for factor in window)


def length_of(window: Window) -> int:
    """Returns the number of indices in a window."""
    return prod(factor.stop - factor.start for factor in window)


def lengths(box: Box) -> list[int]:
    """Returns the shape of a tensor that has nothing but the box."""
    return [length_of(window) for window in box]


def volume(box: Box) -> int:
    """Returns the number of entries in a box."""
    return prod(lengths(box))


def is_whole(window: Window) -> bool:
    """Returns whether a window is all of its dimension."""
    return all(factor.is_whole for factor in window)


def normal(factors: Iterable[Factor]) -> Window:
    """Returns the same indices with as few factors as possible.

    >>> normal([Factor(2, 1, 2), Factor(5, 3, 4)])
    (Factor(size=10, start=8, stop=9),)
    """
    found: list[Factor] = []
    for inner in factors:
        if inner.size == 1:
            continue
        if found and (inner.is_whole or found[-1].stop - found[-1].start == 1):
            size, start, stop = found.pop()
            last = (stop - 1) * inner.size + inner.stop
            found.append(Factor(size * inner.size, start * inner.size + inner.start, last))
        else:
            found.append(inner)
    return tuple(found)


def worth_it(box: Box) -> Box:
    """Returns a box with whole dimensions instead of most of one, which saves little.

    >>> worth_it((between(8, 0, 7), between(8, 0, 2))) == (between(8, 0, 8), between(8, 0, 2))
    True
    """
    return tuple(w if 4 * length_of(w) <= 3 * size_of(w) else whole([size_of(w)])[0] for w in box)


def within(one: Box, other: Box) -> bool:
    """Returns whether a box is known to be in another one."""
    return hull(one, other) == other


def hull(one: Box, other: Box) -> Box:
    """Returns a box that contains both: the smallest, if their dimensions have equal factors."""
    return tuple(map(_hull, one, other))


def meet(one: Box, other: Box) -> Box | None:
    """Returns a box that contains what is in both, or None if nothing is."""
    found = list(map(_meet, one, other))
    known = tuple(window for window in found if window is not None)
    return known if len(known) == len(found) else None


def _hull(one: Window, other: Window) -> Window:
    if one == other:
        return one
    if [f.size for f in one] == [f.size for f in other]:
        pairs = zip(one, other, strict=True)
        return normal(Factor(a.size, min(a.start, b.start), max(a.stop, b.stop)) for a, b in pairs)
    return between(size_of(one), 0, size_of(one))


def _meet(one: Window, other: Window) -> Window | None:
    if one == other:
        return one
    if [f.size for f in one] == [f.size for f in other]:
        pairs = zip(one, other, strict=True)
        met = [Factor(a.size, max(a.start, b.start), min(a.stop, b.stop)) for a, b in pairs]
        return normal(met) if all(f.start < f.stop for f in met) else None
    return min(one, other, key=length_of)


def merged(boxes: Iterable[Box]) -> list[Box]:
    """Returns boxes that contain the given ones, fewer if these have no more entries in sum."""
    found: list[Box] = []
    for box in boxes:
        joined, place = box, 0
        while place < len(found):
            both = hull(found[place], joined)
            if volume(both) > volume(found[place]) + volume(joined):
                place += 1
            else:
                del found[place]
                joined, place = both, 0
        found.append(joined)
    return found


def regroup(box: Box, sizes: Sequence[int]) -> Box | None:
    """Returns a box of the same entries, or more, in another shape.

    The entries keep their order, as in a view. Returns None if a dimension of one shape isn't
    known to be made of dimensions of the other.

    >>> flat = regroup((between(2, 0, 2), between(7, 3, 4), between(6, 0, 6)), [14, 6])
    >>> flat[0]
    (Factor(size=2, start=0, stop=2), Factor(size=7, start=3, stop=4))
    >>> lengths(regroup(flat, [2, 7, 2, 3]))
    [2, 1, 2, 3]
    >>> regroup(flat, [7, 12]) is None
    True
    """
    factors = [factor for window in box for factor in window][::-1]
    found = []
    for size in sizes:
        taken = []
        while size > 1:
            if not factors:
                return None
            factor = factors.pop()
            if size % factor.size:
                if factor.size % size:
                    return None
                factor, inner = _split(factor, size)
                factors.append(inner)
            taken.append(factor)
            size //= factor.size
        found.append(normal(taken))
    return None if factors else tuple(found)


def _split(factor: Factor, outer: int) -> tuple[Factor, Factor]:
    """Returns two factors that contain the indices of one."""
    inner = factor.size // outer
    start, stop = factor.start // inner, -(-factor.stop // inner)
    if stop - start > 1:
        return Factor(outer, start, stop), Factor(inner, 0, inner)
    shift = start * inner
    return Factor(outer, start, stop), Factor(inner, factor.start - shift, factor.stop - shift)


def in_factors(window: Window, like: Window) -> Window | None:
    """Returns a window with the factors of another one, if it is the same indices; else None."""
    flat = regroup((window,), [factor.size for factor in like])
    if flat is None:
        return None
    found = tuple(factor for part in flat for factor in part)
    same = len(found) == len(like) and length_of(found) == length_of(window)
    return found if same else None
