"""Where an axis (the samples, the features) lies in a tensor that was made from the inputs.

The layers of a model repeat the same queries for the same shapes, so results are cached.
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor


class View(NamedTuple):
    """The shape, strides and offset of a view of a contiguous tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0

    @classmethod
    def of(cls, tensor: Tensor) -> "View":
        """Describes a tensor as a view of its storage."""
        return cls(tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))

    def numel(self) -> int:
        """Returns the number of entries of the view."""
        return math.prod(self.shape)

    @lru_cache(maxsize=4096)  # noqa: B019 - a view is a few numbers
    def order(self) -> tuple[int, ...] | None:
        """Returns the dimensions in memory order, or None if the view has gaps or repeats entries.

        >>> import torch
        >>> View.of(torch.empty(2, 3, 4).transpose(0, 1)).order()
        (1, 0, 2)
        """
        dims = sorted(range(len(self.shape)), key=lambda dim: -self.stride[dim])
        lengths = tuple(self.shape[dim] for dim in dims)
        strides = tuple(self.stride[dim] for dim in dims)
        return tuple(dims) if View(lengths, strides).is_contiguous() else None

    @lru_cache(maxsize=4096)  # noqa: B019
    def shows_each_once(self) -> bool:
        """Whether it is certain that the view shows no entry twice.

        >>> import torch
        >>> x = torch.empty(3, 4)
        >>> [View.of(v).shows_each_once() for v in (x.t()[1:], x[:1].expand(3, 4))]
        [True, False]
        """
        end = 1
        for stride, length in sorted(zip(self.stride, self.shape, strict=True)):
            if length > 1 and stride < end:
                return False
            end += stride * max(length - 1, 0)
        return True

    @lru_cache(maxsize=4096)  # noqa: B019
    def apart_from(self, other: "View", shape: tuple[int, ...]) -> bool:
        """Whether it is certain that two views of a contiguous tensor have no entry in common.

        >>> import torch
        >>> x = torch.empty(2, 5, 8)
        >>> [View.of(x[:, 1]).apart_from(View.of(x[:, t:]), (2, 5, 8)) for t in (1, 2)]
        [False, True]
        """
        one, two = (view.entries(shape) for view in (self, other))
        return any(set(a).isdisjoint(b) for a, b in zip(one, two, strict=True))

    @lru_cache(maxsize=4096)  # noqa: B019
    def entries(self, shape: tuple[int, ...]) -> Sequence[range]:
        """Returns the indices shown along each dimension; all if a stride may cross dimensions."""
        steps = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
        firsts = [self.offset // step % length for step, length in zip(steps, shape, strict=True)]
        seen = [range(first, first + 1) for first in firsts]
        for length, stride in zip(self.shape, self.stride, strict=True):
            if length == 1 or not stride:
                continue
            dim = next(dim for dim, step in enumerate(steps) if step <= stride)
            by, rest = divmod(stride, steps[dim])
            start, end = seen[dim].start, seen[dim].stop + (length - 1) * by
            if rest or end > shape[dim]:
                return tuple(map(range, shape))
            seen[dim] = range(start, end, by if len(seen[dim]) == 1 else 1)
        return tuple(seen)

    def is_contiguous(self) -> bool:
        """Whether the entries of the view are contiguous in memory."""
        expected = 1
        for length, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if length != 1 and stride != expected:
                return False
            expected *= length
        return True


class Axis(NamedTuple):
    """An axis as a view of a contiguous tensor's entries: ``(outer, size, inner)``.

    Unlike the index of a dimension, an axis stays valid after a reshape: if it is merged into a
    larger dimension (samples x heads, samples x windows), it still determines the sample of each
    entry.

    >>> import torch
    >>> samples = Axis.of((2, 4, 8), dim=0)
    >>> samples
    Axis(outer=1, size=2, inner=32)
    >>> samples.total(torch.ones(2, 4, 8)).tolist()
    [32.0, 32.0]
    """

    outer: int
    size: int
    inner: int

    @classmethod
    @lru_cache(maxsize=4096)
    def of(cls, shape: tuple[int, ...], dim: int, size: int | None = None) -> "Axis":
        """Returns the axis that is the leading part, of the given size, of dimension ``dim``."""
        size = shape[dim] if size is None else size
        rest = math.prod(shape[dim + 1 :]) * (shape[dim] // size if size else 0)
        return cls(math.prod(shape[:dim]), size, rest)

    @classmethod
    def parts(cls, shape: tuple[int, ...], size: int) -> "Iterator[Axis]":
        """Yields the axes of a given size that are a dimension or its leading or trailing part.

        >>> list(Axis.parts((2, 6), size=3))
        [Axis(outer=2, size=3, inner=2), Axis(outer=4, size=3, inner=1)]
        """
        for dim, length in enumerate(shape):
            if size and length and length % size == 0:
                first = cls.of(shape, dim, size)
                last = cls(first.outer * length // size, size, math.prod(shape[dim + 1 :]))
                yield from dict.fromkeys((first, last))

    @lru_cache(maxsize=4096)  # noqa: B019 - an axis is three numbers
    def dim(self, shape: tuple[int, ...]) -> int | None:
        """Returns the dimension of the shape that the axis is or is the first part of, or None."""
        for dim, length in enumerate(shape if self.size else ()):
            if length % self.size == 0 and length and Axis.of(shape, dim, self.size) == self:
                return dim
        return None

    def total(self, tensor: Tensor) -> Tensor:
        """Sums over everything but this axis: ``(size,)``."""
        return tensor.reshape(self).sum((0, 2))

    def spread(self, values: Tensor, shape: Sequence[int]) -> Tensor:
        """Expands one value per index of this axis to a tensor of the given shape."""
        return values.reshape(1, self.size, 1).expand(self).reshape(shape)

    def in_view(self, view: View) -> "Axis | None":
        """Returns the axis in a view of a contiguous tensor, or None if it isn't a whole axis."""
        found = self.seen_in(view)
        return found[1] if found is not None and found[1].size == self.size else None

    @lru_cache(maxsize=4096)  # noqa: B019
    def seen_in(self, view: View) -> "tuple[int, Axis] | None":
        """Returns the first index that a view shows, and the axis of the shown indices in the view.

        Returns None if the view doesn't show consecutive indices, or if a dimension of the view
        mixes their entries.

        >>> import torch
        >>> keys = Axis.of((2, 5, 8), dim=2)
        >>> keys.seen_in(View.of(torch.empty(2, 5, 8)[..., ::2])) is None
        True
        >>> start, rest = keys.seen_in(View.of(torch.empty(2, 5, 8)[..., 1:]))
        >>> start, rest == Axis.of((2, 5, 7), dim=2)
        (1, True)
        """
        if self.size == 1:
            return 0, Axis(1, 1, view.numel())
        if not view.numel():
            return None  # the view is empty, such as the features after those that are rotated
        end = self.inner * self.size
        if view.is_contiguous() and view.offset == 0 and view.numel() == self.outer * end:
            return 0, self
        along, step, within = None, self.inner, view.offset % self.inner
        for dim, (length, stride) in enumerate(zip(view.shape, view.stride, strict=True)):
            if length == 1 or stride % end == 0:
                continue
            if along is None and stride <= self.inner < stride * length and not self.inner % stride:
                along, step = dim, stride
            else:
                within += stride * (length - 1)
        start = view.offset // self.inner % self.size
        if within >= step:
            return None
        if along is None:
            return start, Axis(1, 1, view.numel())
        per_index = self.inner // step
        count, rest = divmod(view.shape[along], per_index)
        # Some of the indices, or all of them one or several times.
        size = self.size if start == 0 and count % self.size == 0 else count
        if rest or start + size > self.size:
            return None
        inner = per_index * math.prod(view.shape[along + 1 :])
        return start, Axis(view.numel() // size // inner, size, inner)


@lru_cache(maxsize=4096)
def pieces_in_view(axes: tuple[Axis, ...], view: View) -> tuple[Axis, ...]:
    """Returns the dimensions of a view that axes of a contiguous tensor were split or merged into.

    >>> import torch
    >>> qkv = torch.empty(2, 5, 24).view(2, 5, 3, 2, 4)
    >>> heads = pieces_in_view((Axis.of((2, 5, 24), dim=2),), View.of(qkv))
    >>> heads == tuple(Axis.of(qkv.shape, dim) for dim in (2, 3, 4))
    True
    >>> pieces_in_view(heads, View.of(torch.empty(2, 5, 3, 2, 4).flatten(2)))
    (Axis(outer=10, size=24, inner=1),)
    """
    spans: list[tuple[int, int]] = []
    for low, high in sorted((axis.inner, axis.inner * axis.size) for axis in axes):
        if spans and low <= spans[-1][1]:
            before = spans.pop()
            low, high = before[0], max(before[1], high)
        spans.append((low, high))
    return tuple(
        Axis.of(view.shape, dim)
        for dim, (length, stride) in enumerate(zip(view.shape, view.stride, strict=True))
        if length > 1 and any(low <= stride and stride * length <= high for low, high in spans)
    )


def axes_in_view(axes: tuple[Axis, ...], view: View) -> tuple[Axis, ...] | None:
    """Returns axes in a view of a contiguous tensor, where they may be split, merged or missing.

    >>> import torch
    >>> stack = (Axis.of((6, 5, 4), dim=0),)
    >>> axes_in_view(stack, View.of(torch.empty(2, 3, 5, 4).transpose(1, 2)))
    (Axis(outer=1, size=2, inner=60), Axis(outer=10, size=3, inner=4))
    """
    pieces = pieces_in_view(axes, view)
    if math.prod(axis.size for axis in pieces) == math.prod(axis.size for axis in axes):
        return pieces
    found = [seen[1] for axis in axes if (seen := axis.seen_in(view)) is not None]
    return tuple(axis for axis in found if axis.size > 1) if len(found) == len(axes) else None


class Part(NamedTuple):
    """An axis as a part of a dimension.

    Attributes:
        dim: the dimension.
        outer: how often the sequence of the axis' indices is repeated along the dimension.
        size: the number of indices.
        inner: the number of consecutive entries of the dimension that belong to one index.
    """

    dim: int
    outer: int
    size: int
    inner: int

    def of(self, shape: tuple[int, ...], dim: int) -> Axis:
        """Returns the axis that is the same part of a dimension of another tensor."""
        whole = Axis.of(shape, dim)
        return Axis(whole.outer * self.outer, self.size, whole.inner * self.inner)


@lru_cache(maxsize=4096)
def dimension_of(axis: Axis, shape: tuple[int, ...]) -> Part | None:
    """Returns the dimension that an axis is a part of, or None if the axis spans several.

    >>> dimension_of(Axis(outer=2, size=3, inner=8), (6, 8))
    Part(dim=0, outer=2, size=3, inner=1)
    """
    for dim, length in enumerate(shape if axis.size else ()):
        step = math.prod(shape[dim + 1 :])
        inner, outer = axis.inner // step if step else 0, length // axis.size
        inside = step * inner == axis.inner > 0 and length % (axis.size * inner) == 0
        if length > 1 and inside:
            return Part(dim, outer // inner, axis.size, inner)
    return None


@lru_cache(maxsize=4096)
def runs_along(axis: Axis, shape: tuple[int, ...], dim: int) -> bool:
    """Whether entries along a dimension belong to more than one index of an axis.

    >>> [runs_along(Axis.of((6, 4), dim=0, size=2), (6, 4), dim) for dim in (0, 1)]
    [True, False]
    """
    step = math.prod(shape[dim + 1 :])
    return shape[dim] > 1 and step < axis.inner * axis.size and step * shape[dim] > axis.inner
