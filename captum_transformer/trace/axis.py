"""Where an axis (the samples, the features) lies in a tensor that was made from the inputs.

The layers of a model ask the same of the same shapes, so answers are kept.
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor


class View(NamedTuple):
    """How a view lies over the entries of a contiguous tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0

    @classmethod
    def of(cls, tensor: Tensor) -> "View":
        """A tensor as a view of its storage."""
        return cls(tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))

    def numel(self) -> int:
        """The number of its entries."""
        return math.prod(self.shape)

    @lru_cache(maxsize=4096)  # noqa: B019 - a view is a few numbers
    def order(self) -> tuple[int, ...] | None:
        """Its dimensions in the order in which the entries lie, if each is there just once.

        >>> import torch
        >>> View.of(torch.empty(2, 3, 4).transpose(0, 1)).order()
        (1, 0, 2)
        """
        dims = sorted(range(len(self.shape)), key=lambda dim: -self.stride[dim])
        lengths = tuple(self.shape[dim] for dim in dims)
        strides = tuple(self.stride[dim] for dim in dims)
        return tuple(dims) if View(lengths, strides).is_contiguous() else None

    def is_contiguous(self) -> bool:
        """Whether its entries lie in memory as they are counted."""
        expected = 1
        for length, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if length != 1 and stride != expected:
                return False
            expected *= length
        return True


class Axis(NamedTuple):
    """An axis as a view of a contiguous tensor's entries: ``(outer, size, inner)``.

    Unlike a dimension's number it survives every reshape: merged into a larger dimension
    (samples x heads, samples x windows) it still says which sample an entry belongs to.

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
        """The axis that is the leading part, of the given size, of dimension ``dim``."""
        size = shape[dim] if size is None else size
        rest = math.prod(shape[dim + 1 :]) * (shape[dim] // size if size else 0)
        return cls(math.prod(shape[:dim]), size, rest)

    @classmethod
    def parts(cls, shape: tuple[int, ...], size: int) -> "Iterator[Axis]":
        """The axes of a size that are a dimension, or the first or last part of what it holds.

        >>> list(Axis.parts((2, 6), size=3))
        [Axis(outer=2, size=3, inner=2), Axis(outer=4, size=3, inner=1)]
        """
        for dim, length in enumerate(shape):
            if length and length % size == 0:
                first = cls.of(shape, dim, size)
                last = cls(first.outer * length // size, size, math.prod(shape[dim + 1 :]))
                yield from dict.fromkeys((first, last))

    @lru_cache(maxsize=4096)  # noqa: B019 - an axis is three numbers
    def dim(self, shape: tuple[int, ...]) -> int | None:
        """The dimension of a tensor of this shape that the axis is, or leads, if there is one."""
        for dim, length in enumerate(shape):
            if length % self.size == 0 and length and Axis.of(shape, dim, self.size) == self:
                return dim
        return None

    def total(self, tensor: Tensor) -> Tensor:
        """Sums over everything but this axis: ``(size,)``."""
        return tensor.reshape(self).sum((0, 2))

    def spread(self, values: Tensor, shape: Sequence[int]) -> Tensor:
        """One value per index of this axis, repeated over a tensor of the given shape."""
        return values.reshape(1, self.size, 1).expand(self).reshape(shape)

    @lru_cache(maxsize=4096)  # noqa: B019
    def in_view(self, view: View) -> "Axis | None":
        """The axis in a view of a contiguous tensor, read off the view's strides."""
        end = self.inner * self.size
        for dim, (length, stride) in enumerate(zip(view.shape, view.stride, strict=True)):
            covers = stride * length == end and 0 < stride <= self.inner
            if covers and length % self.size == 0:
                return Axis.of(view.shape, dim, self.size)
        whole = view.is_contiguous() and view.numel() == self.outer * end
        return self if whole else None

    def part_in_view(self, view: View) -> "Axis | None":
        """The dimension of a view that is the axis, or a slice of it.

        >>> import torch
        >>> keys = Axis.of((2, 5, 8), dim=2)
        >>> keys.part_in_view(View.of(torch.empty(2, 5, 8)[..., :-1])) == Axis.of((2, 5, 7), dim=2)
        True
        """
        whole = self.in_view(view)
        if whole is not None or view.numel() >= self.outer * self.size * self.inner:
            return whole
        for dim, (length, stride) in enumerate(zip(view.shape, view.stride, strict=True)):
            if stride == self.inner and 1 < length < self.size:
                return Axis.of(view.shape, dim)
        return None

    @lru_cache(maxsize=4096)  # noqa: B019
    def kept(self, before: tuple[int, ...], after: tuple[int, ...]) -> "Axis | None":
        """The axis after an operation that keeps the dimensions up to and including its own."""
        dim = self.dim(before)
        if dim is None:
            return None
        if len(before) == len(after) and before[dim] == after[dim]:
            return Axis.of(after, dim, self.size)
        if tuple(before[: dim + 1]) == tuple(after[: dim + 1]):
            return Axis.of(after, dim, self.size)
        return None


@lru_cache(maxsize=4096)
def pieces_in_view(axes: tuple[Axis, ...], view: View) -> tuple[Axis, ...]:
    """The dimensions of a view of a contiguous tensor that some axes were split or merged into.

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
